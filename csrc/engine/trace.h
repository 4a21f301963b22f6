/* The trace: what each step did and when, and the events in the life of each request.
 * Owns: two rings of records, which exist only while a trace runs; a full ring overwrites its
 * oldest record. The engine's thread adds, any thread starts and stops, under the trace's lock,
 * which nobody holds for longer than a copy of a record. Start allocates, adding never does.
 * Must not know: who reads it, Python. */
#ifndef LMD_ENGINE_TRACE_H
#define LMD_ENGINE_TRACE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* Records are rows of int64_t, so that a ring is one array. Times are nanoseconds of
 * CLOCK_MONOTONIC. */
typedef struct lmd_trace_step {
    int64_t start, end;
    int64_t n_seqs, n_prefilled, n_decoded; /* sequences, tokens */
    int64_t budget;                         /* tokens */
    int64_t n_free_blocks, n_active_blocks, n_cached_blocks;
    int64_t n_running, n_waiting; /* requests */
    int64_t n_preempted;          /* sequences, by this step's schedule */
} lmd_trace_step;

typedef enum lmd_trace_kind {
    LMD_TRACE_SUBMITTED,   /* the engine's thread admitted it; the time is that of the submit */
    LMD_TRACE_STARTED,     /* its first step; n_tokens: of its prompt, found in KV */
    LMD_TRACE_FIRST_TOKEN, /* n_tokens: of its prompt */
    LMD_TRACE_ENDED        /* n_tokens: generated */
} lmd_trace_kind;

typedef struct lmd_trace_event {
    int64_t at, kind, request_id, n_tokens;
    int64_t finish_reason; /* lmd_finish_reason */
} lmd_trace_event;

typedef struct lmd_trace_ring {
    int64_t *values; /* [capacity, width] record i is row i % capacity */
    int64_t capacity, n_added;
    int32_t width;
} lmd_trace_ring;

/* A trace that has ended. */
typedef struct lmd_trace_log {
    int64_t start, end;
    lmd_trace_ring steps, events;
} lmd_trace_log;

typedef struct lmd_trace {
    atomic_bool running; /* written under the lock, read without it */
    pthread_mutex_t lock;
    lmd_trace_log log;
} lmd_trace;

enum { LMD_TRACE_EVENTS_PER_STEP = 4, LMD_TRACE_MAX_STEPS = 1 << 24 };

void lmd_trace_init(lmd_trace *self);
void lmd_trace_clear(lmd_trace *self);

/* Starts a trace that keeps the last max_steps steps. LMD_INVALID: a trace runs, or max_steps
 * is out of range; LMD_NO_MEMORY. */
lmd_status lmd_trace_start(lmd_trace *self, int64_t max_steps, lmd_err *err);
/* Ends it and hands it over: free with lmd_trace_log_clear. LMD_INVALID: none runs. */
lmd_status lmd_trace_stop(lmd_trace *self, lmd_trace_log *out, lmd_err *err);
/* Goes on with a trace that has been stopped, unless another one runs; takes the log over. */
void lmd_trace_resume(lmd_trace *self, lmd_trace_log *log);
void lmd_trace_log_clear(lmd_trace_log *self);

void lmd_trace_add_step(lmd_trace *self, const lmd_trace_step *record);
void lmd_trace_add_event(lmd_trace *self, const lmd_trace_event *record);

#endif
