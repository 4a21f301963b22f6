/* The kernels, written once for every instruction set: the readable definition that the numeric
 * contract speaks of. A kernels_<isa>.c defines the wrappers below (an intrinsic, or the
 * portable body) and includes this file; it may then put a faster kernel with the same bits
 * into its table. f32x8                       8 floats f32x8 fma8(a, b, c)         a * b + c,
 * rounded once f32x8 half8(const uint16_t *p)  8 halves as floats float fma1(a, b, c) the
 * scalar of fma8 */
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "cpu/cpu_kernels.h"

static inline f32x8 load8(const float *p) {
    f32x8 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store8(float *p, f32x8 v) { memcpy(p, &v, sizeof v); }

static inline f32x8 all8(float x) { return (f32x8){x, x, x, x, x, x, x, x}; }

/* mask ? a : b in each lane; a comparison of vectors makes the mask. */
static inline f32x8 select8(i32x8 mask, f32x8 a, f32x8 b) {
    return (f32x8)(((i32x8)a & mask) | ((i32x8)b & ~mask));
}

/* Sums 8 lanes in one fixed order. */
static inline float sum8(f32x8 v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

/* Rounds to the nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 pushes the
 * fraction out. */
#define LMD_ROUND_MAGIC 12582912.0f

/* exp(x) for each lane, relative error below 2e-7: the Cephes polynomial on [-ln2/2, ln2/2].
 * Below -87 the result is that of -87 (1.6e-38); above 88, of 88. NaN stays NaN. */
static inline f32x8 exp8(f32x8 x) {
    x = select8(x < -87.0f, all8(-87.0f), x);
    x = select8(x > 88.0f, all8(88.0f), x);
    f32x8 shifted = x * 1.442695041f + LMD_ROUND_MAGIC;
    f32x8 n = shifted - LMD_ROUND_MAGIC;
    f32x8 r = fma8(n, all8(-0.693359375f), x);
    r = fma8(n, all8(2.12194440e-4f), r);
    f32x8 y = all8(1.9875691500e-4f);
    y = fma8(y, r, all8(1.3981999507e-3f));
    y = fma8(y, r, all8(8.3334519073e-3f));
    y = fma8(y, r, all8(4.1665795894e-2f));
    y = fma8(y, r, all8(1.6666665459e-1f));
    y = fma8(y, r, all8(5.0000001201e-1f));
    y = fma8(y, r * r, r + 1.0f);
    /* The low bits of `shifted` are n: put it into the exponent of 1.0. */
    u32x8 power = ((u32x8)shifted << 23) + 0x3f800000u;
    return y * (f32x8)power;
}

static inline float exp1(float x) { return exp8(all8(x))[0]; }

/* ---- linear: one panel ---- */

static inline f32x8 float_column8(const uint8_t *column, lmd_dtype dtype, int32_t half) {
    if (dtype == LMD_F32) return load8((const float *)(const void *)column + half * 8);
    const uint16_t *bits = (const uint16_t *)(const void *)column + half * 8;
    if (dtype == LMD_F16) return half8(bits);
    u16x8 narrow;
    memcpy(&narrow, bits, sizeof narrow);
    return (f32x8)(__builtin_convertvector(narrow, u32x8) << 16);
}

/* Float weights: one chain of FMAs per output, columns ascending. */
static void panel_float(float *out, const uint8_t *panel, lmd_dtype dtype, const lmd_acts *acts,
                        int32_t row0, int32_t n_rows) {
    const int64_t column_bytes = LMD_PANEL_ROWS * (dtype == LMD_F32 ? 4 : 2);
    for (int32_t r = 0; r < n_rows; r++) {
        const float *x = acts->x + (int64_t)(row0 + r) * acts->n_cols;
        const uint8_t *column = panel;
        f32x8 lo = all8(0.0f), hi = all8(0.0f);
        for (int32_t k = 0; k < acts->n_cols; k++, column += column_bytes) {
            lo = fma8(float_column8(column, dtype, 0), all8(x[k]), lo);
            hi = fma8(float_column8(column, dtype, 1), all8(x[k]), hi);
        }
        store8(out + r * LMD_PANEL_ROWS, lo);
        store8(out + r * LMD_PANEL_ROWS + 8, hi);
    }
}

/* Adds a group's integer products to dots[16]: 8 columns at a time, activations in their stored
 * order. */
static void group_dots(int32_t *dots, const uint8_t *lines, lmd_weight_kind kind,
                       const int16_t *q, int32_t group_size) {
    for (int32_t k = 0; k < group_size; k += 8, q += 8) {
        const int32_t even_odd[8] = {q[0], q[4], q[1], q[5], q[2], q[6], q[3], q[7]};
        for (int32_t n = 0; n < LMD_PANEL_ROWS; n++) {
            int32_t dot = 0;
            for (int32_t j = 0; j < 4; j++) {
                int32_t first, second; /* w[n][k + j], w[n][k + 4 + j] */
                if (kind == LMD_WEIGHT_U4) {
                    first = lines[n * 4 + j] & 15;
                    second = lines[n * 4 + j] >> 4;
                } else if (kind == LMD_WEIGHT_U8) {
                    first = lines[n * 4 + j];
                    second = lines[64 + n * 4 + j];
                } else {
                    first = (int8_t)lines[n * 4 + j];
                    second = (int8_t)lines[64 + n * 4 + j];
                }
                dot += first * even_odd[j] + second * even_odd[4 + j];
            }
            dots[n] += dot;
        }
        lines += kind == LMD_WEIGHT_U4 ? 64 : 128;
    }
}

/* The one step from a group's integers to the running sum f, fixed by the contract: an integer
 * zero is subtracted exactly, one conversion, fma(dot, d * s), then fma(min, s * sum). */
static inline f32x8 fold_group8(f32x8 f, f32x8 dots_as_float, f32x8 scales, float act_scale) {
    return fma8(dots_as_float, scales * act_scale, f);
}

static inline int32_t header_bytes(lmd_group_offset offset) {
    return offset == LMD_OFFSET_NONE ? 32 : 64;
}

/* Zeros are small integers stored as halves: exact in fp32. */
static inline i32x8 zeros8(const uint16_t *offsets) {
    return __builtin_convertvector(half8(offsets), i32x8);
}

static inline f32x8 finish_group8(f32x8 f, i32x8 dots, const uint16_t *header, int32_t half,
                                  lmd_group_offset offset, float act_scale, int32_t act_sum) {
    const uint16_t *offsets = header + LMD_PANEL_ROWS + half * 8;
    if (offset == LMD_OFFSET_ZERO) dots -= zeros8(offsets) * act_sum;
    f = fold_group8(f, __builtin_convertvector(dots, f32x8), half8(header + half * 8),
                    act_scale);
    if (offset == LMD_OFFSET_MIN) f = fma8(half8(offsets), all8(act_scale * (float)act_sum), f);
    return f;
}

static void panel_codes(float *out, const uint8_t *panel, const lmd_weight_format *format,
                        const lmd_acts *acts, int32_t row0, int32_t n_rows) {
    const int32_t group_size = format->group_size;
    const int32_t n_header = header_bytes(format->offset);
    const int32_t n_lines = group_size * (format->kind == LMD_WEIGHT_U4 ? 8 : 16); /* bytes */
    for (int32_t r = 0; r < n_rows; r++) {
        const int64_t row = row0 + r;
        const uint8_t *group = panel;
        f32x8 lo = all8(0.0f), hi = all8(0.0f);
        for (int32_t g = 0; g < acts->n_groups; g++, group += n_header + n_lines) {
            int32_t dots[LMD_PANEL_ROWS] = {0};
            group_dots(dots, group + n_header, format->kind,
                       acts->q + row * acts->n_cols + (int64_t)g * group_size, group_size);
            float scale = acts->scales[row * acts->n_groups + g];
            int32_t sum = acts->sums[row * acts->n_groups + g];
            const uint16_t *header = (const uint16_t *)(const void *)group;
            i32x8 dots_lo, dots_hi;
            memcpy(&dots_lo, dots, sizeof dots_lo);
            memcpy(&dots_hi, dots + 8, sizeof dots_hi);
            lo = finish_group8(lo, dots_lo, header, 0, format->offset, scale, sum);
            hi = finish_group8(hi, dots_hi, header, 1, format->offset, scale, sum);
        }
        store8(out + r * LMD_PANEL_ROWS, lo);
        store8(out + r * LMD_PANEL_ROWS + 8, hi);
    }
}

/* ---- activations ---- */

/* Quantises one group. A maximum below 2^-100 counts as zero, so that 32639 / max stays finite.
 */
static void quantize_group(int16_t *q, float *scale, int32_t *sum, const float *x,
                           int32_t group_size) {
    f32x8 max8 = all8(0.0f), sum_probe = all8(0.0f);
    for (int32_t i = 0; i < group_size; i += 8) {
        f32x8 v = load8(x + i);
        f32x8 magnitude = select8(v < 0.0f, -v, v);
        max8 = select8(magnitude > max8, magnitude, max8);
        sum_probe += v * 0.0f; /* 0, or NaN where an element is not finite */
    }
    float max = 0.0f;
    for (int32_t i = 0; i < 8; i++) max = max8[i] > max ? max8[i] : max;
    float probe = sum8(sum_probe);
    if (probe != 0.0f || max < 0x1p-100f) {
        *scale = probe; /* 0 or NaN */
        *sum = 0;
        memset(q, 0, (size_t)group_size * sizeof *q);
        return;
    }
    float inverse = (float)LMD_ACT_MAX / max;
    i32x8 total = {0};
    for (int32_t i = 0; i < group_size; i += 8) {
        f32x8 rounded = load8(x + i) * inverse + LMD_ROUND_MAGIC - LMD_ROUND_MAGIC;
        i32x8 v = __builtin_convertvector(rounded, i32x8);
        total += v;
        const int32_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
        for (int32_t j = 0; j < 8; j++) q[i + j] = (int16_t)v[order[j]];
    }
    *scale = max / (float)LMD_ACT_MAX;
    *sum = 0;
    for (int32_t i = 0; i < 8; i++) *sum += total[i];
}

static void quantize(int16_t *q, float *scales, int32_t *sums, const float *x, int32_t n_cols,
                     int32_t group_size) {
    for (int32_t g = 0; g < n_cols / group_size; g++) {
        int64_t at = (int64_t)g * group_size;
        quantize_group(q + at, scales + g, sums + g, x + at, group_size);
    }
}

/* The sum of squares runs in 8 chains, then one fixed tree, then the tail. */
static void rms_norm(float *out, const float *x, const float *weight, int32_t n, float eps) {
    f32x8 squares = all8(0.0f);
    int32_t n8 = n / 8 * 8;
    for (int32_t i = 0; i < n8; i += 8) squares = fma8(load8(x + i), load8(x + i), squares);
    float total = sum8(squares);
    for (int32_t i = n8; i < n; i++) total = fma1(x[i], x[i], total);
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
    int32_t n8 = n / 8 * 8;
    for (int32_t i = 0; i < n8; i += 8) {
        f32x8 g = load8(gate + i);
        store8(out + i, g / (exp8(-g) + 1.0f) * load8(up + i));
    }
    for (int32_t i = n8; i < n; i++) out[i] = gate[i] / (exp1(-gate[i]) + 1.0f) * up[i];
}

/* ---- attention ---- */

static void kv_write(void *block, const float *key, const float *value,
                     int32_t position_in_block, int32_t block_len, int32_t head_dim,
                     int32_t kv_bits) {
    int64_t key_at = (int64_t)(position_in_block / 16) * 16 * head_dim + position_in_block % 16;
    int64_t value_at = (int64_t)(block_len + position_in_block) * head_dim;
    if (kv_bits == 32) {
        float *out = block;
        for (int32_t d = 0; d < head_dim; d++) out[key_at + (int64_t)d * 16] = key[d];
        memcpy(out + value_at, value, (size_t)head_dim * sizeof *value);
    } else {
        uint16_t *out = block;
        for (int32_t d = 0; d < head_dim; d++)
            out[key_at + (int64_t)d * 16] = lmd_float_to_half(key[d]);
        for (int32_t d = 0; d < head_dim; d++) out[value_at + d] = lmd_float_to_half(value[d]);
    }
}

/* Brings `n` stored elements to fp32; n is a multiple of 8. */
static void kv_load(float *out, const void *in, int64_t at, int64_t n, int32_t kv_bits) {
    if (kv_bits == 32) {
        memcpy(out, (const float *)in + at, (size_t)n * sizeof *out);
        return;
    }
    const uint16_t *bits = (const uint16_t *)in + at;
    for (int64_t i = 0; i < n; i += 8) store8(out + i, half8(bits + i));
}

/* Scores of up to 4 rows against n keys (in panels of 16): QK over d ascending. Rows are
 * computed together only to share the loads. */
static inline void scores(float (*p)[LMD_CHUNK_LEN], const float *const *q, int32_t n_rows,
                          const float *keys, int32_t n, int32_t head_dim) {
    for (int32_t t = 0; t < n; t += 16) {
        const float *panel = keys + (int64_t)t * head_dim;
        f32x8 acc[4][2];
        for (int32_t r = 0; r < n_rows; r++) acc[r][0] = acc[r][1] = all8(0.0f);
        for (int32_t d = 0; d < head_dim; d++) {
            f32x8 lo = load8(panel + d * 16), hi = load8(panel + d * 16 + 8);
            for (int32_t r = 0; r < n_rows; r++) {
                acc[r][0] = fma8(lo, all8(q[r][d]), acc[r][0]);
                acc[r][1] = fma8(hi, all8(q[r][d]), acc[r][1]);
            }
        }
        for (int32_t r = 0; r < n_rows; r++) {
            store8(p[r] + t, acc[r][0]);
            store8(p[r] + t + 8, acc[r][1]);
        }
    }
}

/* Softmax of one row over one block: p becomes exp(p - max) for its first n_seen positions and
 * 0 up to n (a multiple of 8). The running sum and o are rescaled when the maximum rises. */
static void softmax_block(float *p, int32_t n_seen, int32_t n, float *max, float *sum, float *o,
                          int32_t head_dim) {
    float block_max = p[0];
    for (int32_t t = 1; t < n_seen; t++) block_max = p[t] > block_max ? p[t] : block_max;
    if (block_max > *max) {
        if (*sum > 0.0f) {
            float rescale = exp1(*max - block_max);
            *sum *= rescale;
            for (int32_t d = 0; d < head_dim; d++) o[d] *= rescale;
        }
        *max = block_max;
    }
    f32x8 total = all8(0.0f);
    for (int32_t t = 0; t < n; t += 8) {
        f32x8 e = exp8(load8(p + t) - *max);
        if (t + 8 > n_seen)
            for (int32_t i = 0; i < 8; i++) e[i] = t + i < n_seen ? e[i] : 0.0f;
        store8(p + t, e);
        total += e;
    }
    *sum += sum8(total);
}

/* o += p V of up to 4 rows: PV over t ascending. */
static inline void weighted_values(float (*o)[LMD_MAX_HEAD_DIM],
                                   const float (*p)[LMD_CHUNK_LEN], int32_t n_rows,
                                   const float *values, int32_t n, int32_t head_dim) {
    for (int32_t d = 0; d < head_dim; d += 8) {
        f32x8 acc[4];
        for (int32_t r = 0; r < n_rows; r++) acc[r] = load8(o[r] + d);
        for (int32_t t = 0; t < n; t++) {
            f32x8 v = load8(values + (int64_t)t * head_dim + d);
            for (int32_t r = 0; r < n_rows; r++) acc[r] = fma8(all8(p[r][t]), v, acc[r]);
        }
        for (int32_t r = 0; r < n_rows; r++) store8(o[r] + d, acc[r]);
    }
}

/* Constant row counts let the compiler keep the accumulators in registers. */
#define FOR_ROWS(n_rows, call)                                                                 \
    switch (n_rows) {                                                                          \
    case 1: {                                                                                  \
        enum { N = 1 };                                                                        \
        call;                                                                                  \
    } break;                                                                                   \
    case 2: {                                                                                  \
        enum { N = 2 };                                                                        \
        call;                                                                                  \
    } break;                                                                                   \
    case 3: {                                                                                  \
        enum { N = 3 };                                                                        \
        call;                                                                                  \
    } break;                                                                                   \
    default: {                                                                                 \
        enum { N = 4 };                                                                        \
        call;                                                                                  \
    } break;                                                                                   \
    }

static void attend_block(lmd_attend_state *state, const lmd_attend_args *args, int32_t first,
                         int32_t n) {
    const int32_t head_dim = args->head_dim;
    const int32_t n16 = (n + 15) / 16 * 16; /* score panels are whole; masked afterwards */
    for (int32_t r = 0; r < args->n_rows; r += 4) {
        int32_t n_rows = args->n_rows - r < 4 ? args->n_rows - r : 4;
        const float *q[4];
        for (int32_t i = 0; i < n_rows; i++) q[i] = args->q + (int64_t)(r + i) * args->q_stride;
        FOR_ROWS(n_rows, scores(state->p + r, q, N, state->keys, n16, head_dim))
        for (int32_t i = r; i < r + n_rows; i++) {
            int32_t n_seen = args->row_ends[i] - first;
            if (n_seen <= 0)
                memset(state->p[i], 0, (size_t)n16 * sizeof(float));
            else
                softmax_block(state->p[i], n_seen < n ? n_seen : n, n16, &state->max[i],
                              &state->sum[i], state->o[i], head_dim);
        }
        FOR_ROWS(n_rows,
                 weighted_values(state->o + r, (const float(*)[LMD_CHUNK_LEN])state->p + r, N,
                                 state->values, n, head_dim))
    }
}

static void attend_chunk(lmd_attend_state *state, const lmd_attend_args *args) {
    const int32_t block_len = args->block_len, head_dim = args->head_dim;
    for (int32_t r = 0; r < args->n_rows; r++) {
        state->max[r] = -INFINITY;
        state->sum[r] = 0.0f;
        memset(state->o[r], 0, (size_t)head_dim * sizeof(float));
    }
    for (int32_t first = args->begin; first < args->end; first += block_len) {
        int32_t n = args->end - first < block_len ? args->end - first : block_len;
        int64_t n_keys = (int64_t)((n + 15) / 16 * 16) * head_dim;
        const uint8_t *block =
            args->kv + args->block_ids[first / block_len] * args->block_stride;
        kv_load(state->keys, block, 0, n_keys, args->kv_bits);
        kv_load(state->values, block, (int64_t)block_len * head_dim, (int64_t)n * head_dim,
                args->kv_bits);
        attend_block(state, args, first, n);
    }
}

static void attend_fold(float *max, float *sum, float *o, float chunk_max, float chunk_sum,
                        const float *chunk_o, int32_t head_dim) {
    if (chunk_sum == 0.0f) return;
    if (*sum == 0.0f) {
        *max = chunk_max;
        *sum = chunk_sum;
        memcpy(o, chunk_o, (size_t)head_dim * sizeof *o);
        return;
    }
    float new_max = chunk_max > *max ? chunk_max : *max;
    float keep = exp1(*max - new_max), add = exp1(chunk_max - new_max);
    *max = new_max;
    *sum = fma1(*sum, keep, chunk_sum * add);
    for (int32_t d = 0; d < head_dim; d++) o[d] = fma1(o[d], keep, chunk_o[d] * add);
}

static void panel_any(float *out, const uint8_t *panel, const lmd_weight_format *format,
                      const lmd_acts *acts, int32_t row0, int32_t n_rows) {
    if (format->kind == LMD_WEIGHT_FLOAT)
        panel_float(out, panel, format->float_dtype, acts, row0, n_rows);
    else
        panel_codes(out, panel, format, acts, row0, n_rows);
}
