/* The thread pool: see threads.h. */
#define _GNU_SOURCE
#include "base/threads.h"

#include <errno.h>
#include <linux/futex.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"

enum {
    N_SPINS = 4000,        /* about 30 us of pauses before a waiter sleeps */
    N_WORKER_SPINS = 20000 /* within a run, whose longest items take some 100 us */
};

/* A number that threads wait on: they spin for a while, then sleep in the kernel until it
 * changes. */
typedef struct event {
    _Alignas(LMD_CACHE_LINE) atomic_int value;
    atomic_int n_sleeping;
} event;

/* How many items of one thread's share have been claimed, and of which stage: (index of the
 * stage + 1) << 32 | items. It only grows in a run, so a thread that comes late to a stage sees
 * that a later one has begun. */
typedef struct share {
    _Alignas(LMD_CACHE_LINE) atomic_uint_fast64_t claimed;
} share;

enum { OPEN = 1 << 30 }; /* a bit of `entry`, above any number of workers: they may enter */

struct lmd_threads {
    int32_t n;
    pid_t pid; /* the process that has the workers */
    pthread_t *handles;
    share *shares;            /* [n] */
    pthread_mutex_t run_lock; /* one run at a time */
    atomic_bool quit;

    /* The run under way; written while no worker is inside. */
    lmd_stage *stages;
    size_t stride; /* bytes from one stage to the next */
    int32_t n_stages;
    void *arg;
    int64_t last_call; /* ns: when the caller last woke sleeping workers */

    event wake; /* workers wait for a run, or for a call for help */
    event done; /* the caller waits for the last item of a stage, and for workers to leave */
    _Alignas(LMD_CACHE_LINE) atomic_int entry; /* number of workers in the run, and OPEN */
    _Alignas(LMD_CACHE_LINE) atomic_int first; /* index of a stage; all before it are done */
};

typedef struct worker_arg {
    lmd_threads *pool;
    int32_t thread_idx;
} worker_arg;

static void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void event_wait_past(event *self, int32_t old) {
    for (int32_t i = 0; i < N_SPINS; i++) {
        if (atomic_load_explicit(&self->value, memory_order_acquire) != old) return;
        pause_cpu();
    }
    /* seq_cst: either the signaller sees the sleeper, or the kernel sees the new value. */
    atomic_fetch_add(&self->n_sleeping, 1);
    while (atomic_load(&self->value) == old)
        syscall(SYS_futex, &self->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&self->n_sleeping, 1);
}

