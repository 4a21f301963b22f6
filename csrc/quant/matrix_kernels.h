/* The kernels that the solver is given: a tile of a product of fp32 matrices, and a block of
 * columns rounded with feedback. Every instruction set's have the same bits: an element is one
 * chain of fused multiplications and additions, k ascending.
 * Owns: their signatures and layouts. Must not know: instruction sets. Any thread. */
#ifndef LMD_QUANT_MATRIX_KERNELS_H
#define LMD_QUANT_MATRIX_KERNELS_H

#include <stdint.h>

enum {
    LMD_ROUND_BLOCK = 48, /* a multiple of every tile_rows */
    LMD_MAX_TILE_ROWS = 12,
    LMD_MAX_TILE_COLS = 32
};

/* Columns j = 0 .. n - 1 of n_lanes rows (tile_cols of them, one in each lane), in their order:
 *   wanted_j = (start_j + sums_j) + the sum over i < j of change_i * feedback[j][i]
 *   code_j   = the nearest integer to (wanted_j - offset_j) / scale_j, ties to even, 0 .. most
 *   change_j = start_j - (code_j * scale_j + offset_j)
 * The sum over i runs in two chains, of the even i and of the odd i, from 0. */
typedef struct lmd_round_args {
    int32_t n;                             /* at most LMD_ROUND_BLOCK */
    const float *start;                    /* [n][n_lanes] */
    const float *sums;                     /* [n][n_lanes] */
    const float *feedback;                 /* [n][LMD_ROUND_BLOCK] */
    const int32_t *group;                  /* [n] the column's group */
    const float *scale, *offset, *inverse; /* [groups][n_lanes] inverse: 1 / scale */
    float most;
    float *change; /* [n][n_lanes] */
    float *codes;  /* [n][n_lanes] */
} lmd_round_args;

typedef struct lmd_matrix_kernels {
    int32_t tile_rows, tile_cols; /* LMD_ROUND_BLOCK is a multiple of tile_rows */

    /* out[i * stride + j] += the sum over k < depth of a[k][i] * b[k][j], for a tile:
     * a [depth][tile_rows], b [depth][tile_cols]. */
    void (*product)(float *out, int64_t stride, const float *a, const float *b, int32_t depth);

    void (*round_block)(const lmd_round_args *args);
} lmd_matrix_kernels;

#endif
