/* Linear kernels: a panel of 16 output rows times tiles of activation rows. Written once, for
 * every ISA, in the words of vector.h; for the layouts see kernels.h.
 * A group's integer sums are exact, so an ISA may compute them as it likes: by products of
 * int16 in pairs, or by products of bytes with int8 digits (q = 256 * high + low). The step
 * after them is fixed: one conversion, fma(dot, d * s), fma(min, s * sum), groups ascending. */
#ifndef LMD_CPU_KERNELS_LINEAR_H
#define LMD_CPU_KERNELS_LINEAR_H

#include "base/ints.h"
#include "cpu/kernels/rows.h"

INLINE int32_t header_bytes(lmd_group_offset offset) {
    return offset == LMD_OFFSET_NONE ? 32 : 64;
}

/* A tile's activations. next_group moves the pointers to scales and sums on; the code that
 * reads q moves q. */
typedef struct tile_acts {
    const uint8_t *q;
    const float *scales, *scaled_sums; /* [n_groups][n_rows] */
    const int32_t *sums;
    int32_t n_groups, group_size;
} tile_acts;

INLINE tile_acts tile_at(const lmd_acts *acts, int32_t begin) {
    const int32_t n_groups = acts->n_cols / acts->group_size;
    const int64_t at = (int64_t)begin * n_groups;
    return (tile_acts){acts->q + (int64_t)begin * acts->n_cols * (acts->bits / 8),
                       acts->scales + at,
                       acts->scaled_sums + at,
                       acts->sums + at,
                       n_groups,
                       acts->group_size};
}

/* ---- from a group's integers to the running sums ---- */

/* A vector of a group's scales or offsets: halves in a panel, floats in an unpacked one. */
INLINE f32v header_v(const uint8_t *header, int32_t at, bool is_float) {
    return is_float ? load_v((const float *)(const void *)header + at)
                    : half_v((const uint16_t *)(const void *)header + at);
}

/* Adds one group to one activation row's running sums, for one vector of the panel's rows. */
INLINE f32v finish_row(f32v f, i32v dot, f32v scales, f32v offsets,
                       const lmd_group_offset offset, int32_t bias, const tile_acts *acts,
                       int32_t r) {
    if (offset == LMD_OFFSET_NONE) dot -= bias * acts->sums[r];
    /* Zeros are small integers, exact as halves, so they are subtracted from the integer sum.
     */
    if (offset == LMD_OFFSET_ZERO)
        dot -= __builtin_convertvector(offsets, i32v) * acts->sums[r];
    f = fma_v(__builtin_convertvector(dot, f32v), scales * acts->scales[r], f);
    if (offset == LMD_OFFSET_MIN) f = fma_v(offsets, all_v(acts->scaled_sums[r]), f);
    return f;
}

INLINE void finish_rows(f32v (*f)[HALVES], i32v (*dots)[HALVES], const uint8_t *header,
                        bool is_float, const lmd_group_offset offset, int32_t bias,
                        const tile_acts *acts, const int32_t n_rows) {
    for (int32_t h = 0; h < HALVES; h++) {
        f32v scales = header_v(header, h * LANES, is_float), offsets = scales;
        if (offset != LMD_OFFSET_NONE)
            offsets = header_v(header, LMD_PANEL_ROWS + h * LANES, is_float);
        for (int32_t r = 0; r < n_rows; r++)
            f[r][h] = finish_row(f[r][h], dots[r][h], scales, offsets, offset, bias, acts, r);
    }
}

INLINE void next_group(tile_acts *acts, int32_t n_rows) {
    acts->scales += n_rows;
    acts->scaled_sums += n_rows;
    acts->sums += n_rows;
}

