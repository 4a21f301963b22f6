/* Attention kernels over keys and values that are codes (see kv_quant.h), and the choice
 * between them and those of attention.h. Written once, for every ISA.
 * Queries become integers of 16 bits, and so do the softmax's weights, block by block: their
 * products with codes sum up exactly in int32, in any order. What is rounded is one function of
 * (row, block): a score is fma(sum, q_scale * k_scale, k_min * q_sum), and a block adds
 * fma(sum, weight_scale, offset) to o, where a weight is p * v_scale and offset is the sum of
 * p * v_min. A position of weight 0 adds nothing, whatever its bytes are. */
#ifndef LMD_CPU_KERNELS_KV_H
#define LMD_CPU_KERNELS_KV_H

#include <assert.h>

#include "cpu/kernels/attention.h"
#include "quant/kv_quant.h"

static_assert((int64_t)255 * LMD_ACT16_MAX * LMD_MAX_HEAD_DIM <= INT32_MAX, "a key's sum");
static_assert((int64_t)255 * LMD_ACT16_MAX * LMD_CHUNK_LEN <= INT32_MAX, "a block's sum");

/* ---- layout: see lmd_kv_format ---- */

/* The scales of a block's keys or values, which as many mins follow. */
INLINE uint16_t *pairs_of(const uint8_t *codes, const lmd_kv_format *format, int32_t bits) {
    return (uint16_t *)(void *)(codes +
                                (int64_t)format->block_len * format->head_dim * bits / 8);
}

/* The byte of a word that holds element e of four: 0, 2, 1, 3. */
INLINE int32_t byte_of(int32_t e) { return e / 2 + e % 2 * 2; }

static void store_params(uint8_t *codes, const lmd_kv_format *format, int32_t bits, int32_t at,
                         lmd_kv_params params) {
    uint16_t *scales = pairs_of(codes, format, bits);
    scales[at] = params.scale;
    scales[format->block_len + at] = params.min;
}

static void write_key_codes(uint8_t *keys, const float *key, int32_t at,
                            const lmd_kv_format *format) {
    const int32_t bits = format->k_bits, head_dim = format->head_dim;
    uint8_t codes[LMD_MAX_HEAD_DIM];
    store_params(keys, format, bits, at, lmd_kv_encode(key, head_dim, bits, codes));
    uint8_t *out = keys + (int64_t)(at / 16) * 16 * head_dim * bits / 8 + at % 16 * 4;
    if (bits == 8)
        for (int32_t d = 0; d < head_dim; d += 4, out += 64)
            for (int32_t e = 0; e < 4; e++) out[byte_of(e)] = codes[d + e];
    else
        for (int32_t d = 0; d < head_dim; d += 8, out += 64)
            for (int32_t j = 0; j < 4; j++) {
                const uint8_t *low = codes + d + j % 2 * 4 + j / 2;
                out[j] = (uint8_t)(low[0] | low[2] << 4);
            }
}

static void write_value_codes(uint8_t *values, const float *value, int32_t at,
                              const lmd_kv_format *format) {
    const int32_t bits = format->v_bits, head_dim = format->head_dim, half = head_dim / 2;
    uint8_t codes[LMD_MAX_HEAD_DIM];
    store_params(values, format, bits, at, lmd_kv_encode(value, head_dim, bits, codes));
    uint8_t *out = values + (int64_t)(at / 4) * 4 * head_dim * bits / 8 + byte_of(at % 4);
    if (bits == 8)
        for (int32_t d = 0; d < head_dim; d++) out[d * 4] = codes[d];
    else
        for (int32_t d = 0; d < half; d++)
            out[d * 4] = (uint8_t)(codes[d] | codes[half + d] << 4);
}

static void kv_write(uint8_t *block, const float *key, const float *value,
                     int32_t position_in_block, const lmd_kv_format *format) {
    if (format->k_bits >= 16) {
        kv_write_floats(block, key, value, position_in_block, format);
        return;
    }
    write_key_codes(block, key, position_in_block, format);
    write_value_codes(block + lmd_kv_half_bytes(format, format->k_bits), value,
                      position_in_block, format);
}

/* ---- integers of queries and weights ---- */

