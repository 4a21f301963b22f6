/* The thread pool: runs stages of work, for short steps of many small operations.
 * Owns: the worker threads. A thread never waits for another to arrive, only for items that the
 * other has claimed, and waiting spins for a bounded time and then sleeps in the kernel: so a
 * core that another process takes away costs no more than that core's share. One run at a time;
 * callers queue. Must not know: what is computed. Any thread may call. */
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

/* How many threads the affinity mask and the cgroup's CPU quota allow this process: at least
 * 1. */
int32_t lmd_threads_usable(void);

/* Starts a pool of n threads, of which the caller of lmd_threads_run is one; 0: as many as are
 * usable. LMD_INVALID for more than LMD_MAX_THREADS, LMD_NO_MEMORY. */
lmd_status lmd_threads_new(int32_t n, lmd_threads **out, lmd_err *err);
/* Ends the workers. In a forked child, where there are none, it frees nothing. */
void lmd_threads_free(lmd_threads *self);

int32_t lmd_threads_count(const lmd_threads *self);

/* A stage: items of work that any thread may run. Each thread begins with an even share of
 * neighbouring items, so that it reads memory in one stream, and then helps with the shares of
 * others. Stages run one after another: the items of the next start when all items of this one
 * are done. */
typedef struct lmd_stage {
    /* Runs one item; `is_first` is set for the first item of the stage that this thread runs.
     */
    void (*run)(void *arg, const struct lmd_stage *stage, int32_t item, int32_t thread_idx,
                bool is_first);
    int32_t n_items;
    _Alignas(LMD_CACHE_LINE) atomic_int n_done; /* 0 at first */
} lmd_stage;

/* Runs n stages, which lie `stride` bytes apart, and returns when all are done. A thread that
 * the system has suspended is waited for only while it has an item. */
void lmd_threads_run(lmd_threads *self, lmd_stage *stages, size_t stride, int32_t n, void *arg);

/* What the items of a run failed by: the first error that a thread notes. One of zeros is none.
 */
typedef struct lmd_failure {
    atomic_int is_noted;
    lmd_err err; /* for the caller of lmd_threads_run, once that has returned */
} lmd_failure;

/* Any thread that runs items. */
void lmd_failure_note(lmd_failure *self, const lmd_err *err);
/* The caller of lmd_threads_run. Gives the error's code, or LMD_OK. */
lmd_status lmd_failure_get(const lmd_failure *self, lmd_err *err);

#endif
