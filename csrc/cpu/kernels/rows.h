/* Kernels that work on one row: quantisation, norm, RoPE, SiLU, sampling's weights, the error
 * of a grid. Written once, for every ISA, in the words of vector.h. Sums run in 16 chains,
 * which are reduced in one fixed order, so the width of a vector changes no bit. */
#ifndef LMD_CPU_KERNELS_ROWS_H
#define LMD_CPU_KERNELS_ROWS_H

#include "cpu/kernels/vector.h"

/* Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, ties to even. */
#define ROUND_MAGIC 12582912.0f

/* exp(x) for each lane, with a relative error below 2e-7: the Cephes polynomial on
 * [-ln2/2, ln2/2]. Below -87 the result is that of -87, which is 1.6e-38; above 88, that of 88.
 * NaN stays NaN. lmd_sample_exp (backend/sampling.h) has the same bits: a change here changes
 * the tokens of seeds. */
INLINE f32v exp_v(f32v x) {
    x = select_v(x < -87.0f, all_v(-87.0f), x);
    x = select_v(x > 88.0f, all_v(88.0f), x);
    f32v shifted = x * 1.442695041f + ROUND_MAGIC;
    f32v n = shifted - ROUND_MAGIC;
    f32v r = fma_v(n, all_v(-0.693359375f), x);
    r = fma_v(n, all_v(2.12194440e-4f), r);
    f32v y = all_v(1.9875691500e-4f);
    y = fma_v(y, r, all_v(1.3981999507e-3f));
    y = fma_v(y, r, all_v(8.3334519073e-3f));
    y = fma_v(y, r, all_v(4.1665795894e-2f));
    y = fma_v(y, r, all_v(1.6666665459e-1f));
    y = fma_v(y, r, all_v(5.0000001201e-1f));
    y = fma_v(y, r * r, r + 1.0f);
    /* The low bits of `shifted` are n; the shift puts n into the exponent of 1.0. */
    u32v power = ((u32v)shifted << 23) + 0x3f800000u;
    return y * (f32v)power;
}

INLINE float exp1(float x) { return exp_v(all_v(x))[0]; }

/* A group's scale and its inverse. Of a group of zeros both are 0, and a maximum below 2^-100
 * counts as zero, so that q_max / max stays finite; of a group that is not finite the scale is
 * NaN and the inverse 0. Magnitudes compare like their bits, in which infinities and NaNs are
 * the largest. */
INLINE float group_scale(const float *x, int32_t n, float q_max, float *inverse) {
    i32v largest[HALVES];
    for (int32_t h = 0; h < HALVES; h++) largest[h] = (i32v){0};
    for (int32_t i = 0; i < n; i += 16)
        for (int32_t h = 0; h < HALVES; h++) {
            i32v bits = (i32v)load_v(x + i + h * LANES) & 0x7fffffff;
            i32v rises = bits > largest[h];
            largest[h] = (bits & rises) | (largest[h] & ~rises);
        }
    int32_t bits = largest_lane(largest);
    float max = lmd_bits_to_float((uint32_t)bits);
    bool is_finite = bits < 0x7f800000, is_zero = max < 0x1p-100f || !is_finite;
    *inverse = is_zero ? 0.0f : q_max / max;
    return !is_finite ? NAN : is_zero ? 0.0f : max / q_max;
}

/* Stores 16 integers, which are columns k to k + 15 of row `row` of a tile of n_rows rows,
 * where the table's panel kernel reads them. */
typedef void (*emit_fn)(uint8_t *tile, const i32v *q /* [HALVES] */, int32_t k, int32_t row,
                        int32_t n_rows, int32_t bits);

INLINE void quantize_groups(const lmd_acts *acts, int32_t row, int32_t col0, int32_t n,
                            const float *x, emit_fn emit, const int32_t group_size) {
    const int32_t tile = lmd_tile_of(acts, row);
    const int32_t begin = lmd_tile_begin(acts, tile);
    const int32_t n_rows = lmd_tile_begin(acts, tile + 1) - begin;
    const int64_t n_groups = acts->n_cols / group_size;
    uint8_t *to = acts->q + (int64_t)begin * acts->n_cols * (acts->bits / 8);
    int64_t at = begin * n_groups + col0 / group_size * (int64_t)n_rows + (row - begin);
    const float q_max = acts->bits == 16 ? (float)LMD_ACT16_MAX : (float)LMD_ACT8_MAX;
    for (int32_t k = 0; k < n; k += group_size, at += n_rows) {
        float inverse, scale = group_scale(x + k, group_size, q_max, &inverse);
        i32v total[HALVES];
        for (int32_t h = 0; h < HALVES; h++) total[h] = (i32v){0};
        for (int32_t i = k; i < k + group_size; i += 16) {
            i32v q[HALVES];
            for (int32_t h = 0; h < HALVES; h++) {
                f32v rounded = load_v(x + i + h * LANES) * inverse + ROUND_MAGIC - ROUND_MAGIC;
                q[h] = __builtin_convertvector(rounded, i32v);
                /* A group that is not finite: 0 * NaN would be no integer. */
                if (inverse == 0.0f) q[h] = (i32v){0};
                total[h] += q[h];
            }
            emit(to, q, col0 + i, row - begin, n_rows, acts->bits);
        }
        acts->scales[at] = scale;
        acts->sums[at] = sum_lanes(total);
        acts->scaled_sums[at] = scale * (float)acts->sums[at];
    }
}

