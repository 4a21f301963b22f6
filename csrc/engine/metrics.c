/* Metrics: see metrics.h. */
#include "engine/metrics.h"

/* Bounds for times of a step or some steps: half a millisecond to a minute. */
#define SHORT_TIMES                                                                            \
    24, {                                                                                      \
        0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, \
            0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0                         \
    }
/* Bounds for times that a client waits: a millisecond to an hour. */
#define LONG_TIMES                                                                             \
    24, {                                                                                      \
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0,   \
            5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 600.0, 3600.0                             \
    }
#define LENGTHS                                                                                \
    17, {                                                                                      \
        1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000,     \
            200000                                                                             \
    }

const lmd_histogram_spec lmd_histogram_specs[LMD_HISTOGRAM_COUNT] = {
    [LMD_TTFT_SECONDS] = {"time_to_first_token_seconds", LONG_TIMES},
    [LMD_INTER_TOKEN_SECONDS] = {"inter_token_seconds", SHORT_TIMES},
    [LMD_STEP_SECONDS] = {"step_seconds", SHORT_TIMES},
    [LMD_STEP_TOKENS] = {"step_tokens",
                         15,
                         {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192,
                          16384}},
    [LMD_QUEUE_SECONDS] = {"queue_seconds", LONG_TIMES},
    [LMD_PREFILL_SECONDS] = {"prefill_seconds", LONG_TIMES},
    [LMD_DECODE_SECONDS] = {"decode_seconds", LONG_TIMES},
    [LMD_INFERENCE_SECONDS] = {"inference_seconds", LONG_TIMES},
    [LMD_REQUEST_SECONDS] = {"request_seconds", LONG_TIMES},
    [LMD_PROMPT_TOKENS] = {"prompt_tokens", LENGTHS},
    [LMD_GENERATED_TOKENS] = {"generated_tokens", LENGTHS},
    [LMD_CACHED_TOKENS] = {"cached_tokens", LENGTHS},
    [LMD_CACHE_HIT_RATIO] = {"cache_hit_ratio",
                             11,
                             {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}},
};

void lmd_histogram_observe(lmd_metrics *self, lmd_histogram_id id, double value) {
    const lmd_histogram_spec *spec = &lmd_histogram_specs[id];
    lmd_histogram *histogram = &self->histograms[id];
    int32_t i = 0;
    if (self->off) return;
    while (i < spec->n_bounds && value > spec->bounds[i]) i++;
    histogram->counts[i]++;
    histogram->count++;
    histogram->sum += value;
}

static void observe_ns(lmd_metrics *self, lmd_histogram_id id, int64_t n_ns) {
    lmd_histogram_observe(self, id, 1e-9 * (double)n_ns);
}

void lmd_metrics_step(lmd_metrics *self, int64_t n_ns, int32_t n_tokens) {
    observe_ns(self, LMD_STEP_SECONDS, n_ns);
    lmd_histogram_observe(self, LMD_STEP_TOKENS, n_tokens);
}

void lmd_metrics_started(lmd_metrics *self, lmd_request_times *times, int64_t now,
                         int32_t n_prompt, int32_t cached_len) {
    times->started = now;
    observe_ns(self, LMD_QUEUE_SECONDS, now - times->submitted);
    lmd_histogram_observe(self, LMD_CACHED_TOKENS, cached_len);
    lmd_histogram_observe(self, LMD_CACHE_HIT_RATIO, (double)cached_len / n_prompt);
}

bool lmd_metrics_token(lmd_metrics *self, lmd_request_times *times, int64_t now) {
    const bool is_first = times->first_token == 0;
    if (is_first) {
        observe_ns(self, LMD_TTFT_SECONDS, now - times->submitted);
        observe_ns(self, LMD_PREFILL_SECONDS, now - times->started);
        times->first_token = now;
    } else {
        observe_ns(self, LMD_INTER_TOKEN_SECONDS, now - times->last_token);
    }
    times->last_token = now;
    return is_first;
}

void lmd_metrics_ended(lmd_metrics *self, const lmd_request_times *times, int64_t now,
                       lmd_finish_reason reason, int32_t n_prompt, int32_t n_generated) {
    self->n_ended[reason]++;
    observe_ns(self, LMD_REQUEST_SECONDS, now - times->submitted);
    if (times->started) observe_ns(self, LMD_INFERENCE_SECONDS, now - times->started);
    if (times->first_token)
        observe_ns(self, LMD_DECODE_SECONDS, times->last_token - times->first_token);
    lmd_histogram_observe(self, LMD_PROMPT_TOKENS, n_prompt);
    lmd_histogram_observe(self, LMD_GENERATED_TOKENS, n_generated);
}