/* Writes n values, a multiple of 16, as integers times a scale; returns the integers' sum. */
INLINE int32_t to_integers(int16_t *out, const float *x, int32_t n, float *scale) {
    float inverse;
    i32v total[HALVES];
    *scale = group_scale(x, n, (float)LMD_ACT16_MAX, &inverse);
    if (inverse == 0.0f) { /* zeros, or values that are not finite: 0 * NaN is no integer */
        memset(out, 0, (size_t)n * sizeof *out);
        return 0;
    }
    for (int32_t h = 0; h < HALVES; h++) total[h] = (i32v){0};
    for (int32_t i = 0; i < n; i += 16)
        for (int32_t h = 0; h < HALVES; h++) {
            f32v rounded = load_v(x + i + h * LANES) * inverse + ROUND_MAGIC - ROUND_MAGIC;
            i32v q = __builtin_convertvector(rounded, i32v);
            s16n narrow = __builtin_convertvector(q, s16n);
            memcpy(out + i + h * LANES, &narrow, sizeof narrow);
            total[h] += q;
        }
    return sum_lanes(total);
}

static void queries_to_integers(lmd_attend_state *state, const lmd_attend_args *args) {
    const int32_t head_dim = args->format.head_dim, n16 = (head_dim + 15) / 16 * 16;
    for (int32_t r = 0; r < args->n_rows; r++) {
        float x[LMD_MAX_HEAD_DIM];
        memcpy(x, args->q + r * LMD_MAX_HEAD_DIM, (size_t)head_dim * sizeof *x);
        for (int32_t d = head_dim; d < n16; d++) x[d] = 0.0f;
        int32_t sum = to_integers(state->q[r], x, n16, &state->q_scale[r]);
        state->q_sum[r] = state->q_scale[r] * (float)sum;
    }
}

/* Turns row r's p over a block's n positions (a multiple of 16) into integers and an offset. */
static void weights_to_integers(lmd_attend_state *state, int32_t r, int32_t n,
                                const uint16_t *scales, const uint16_t *mins, int64_t ahead) {
    float weights[LMD_CHUNK_LEN];
    f32v total[HALVES];
    for (int32_t h = 0; h < HALVES; h++) total[h] = all_v(0.0f);
    for (int32_t t = 0; t < n; t += 16) {
        lmd_prefetch((const char *)(scales + t) + ahead);
        lmd_prefetch((const char *)(mins + t) + ahead);
        for (int32_t h = 0; h < HALVES; h++) {
            const int32_t at = t + h * LANES;
            f32v p = load_v(state->p[r] + at);
            i32v counts = ~(p == 0.0f);
            store_v(weights + at, (f32v)((i32v)(p * half_v(scales + at)) & counts));
            total[h] += (f32v)((i32v)(p * half_v(mins + at)) & counts);
        }
    }
    to_integers(state->weights[r], weights, n, &state->weight_scale[r]);
    state->offset[r] = sum_chains(total);
}

/* ---- sums ---- */

INLINE u16v load_words(const uint8_t *p, int64_t ahead) {
    u16v words;
    memcpy(&words, p, sizeof words);
    lmd_prefetch((const char *)p + ahead);
    return words;
}

/* Codes 2i and 2i + 1 of every 32-bit word as int16. */
INLINE s16v code_pair(u16v words, const int32_t i, const int32_t bits) {
    u16v shifted = words >> (uint16_t)(i * bits);
    return (s16v)((i + 1) * bits == 16 ? shifted : shifted & (uint16_t)((1 << bits) - 1));
}

INLINE i32v two_integers(const int16_t *p) { return all_dwords((const uint8_t *)p); }

/* Computes the scores of n_rows rows against `width` panels of 16 keys from position t on. */
INLINE void score_code_panels(lmd_attend_state *state, const lmd_kv_format *format,
                              const int32_t r0, const int32_t n_rows, const int32_t width,
                              block_view keys, int32_t t, const int32_t bits) {
    const int32_t head_dim = format->head_dim, per_word = 32 / bits;
    i32v acc[ATTEND_TILE][4][HALVES];
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t w = 0; w < width; w++)
            for (int32_t h = 0; h < HALVES; h++) acc[r][w][h] = (i32v){0};
    for (int32_t d = 0; d < head_dim; d += per_word) {
        const uint8_t *line = keys.data + ((int64_t)t * head_dim + d * 16) * bits / 8;
        for (int32_t w = 0; w < width; w++, line += (int64_t)16 * head_dim * bits / 8)
            for (int32_t h = 0; h < HALVES; h++) {
                u16v words = load_words(line + h * VECTOR_BYTES, keys.ahead);
#pragma GCC unroll 4
                for (int32_t i = 0; i < per_word / 2; i++) {
                    s16v pair = code_pair(words, i, bits);
#pragma GCC unroll 12
                    for (int32_t r = 0; r < n_rows; r++) {
                        s16v q = (s16v)two_integers(state->q[r0 + r] + d + 2 * i);
                        acc[r][w][h] = dot_pairs(acc[r][w][h], pair, q);
                    }
                }
            }
    }
    const uint16_t *scales = pairs_of(keys.data, format, bits);
