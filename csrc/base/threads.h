/* The thread pool: stages of work, for short steps of many small operations.
 * Owns: the worker threads. Nobody waits for a thread, but for work that it has taken, and
 * waiting spins for a bounded time and then sleeps in the kernel: so a neighbour who steals a
 * core costs its share. One run at a time; callers queue. Must not know: what is computed. */
#ifndef LMD_BASE_THREADS_H
#define LMD_BASE_THREADS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/memory.h"
#include "base/status.h"

typedef struct lmd_threads lmd_threads;

enum { LMD_MAX_THREADS = 256 };

/* How many threads the affinity mask and the cgroup's CPU quota leave to this process: at
 * least 1. */
int32_t lmd_threads_usable(void);

/* Starts a pool of n threads, the caller of run being one (0: as many as are usable). */
lmd_status lmd_threads_new(int32_t n, lmd_threads **out, lmd_err *err);
/* Ends the workers. In a forked child, where there are none, it frees nothing. */
void lmd_threads_free(lmd_threads *self);

int32_t lmd_threads_count(const lmd_threads *self);

/* A stage: items of work that any thread may take. Each thread begins with an even share of
 * neighbouring items, so that it reads memory in one stream, and then helps with those of
 * others. Stages run one after another: an item of the next starts when all items of this one
 * are done. */
typedef struct lmd_stage {
    /* Runs one item; `is_first` is set for the first that this thread takes of the stage. */
    void (*run)(void *arg, const struct lmd_stage *stage, int32_t item, int32_t thread_idx,
                bool is_first);
    int32_t n_items;
    _Alignas(LMD_CACHE_LINE) atomic_int n_done; /* 0 at first */
} lmd_stage;

/* Runs n stages that stand `stride` bytes apart, and returns when all are done. A thread that
 * the system has put aside is waited for only while it holds an item. */
void lmd_threads_run(lmd_threads *self, lmd_stage *stages, size_t stride, int32_t n, void *arg);

#endif
