/* Sampling on the CPU: see cpu_sampling.h. */
#include "cpu/cpu_sampling.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "cpu/philox.h"

lmd_status lmd_cpu_sample_scratch_init(lmd_cpu_sample_scratch *self, int32_t vocab_size,
                                       lmd_err *err) {
    size_t n = (size_t)vocab_size;
    *self = (lmd_cpu_sample_scratch){lmd_calloc(n, sizeof *self->values),
                                     lmd_calloc(n, sizeof *self->weights),
                                     lmd_calloc(n, sizeof *self->ids)};
    if (self->values && self->weights && self->ids) return LMD_OK;
    lmd_cpu_sample_scratch_clear(self);
    return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for sampling %d tokens",
                    vocab_size);
}

void lmd_cpu_sample_scratch_clear(lmd_cpu_sample_scratch *self) {
    lmd_free(self->values);
    lmd_free(self->weights);
    lmd_free(self->ids);
    *self = (lmd_cpu_sample_scratch){0};
}

/* ---- the raw logits: finiteness, log-probabilities ---- */

static bool all_finite(const float *logits, int32_t n, float *max) {
    float largest = logits[0], probe = 0.0f;
    for (int32_t i = 0; i < n; i++) {
        largest = logits[i] > largest ? logits[i] : largest;
        probe += logits[i] * 0.0f; /* NaN where one is not finite */
    }
    *max = largest;
    return probe == 0.0f;
}

static double log_sum_exp(const float *logits, int32_t n, float max) {
    double sum = 0.0;
    for (int32_t i = 0; i < n; i++) sum += (double)expf(logits[i] - max);
    return (double)max + log(sum);
}

/* The n_top largest, by insertion into a short sorted list. */
static void find_top(const float *logits, int32_t vocab_size, int32_t n_top, double log_sum,
                     lmd_sample_result *out) {
    int32_t n = 0;
    for (int32_t i = 0; i < vocab_size; i++) {
        if (n == n_top && logits[i] <= logits[out->top_ids[n - 1]]) continue;
        int32_t at = n < n_top ? n++ : n - 1;
        for (; at > 0 && logits[i] > logits[out->top_ids[at - 1]]; at--)
            out->top_ids[at] = out->top_ids[at - 1];
        out->top_ids[at] = i;
    }
    for (int32_t i = 0; i < n; i++)
        out->top_logprobs[i] = (float)(logits[out->top_ids[i]] - log_sum);
    out->n_top = n;
}

/* ---- processing: values become what is sampled from ---- */

static float bounded(float x) { return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x; }

static void penalise(float *values, const lmd_sample_params *params) {
    for (int32_t i = 0; i < params->n_counts; i++) {
        lmd_token_count count = params->counts[i];
        float value = values[count.token_id];
        if (value == -INFINITY) continue; /* banned */
        value = value > 0.0f ? value / params->repetition_penalty
                             : value * params->repetition_penalty;
        if (count.n_output > 0)
            value -=
                params->presence_penalty + params->frequency_penalty * (float)count.n_output;
        values[count.token_id] = bounded(value);
    }
}

static void process(float *values, int32_t vocab_size, const lmd_sample_params *params) {
    for (int32_t i = 0; i < params->n_biases; i++) {
        float *value = &values[params->biases[i].token_id];
        float bias = params->biases[i].bias;
        *value = bias == -INFINITY || *value == -INFINITY ? -INFINITY : bounded(*value + bias);
    }
    penalise(values, params);
    if (!params->mask) return;
    for (int32_t i = 0; i < vocab_size; i++)
        if (!(params->mask[i / 32] >> (i % 32) & 1)) values[i] = -INFINITY;
}

static int32_t argmax(const float *values, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (values[i] > values[best]) best = i;
    return best;
}

/* ---- filters: a prefix of the tokens by value descending, then id ascending ---- */

static bool comes_before(const float *values, int32_t a, int32_t b) {
    return values[a] > values[b] || (values[a] == values[b] && a < b);
}

static void swap_ids(int32_t *ids, int32_t a, int32_t b) {
    int32_t id = ids[a];
    ids[a] = ids[b];
    ids[b] = id;
}

/* Partitions ids[low..high) around one of them, drawn from *state so that no input is always
 * the worst; returns where it came to stand. */
static int32_t partition(const float *values, int32_t *ids, int32_t low, int32_t high,
                         uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    int32_t pivot_at = low + (int32_t)((uint64_t)*state * (uint32_t)(high - low) >> 32);
    int32_t pivot = ids[pivot_at], stand = low;
    swap_ids(ids, pivot_at, high - 1);
    for (int32_t i = low; i < high - 1; i++)
        if (comes_before(values, ids[i], pivot)) swap_ids(ids, i, stand++);
    swap_ids(ids, stand, high - 1);
    return stand;
}

