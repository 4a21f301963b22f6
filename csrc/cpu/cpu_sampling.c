/* Sampling on the CPU: see cpu_sampling.h.
 * Loops over the vocabulary are written in lanes, which compilers vectorise without reordering
 * anything; what follows top_k works on the few tokens that are left. */
#include "cpu/cpu_sampling.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "backend/sampling.h"
#include "base/memory.h"

/* LANES: of loops that compilers make vectors of. TOP_K_BLOCK: tokens that share a maximum, for
 * the bound that top_k does not reach below. */
enum { LANES = 16, TOP_K_BLOCK = 64 };

lmd_status lmd_cpu_sample_scratch_init(lmd_cpu_sample_scratch *self, int32_t vocab_size,
                                       lmd_err *err) {
    size_t n = (size_t)vocab_size;
    *self = (lmd_cpu_sample_scratch){
        lmd_calloc(n, sizeof *self->values), lmd_calloc(n, sizeof *self->weights),
        lmd_calloc(n, sizeof *self->ids), lmd_calloc(n, sizeof *self->order)};
    if (self->values && self->weights && self->ids && self->order) return LMD_OK;
    lmd_cpu_sample_scratch_clear(self);
    return lmd_no_memory(err, "sampling %d tokens", vocab_size);
}

void lmd_cpu_sample_scratch_clear(lmd_cpu_sample_scratch *self) {
    lmd_free(self->values);
    lmd_free(self->weights);
    lmd_free(self->ids);
    lmd_free(self->order);
    *self = (lmd_cpu_sample_scratch){0};
}

size_t lmd_cpu_sample_scratch_bytes(int32_t vocab_size) {
    const lmd_cpu_sample_scratch *scratch = NULL;
    return (size_t)vocab_size * (sizeof *scratch->values + sizeof *scratch->weights +
                                 sizeof *scratch->ids + sizeof *scratch->order);
}

/* ---- loops over the vocabulary ---- */

static bool all_finite(const float *x, int32_t n) {
    int32_t largest = 0; /* of the magnitudes' bits */
    for (int32_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7FFFFFFF;
        largest = bits > largest ? bits : largest;
    }
    return largest < 0x7F800000;
}

static float max_of(const float *x, int32_t n) {
    float lanes[LANES], max = -INFINITY;
    int32_t i = 0;
    for (int32_t j = 0; j < LANES; j++) lanes[j] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int32_t j = 0; j < LANES; j++)
            lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int32_t j = 0; j < LANES; j++) max = lanes[j] > max ? lanes[j] : max;
    return max;
}

static uint64_t sum_of(const float *weights, int32_t n) {
    uint64_t sum = 0;
    for (int32_t i = 0; i < n; i++) sum += lmd_sample_weight(weights[i]);
    return sum;
}

/* ---- log-probabilities ---- */

/* The n_top largest, by insertion into a short sorted list. */
static void find_top(const float *logits, int32_t vocab_size, int32_t n_top, double log_sum,
                     lmd_sample_result *out) {
    int32_t n = 0;
    float least = -INFINITY; /* of a full list */
    for (int32_t i = 0; i < vocab_size; i++) {
        if (logits[i] <= least) continue;
        int32_t at = n < n_top ? n++ : n - 1;
        for (; at > 0 && logits[i] > logits[out->top_ids[at - 1]]; at--)
            out->top_ids[at] = out->top_ids[at - 1];
        out->top_ids[at] = i;
        if (n == n_top) least = logits[out->top_ids[n - 1]];
    }
    for (int32_t i = 0; i < n; i++)
        out->top_logprobs[i] = (float)(logits[out->top_ids[i]] - log_sum);
    out->n_top = n;
}

/* ---- processing: logits become the values that are sampled from ---- */

static void process(float *values, int32_t vocab_size, const lmd_sample_params *params) {
    for (int32_t i = 0; i < params->n_biases; i++) {
        float *value = &values[params->biases[i].token_id];
        *value = lmd_sample_add_bias(*value, params->biases[i].bias);
    }
    for (int32_t i = 0; i < params->n_counts; i++) {
        float *value = &values[params->counts[i].token_id];
        *value = lmd_sample_penalise(*value, params, params->counts[i].n_output);
    }
    if (!params->mask) return;
    for (int32_t i = 0; i < vocab_size; i++)
        if (!(params->mask[i / 32] >> (i % 32) & 1)) values[i] = -INFINITY;
}

