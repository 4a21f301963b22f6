/* Sampling on the CPU: see cpu_sampling.h.
 * Loops over the vocabulary are written in lanes, which compilers vectorise without reordering
 * anything; what follows top_k works on the few tokens that are left. */
#include "cpu/cpu_sampling.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "cpu/philox.h"

enum {
    LANES = 16,
    TOP_K_BLOCK =
        64 /* tokens that share a maximum, for the bound below which top_k cannot reach */
};

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

static double sum_of(const float *x, int32_t n) {
    double lanes[LANES] = {0}, sum = 0.0;
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int32_t j = 0; j < LANES; j++) lanes[j] += (double)x[i + j];
    for (; i < n; i++) sum += (double)x[i];
    for (int32_t j = 0; j < LANES; j++) sum += lanes[j];
    return sum;
}

/* exp(x) for x <= 0, 0 below -87: the Cephes polynomial on [-ln2/2, ln2/2], relative error
 * below 2e-7. */
static inline float exp_negative(float x) {
    const float round =
        12582912.0f; /* 1.5 * 2^23: adding it leaves an integer in the low bits */
    float low = x > -87.0f ? x : -87.0f;
    float shifted = low * 1.44269504f + round, n = shifted - round;
    float r = low - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t exponent, bits;
    memcpy(&exponent, &shifted, sizeof exponent);
    memcpy(&bits, &p, sizeof bits);
    bits += exponent << 23;
    memcpy(&p, &bits, sizeof p);
    return x > -87.0f ? p : 0.0f;
}

static void exp_all(const float *x, int32_t n, float max, float temperature, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = exp_negative((x[i] - max) / temperature);
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

/* The lowest index of the largest value. */
static int32_t argmax(const float *x, int32_t n) {
    float max = max_of(x, n);
    int32_t i = 0;
    while (i < n - 1 && x[i] != max) i++;
    return i;
}

/* ---- filters: candidates stand in ascending id; each filter finds a cut and keeps what
 * precedes it ---- */

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

/* The candidate that ends the shortest prefix of the order whose weight reaches `wanted`. */
static int32_t find_top_p(const float *values, const float *weights, int32_t n, double wanted,
                          int32_t *order) {
    uint32_t state = 1;
    int32_t low = 0, high = n;
    number(order, n);
    while (high - low > 1) {
        int32_t at = partition(values, order, low, high, &state);
        double before = 0.0;
        for (int32_t i = low; i < at; i++) before += (double)weights[order[i]];
        double with_pivot = before + (double)weights[order[at]];
        if (at > low && before >= wanted) {
            high = at;
        } else if (with_pivot >= wanted || at + 1 == high) {
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
static float top_k_bound(lmd_cpu_sample_scratch *scratch, int32_t vocab_size, int32_t k) {
    float *maxima = scratch->weights;
    int32_t n = vocab_size / TOP_K_BLOCK;
    if (k > n) return -INFINITY;
    for (int32_t i = 0; i < n; i++)
        maxima[i] = max_of(scratch->values + (int64_t)i * TOP_K_BLOCK, TOP_K_BLOCK);
    return maxima[find_top_k(maxima, n, k, scratch->order)];
}

/* Moves the tokens that are not banned and not below the bound together, and notes their ids.
 */
static int32_t collect(lmd_cpu_sample_scratch *scratch, int32_t vocab_size, float bound) {
    int32_t n = 0;
    float least = bound > -INFINITY ? bound : -FLT_MAX;
    for (int32_t i = 0; i < vocab_size;
         i++) { /* no branch: which tokens stay is hard to predict */
        float value = scratch->values[i];
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

static int32_t keep_min_p(lmd_cpu_sample_scratch *scratch, int32_t n_candidates, float min_p) {
    int32_t n = 0;
    for (int32_t i = 0; i < n_candidates; i++) {
        bool kept = scratch->weights[i] >= min_p;
        scratch->weights[n] = scratch->weights[i];
        scratch->ids[n] = scratch->ids[i];
        n += kept;
    }
    return n;
}

/* ---- drawing ---- */

/* The first candidate whose running weight exceeds u * total. */
static int32_t draw(const float *weights, int32_t n, double u) {
    double wanted = u * sum_of(weights, n), sum = 0.0;
    int32_t last = 0; /* the last with a weight, should rounding keep the sum below `wanted` */
    for (int32_t i = 0; i < n; i++) {
        sum += (double)weights[i];
        if (weights[i] > 0.0f) last = i;
        if (sum > wanted) break;
    }
    return last;
}

static int32_t sample(int32_t vocab_size, const lmd_sample_params *params, float max,
                      lmd_cpu_sample_scratch *scratch) {
    float *values = scratch->values, *weights = scratch->weights;
    int32_t k = params->top_k;
    float bound = k > 0 ? top_k_bound(scratch, vocab_size, k) : -INFINITY;
    int32_t n = collect(scratch, vocab_size, bound);
    if (k > 0 && k < n) n = keep_until(scratch, n, find_top_k(values, n, k, scratch->order));
    exp_all(values, n, max, params->temperature, weights);
    if (params->top_p < 1.0f) {
        double wanted = (double)params->top_p * sum_of(weights, n);
        n = keep_until(scratch, n, find_top_p(values, weights, n, wanted, scratch->order));
    }
    if (params->min_p > 0.0f) n = keep_min_p(scratch, n, params->min_p);
    double u = lmd_philox_uniform(params->seed, params->position, params->sample_idx, 0);
    return scratch->ids[draw(weights, n, u)];
}

void lmd_cpu_sample_row(const float *logits, int32_t vocab_size,
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
    if (scored) {
        float max = max_of(logits, vocab_size);
        exp_all(logits, vocab_size, max, 1.0f, scratch->weights);
        log_sum = (double)max + log(sum_of(scratch->weights, vocab_size));
    }
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
