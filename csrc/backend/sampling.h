/* Sampling: how a row of raw logits becomes a token. The one definition for every device.
 * Owns: the text below and the pieces of arithmetic that it names; no state. Must not know:
 * devices, requests, grammars. Any thread. C for C++ and nvcc too.
 *
 * Equal logits and parameters give the equal token on every device: weights and thresholds are
 * integers, so that sums are exact in any order. Everything else is fp32, and each operation
 * rounds to the nearest. Compile with -ffp-contract=off, and never with fast-math or flushed
 * subnormals; nvcc's defaults will do, since the functions below name their roundings.
 *
 *  1. A NaN or infinity among the raw logits gives not_finite and nothing else.
 *  2. logits_out is a copy of the raw logits.
 *  3. Log-probabilities are of the raw logits, and made only if n_logprobs > 0 or target_id >=
 *     0; otherwise they are 0. total = the sum of all tokens' weights (8) at temperature 1;
 *     log_sum = max + log(total * 2^-40) and (float)(logit - log_sum) in double. The total is
 *     the same on every device (and misses less than 2^-40 a token); where log() differs, a
 *     result may differ in its last bit. The most likely tokens come in the order of (7).
 *  4. Values begin as the raw logits. Each bias is added (lmd_sample_add_bias), in the list's
 *     order; each token of `counts` is penalised (lmd_sample_penalise); then every token
 *     outside the mask becomes -infinity. A value of -infinity is banned: it stays so, and is
 *     never drawn. If every token is banned, token_id is -1.
 *  5. greedy, or temperature <= 0: the largest value, the lowest id among equals.
 *  6. Otherwise three filters apply in turn, each to what the one before kept, and then a token
 *     is drawn.
 *  7. Tokens are ordered by value descending, equal values by id ascending; -0 equals 0. top_k
 *     (0: off) keeps the first top_k of this order.
 *  8. A token's weight is lmd_sample_weight(lmd_sample_exp(value, max, temperature)), max being
 *     the largest value. It is at most LMD_SAMPLE_ONE = 2^40, which the largest value has; it
 *     is 0 below e^-27.7, and such a token is never drawn.
 *  9. top_p (off at 1) keeps the shortest beginning of the order, one token at least, whose
 *     weights sum to lmd_sample_share(total, lmd_sample_fraction(top_p)) or more, total being
 *     the sum of all that top_k kept.
 * 10. min_p (off at 0) keeps tokens of lmd_sample_weight(min_p) or more.
 * 11. The token drawn is the first, in ascending id, whose running sum of kept weights exceeds
 *     lmd_sample_share(total, lmd_sample_random(seed, position, sample_idx, 0)), total being
 *     the sum of the kept weights. */
#ifndef LMD_BACKEND_SAMPLING_H
#define LMD_BACKEND_SAMPLING_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "backend/plan.h"

#ifdef __CUDACC__
#define LMD_DEVICE_FN static __host__ __device__ inline
#else
#define LMD_DEVICE_FN static inline
#endif

/* So many weights of at most 2^40 sum to less than 2^64. */
enum { LMD_MAX_VOCAB_SIZE = (1 << 24) - 1 };

#define LMD_SAMPLE_ONE ((uint64_t)1 << 40)