static void event_signal(event *self) {
    atomic_fetch_add(&self->value, 1);
    if (atomic_load(&self->n_sleeping) > 0)
        syscall(SYS_futex, &self->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Wakes workers that fell asleep during a run. Not for every stage: the system call takes as
 * long as a small stage does. */
static void call_for_help(lmd_threads *self) {
    enum { PATIENCE_NS = 200000 };
    int64_t now = lmd_now_ns();
    if (now - self->last_call < PATIENCE_NS) return;
    self->last_call = now;
    event_signal(&self->wake);
}

/* ---- stages ---- */

static lmd_stage *stage_at(const lmd_threads *self, int32_t i) {
    return (lmd_stage *)(void *)((char *)self->stages + (size_t)i * self->stride);
}

static bool is_done(const lmd_stage *stage) {
    return atomic_load_explicit(&stage->n_done, memory_order_acquire) == stage->n_items;
}

/* Claims an item of the owner's share of stage i; -1: none is left. */
static int32_t claim_item(lmd_threads *self, int32_t i, int32_t owner) {
    const int64_t n_items = stage_at(self, i)->n_items;
    const int32_t begin = (int32_t)(n_items * owner / self->n);
    const int32_t n = (int32_t)(n_items * (owner + 1) / self->n) - begin;
    const uint64_t stage = (uint64_t)(i + 1) << 32;
    atomic_uint_fast64_t *claimed = &self->shares[owner].claimed;
    uint64_t seen = atomic_load_explicit(claimed, memory_order_relaxed);
    for (;;) {
        const uint64_t next = seen < stage ? stage : seen;
        if (next >= stage + (uint64_t)n) return -1; /* all are claimed, or a later stage runs */
        if (atomic_compare_exchange_weak_explicit(claimed, &seen, next + 1,
                                                  memory_order_relaxed, memory_order_relaxed))
            return begin + (int32_t)(next - stage);
    }
}

/* Runs the items of the thread's own share, then what is left of the others' shares. The thread
 * that finishes the stage's last item wakes the caller. */
static void run_items(lmd_threads *self, int32_t i, int32_t thread_idx) {
    lmd_stage *stage = stage_at(self, i);
    int32_t n = 0;
    for (int32_t k = 0; k < self->n; k++) {
        const int32_t owner = (thread_idx + k) % self->n;
        for (int32_t item; (item = claim_item(self, i, owner)) >= 0; n++)
            stage->run(self->arg, stage, item, thread_idx, n == 0);
    }
    if (n && atomic_fetch_add(&stage->n_done, n) + n == stage->n_items)
        event_signal(&self->done);
}

/* Waits a bounded time; false when the stage is still not done. */
static bool spin_for(const lmd_stage *stage, int32_t n_spins) {
    for (int32_t i = 0; i < n_spins; i++) {
        if (is_done(stage)) return true;
        pause_cpu();
    }
    return is_done(stage);
}

/* Sleeps until the other threads have finished their items; for the caller. */
static void wait_for(lmd_threads *self, const lmd_stage *stage) {
    if (spin_for(stage, N_SPINS)) return;
    for (;;) {
        int32_t seen = atomic_load(&self->done.value);
        if (is_done(stage)) return;
        event_wait_past(&self->done, seen);
    }
}

/* Goes through the stages, from the first that is not done. A worker that has waited in vain
 * for a stage to end leaves the run, and enters again when it is called. */
static void work(lmd_threads *self, int32_t thread_idx) {
    int32_t i = atomic_load_explicit(&self->first, memory_order_acquire);
    for (; i < self->n_stages; i++) {
        lmd_stage *stage = stage_at(self, i);
        run_items(self, i, thread_idx);
        if (thread_idx == 0)
            wait_for(self, stage);
        else if (!spin_for(stage, N_WORKER_SPINS))
            return;
        if (thread_idx == 0) {
            atomic_store_explicit(&self->first, i + 1, memory_order_release);
            if (atomic_load_explicit(&self->wake.n_sleeping, memory_order_relaxed))
                call_for_help(self);
        }
    }
}

/* ---- workers ---- */

/* False where the run is over already. */
static bool enter(lmd_threads *self) {
    int32_t entry = atomic_load(&self->entry);
    while (entry & OPEN)
        if (atomic_compare_exchange_weak(&self->entry, &entry, entry + 1)) return true;
    return false;
}

static void leave(lmd_threads *self) {
    const bool is_last = atomic_fetch_sub(&self->entry, 1) == 1; /* of a run that is closed */
    if (is_last) event_signal(&self->done);
}

static void *worker_main(void *ptr) {
    worker_arg arg = *(worker_arg *)ptr;
    lmd_free(ptr);
    lmd_threads *pool = arg.pool;
    int32_t seen = 0;
    for (;;) {
        event_wait_past(&pool->wake, seen);
        seen = atomic_load(&pool->wake.value);
        if (atomic_load(&pool->quit)) return NULL;
        if (!enter(pool)) continue;
        work(pool, arg.thread_idx);
        leave(pool);
    }
}

/* Closes the run to workers and waits until those inside have left. They have no item any
 * more, so that takes no time. */
static void close_run(lmd_threads *self) {
    atomic_fetch_and(&self->entry, ~OPEN);
    for (int32_t i = 0; i < N_SPINS; i++) {
        if (atomic_load(&self->entry) == 0) return;
        pause_cpu();
    }
    for (;;) {
        int32_t seen = atomic_load(&self->done.value);
        if (atomic_load(&self->entry) == 0) return;
        event_wait_past(&self->done, seen);
    }
}

void lmd_threads_run(lmd_threads *self, lmd_stage *stages, size_t stride, int32_t n,
                     void *arg) {
    pthread_mutex_lock(&self->run_lock);
    self->stages = stages;
    self->stride = stride;
    self->n_stages = n;
    self->arg = arg;
    atomic_store(&self->first, 0);
    for (int32_t i = 0; i < self->n; i++) atomic_store(&self->shares[i].claimed, 0);
    if (self->n > 1) {
        atomic_fetch_or(&self->entry, OPEN);
        event_signal(&self->wake);
    }
    work(self, 0);
    if (self->n > 1) close_run(self);
    pthread_mutex_unlock(&self->run_lock);
}

int32_t lmd_threads_count(const lmd_threads *self) { return self->n; }

static void stop_workers(lmd_threads *self, int32_t n_started) {
    atomic_store(&self->quit, true);
    event_signal(&self->wake);
    for (int32_t i = 0; i < n_started; i++) pthread_join(self->handles[i], NULL);
}

static void free_memory(lmd_threads *self) {
    lmd_free(self->handles);
    lmd_free_large(self->shares, (size_t)self->n * sizeof *self->shares);
    lmd_free_large(self, sizeof *self);
}

static lmd_status start_workers(lmd_threads *self, lmd_err *err) {
    for (int32_t i = 0; i < self->n - 1; i++) {
        worker_arg *arg = lmd_calloc(1, sizeof *arg);
        if (arg) *arg = (worker_arg){self, i + 1};
        int code = arg ? pthread_create(&self->handles[i], NULL, worker_main, arg) : ENOMEM;
        if (code == 0) continue;
        lmd_free(arg);
        stop_workers(self, i);
        return lmd_fail(err, LMD_NO_MEMORY,
                        "thread %d of %d cannot start: %s; ask for fewer num_threads", i + 2,
                        self->n, strerror(code));
    }
    return LMD_OK;
}

lmd_status lmd_threads_new(int32_t n, lmd_threads **out, lmd_err *err) {
    if (n < 0 || n > LMD_MAX_THREADS)
        return lmd_fail(err, LMD_INVALID, "num_threads must be 1 to %d, not %d",
                        LMD_MAX_THREADS, n);
    if (n == 0) n = lmd_threads_usable();
    lmd_threads *self = lmd_alloc_large(sizeof *self); /* aligned to the cache line */
    if (self) {
        self->n = n;
        self->pid = getpid();
        self->handles = lmd_calloc((size_t)n, sizeof *self->handles);
        self->shares = lmd_alloc_large((size_t)n * sizeof *self->shares);
    }
    if (!self || !self->handles || !self->shares) {
        if (self) free_memory(self);
        return lmd_no_memory(err, "%d threads", n);
    }
    pthread_mutex_init(&self->run_lock, NULL);
    lmd_status status = start_workers(self, err);
    if (status == LMD_OK)
        *out = self;
    else
        free_memory(self);
    return status;
}

void lmd_threads_free(lmd_threads *self) {
    if (!self || self->pid != getpid()) return;
    stop_workers(self, self->n - 1);
    pthread_mutex_destroy(&self->run_lock);
    free_memory(self);
}

/* Reads "quota period" from a cgroup's file; returns whole CPUs, rounded up, or 0 where there
 * is no limit. */
static int32_t read_quota(const char *dir) {
    char path[512];
    long quota = 0, period = 0;
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", dir);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    int n_read = fscanf(file, "%ld %ld", &quota, &period); /* "max 100000" reads nothing */
    fclose(file);
    if (n_read != 2 || quota <= 0 || period <= 0) return 0;
    return (int32_t)((quota + period - 1) / period);
}

/* The smallest quota of the process's cgroup (version 2) and of those above it, in CPUs; 0: no
 * limit. */
static int32_t cgroup_quota(void) {
    char line[512], dir[400] = "";
    FILE *file = fopen("/proc/self/cgroup", "r");
    if (file) {
        while (fgets(line, sizeof line, file))
            if (sscanf(line, "0::%399[^\n]", dir) == 1) break;
        fclose(file);
    }
    int32_t smallest = 0;
    for (;;) {
        int32_t quota = read_quota(strcmp(dir, "/") == 0 ? "" : dir);
        if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
        char *slash = strrchr(dir, '/');
        if (!slash) return smallest;
        *slash = '\0';
    }
}

int32_t lmd_threads_usable(void) {
    cpu_set_t mask;
    int32_t n = 1;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0)
        n = CPU_COUNT(&mask);
    else
        n = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    int32_t quota = cgroup_quota();
    if (quota > 0 && quota < n) n = quota;
    if (n > LMD_MAX_THREADS) n = LMD_MAX_THREADS;
    return n < 1 ? 1 : n;
}

/* ---- failures ---- */

void lmd_failure_note(lmd_failure *self, const lmd_err *err) {
    if (atomic_exchange(&self->is_noted, 1) == 0) self->err = *err;
}

lmd_status lmd_failure_get(const lmd_failure *self, lmd_err *err) {
    if (!self->is_noted) return LMD_OK;
    if (err) *err = self->err;
    return self->err.code;
}