INLINE void finish_group(f32v (*f)[HALVES], i32v (*dots)[HALVES], const uint8_t *header,
                         bool is_float, const lmd_weight_format *format, tile_acts *acts,
                         const int32_t n_rows) {
    const int32_t bias = lmd_kind_bias(format->kind);
    switch (format->offset) {
    case LMD_OFFSET_NONE:
        finish_rows(f, dots, header, is_float, LMD_OFFSET_NONE, bias, acts, n_rows);
        break;
    case LMD_OFFSET_MIN:
        finish_rows(f, dots, header, is_float, LMD_OFFSET_MIN, bias, acts, n_rows);
        break;
    case LMD_OFFSET_ZERO:
        finish_rows(f, dots, header, is_float, LMD_OFFSET_ZERO, bias, acts, n_rows);
        break;
    }
    next_group(acts, n_rows);
}

INLINE void clear_rows(f32v (*f)[HALVES], const int32_t n_rows) {
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t h = 0; h < HALVES; h++) f[r][h] = all_v(0.0f);
}

INLINE void clear_dots(i32v (*dots)[HALVES], const int32_t n_rows) {
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t h = 0; h < HALVES; h++) dots[r][h] = (i32v){0};
}

INLINE void store_rows(float *out, f32v (*f)[HALVES], const int32_t n_rows) {
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t h = 0; h < HALVES; h++)
            store_v(out + r * LMD_PANEL_ROWS + h * LANES, f[r][h]);
}

#define MOST_ROWS 12

/* ---- digits: products of bytes ---- */

/* The low bytes of 16 integers. Short vectors go by way of int16, because gcc would narrow them
 * lane by lane. */
INLINE void narrow_to_bytes(uint8_t *out, const i32v *q) {
    for (int32_t h = 0; h < HALVES; h++) {
        s8n bytes = LANES == 16
                        ? __builtin_convertvector(q[h], s8n)
                        : __builtin_convertvector(__builtin_convertvector(q[h], s16n), s8n);
        memcpy(out + h * LANES, &bytes, sizeof bytes);
    }
}

INLINE void split_digits(i32v *high, i32v *low, const i32v *q) {
    for (int32_t h = 0; h < HALVES; h++) {
        high[h] = (q[h] + 128) >> 8;
        low[h] = q[h] - high[h] * 256;
    }
}

INLINE i32v join_digits(i32v high, i32v low) { return (i32v)((u32v)high << 8) + low; }

/* In a tile of digits, a unit is 8 columns of one row: 8 bytes of high digits, where there are
 * two, then 8 bytes of low digits. The units of all rows lie side by side, and after them those
 * of the next 8 columns. */
static inline void emit_digits(uint8_t *tile, const i32v *q, int32_t k, int32_t row,
                               int32_t n_rows, int32_t bits) {
    const int32_t unit_bytes = bits;
    uint8_t *first = tile + ((int64_t)k / 8 * n_rows + row) * unit_bytes;
    uint8_t *second = first + (int64_t)n_rows * unit_bytes;
    uint8_t bytes[16];
    if (bits == 16) {
        i32v high[HALVES], low[HALVES];
        split_digits(high, low, q);
        narrow_to_bytes(bytes, high);
        memcpy(first, bytes, 8);
        memcpy(second, bytes + 8, 8);
        narrow_to_bytes(bytes, low);
        first += 8;
        second += 8;
    } else {
        narrow_to_bytes(bytes, q);
    }
    memcpy(first, bytes, 8);
    memcpy(second, bytes + 8, 8);
}

/* Loads columns k to k + 3 and k + 4 to k + 7 of a panel's rows; 8-bit codes as stored. */
INLINE void load_codes(u8v *first, u8v *second, const uint8_t *line, const bool nibbles) {
    for (int32_t h = 0; h < HALVES; h++) {
        u8v bytes = load_bytes(line + h * VECTOR_BYTES);
        first[h] = nibbles ? bytes & 15 : bytes;
        second[h] =
            nibbles ? (u8v)((u16v)bytes >> 4) & 15 : load_bytes(line + 64 + h * VECTOR_BYTES);
    }
}