/* a * b, rounded: no compiler joins it with an addition that follows. */
LMD_DEVICE_FN float lmd_mul_rn(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

LMD_DEVICE_FN float lmd_div_rn(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}

/* ---- values ---- */

/* What overflows stays at the largest float, so that only bans are infinite. */
LMD_DEVICE_FN float lmd_sample_bounded(float x) {
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}

LMD_DEVICE_FN float lmd_sample_add_bias(float value, float bias) {
    if (bias == -INFINITY || value == -INFINITY) return -INFINITY;
    return lmd_sample_bounded(value + bias);
}

/* Repetition: a positive value is divided, any other multiplied. Then presence and frequency,
 * for tokens of the answer. */
LMD_DEVICE_FN float lmd_sample_penalise(float value, const lmd_sample_params *params,
                                        int32_t n_output) {
    if (value == -INFINITY) return value;
    value = value > 0.0f ? lmd_div_rn(value, params->repetition_penalty)
                         : lmd_mul_rn(value, params->repetition_penalty);
    if (n_output > 0)
        value -=
            params->presence_penalty + lmd_mul_rn(params->frequency_penalty, (float)n_output);
    return lmd_sample_bounded(value);
}

/* ---- weights ---- */

/* exp((value - max) / temperature) for value <= max, exactly 1 for value == max: n whole powers
 * of two and the Cephes polynomial on [-ln2/2, ln2/2]. Relative error below 2e-7; not quite
 * monotone (neighbouring values may swap the last bit). The argument ends at -87. */
LMD_DEVICE_FN float lmd_sample_exp(float value, float max, float temperature) {
    const float round = 12582912.0f; /* 1.5 * 2^23: a sum with it is an integer */
    float x = lmd_div_rn(value - max, temperature);
    x = x < -87.0f ? -87.0f : x;
    float shifted = lmd_mul_rn(x, 1.442695041f) + round, n = shifted - round;
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float y = 1.9875691500e-4f;
    y = fmaf(y, r, 1.3981999507e-3f);
    y = fmaf(y, r, 8.3334519073e-3f);
    y = fmaf(y, r, 4.1665795894e-2f);
    y = fmaf(y, r, 1.6666665459e-1f);
    y = fmaf(y, r, 5.0000001201e-1f);
    y = fmaf(y, lmd_mul_rn(r, r), r + 1.0f);
    uint32_t bits; /* the low bits of `shifted` are n: they become the exponent of a power */
    float power;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    memcpy(&power, &bits, sizeof power);
    return lmd_mul_rn(y, power);
}

/* A number from 0 to 1 as a multiple of 2^-40, rounded down. The product is exact; processors
 * convert it to a signed integer at once. */
LMD_DEVICE_FN uint64_t lmd_sample_weight(float x) { return (uint64_t)(int64_t)(x * 0x1p40f); }

/* ---- thresholds ---- */

/* A number from 0 to below 1 as a multiple of 2^-64, rounded down. */
LMD_DEVICE_FN uint64_t lmd_sample_fraction(float x) { return (uint64_t)(x * 0x1p64f); }

/* total * fraction / 2^64, rounded down: the upper half of their product. */
LMD_DEVICE_FN uint64_t lmd_sample_share(uint64_t total, uint64_t fraction) {
    const uint64_t mask = 0xffffffffu;
    const uint64_t a = total & mask, b = total >> 32, c = fraction & mask, d = fraction >> 32;
    const uint64_t low = b * c + (a * c >> 32), middle = a * d + (low & mask);
    return b * d + (low >> 32) + (middle >> 32);
}

/* ---- random numbers ---- */

/* Encrypts the counter in place: Philox4x32-10 of Salmon et al., "Parallel random numbers: as
 * easy as 1, 2, 3" (2011). */
LMD_DEVICE_FN void lmd_philox4x32_10(uint32_t counter[4], uint64_t key) {
    uint32_t key_lo = (uint32_t)key, key_hi = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * counter[0];
        uint64_t b = (uint64_t)0xCD9E8D57u * counter[2];
        uint32_t c1 = counter[1], c3 = counter[3];
        counter[0] = (uint32_t)(b >> 32) ^ c1 ^ key_lo;
        counter[1] = (uint32_t)b;
        counter[2] = (uint32_t)(a >> 32) ^ c3 ^ key_hi;
        counter[3] = (uint32_t)a;
        key_lo += 0x9E3779B9u;
        key_hi += 0xBB67AE85u;
    }
}

/* A random fraction: words 0 (high) and 1 (low). */
LMD_DEVICE_FN uint64_t lmd_sample_random(uint64_t seed, uint32_t position, uint32_t sample_idx,
                                         uint32_t draw_idx) {
    uint32_t words[4] = {position, sample_idx, draw_idx, 0};
    lmd_philox4x32_10(words, seed);
    return (uint64_t)words[0] << 32 | words[1];
}

#endif
