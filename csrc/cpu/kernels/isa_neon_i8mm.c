/* The kernels for aarch64 with products of small matrices of bytes (i8mm): one usmmla
 * multiplies 8 columns of two weight rows by 8 columns of both digits of an activation row,
 * which is twice the work of an sdot; fast activations use usdot. */
#define ISA neon_i8mm

enum { LANES = 4, BYTE_FLIP = 0 };

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include "cpu/kernels/vector_chains.h"
#include "cpu/kernels/vector_neon.h"

INLINE chain_v chain_dot(chain_v chain, u8v w, i32v x, bool nibbles) {
    (void)nibbles;
    return (chain_v)vusdotq_s32((int32x4_t)chain, (uint8x16_t)w, (int8x16_t)x);
}

/* acc[2i + j] += the dot product of w's row i and x's row j, which have 8 columns each. */
INLINE i32v dot_2x2(i32v acc, u8v w, u8v x) {
    return (i32v)vusmmlaq_s32((int32x4_t)acc, (uint8x16_t)w, (int8x16_t)x);
}

/* The lanes of a and b in turn: those of their first halves, or of their last. */
INLINE i32v zip_first(i32v a, i32v b) { return (i32v)vzip1q_s32((int32x4_t)a, (int32x4_t)b); }

INLINE i32v zip_last(i32v a, i32v b) { return (i32v)vzip2q_s32((int32x4_t)a, (int32x4_t)b); }

/* Lanes 0 and 2, or 1 and 3, of a, then those of b. */
INLINE i32v even_lanes(i32v a, i32v b) { return (i32v)vuzp1q_s32((int32x4_t)a, (int32x4_t)b); }

INLINE i32v odd_lanes(i32v a, i32v b) { return (i32v)vuzp2q_s32((int32x4_t)a, (int32x4_t)b); }
#else
#include "cpu/kernels/vector_portable.h"

INLINE i32v dot_2x2(i32v acc, u8v w, u8v x) {
    for (int32_t i = 0; i < 4; i++)
        for (int32_t k = 0; k < 8; k++) acc[i] += w[i / 2 * 8 + k] * (int8_t)x[i % 2 * 8 + k];
    return acc;
}

INLINE i32v zip_first(i32v a, i32v b) { return (i32v){a[0], b[0], a[1], b[1]}; }

INLINE i32v zip_last(i32v a, i32v b) { return (i32v){a[2], b[2], a[3], b[3]}; }

INLINE i32v even_lanes(i32v a, i32v b) { return (i32v){a[0], a[2], b[0], b[2]}; }

INLINE i32v odd_lanes(i32v a, i32v b) { return (i32v){a[1], a[3], b[1], b[3]}; }
#endif

#include "cpu/kernels/linear.h"

/* Half a panel at a time, which needs four vectors of sums for each row. */
#define WIDE_ROWS 6
#define FAST_ROWS 4

/* Computes one group's sums for the panel's rows h * 4 to h * 4 + 7 and every activation row.
 */
INLINE void half_panel(i32v (*whole)[HALVES], const uint8_t *lines, const uint8_t *q,
                       const int32_t n_rows, int32_t group_size, const int32_t h,
                       const bool nibbles) {
    const int32_t line_bytes = nibbles ? 64 : 128;
    i32v sums[WIDE_ROWS]
             [4]; /* lanes: a panel's row times high and low, the next one likewise */
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t i = 0; i < 4; i++) sums[r][i] = (i32v){0};
    lines += h * VECTOR_BYTES;
    for (int32_t k = 0; k < group_size; k += 8, lines += line_bytes, q += n_rows * 16) {
        i32v w[4];
        lmd_prefetch(lines + 2048);
        for (int32_t i = 0; i < 2; i++) {
            u8v bytes = load_bytes(lines + i * VECTOR_BYTES);
            i32v first = (i32v)(nibbles ? bytes & 15 : bytes);
            i32v second =
                (i32v)(nibbles ? bytes >> 4 : load_bytes(lines + 64 + i * VECTOR_BYTES));
            w[2 * i] = zip_first(first, second);
            w[2 * i + 1] = zip_last(first, second);
        }
#pragma GCC unroll 6
        for (int32_t r = 0; r < n_rows; r++) {
            u8v x = load_bytes(q + r * 16);
            for (int32_t i = 0; i < 4; i++) sums[r][i] = dot_2x2(sums[r][i], (u8v)w[i], x);
        }
    }
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t i = 0; i < 2; i++)
            whole[r][h + i] = join_digits(even_lanes(sums[r][2 * i], sums[r][2 * i + 1]),
                                          odd_lanes(sums[r][2 * i], sums[r][2 * i + 1]));
}

/* A tile of W4A16, on the layout of emit_digits: the 8 high digits of a unit are one row of the
 * small matrix, the 8 low ones the other. */
INLINE void tile_matrices(float *out, const uint8_t *weights, const lmd_weight_format *format,
                          const lmd_acts *all_acts, int32_t begin, const int32_t n_rows,
                          const bool nibbles) {
    const int32_t n_header = header_bytes(format->offset);
    tile_acts acts = tile_at(all_acts, begin);
    f32v f[WIDE_ROWS][HALVES];
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t h = 0; h < HALVES; h++) f[r][h] = all_v(0.0f);
    for (int32_t g = 0; g < acts.n_groups; g++) {
        i32v whole[WIDE_ROWS][HALVES];
        for (int32_t h = 0; h < HALVES; h += 2)
            half_panel(whole, weights + n_header, acts.q, n_rows, acts.group_size, h, nibbles);
        finish_group(f, whole, weights, false, format, &acts, n_rows);
        weights += n_header + acts.group_size * (nibbles ? 8 : 16);
        acts.q += acts.group_size * n_rows * 2;
    }
    store_rows(out, f, n_rows);
}

#define TILE_WIDE tile_matrices

#include "cpu/kernels/table_digits.h"
