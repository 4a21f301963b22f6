/* The thread pool: see threads.h. */
#define _GNU_SOURCE
#include "base/threads.h"

#include <linux/futex.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"

enum { N_SPINS = 4000 }; /* about 30 us of pauses before a waiter sleeps */

/* A number that threads wait on: spin first, then sleep in the kernel until it changes. */
typedef struct lmd_event {
    _Alignas(LMD_CACHE_LINE) atomic_int value;
    atomic_int n_sleeping;
} lmd_event;

struct lmd_threads {
    int32_t n;
    pid_t pid; /* the process that has the workers */
    pthread_t *handles;
    pthread_mutex_t region_lock; /* one region at a time */
    void (*fn)(void *arg, int32_t thread_idx);
    void *arg;
    bool quit;
    lmd_event region;                              /* counts regions started */
    lmd_event barrier;                             /* counts barriers passed */
    _Alignas(LMD_CACHE_LINE) atomic_int n_arrived; /* at the barrier under way */
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

static void event_wait_past(lmd_event *event, int32_t old) {
    for (int32_t i = 0; i < N_SPINS; i++) {
        if (atomic_load_explicit(&event->value, memory_order_acquire) != old) return;
        pause_cpu();
    }
    /* seq_cst: either the signaller sees the sleeper, or the kernel sees the new value. */
    atomic_fetch_add(&event->n_sleeping, 1);
    while (atomic_load(&event->value) == old)
        syscall(SYS_futex, &event->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&event->n_sleeping, 1);
}

static void event_signal(lmd_event *event) {
    atomic_fetch_add(&event->value, 1);
    if (atomic_load(&event->n_sleeping) > 0)
        syscall(SYS_futex, &event->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void lmd_threads_barrier(lmd_threads *self) {
    if (self->n == 1) return;
    int32_t phase = atomic_load_explicit(&self->barrier.value, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&self->n_arrived, 1, memory_order_acq_rel) == self->n - 1) {
        atomic_store_explicit(&self->n_arrived, 0, memory_order_relaxed);
        event_signal(&self->barrier);
    } else {
        event_wait_past(&self->barrier, phase);
    }
}

static void *worker_main(void *ptr) {
    worker_arg arg = *(worker_arg *)ptr;
    lmd_free(ptr);
    lmd_threads *pool = arg.pool;
    for (uint32_t seen = 0;; seen++) { /* wraps around, as the event's value does */
        event_wait_past(&pool->region, (int32_t)seen);
        if (pool->quit) return NULL;
        pool->fn(pool->arg, arg.thread_idx);
        lmd_threads_barrier(pool);
    }
}

void lmd_threads_run(lmd_threads *self, void (*fn)(void *arg, int32_t thread_idx), void *arg) {
    if (self->n == 1) {
        pthread_mutex_lock(&self->region_lock);
        fn(arg, 0);
        pthread_mutex_unlock(&self->region_lock);
        return;
    }
    pthread_mutex_lock(&self->region_lock);
    self->fn = fn;
    self->arg = arg;
    event_signal(&self->region);
    fn(arg, 0);
    lmd_threads_barrier(self);
    pthread_mutex_unlock(&self->region_lock);
}

int32_t lmd_threads_count(const lmd_threads *self) { return self->n; }

static void stop_workers(lmd_threads *self, int32_t n_started) {
    self->quit = true;
    event_signal(&self->region);
    for (int32_t i = 0; i < n_started; i++) pthread_join(self->handles[i], NULL);
}

lmd_status lmd_threads_new(int32_t n, lmd_threads **out, lmd_err *err) {
    if (n < 0 || n > LMD_MAX_THREADS)
        return lmd_fail(err, LMD_INVALID, "num_threads must be 1 to %d, not %d",
                        LMD_MAX_THREADS, n);
    if (n == 0) n = lmd_threads_usable();
    lmd_threads *self = lmd_alloc_large(sizeof *self); /* aligned to the cache line */
    pthread_t *handles = lmd_calloc((size_t)n, sizeof *handles);
    if (!self || !handles) {
        lmd_free_large(self, sizeof *self);
        lmd_free(handles);
        return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for %d threads", n);
    }
    self->n = n;
    self->pid = getpid();
    self->handles = handles;
    pthread_mutex_init(&self->region_lock, NULL);
    for (int32_t i = 0; i < n - 1; i++) {
        worker_arg *arg = lmd_calloc(1, sizeof *arg);
        if (arg) *arg = (worker_arg){self, i + 1};
        int code = arg ? pthread_create(&handles[i], NULL, worker_main, arg) : 12;
        if (code != 0) {
            lmd_free(arg);
            stop_workers(self, i);
            lmd_free(handles);
            lmd_free_large(self, sizeof *self);
            return lmd_fail(err, LMD_NO_MEMORY,
                            "thread %d of %d cannot start: %s; ask for fewer num_threads",
                            i + 2, n, strerror(code));
        }
    }
    *out = self;
    return LMD_OK;
}

void lmd_threads_free(lmd_threads *self) {
    if (!self || self->pid != getpid()) return;
    stop_workers(self, self->n - 1);
    pthread_mutex_destroy(&self->region_lock);
    lmd_free(self->handles);
    lmd_free_large(self, sizeof *self);
}

/* Reads "quota period" from a cgroup file; returns whole CPUs, rounded up, or 0 for no limit.
 */
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

/* The smallest quota of the process's cgroup (version 2) and of those above it; 0: no limit. */
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