/* Quantises columns of a row, group by group. Groups of 32, which most models have, get code of
 * their own. */
INLINE void quantize_row(const lmd_acts *acts, int32_t row, int32_t col0, int32_t n,
                         const float *x, emit_fn emit) {
    if (acts->group_size == 32)
        quantize_groups(acts, row, col0, n, x, emit, 32);
    else
        quantize_groups(acts, row, col0, n, x, emit, acts->group_size);
}

static void rms_norm(float *out, const float *x, const float *weight, int32_t n, float eps) {
    f32v squares[HALVES];
    int32_t n16 = n / 16 * 16;
    for (int32_t h = 0; h < HALVES; h++) squares[h] = all_v(0.0f);
    for (int32_t i = 0; i < n16; i += 16)
        for (int32_t h = 0; h < HALVES; h++) {
            f32v v = load_v(x + i + h * LANES);
            squares[h] = fma_v(v, v, squares[h]);
        }
    float total = sum_chains(squares);
    for (int32_t i = n16; i < n; i++) total = fma1(x[i], x[i], total);
    float inverse = 1.0f / sqrtf(total / (float)n + eps);
    for (int32_t i = 0; i < n; i++) out[i] = x[i] * inverse * weight[i];
}

static void rope(float *x, const float *cos_sin, int32_t head_dim) {
    int32_t half = head_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        float c = cos_sin[i * 2], s = cos_sin[i * 2 + 1], a = x[i], b = x[i + half];
        x[i] = fma1(a, c, -(b * s));
        x[i + half] = fma1(b, c, a * s);
    }
}

static void silu_mul(float *out, const float *gate, const float *up, int32_t n) {
    for (int32_t i = 0; i < n; i += LANES) {
        f32v g = load_v(gate + i);
        store_v(out + i, g / (exp_v(-g) + 1.0f) * load_v(up + i));
    }
}

/* quant/grid.h's definition. */
static float grid_error(const float *weights, const float *importance, int32_t n,
                        lmd_grid_steps steps) {
    const float inverse = 1.0f / steps.scale;
    f32v error[HALVES];
    for (int32_t h = 0; h < HALVES; h++) error[h] = (f32v){0};
    for (int32_t i = 0; i < n; i += 16)
        for (int32_t h = 0; h < HALVES; h++) {
            const f32v w = load_v(weights + i + h * LANES);
            f32v at = w * inverse + steps.zero;
            at = select_v(at > 0.0f, at, all_v(0.0f));
            at = select_v(at < steps.most, at, all_v(steps.most));
            const f32v code = at + ROUND_MAGIC - ROUND_MAGIC;
            const f32v off = (code - steps.zero) * steps.scale - w;
            error[h] += off * off * load_v(importance + i + h * LANES);
        }
    return sum_chains(error);
}

/* Sums of weights: floor(e * 2^40) is high * 2^20 + low, two integers up to 2^20. */
typedef struct weight_sums {
    i32v high, low;
} weight_sums;

INLINE void add_weights(weight_sums *sums, f32v e) {
    f32v scaled = e * 0x1p20f;
    i32v high = __builtin_convertvector(scaled, i32v);
    f32v rest = (scaled - __builtin_convertvector(high, f32v)) * 0x1p20f;
    sums->high += high;
    sums->low += __builtin_convertvector(rest, i32v);
}

/* Tokens whose sums, high and low, stay below 2^31 in one lane. */
enum { WEIGHTS_BLOCK = 1024 };

INLINE uint64_t weigh_block(float *out, const float *x, int32_t n, float max,
                            float temperature) {
    weight_sums sums = {{0}, {0}};
    const int32_t whole = n / LANES * LANES;
    for (int32_t i = 0; i < whole; i += LANES) {
        f32v e = exp_v((load_v(x + i) - max) / temperature);
        store_v(out + i, e);
        add_weights(&sums, e);
    }
    if (whole < n) {
        const size_t n_bytes = (size_t)(n - whole) * sizeof(float);
        f32v last = all_v(-INFINITY), e;
        memcpy(&last, x + whole, n_bytes);
        e = exp_v((last - max) / temperature);
        memcpy(out + whole, &e, n_bytes);
        add_weights(&sums, e);
    }
    uint64_t total = 0;
    for (int32_t i = 0; i < LANES; i++)
        total += ((uint64_t)sums.high[i] << 20) + (uint64_t)sums.low[i];
    return total;
}

static uint64_t weigh(float *out, const float *x, int32_t n, float max, float temperature) {
    uint64_t total = 0;
    for (int32_t i = 0; i < n; i += WEIGHTS_BLOCK)
        total += weigh_block(out + i, x + i, n - i < WEIGHTS_BLOCK ? n - i : WEIGHTS_BLOCK, max,
                             temperature);
    return total;
}

#endif