#pragma GCC unroll 4
    for (int32_t w = 0; w < width; w++)
        for (int32_t h = 0; h < HALVES; h++) {
            const int32_t at = t + w * 16 + h * LANES;
            f32v scale = half_v(scales + at), min = half_v(scales + format->block_len + at);
            lmd_prefetch((const char *)(scales + at) + keys.ahead);
            lmd_prefetch((const char *)(scales + format->block_len + at) + keys.ahead);
            for (int32_t r = 0; r < n_rows; r++)
                store_v(state->p[r0 + r] + at,
                        fma_v(__builtin_convertvector(acc[r][w][h], f32v),
                              scale * state->q_scale[r0 + r], min * state->q_sum[r0 + r]));
        }
}

INLINE void score_codes(lmd_attend_state *state, const lmd_kv_format *format, int32_t r,
                        const int32_t n_rows, block_view keys, const int32_t bits) {
    const int32_t width = WIDTH(n_rows), n16 = (keys.n + 15) / 16 * 16;
    int32_t t = 0;
    for (; t + 16 * width <= n16; t += 16 * width)
        score_code_panels(state, format, r, n_rows, width, keys, t, bits);
    for (; width > 1 && t < n16; t += 16)
        score_code_panels(state, format, r, n_rows, 1, keys, t, bits);
}

/* How many 32-bit words hold the values of four positions. A word holds one column of 8-bit
 * codes, or columns d and d + head_dim / 2 of 4-bit codes. */
INLINE int32_t n_words(const lmd_kv_format *format) {
    return format->v_bits == 4 ? format->head_dim / 2 : format->head_dim;
}

/* The same in whole vectors of 16 columns. Of 4-bit codes, the second half of o's columns
 * starts there until attend_codes moves it to the end of the first half. */
INLINE int32_t half_width(const lmd_kv_format *format) {
    return (n_words(format) + 15) / 16 * 16;
}

/* Adds a block to `width` vectors of 16 columns of o, from the v-th on. Of 4-bit codes, vectors
 * 2i and 2i + 1 come from the same words, and part is v % 2; of 8-bit codes part is 0. */
INLINE void add_code_columns(lmd_attend_state *state, const lmd_kv_format *format,
                             const int32_t r0, const int32_t n_rows, const int32_t width,
                             block_view values, int32_t v, const int32_t part,
                             const int32_t bits) {
    const int32_t parts = 8 / bits, words_row = n_words(format);
    i32v acc[ATTEND_TILE][4][HALVES];
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t w = 0; w < width; w++)
            for (int32_t h = 0; h < HALVES; h++) acc[r][w][h] = (i32v){0};
    for (int32_t t = 0; t < values.n; t += 4) {
        const uint8_t *line = values.data + (int64_t)t * words_row + v / parts * 64;
        for (int32_t w = 0; w < width; w++)
            for (int32_t h = 0; h < HALVES; h++) {
                u16v words = load_words(line + w / parts * 64 + h * VECTOR_BYTES, values.ahead);
#pragma GCC unroll 2
                for (int32_t i = 0; i < 2; i++) {
                    s16v pair = code_pair(words, i * parts + (part + w) % parts, bits);
#pragma GCC unroll 12
                    for (int32_t r = 0; r < n_rows; r++) {
                        s16v p = (s16v)two_integers(state->weights[r0 + r] + t + 2 * i);
                        acc[r][w][h] = dot_pairs(acc[r][w][h], pair, p);
                    }
                }
            }
    }
#pragma GCC unroll 12
    for (int32_t r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (int32_t w = 0; w < width; w++)
            for (int32_t h = 0; h < HALVES; h++) {
                float *o = state->o[r0 + r] + (part + w) % parts * half_width(format) +
                           (v + w) / parts * 16 + h * LANES;
                store_v(o, fma_v(__builtin_convertvector(acc[r][w][h], f32v),
                                 all_v(state->weight_scale[r0 + r]),
                                 load_v(o) + state->offset[r0 + r]));
            }
}

/* Adds a block to o. The last columns may be read from beyond the row; their lanes are not
 * used. */
