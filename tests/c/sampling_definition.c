/* The sampling definition a second time: see sampling_definition.h. */
#include "sampling_definition.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "backend/sampling.h"

typedef struct candidate {
    int32_t id;
    float value;
    uint64_t weight;
} candidate;

typedef unsigned __int128 u128;

static candidate candidates[DEFINED_MAX_VOCAB];

static int by_value(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->value != y->value) return x->value > y->value ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static int by_id(const void *a, const void *b) {
    return ((const candidate *)a)->id < ((const candidate *)b)->id ? -1 : 1;
}

static float clamp(float x) { return fminf(fmaxf(x, -FLT_MAX), FLT_MAX); }

static float penalised(float value, const lmd_sample_params *p, int32_t n_output) {
    const volatile float product = p->frequency_penalty * (float)n_output;
    value = value > 0.0f ? value / p->repetition_penalty : value * p->repetition_penalty;
    if (n_output > 0) value -= p->presence_penalty + product;
    return clamp(value);
}

static float processed_value(float value, int32_t id, const lmd_sample_params *p) {
    if (p->mask && !(p->mask[id / 32] & 1u << id % 32)) return -INFINITY;
    for (int32_t i = 0; i < p->n_biases; i++) {
        if (p->biases[i].token_id != id) continue;
        if (p->biases[i].bias == -INFINITY) return -INFINITY;
        value = clamp(value + p->biases[i].bias);
    }
    for (int32_t i = 0; i < p->n_counts; i++)
        if (p->counts[i].token_id == id) value = penalised(value, p, p->counts[i].n_output);
    return value;
}

static uint64_t weight_of(float value, float max, float temperature) {
    static const float terms[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                                  1.6666665459e-1f, 5.0000001201e-1f};
    const float x = fmaxf((value - max) / temperature, -87.0f), n = rintf(x * 1.442695041f);
    const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
    float y = 1.9875691500e-4f;
    for (int i = 0; i < 5; i++) y = fmaf(y, r, terms[i]);
    y = fmaf(y, r * r, r + 1.0f);
    return (uint64_t)floor(ldexp((double)y, (int)n + 40));
}

static u128 total_weight(int32_t n) {
    u128 total = 0;
    for (int32_t i = 0; i < n; i++) total += candidates[i].weight;
    return total;
}

/* Keeps some of n sorted candidates, and returns how many. */
static int32_t filtered(int32_t n, const lmd_sample_params *p) {
    if (p->top_k > 0 && p->top_k < n) n = p->top_k;
    for (int32_t i = 0; i < n; i++)
        candidates[i].weight =
            weight_of(candidates[i].value, candidates[0].value, p->temperature);
    if (p->top_p < 1.0f) {
        const u128 wanted = total_weight(n) * (u128)ldexp((double)p->top_p, 64) >> 64;
        u128 sum = candidates[0].weight;
        int32_t n_first = 1;
        while (sum < wanted) sum += candidates[n_first++].weight;
        n = n_first;
    }
    const double least = floor(ldexp((double)p->min_p, 40));
    int32_t n_kept = 0;
    for (int32_t i = 0; i < n; i++)
        if ((double)candidates[i].weight >= least) candidates[n_kept++] = candidates[i];
    return n_kept;
}

int32_t defined_token(const float *logits, int32_t vocab_size,
                      const lmd_sample_params *params) {
    int32_t n = 0, drawn = 0;
    for (int32_t id = 0; id < vocab_size; id++) {
        const float value = processed_value(logits[id], id, params);
        if (value > -INFINITY) candidates[n++] = (candidate){id, value, 0};
    }
    if (n == 0) return -1;
    qsort(candidates, (size_t)n, sizeof *candidates, by_value);
    if (params->greedy || params->temperature <= 0.0f) return candidates[0].id;
    n = filtered(n, params);
    qsort(candidates, (size_t)n, sizeof *candidates, by_id);
    uint32_t words[4] = {params->position, params->sample_idx, 0, 0};
    lmd_philox4x32_10(words, params->seed);
    const u128 wanted = total_weight(n) * ((u128)words[0] << 32 | words[1]) >> 64;
    u128 sum = 0;
    while ((sum += candidates[drawn].weight) <= wanted) drawn++;
    return candidates[drawn].id;
}

long double defined_log_sum(const float *logits, int32_t vocab_size, int32_t n_top,
                            int32_t *top_ids) {
    for (int32_t id = 0; id < vocab_size; id++) candidates[id] = (candidate){id, logits[id], 0};
    qsort(candidates, (size_t)vocab_size, sizeof *candidates, by_value);
    for (int32_t i = 0; i < n_top; i++) top_ids[i] = candidates[i].id;
    const long double max = candidates[0].value;
    long double sum = 0.0L;
    for (int32_t id = 0; id < vocab_size; id++) sum += expl(logits[id] - max);
    return max + logl(sum);
}
