/* Attention kernels over keys and values that are halves or floats: query rows attend to one KV
 * chunk, in decode and prefill alike. Written once, for every ISA, in the words of vector.h;
 * kv.h has the kernels over codes. Each row's arithmetic is fixed: QK over d ascending, exp
 * against the running maximum block by block, PV over t ascending; rows are computed together
 * only to share loads. A lane is a position in QK and a column of the values in PV, so the
 * width of a vector changes no bit. */
#ifndef LMD_CPU_KERNELS_ATTENTION_H
#define LMD_CPU_KERNELS_ATTENTION_H

#include "cpu/kernels/rows.h"

enum {
    ATTEND_TILE = 6 * LANES / 8 < 4 ? 4 : 6 * LANES / 8, /* rows: 4, 6, 12 */
    WIDEN_ROWS = 8 /* with so many rows, a block is converted to fp32 once for all of them */
};

static void kv_write_floats(uint8_t *block, const float *key, const float *value,
                            int32_t position_in_block, const lmd_kv_format *format) {
    const int32_t head_dim = format->head_dim;
    int64_t key_at = (int64_t)(position_in_block / 16) * 16 * head_dim + position_in_block % 16;
    int64_t value_at = (int64_t)(format->block_len + position_in_block) * head_dim;
    if (format->k_bits == 32) {
        float *out = (float *)(void *)block;
        for (int32_t d = 0; d < head_dim; d++) out[key_at + (int64_t)d * 16] = key[d];
        memcpy(out + value_at, value, (size_t)head_dim * sizeof *value);
    } else {
        uint16_t *out = (uint16_t *)(void *)block;
        for (int32_t d = 0; d < head_dim; d++)
            out[key_at + (int64_t)d * 16] = lmd_float_to_half(key[d]);
        for (int32_t d = 0; d < head_dim; d++) out[value_at + d] = lmd_float_to_half(value[d]);
    }
}

/* A block's keys or values as elements. */
typedef struct kv_view {
    const void *data;
    int64_t ahead; /* bytes from an element to the one to prefetch, in the block read next */
} kv_view;

/* Loads LANES elements. Halves come from the KV pool, with prefetching; floats have just been
 * converted, and are in the first cache. */
INLINE f32v kv_at(kv_view kv, int64_t at, const bool is_half) {
    if (!is_half) return load_v((const float *)kv.data + at);
    const uint16_t *half = (const uint16_t *)kv.data + at;
    lmd_prefetch((const char *)half + kv.ahead);
    return half_v(half);
}

/* How many times 16 positions or columns n_rows rows compute at once: enough chains of FMAs to
 * hide their latency, within the registers that there are. */
#define FEW_WIDTH(n_rows) (LANES == 16 || (n_rows) == 1 ? 4 : (n_rows) <= 3 ? 2 : 1)
#define WIDTH(n_rows)     ((n_rows) <= 4 ? FEW_WIDTH(n_rows) : 1)

/* Computes the scores of n_rows rows against `width` panels of 16 keys from position t on. */
INLINE void score_panels(float (*p)[LMD_CHUNK_LEN], const float *q, const int32_t n_rows,
                         const int32_t width, kv_view keys, int32_t t, int32_t head_dim,
                         const bool is_half) {
    f32v acc[ATTEND_TILE][4][HALVES];
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t w = 0; w < width; w++)
            for (int32_t h = 0; h < HALVES; h++) acc[r][w][h] = all_v(0.0f);
    for (int32_t d = 0; d < head_dim; d++) {
        f32v key[4][HALVES];
        for (int32_t w = 0; w < width; w++)
            for (int32_t h = 0; h < HALVES; h++)
                key[w][h] =
                    kv_at(keys, (int64_t)(t + w * 16) * head_dim + d * 16 + h * LANES, is_half);
#pragma GCC unroll 12
        for (int32_t r = 0; r < n_rows; r++) {
            f32v x = all_v(q[r * LMD_MAX_HEAD_DIM + d]);
            for (int32_t w = 0; w < width; w++)
                for (int32_t h = 0; h < HALVES; h++)
                    acc[r][w][h] = fma_v(key[w][h], x, acc[r][w][h]);
        }
    }
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t w = 0; w < width; w++)
            for (int32_t h = 0; h < HALVES; h++)
                store_v(p[r] + t + w * 16 + h * LANES, acc[r][w][h]);
}