INLINE void tile_digits(float *out, const uint8_t *weights, const lmd_weight_format *format,
                        const lmd_acts *all_acts, int32_t begin, const int32_t n_rows,
                        const int32_t n_digits, const bool nibbles) {
    const int32_t n_header = header_bytes(format->offset), line_bytes = nibbles ? 64 : 128;
    tile_acts acts = tile_at(all_acts, begin);
    f32v f[MOST_ROWS][HALVES];
    clear_rows(f, n_rows);
    for (int32_t g = 0; g < acts.n_groups; g++) {
        const uint8_t *header = weights;
        i32v dots[MOST_ROWS][2][HALVES];
        for (int32_t r = 0; r < n_rows; r++)
            for (int32_t d = 0; d < n_digits; d++)
                for (int32_t h = 0; h < HALVES; h++) dots[r][d][h] = (i32v){0};
        weights += n_header;
        for (int32_t k = 0; k < acts.group_size; k += 32) {
            chain_v chains[MOST_ROWS][2][HALVES];
            for (int32_t r = 0; r < n_rows; r++)
                for (int32_t d = 0; d < n_digits; d++)
                    for (int32_t h = 0; h < HALVES; h++)
                        chains[r][d][h] = chain_begin(dots[r][d][h]);
#pragma GCC unroll 4
            for (int32_t line = 0; line < 4; line++, weights += line_bytes) {
                u8v first[HALVES], second[HALVES];
                lmd_prefetch(weights + 1024);
                load_codes(first, second, weights, nibbles);
                for (int32_t h = 0; h < HALVES && BYTE_FLIP != 0 && !nibbles; h++) {
                    first[h] ^= BYTE_FLIP;
                    second[h] ^= BYTE_FLIP;
                }
#pragma GCC unroll 16
                for (int32_t r = 0; r < n_rows; r++)
#pragma GCC unroll 2
                    for (int32_t d = 0; d < n_digits; d++, acts.q += 8) {
                        i32v x0 = all_dwords(acts.q), x1 = all_dwords(acts.q + 4);
                        for (int32_t h = 0; h < HALVES; h++) {
                            chain_v chain = chain_dot(chains[r][d][h], first[h], x0, nibbles);
                            chains[r][d][h] = chain_dot(chain, second[h], x1, nibbles);
                        }
                    }
            }
            for (int32_t r = 0; r < n_rows; r++)
                for (int32_t d = 0; d < n_digits; d++)
                    for (int32_t h = 0; h < HALVES; h++)
                        dots[r][d][h] = chain_end(dots[r][d][h], chains[r][d][h]);
        }
        i32v whole[MOST_ROWS][HALVES];
        for (int32_t r = 0; r < n_rows; r++)
            for (int32_t h = 0; h < HALVES; h++) {
                whole[r][h] =
                    n_digits == 1 ? dots[r][0][h] : join_digits(dots[r][0][h], dots[r][1][h]);
                if (BYTE_FLIP != 0 && !nibbles) whole[r][h] += BYTE_FLIP * acts.sums[r];
            }
        finish_group(f, whole, header, false, format, &acts, n_rows);
    }
    store_rows(out, f, n_rows);
}

/* ---- pairs: products of int16 ---- */

/* In a tile of pairs, a unit is 8 columns of one row as int16, in the order 0 2 4 6 1 3 5 7:
 * these are the pairs that unpack_pairs makes of a panel. Units lie as those of digits. */
static inline void emit_pairs(uint8_t *tile, const i32v *q, int32_t k, int32_t row,
                              int32_t n_rows, int32_t bits) {
    typedef int16_t s16x8 __attribute__((vector_size(16)));
    int16_t columns[16];
    uint8_t *out = tile + ((int64_t)k / 8 * n_rows + row) * 16;
    (void)bits; /* 16 */
    for (int32_t h = 0; h < HALVES; h++) {
        s16n narrow = __builtin_convertvector(q[h], s16n);
        memcpy(columns + h * LANES, &narrow, sizeof narrow);
    }
    for (int32_t unit = 0; unit < 2; unit++, out += (int64_t)n_rows * 16) {
        s16x8 v;
        memcpy(&v, columns + unit * 8, sizeof v);
        v = pick_lanes(v, 0, 2, 4, 6, 1, 3, 5, 7);
        memcpy(out, &v, sizeof v);
    }
}

