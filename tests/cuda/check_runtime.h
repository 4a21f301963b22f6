/* What the checks of the emulator's runtime share. A kernel here is a job that counts. One
 * thread, except where said. */
#ifndef TESTS_CUDA_CHECK_RUNTIME_H
#define TESTS_CUDA_CHECK_RUNTIME_H

#include <pthread.h>
#include <stdatomic.h>

#include "emu/runtime.h"

void check(bool ok, const char *what, const char *file, int line);
void check_error(cudaError_t got, cudaError_t want, const char *what, const char *file,
                 int line);

#define CHECK(condition)  check(condition, #condition, __FILE__, __LINE__)
#define GIVES(call, want) check_error(call, want, #call, __FILE__, __LINE__)
#define OK(call)          GIVES(call, cudaSuccess)

enum { N = 1000 }; /* bytes of each array */

typedef struct bench {
    cudaStream_t stream;
    uint8_t *device, *other; /* [N] */
    uint8_t *pinned;         /* [N] */
} bench;

bench open_bench(void);
void close_bench(const bench *b);
/* Says whether all N bytes of device memory have a value. */
bool device_is(const uint8_t *device, int value);

/* Something that a stream cannot pass before it is opened. */
typedef struct gate {
    atomic_bool is_open;
    pthread_t opener;
} gate;

void close_gate(gate *self, cudaStream_t stream);
void open_gate(gate *self);
void open_gate_later(gate *self); /* in 20 ms, by another thread */
bool has_waited(gate *self);      /* until it was opened later */

/* Counts its runs: an atomic_int. */
void count(void *arg);

typedef struct job_state {
    atomic_int n_run, n_dropped;
    void *memory; /* a parameter */
} job_state;

void enqueue(cudaStream_t stream, job_state *state);

/* check_runtime_work.c */
void check_lateness(void);
void check_legacy_stream(void);
void check_jobs(void);
void check_threads(void);
void check_events(void);
void check_graphs(void);
void check_captures(void);

#endif
