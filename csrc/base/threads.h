/* The thread pool: parallel regions with barriers, for short steps of many small operations.
 * Owns: the worker threads. Waiting spins for a bounded time and then sleeps in the kernel, so
 * that a neighbour who steals a core costs its share. One region runs at a time; callers queue.
 * Must not know: what the regions compute. */
#ifndef LMD_BASE_THREADS_H
#define LMD_BASE_THREADS_H

#include <stdatomic.h>
#include <stdint.h>

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

/* Runs fn(arg, thread_idx) on every thread and returns when all have. */
void lmd_threads_run(lmd_threads *self, void (*fn)(void *arg, int32_t thread_idx), void *arg);

/* Inside a region: waits until every thread has come here. */
void lmd_threads_barrier(lmd_threads *self);

/* Takes the next of n_items work items from a shared counter that starts at 0; -1 when none is
 * left. */
static inline int32_t lmd_threads_take(atomic_int *counter, int32_t n_items) {
    int32_t item = atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
    return item < n_items ? item : -1;
}

#endif