/* Makes four pairs of int16 of 8 columns of one vector of a panel's rows. */
INLINE void unpack_pairs(s16v *pairs, const uint8_t *line, const bool nibbles) {
    u16v first = (u16v)load_bytes(line);
    if (nibbles) {
        pairs[0] = (s16v)(first & 15);
        pairs[1] = (s16v)(first >> 4 & 15);
        pairs[2] = (s16v)(first >> 8 & 15);
        pairs[3] = (s16v)(first >> 12);
    } else {
        u16v second = (u16v)load_bytes(line + 64);
        pairs[0] = (s16v)(first & 255);
        pairs[1] = (s16v)(second & 255);
        pairs[2] = (s16v)(first >> 8);
        pairs[3] = (s16v)(second >> 8);
    }
}

/* A tile of few rows, which unpacks the weights itself. */
INLINE void tile_pairs(float *out, const uint8_t *weights, const lmd_weight_format *format,
                       const lmd_acts *all_acts, int32_t begin, const int32_t n_rows,
                       const bool nibbles) {
    const int32_t n_header = header_bytes(format->offset), line_bytes = nibbles ? 64 : 128;
    tile_acts acts = tile_at(all_acts, begin);
    f32v f[MOST_ROWS][HALVES];
    clear_rows(f, n_rows);
    for (int32_t g = 0; g < acts.n_groups; g++) {
        const uint8_t *header = weights;
        i32v dots[MOST_ROWS][HALVES];
        clear_dots(dots, n_rows);
        weights += n_header;
        for (int32_t k = 0; k < acts.group_size; k += 8, weights += line_bytes) {
            lmd_prefetch(weights + 1024);
            for (int32_t h = 0; h < HALVES; h++) {
                s16v w[4];
                unpack_pairs(w, weights + h * VECTOR_BYTES, nibbles);
#pragma GCC unroll 4
                for (int32_t r = 0; r < n_rows; r++)
#pragma GCC unroll 4
                    for (int32_t j = 0; j < 4; j++)
                        dots[r][h] = dot_pairs(dots[r][h], w[j],
                                               (s16v)all_dwords(acts.q + r * 16 + j * 4));
            }
            acts.q += n_rows * 16;
        }
        finish_group(f, dots, header, false, format, &acts, n_rows);
    }
    store_rows(out, f, n_rows);
}

/* Unpacks a panel once for many tiles. A group becomes 16 floats of scales, 16 of offsets where
 * it has any, and for every 8 columns four pairs of int16 for each of the 16 rows. */
static inline void unpack_panel(uint8_t *out, const uint8_t *panel,
                                const lmd_weight_format *format, int32_t n_cols) {
    const bool nibbles = lmd_kind_is_nibbles(format->kind);
    const int32_t n_header = header_bytes(format->offset), line_bytes = nibbles ? 64 : 128;
    for (int32_t k = 0; k < n_cols; k += format->group_size) {
        for (int32_t at = 0; at < n_header / 2; at += LANES, out += VECTOR_BYTES)
            store_v((float *)(void *)out, half_v((const uint16_t *)(const void *)panel + at));
        panel += n_header;
        for (int32_t i = 0; i < format->group_size; i += 8, panel += line_bytes, out += 256)
            for (int32_t h = 0; h < HALVES; h++) {
                s16v pairs[4];
                unpack_pairs(pairs, panel + h * VECTOR_BYTES, nibbles);
                for (int32_t j = 0; j < 4; j++)
                    memcpy(out + (j * HALVES + h) * VECTOR_BYTES, &pairs[j], VECTOR_BYTES);
            }
    }
}

