/* Metrics: what an engine counts and times, as counters and histograms of fixed buckets.
 * Owns: the list of histograms, their buckets, and which times and counts of a request go into
 * each; no clock, no lock. The engine's thread alone writes one copy, and shows it by copying
 * it, whole, under the engine's lock: a copy made under that lock, on any thread, is of one
 * moment. Nothing here allocates. Must not know: the scheduler, Python. */
#ifndef LMD_ENGINE_METRICS_H
#define LMD_ENGINE_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/request.h"

typedef enum lmd_histogram_id {
    LMD_TTFT_SECONDS,        /* submit to the first token of the answer */
    LMD_INTER_TOKEN_SECONDS, /* from each token to the next one of the same answer */
    LMD_STEP_SECONDS,        /* schedule, run, sample */
    LMD_STEP_TOKENS,         /* computed in one step: prefilled and decoded */
    LMD_QUEUE_SECONDS,       /* submit to the request's first step */
    LMD_PREFILL_SECONDS,     /* the first step to the first token */
    LMD_DECODE_SECONDS,      /* first token to the last one */
    LMD_INFERENCE_SECONDS,   /* the first step to the end */
    LMD_REQUEST_SECONDS,     /* submit to the end */
    LMD_PROMPT_TOKENS,       /* of a request that ended */
    LMD_GENERATED_TOKENS,
    LMD_CACHED_TOKENS, /* tokens of a prompt that were found in KV; of requests that ran */
    LMD_CACHE_HIT_RATIO,
    LMD_HISTOGRAM_COUNT
} lmd_histogram_id;

enum { LMD_MAX_BOUNDS = 24, LMD_FINISH_COUNT = LMD_FINISH_ABORT + 1 };

/* A histogram's name and upper bounds: bucket i holds values up to bounds[i], one more bucket
 * the rest. */
typedef struct lmd_histogram_spec {
    const char *name;
    int32_t n_bounds;
    double bounds[LMD_MAX_BOUNDS]; /* ascending */
} lmd_histogram_spec;

extern const lmd_histogram_spec lmd_histogram_specs[LMD_HISTOGRAM_COUNT];

typedef struct lmd_histogram {
    int64_t counts[LMD_MAX_BOUNDS + 1]; /* [n_bounds + 1] not cumulative */
    int64_t count;
    double sum;
} lmd_histogram;

typedef struct lmd_metrics {
    bool off;                          /* histograms stay empty */
    int64_t n_ended[LMD_FINISH_COUNT]; /* requests that were accepted, by lmd_finish_reason */
    lmd_histogram histograms[LMD_HISTOGRAM_COUNT];
} lmd_metrics;

/* The moments of a request, in nanoseconds of CLOCK_MONOTONIC; 0: not yet. */
typedef struct lmd_request_times {
    int64_t submitted, started, first_token, last_token;
} lmd_request_times;

void lmd_histogram_observe(lmd_metrics *self, lmd_histogram_id id, double value);

/* Counts a step that took n_ns and computed n_tokens. */
void lmd_metrics_step(lmd_metrics *self, int64_t n_ns, int32_t n_tokens);
/* Counts a request's first step, which began at `now`. */
void lmd_metrics_started(lmd_metrics *self, lmd_request_times *times, int64_t now,
                         int32_t n_prompt, int32_t cached_len);
/* Counts a request's new token; true for the first one. */
bool lmd_metrics_token(lmd_metrics *self, lmd_request_times *times, int64_t now);
void lmd_metrics_ended(lmd_metrics *self, const lmd_request_times *times, int64_t now,
                       lmd_finish_reason reason, int32_t n_prompt, int32_t n_generated);

#endif