/* Computes the scores of n_rows rows (a constant) against n keys; n is a multiple of 16. */
INLINE void scores(float (*p)[LMD_CHUNK_LEN], const float *q, const int32_t n_rows,
                   kv_view keys, int32_t n, int32_t head_dim, const bool is_half) {
    const int32_t width = WIDTH(n_rows);
    int32_t t = 0;
    for (; t + 16 * width <= n; t += 16 * width)
        score_panels(p, q, n_rows, width, keys, t, head_dim, is_half);
    for (; width > 1 && t < n; t += 16)
        score_panels(p, q, n_rows, 1, keys, t, head_dim, is_half);
}

/* Adds p V to o, for 16 * width columns from d on. */
INLINE void weighted_columns(float (*o)[LMD_MAX_HEAD_DIM], const float (*p)[LMD_CHUNK_LEN],
                             const int32_t n_rows, const int32_t width, kv_view values,
                             int32_t n, int32_t d, int32_t head_dim, const bool is_half) {
    f32v acc[ATTEND_TILE][4][HALVES];
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t w = 0; w < width; w++)
            for (int32_t h = 0; h < HALVES; h++)
                acc[r][w][h] = load_v(o[r] + d + w * 16 + h * LANES);
    for (int32_t t = 0; t < n; t++) {
        f32v v[4][HALVES];
        for (int32_t w = 0; w < width; w++)
            for (int32_t h = 0; h < HALVES; h++)
                v[w][h] =
                    kv_at(values, (int64_t)t * head_dim + d + w * 16 + h * LANES, is_half);
#pragma GCC unroll 12
        for (int32_t r = 0; r < n_rows; r++) {
            f32v x = all_v(p[r][t]);
            for (int32_t w = 0; w < width; w++)
                for (int32_t h = 0; h < HALVES; h++)
                    acc[r][w][h] = fma_v(v[w][h], x, acc[r][w][h]);
        }
    }
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t w = 0; w < width; w++)
            for (int32_t h = 0; h < HALVES; h++)
                store_v(o[r] + d + w * 16 + h * LANES, acc[r][w][h]);
}

/* Adds p V to o. The last columns may be read from beyond the row; their lanes are not used. */
INLINE void weighted_values(float (*o)[LMD_MAX_HEAD_DIM], const float (*p)[LMD_CHUNK_LEN],
                            const int32_t n_rows, kv_view values, int32_t n, int32_t head_dim,
                            const bool is_half) {
    const int32_t width = WIDTH(n_rows);
    int32_t d = 0;
    for (; d + 16 * width <= head_dim; d += 16 * width)
        weighted_columns(o, p, n_rows, width, values, n, d, head_dim, is_half);
    for (; d < head_dim; d += 16)
        weighted_columns(o, p, n_rows, 1, values, n, d, head_dim, is_half);
}

/* Does one row's softmax over one block: p becomes exp(p - max) for its first n_seen positions
 * and 0 for the others up to n, a multiple of 16. When the maximum rises, the running sum and o
 * are rescaled. */
static void softmax_block(float *p, int32_t n_seen, int32_t n, float *max, float *sum, float *o,
                          int32_t n_o) {
    for (int32_t t = n_seen; t < n; t++) p[t] = -INFINITY;
    f32v largest = load_v(p);
    for (int32_t t = LANES; t < n; t += LANES) {
        f32v v = load_v(p + t);
        largest = select_v(v > largest, v, largest);
    }
    float block_max = largest[0];
    for (int32_t i = 1; i < LANES; i++)
        block_max = largest[i] > block_max ? largest[i] : block_max;
    if (block_max > *max) {
        if (*sum > 0.0f) {
            float rescale = exp1(*max - block_max);
            *sum *= rescale;
            for (int32_t d = 0; d < n_o; d++) o[d] *= rescale;
        }
        *max = block_max;
    }
    f32v total[HALVES];
    for (int32_t h = 0; h < HALVES; h++) total[h] = all_v(0.0f);
    for (int32_t t = 0; t < n; t += 16)
        for (int32_t h = 0; h < HALVES; h++) {
            f32v x = load_v(p + t + h * LANES);
            f32v e = (f32v)((i32v)exp_v(x - *max) & ~(x == -INFINITY)); /* masked: exactly 0 */
            store_v(p + t + h * LANES, e);
            total[h] += e;
        }
    *sum += sum_chains(total);
}

/* Does the softmax of row i over the n positions from `first` on, of which none may be visible
 * to the row. o has n_o columns. */
static void softmax_row(lmd_attend_state *state, const lmd_attend_args *args, int32_t i,
                        int32_t first, int32_t n, int32_t n_o) {
    const int32_t n_seen = args->row_ends[i] - first, n16 = (n + 15) / 16 * 16;
    if (n_seen <= 0)
        memset(state->p[i], 0, (size_t)n16 * sizeof(float));
    else
        softmax_block(state->p[i], n_seen < n ? n_seen : n, n16, &state->max[i], &state->sum[i],
                      state->o[i], n_o);
}