/* A tile of many rows, on an unpacked panel. */
INLINE void tile_unpacked(float *out, const uint8_t *weights, const lmd_weight_format *format,
                          const lmd_acts *all_acts, int32_t begin, const int32_t n_rows) {
    const int32_t n_header = header_bytes(format->offset) * 2;
    tile_acts acts = tile_at(all_acts, begin);
    f32v f[MOST_ROWS][HALVES];
    clear_rows(f, n_rows);
    for (int32_t g = 0; g < acts.n_groups; g++) {
        const uint8_t *header = weights;
        i32v dots[MOST_ROWS][HALVES];
        clear_dots(dots, n_rows);
        weights += n_header;
#pragma GCC unroll 2
        for (int32_t k = 0; k < acts.group_size; k += 8) {
#pragma GCC unroll 4
            for (int32_t j = 0; j < 4; j++, weights += 64) {
                s16v w[HALVES];
                for (int32_t h = 0; h < HALVES; h++)
                    w[h] = (s16v)load_bytes(weights + h * VECTOR_BYTES);
#pragma GCC unroll 12
                for (int32_t r = 0; r < n_rows; r++) {
                    s16v x = (s16v)all_dwords(acts.q + r * 16 + j * 4);
                    for (int32_t h = 0; h < HALVES; h++)
                        dots[r][h] = dot_pairs(dots[r][h], w[h], x);
                }
            }
            acts.q += n_rows * 16;
        }
        finish_group(f, dots, header, true, format, &acts, n_rows);
    }
    store_rows(out, f, n_rows);
}

/* ---- float weights ---- */

INLINE f32v float_column(const uint8_t *column, lmd_dtype dtype, int32_t at) {
    if (dtype == LMD_F32) return load_v((const float *)(const void *)column + at);
    const uint16_t *bits = (const uint16_t *)(const void *)column + at;
    if (dtype == LMD_F16) return half_v(bits);
    u16n narrow;
    memcpy(&narrow, bits, sizeof narrow);
    return (f32v)(__builtin_convertvector(narrow, u32v) << 16);
}

/* A tile's rows: with one vector for each, so many chains hide an addition's latency. A part of
 * a panel's columns stays in the first cache while all rows meet it. */
enum { FLOAT_ROWS = HALVES == 1 ? 12 : 4, FLOAT_COLS = 256 };

/* Columns [begin, end) of a panel. */
typedef struct float_part {
    const uint8_t *weights; /* from column `begin` on */
    int32_t begin, end;
} float_part;

/* An output is one chain of FMAs, columns ascending; the rows of a tile share the loads. A part
 * continues the sums that those before it have left in out. */
INLINE void tile_float(float *out, const float_part *part, const lmd_acts *acts, int32_t row,
                       const int32_t n_rows, const lmd_dtype dtype) {
    const int64_t column_bytes = LMD_PANEL_ROWS * (dtype == LMD_F32 ? 4 : 2);
    const float *x = acts->x + (int64_t)row * acts->n_cols;
    const uint8_t *weights = part->weights;
    f32v f[FLOAT_ROWS][HALVES];
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t h = 0; h < HALVES; h++)
            f[r][h] =
                part->begin > 0 ? load_v(out + r * LMD_PANEL_ROWS + h * LANES) : all_v(0.0f);
    for (int32_t k = part->begin; k < part->end; k++, weights += column_bytes)
        for (int32_t h = 0; h < HALVES; h++) {
            f32v w = float_column(weights, dtype, h * LANES);
#pragma GCC unroll 12
            for (int32_t r = 0; r < n_rows; r++)
                f[r][h] = fma_v(w, all_v(x[(int64_t)r * acts->n_cols + k]), f[r][h]);
        }
    store_rows(out, f, n_rows);
}

INLINE void rows_float(float *out, const float_part *part, const lmd_acts *acts, int32_t begin,
                       int32_t end, const lmd_dtype dtype) {
    int32_t r = begin;
    for (; r + FLOAT_ROWS <= end; r += FLOAT_ROWS, out += FLOAT_ROWS * LMD_PANEL_ROWS)
        tile_float(out, part, acts, r, FLOAT_ROWS, dtype);
    for (; r + 4 <= end; r += 4, out += 4 * LMD_PANEL_ROWS)
        tile_float(out, part, acts, r, 4, dtype);
    for (; r < end; r++, out += LMD_PANEL_ROWS) tile_float(out, part, acts, r, 1, dtype);
}