/* Brings the first k of the order to the front. */
static int32_t keep_top_k(const float *values, int32_t *ids, int32_t n, int32_t k) {
    uint32_t state = 1;
    int32_t low = 0, high = n;
    if (k >= n) return n;
    while (low < high) {
        int32_t at = partition(values, ids, low, high, &state);
        if (at == k) break;
        if (at > k)
            high = at;
        else
            low = at + 1;
    }
    return k;
}

/* Brings the shortest prefix whose weight reaches `wanted` to the front. */
static int32_t keep_top_p(const float *values, const float *weights, int32_t *ids, int32_t n,
                          double wanted) {
    uint32_t state = 1;
    int32_t low = 0, high = n;
    while (high - low > 1) {
        int32_t at = partition(values, ids, low, high, &state);
        double before = 0.0;
        for (int32_t i = low; i < at; i++) before += (double)weights[ids[i]];
        if (before >= wanted && at > low) {
            high = at;
        } else if (before + (double)weights[ids[at]] >= wanted) {
            return at + 1;
        } else {
            wanted -= before + (double)weights[ids[at]];
            low = at + 1;
        }
    }
    return low < n ? low + 1 : n;
}

/* ---- drawing ---- */

/* The first token in ascending id whose running weight exceeds u * total; weights of others are
 * 0. */
static int32_t draw(const float *weights, int32_t n, double u) {
    double total = 0.0, sum = 0.0;
    int32_t last = -1;
    for (int32_t i = 0; i < n; i++) total += (double)weights[i];
    for (int32_t i = 0; i < n; i++) {
        if (weights[i] <= 0.0f) continue;
        sum += (double)weights[i];
        last = i;
        if (sum > u * total) break;
    }
    return last;
}

static int32_t sample(int32_t vocab_size, const lmd_sample_params *params, float max,
                      lmd_cpu_sample_scratch *scratch) {
    float *values = scratch->values, *weights = scratch->weights;
    int32_t *ids = scratch->ids, n = 0;
    for (int32_t i = 0; i < vocab_size; i++)
        if (values[i] > -INFINITY) ids[n++] = i;
    if (params->top_k > 0) n = keep_top_k(values, ids, n, params->top_k);
    double total = 0.0;
    for (int32_t i = 0; i < n; i++) {
        weights[ids[i]] = expf((values[ids[i]] - max) / params->temperature);
        total += (double)weights[ids[i]];
    }
    if (params->top_p < 1.0f)
        n = keep_top_p(values, weights, ids, n, (double)params->top_p * total);
    /* Kept weights move to an array that is 0 elsewhere: values is not needed any more. */
    memset(values, 0, (size_t)vocab_size * sizeof *values);
    for (int32_t i = 0; i < n; i++)
        if (weights[ids[i]] >= params->min_p) values[ids[i]] = weights[ids[i]];
    return draw(values, vocab_size,
                lmd_philox_uniform(params->seed, params->position, params->sample_idx, 0));
}

void lmd_cpu_sample_row(const float *logits, int32_t vocab_size,
                        const lmd_sample_params *params, lmd_cpu_sample_scratch *scratch,
                        lmd_sample_result *out) {
    float max;
    double log_sum = 0.0;
    out->token_id = -1;
    out->token_logprob = out->target_logprob = 0.0f;
    out->n_top = 0;
    out->not_finite = !all_finite(logits, vocab_size, &max);
    if (out->not_finite) return;
    if (params->logits_out)
        memcpy(params->logits_out, logits, (size_t)vocab_size * sizeof *logits);
    const bool scored = params->n_logprobs > 0 || params->target_id >= 0;
    if (scored) log_sum = log_sum_exp(logits, vocab_size, max);
    if (params->target_id >= 0)
        out->target_logprob = (float)(logits[params->target_id] - log_sum);
    if (params->n_logprobs > 0) find_top(logits, vocab_size, params->n_logprobs, log_sum, out);
    if (!params->wants_token) return;
    memcpy(scratch->values, logits, (size_t)vocab_size * sizeof *logits);
    process(scratch->values, vocab_size, params);
    int32_t best = argmax(scratch->values, vocab_size);
    float best_value = scratch->values[best];
    if (best_value == -INFINITY) return; /* everything is banned */
    out->token_id = params->greedy || params->temperature <= 0.0f
                        ? best
                        : sample(vocab_size, params, best_value, scratch);
    if (scored) out->token_logprob = (float)(logits[out->token_id] - log_sum);
}