/* Has n_rows rows (a constant) from r on attend to one block. */
INLINE void attend_rows(lmd_attend_state *state, const lmd_attend_args *args, int32_t r,
                        const int32_t n_rows, int32_t first, int32_t n, kv_view keys,
                        kv_view values, const bool is_half) {
    const int32_t head_dim = args->format.head_dim, n16 = (n + 15) / 16 * 16;
    scores(state->p + r, args->q + r * LMD_MAX_HEAD_DIM, n_rows, keys, n16, head_dim, is_half);
    for (int32_t i = r; i < r + n_rows; i++) softmax_row(state, args, i, first, n, head_dim);
    weighted_values(state->o + r, (const float(*)[LMD_CHUNK_LEN])state->p + r, n_rows, values,
                    n, head_dim, is_half);
}

typedef void (*attend_fn)(lmd_attend_state *state, const lmd_attend_args *args, int32_t r,
                          int32_t first, int32_t n, kv_view keys, kv_view values);

#define DEFINE_ATTEND(name, n_rows, is_half)                                                   \
    static void name(lmd_attend_state *state, const lmd_attend_args *args, int32_t r,          \
                     int32_t first, int32_t n, kv_view keys, kv_view values) {                 \
        attend_rows(state, args, r, n_rows, first, n, keys, values, is_half);                  \
    }

DEFINE_ATTEND(attend_half_1, 1, true)
DEFINE_ATTEND(attend_half_2, 2, true)
DEFINE_ATTEND(attend_half_3, 3, true)
DEFINE_ATTEND(attend_half_4, 4, true)
DEFINE_ATTEND(attend_float_1, 1, false)
DEFINE_ATTEND(attend_float_2, 2, false)
DEFINE_ATTEND(attend_float_3, 3, false)
DEFINE_ATTEND(attend_float_4, 4, false)
DEFINE_ATTEND(attend_float_tile, ATTEND_TILE, false)

/* Has all rows attend to one block, whose keys and values are both halves or both floats. */
static void attend_block(lmd_attend_state *state, const lmd_attend_args *args, int32_t first,
                         int32_t n, kv_view keys, kv_view values, bool is_half) {
    static const attend_fn few[2][4] = {
        {attend_float_1, attend_float_2, attend_float_3, attend_float_4},
        {attend_half_1, attend_half_2, attend_half_3, attend_half_4}};
    int32_t r = 0;
    if (!is_half)
        for (; r + ATTEND_TILE <= args->n_rows; r += ATTEND_TILE)
            attend_float_tile(state, args, r, first, n, keys, values);
    while (r < args->n_rows) {
        int32_t n_rows = args->n_rows - r < 4 ? args->n_rows - r : 4;
        few[is_half][n_rows - 1](state, args, r, first, n, keys, values);
        r += n_rows;
    }
}

/* Converts n halves to fp32, in whole vectors. */
static void widen(float *out, const uint16_t *in, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) store_v(out + i, half_v(in + i));
}

/* The part of a block that holds n positions from `first` on. */
typedef struct block_view {
    const uint8_t *data;
    int32_t first, n;
    int64_t ahead; /* bytes to the block that is read next, to prefetch it; 0: there is none */
} block_view;

INLINE block_view block_at(const lmd_attend_args *args, int32_t first) {
    const int32_t block_len = args->format.block_len;
    const int32_t *block_id = &args->block_ids[first / block_len];
    const uint8_t *data = args->kv + *block_id * args->block_stride, *next = args->next;
    if (first + block_len < args->last) next = args->kv + block_id[1] * args->block_stride;
    return (block_view){data, first,
                        args->end - first < block_len ? args->end - first : block_len,
                        next ? next - data : 0};
}

static void attend_floats(lmd_attend_state *state, const lmd_attend_args *args) {
    const int32_t block_len = args->format.block_len, head_dim = args->format.head_dim;
    for (int32_t first = args->begin; first < args->end; first += block_len) {
        const block_view block = block_at(args, first);
        bool is_half = args->format.k_bits == 16;
        kv_view keys = {block.data, block.ahead};
        kv_view values = {block.data + lmd_kv_half_bytes(&args->format, args->format.k_bits),
                          block.ahead};
        if (is_half && args->n_rows >= WIDEN_ROWS) {
            widen(state->keys, keys.data, (int64_t)((block.n + 15) / 16 * 16) * head_dim);
            widen(state->values, values.data, (int64_t)block.n * head_dim);
            keys.data = state->keys;
            values.data = state->values;
            is_half = false;
        }
        attend_block(state, args, first, block.n, keys, values, is_half);
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

#endif