static void panel_float(float *out, const uint8_t *panel, lmd_dtype dtype, const lmd_acts *acts,
                        int32_t tile0, int32_t n_tiles) {
    const int32_t begin = lmd_tile_begin(acts, tile0),
                  end = lmd_tile_begin(acts, tile0 + n_tiles);
    const int64_t column_bytes = LMD_PANEL_ROWS * (dtype == LMD_F32 ? 4 : 2);
    for (int32_t k = 0; k < acts->n_cols; k += FLOAT_COLS) {
        const float_part part = {panel + k * column_bytes, k,
                                 lmd_min_i32(k + FLOAT_COLS, acts->n_cols)};
        if (dtype == LMD_F32)
            rows_float(out, &part, acts, begin, end, LMD_F32);
        else if (dtype == LMD_F16)
            rows_float(out, &part, acts, begin, end, LMD_F16);
        else
            rows_float(out, &part, acts, begin, end, LMD_BF16);
    }
}

/* ---- a panel kernel for codes, from functions for tiles of 1, 2, ... rows ---- */

typedef void (*tile_fn)(float *out, const uint8_t *weights, const lmd_weight_format *format,
                        const lmd_acts *acts, int32_t begin);

/* Runs n_tiles tiles on a panel of codes; tiles[n - 1] is the function for n rows. */
static inline void run_tiles(float *out, const uint8_t *weights,
                             const lmd_weight_format *format, const lmd_acts *acts,
                             int32_t tile0, int32_t n_tiles, const tile_fn *tiles) {
    for (int32_t t = tile0; t < tile0 + n_tiles; t++) {
        int32_t begin = lmd_tile_begin(acts, t), n = lmd_tile_begin(acts, t + 1) - begin;
        tiles[n - 1](out, weights, format, acts, begin);
        out += n * LMD_PANEL_ROWS;
    }
}

#define DEFINE_TILE(name, n, body)                                                             \
    static void name##_##n(float *out, const uint8_t *weights,                                 \
                           const lmd_weight_format *format, const lmd_acts *acts,              \
                           int32_t begin) {                                                    \
        enum { N = n };                                                                        \
        body;                                                                                  \
    }

#define DEFINE_TILES_1(name, body) DEFINE_TILE(name, 1, body)
#define DEFINE_TILES_2(name, body) DEFINE_TILES_1(name, body) DEFINE_TILE(name, 2, body)
#define DEFINE_TILES_4(name, body)                                                             \
    DEFINE_TILES_2(name, body) DEFINE_TILE(name, 3, body) DEFINE_TILE(name, 4, body)
#define DEFINE_TILES_6(name, body)                                                             \
    DEFINE_TILES_4(name, body) DEFINE_TILE(name, 5, body) DEFINE_TILE(name, 6, body)
#define DEFINE_TILES_8(name, body)                                                             \
    DEFINE_TILES_6(name, body) DEFINE_TILE(name, 7, body) DEFINE_TILE(name, 8, body)
#define DEFINE_TILES_12(name, body)                                                            \
    DEFINE_TILES_8(name, body)                                                                 \
    DEFINE_TILE(name, 9, body)                                                                 \
    DEFINE_TILE(name, 10, body) DEFINE_TILE(name, 11, body) DEFINE_TILE(name, 12, body)

#define TILE_TABLE_1(name)                                                                     \
    { name##_1 }
#define TILE_TABLE_2(name)                                                                     \
    { name##_1, name##_2 }
#define TILE_TABLE_4(name)                                                                     \
    { name##_1, name##_2, name##_3, name##_4 }
#define TILE_TABLE_6(name)                                                                     \
    { name##_1, name##_2, name##_3, name##_4, name##_5, name##_6 }
#define TILE_TABLE_8(name)                                                                     \
    { name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8 }
#define TILE_TABLE_12(name)                                                                    \
    {                                                                                          \
        name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8,        \
            name##_9, name##_10, name##_11, name##_12                                          \
    }

#endif