/* The logits themselves where nothing changes them. */
static const float *processed(const float *logits, int32_t vocab_size,
                              const lmd_sample_params *params,
                              lmd_cpu_sample_scratch *scratch) {
    if (!params->n_biases && !params->n_counts && !params->mask) return logits;
    memcpy(scratch->values, logits, (size_t)vocab_size * sizeof *logits);
    process(scratch->values, vocab_size, params);
    return scratch->values;
}

/* The lowest index of the largest value. */
static int32_t argmax(const float *x, int32_t n) {
    float max = max_of(x, n);
    int32_t i = 0;
    while (i < n - 1 && x[i] != max) i++;
    return i;
}

/* ---- filters: candidates lie in ascending id; each filter keeps some of them ---- */

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

static void number(int32_t *order, int32_t n) {
    for (int32_t i = 0; i < n; i++) order[i] = i;
}

/* The k-th candidate of the order, 1 <= k <= n. */
static int32_t find_top_k(const float *values, int32_t n, int32_t k, int32_t *order) {
    uint32_t state = 1;
    int32_t low = 0, high = n;
    number(order, n);
    for (;;) {
        int32_t at = partition(values, order, low, high, &state);
        if (at == k - 1) return order[at];
        if (at >= k)
            high = at;
        else
            low = at + 1;
    }
}

/* The candidate that ends the shortest beginning of the order whose weights sum to `wanted`,
 * which all of them do. */
static int32_t find_top_p(const float *values, const float *weights, int32_t n, uint64_t wanted,
                          int32_t *order) {
    uint32_t state = 1;
    int32_t low = 0, high = n;
    number(order, n);
    while (high - low > 1) {
        int32_t at = partition(values, order, low, high, &state);
        uint64_t before = 0;
        for (int32_t i = low; i < at; i++) before += lmd_sample_weight(weights[order[i]]);
        uint64_t with_pivot = before + lmd_sample_weight(weights[order[at]]);
        if (at > low && before >= wanted) {
            high = at;
        } else if (with_pivot >= wanted) {
            return order[at];
        } else {
            wanted -= with_pivot;
            low = at + 1;
        }
    }
    return order[low];
}

/* A value that k tokens reach: the k-th largest maximum of blocks; -INFINITY when blocks are
 * too few. */
static float top_k_bound(const float *values, int32_t vocab_size, int32_t k,
                         lmd_cpu_sample_scratch *scratch) {
    float *maxima = scratch->weights;
    int32_t n = vocab_size / TOP_K_BLOCK;
    if (k > n) return -INFINITY;
    for (int32_t i = 0; i < n; i++)
        maxima[i] = max_of(values + (int64_t)i * TOP_K_BLOCK, TOP_K_BLOCK);
    return maxima[find_top_k(maxima, n, k, scratch->order)];
}

/* Makes candidates of the tokens that are not banned and not below the bound. No branch: which
 * tokens stay is hard to predict. */
static int32_t collect(const float *values, int32_t vocab_size, float bound,
                       lmd_cpu_sample_scratch *scratch) {
    int32_t n = 0;
    float least = bound > -INFINITY ? bound : -FLT_MAX;
    for (int32_t i = 0; i < vocab_size; i++) {
        float value = values[i];
        scratch->values[n] = value;
        scratch->ids[n] = i;
        n += value >= least;
    }
    return n;
}

/* Keeps the candidates up to and with `cut` in the order. */
static int32_t keep_until(lmd_cpu_sample_scratch *scratch, int32_t n_candidates, int32_t cut) {
    float *values = scratch->values;
    const float least = values[cut];
    int32_t n = 0;
    for (int32_t i = 0; i < n_candidates; i++) {
        bool kept = values[i] > least || (values[i] == least && i <= cut);
        values[n] = values[i];
        scratch->weights[n] = scratch->weights[i];
        scratch->ids[n] = scratch->ids[i];
        n += kept;
    }
    return n;
}

static int32_t keep_top_k(const float *values, int32_t vocab_size, int32_t k,
                          lmd_cpu_sample_scratch *scratch) {
    float bound = top_k_bound(values, vocab_size, k, scratch);
    int32_t n = collect(values, vocab_size, bound, scratch);
    if (k >= n) return n;
    return keep_until(scratch, n, find_top_k(scratch->values, n, k, scratch->order));
}

/* Drops candidates that are too light for top_p to reach: all those below an n-th of the tail
 * that it leaves out weigh less than the tail together. A little less than an n-th allows for
 * exponentials that are not quite monotone. */