INLINE void add_codes(lmd_attend_state *state, const lmd_kv_format *format, int32_t r,
                      const int32_t n_rows, block_view values, const int32_t bits) {
    const int32_t width = WIDTH(n_rows), parts = 8 / bits;
    const int32_t n_vectors = half_width(format) / 16 * parts;
    int32_t v = 0;
    for (; width > 1 && v + width <= n_vectors; v += width)
        add_code_columns(state, format, r, n_rows, width, values, v, 0, bits);
    for (; v < n_vectors; v++)
        if (v % parts == 0)
            add_code_columns(state, format, r, n_rows, 1, values, v, 0, bits);
        else
            add_code_columns(state, format, r, n_rows, 1, values, v, 1, bits);
}

/* ---- blocks ---- */

typedef void (*codes_fn)(lmd_attend_state *state, const lmd_kv_format *format, int32_t r,
                         block_view codes);

#define DEFINE_CODES(name, body, n_rows, bits)                                                 \
    static void name(lmd_attend_state *state, const lmd_kv_format *format, int32_t r,          \
                     block_view codes) {                                                       \
        body(state, format, r, n_rows, codes, bits);                                           \
    }
#define DEFINE_CODES_OF_ROWS(name, body, bits)                                                 \
    DEFINE_CODES(name##_1, body, 1, bits)                                                      \
    DEFINE_CODES(name##_2, body, 2, bits)                                                      \
    DEFINE_CODES(name##_3, body, 3, bits)                                                      \
    DEFINE_CODES(name##_4, body, 4, bits)                                                      \
    DEFINE_CODES(name##_tile, body, ATTEND_TILE, bits)
#define CODES_OF_ROWS(name)                                                                    \
    { name##_1, name##_2, name##_3, name##_4, name##_tile }

DEFINE_CODES_OF_ROWS(scores_of_8, score_codes, 8)
DEFINE_CODES_OF_ROWS(scores_of_4, score_codes, 4)
DEFINE_CODES_OF_ROWS(values_of_8, add_codes, 8)
DEFINE_CODES_OF_ROWS(values_of_4, add_codes, 4)

/* Has all rows attend to one block. */
static void attend_code_block(lmd_attend_state *state, const lmd_attend_args *args,
                              block_view keys) {
    static const codes_fn scores_of[2][5] = {CODES_OF_ROWS(scores_of_8),
                                             CODES_OF_ROWS(scores_of_4)};
    static const codes_fn values_of[2][5] = {CODES_OF_ROWS(values_of_8),
                                             CODES_OF_ROWS(values_of_4)};
    const lmd_kv_format *format = &args->format;
    const int32_t n_o = half_width(format) * (format->v_bits == 4 ? 2 : 1);
    const int32_t n16 = (keys.n + 15) / 16 * 16;
    block_view values = keys;
    values.data += lmd_kv_half_bytes(format, format->k_bits);
    const uint16_t *scales = pairs_of(values.data, format, format->v_bits);
    for (int32_t r = 0, n_rows; r < args->n_rows; r += n_rows) {
        const int32_t left = args->n_rows - r;
        n_rows = left >= ATTEND_TILE ? ATTEND_TILE : left < 4 ? left : 4;
        const int32_t which = n_rows == ATTEND_TILE ? 4 : n_rows - 1;
        scores_of[format->k_bits == 4][which](state, format, r, keys);
        for (int32_t i = r; i < r + n_rows; i++) {
            softmax_row(state, args, i, keys.first, keys.n, n_o);
            weights_to_integers(state, i, n16, scales, scales + format->block_len, keys.ahead);
        }
        values_of[format->v_bits == 4][which](state, format, r, values);
    }
}

static void attend_codes(lmd_attend_state *state, const lmd_attend_args *args) {
    const lmd_kv_format *format = &args->format;
    queries_to_integers(state, args);
    for (int32_t first = args->begin; first < args->end; first += format->block_len)
        attend_code_block(state, args, block_at(args, first));
    if (format->v_bits == 4 && half_width(format) != n_words(format))
        for (int32_t r = 0; r < args->n_rows; r++)
            memmove(state->o[r] + n_words(format), state->o[r] + half_width(format),
                    (size_t)n_words(format) * sizeof *state->o[r]);
}

static void attend_chunk(lmd_attend_state *state, const lmd_attend_args *args) {
    for (int32_t r = 0; r < args->n_rows; r++) {
        state->max[r] = -INFINITY;
        state->sum[r] = 0.0f;
        memset(state->o[r], 0, (size_t)(args->format.head_dim + 31) / 32 * 32 * sizeof(float));
    }
    if (args->format.k_bits >= 16)
        attend_floats(state, args);
    else
        attend_codes(state, args);
}

#endif