static int32_t drop_light(const float *values, int32_t n_candidates, uint64_t tail,
                          lmd_cpu_sample_scratch *scratch) {
    const float least = (float)((double)tail * (0.999 * 0x1p-40) / n_candidates);
    int32_t n = 0;
    for (int32_t i = 0; i < n_candidates; i++) {
        bool kept = scratch->weights[i] >= least;
        scratch->values[n] = values[i];
        scratch->weights[n] = scratch->weights[i];
        scratch->ids[n] = scratch->ids[i];
        n += kept;
    }
    return n;
}

static int32_t keep_top_p(const float *values, int32_t n, float top_p, uint64_t total,
                          lmd_cpu_sample_scratch *scratch) {
    uint64_t wanted = lmd_sample_share(total, lmd_sample_fraction(top_p));
    n = drop_light(values, n, total - wanted, scratch);
    return keep_until(scratch, n,
                      find_top_p(scratch->values, scratch->weights, n, wanted, scratch->order));
}

static int32_t keep_min_p(lmd_cpu_sample_scratch *scratch, int32_t n_candidates, float min_p) {
    const uint64_t least = lmd_sample_weight(min_p);
    int32_t n = 0;
    for (int32_t i = 0; i < n_candidates; i++) {
        bool kept = lmd_sample_weight(scratch->weights[i]) >= least;
        scratch->weights[n] = scratch->weights[i];
        scratch->ids[n] = scratch->ids[i];
        n += kept;
    }
    return n;
}

/* ---- drawing ---- */

/* The first candidate whose running sum exceeds the random share of the total. */
static int32_t draw(const float *weights, int32_t n, uint64_t total, uint64_t random) {
    uint64_t wanted = lmd_sample_share(total, random), sum = 0;
    int32_t i = 0;
    for (; i < n - 1; i++) {
        sum += lmd_sample_weight(weights[i]);
        if (sum > wanted) break;
    }
    return i;
}

static int32_t sample(const lmd_cpu_kernels *kernels, const float *values, int32_t vocab_size,
                      float max, const lmd_sample_params *params,
                      lmd_cpu_sample_scratch *scratch) {
    int32_t n = vocab_size;
    if (params->top_k > 0) {
        n = keep_top_k(values, vocab_size, params->top_k, scratch);
        values = scratch->values;
    } else {
        number(scratch->ids, n);
    }
    uint64_t total = kernels->weigh(scratch->weights, values, n, max, params->temperature);
    const int32_t n_weighed = n;
    if (params->top_p < 1.0f) n = keep_top_p(values, n, params->top_p, total, scratch);
    if (params->min_p > 0.0f) n = keep_min_p(scratch, n, params->min_p);
    if (n < n_weighed) total = sum_of(scratch->weights, n);
    uint64_t random = lmd_sample_random(params->seed, params->position, params->sample_idx, 0);
    return scratch->ids[draw(scratch->weights, n, total, random)];
}

/* log(sum exp(logits)). */
static double log_sum_of(const lmd_cpu_kernels *kernels, const float *logits,
                         int32_t vocab_size, lmd_cpu_sample_scratch *scratch) {
    float max = max_of(logits, vocab_size);
    uint64_t total = kernels->weigh(scratch->weights, logits, vocab_size, max, 1.0f);
    return (double)max + log((double)total * 0x1p-40);
}

void lmd_cpu_sample_row(const lmd_cpu_kernels *kernels, const float *logits, int32_t vocab_size,
                        const lmd_sample_params *params, lmd_cpu_sample_scratch *scratch,
                        lmd_sample_result *out) {
    double log_sum = 0.0;
    out->token_id = -1;
    out->token_logprob = out->target_logprob = 0.0f;
    out->n_top = 0;
    out->not_finite = !all_finite(logits, vocab_size);
    if (out->not_finite) return;
    if (params->logits_out)
        memcpy(params->logits_out, logits, (size_t)vocab_size * sizeof *logits);
    const bool scored = params->n_logprobs > 0 || params->target_id >= 0;
    if (scored) log_sum = log_sum_of(kernels, logits, vocab_size, scratch);
    if (params->target_id >= 0)
        out->target_logprob = (float)(logits[params->target_id] - log_sum);
    if (params->n_logprobs > 0) find_top(logits, vocab_size, params->n_logprobs, log_sum, out);
    if (!params->wants_token) return;
    const float *values = processed(logits, vocab_size, params, scratch);
    int32_t best = argmax(values, vocab_size);
    if (values[best] == -INFINITY) return; /* everything is banned */
    out->token_id = params->greedy || params->temperature <= 0.0f
                        ? best
                        : sample(kernels, values, vocab_size, values[best], params, scratch);
    if (scored) out->token_logprob = (float)(logits[out->token_id] - log_sum);
}
