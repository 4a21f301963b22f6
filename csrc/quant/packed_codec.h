/* Decoding of weights packed K-major into 32-bit words: AWQ (gemm) and GPTQ.
 * Owns: the order of codes and zeros in the words, and what shapes the tensors must have.
 * Decoding is pure: no state, no allocation, data of any alignment, any bits. Any thread. */
#ifndef LMD_QUANT_PACKED_CODEC_H
#define LMD_QUANT_PACKED_CODEC_H

#include "quant/weight_codec.h"

/* A matrix of N output rows and K columns, groups of g columns with one scale and one zero; a
 * word holds 32 / bits codes, the first in its lowest bits:
 *   AWQ      qweight I32 [K][N/8]       rows 0 2 4 6 1 3 5 7 of a run of 8
 *            qzeros  I32 [K/g][N/8]     in the same order
 *   GPTQ     qweight I32 [K*bits/32][N] columns in order
 *            qzeros  I32 [K/g][N*bits/32] rows in order, stored minus 1, wrapping
 *   GPTQ_V2  the same, zeros as they are
 * and scales F16 [K/g][N]. value = scale * (code - zero). */
typedef enum lmd_packing {
    LMD_PACKING_NONE, /* no packed tensors */
    LMD_PACKING_AWQ,
    LMD_PACKING_GPTQ,
    LMD_PACKING_GPTQ_V2
} lmd_packing;

typedef struct lmd_packed_weight {
    lmd_packing packing;
    int32_t bits;       /* 4; for GPTQ 8 too, with zeros that are all 128 */
    int32_t group_size; /* g */
    const lmd_tensor_view *qweight, *qzeros, *scales;
} lmd_packed_weight;

enum {
    LMD_PACKED_ROWS = 8,   /* output rows that are decoded together: a run of AWQ's */
    LMD_PACKED_COLS = 128, /* most columns of a group in the canonical form */
};

/* Checks types, shapes and zeros against n_rows and n_cols, so that decoding stays inside the
 * tensors. LMD_BAD_FILE and LMD_UNSUPPORTED name the tensor. */
lmd_status lmd_packed_check(const lmd_packed_weight *self, int64_t n_rows, int64_t n_cols,
                            lmd_err *err);

/* Accepts GPTQ's g_idx if it puts column k into group k / group_size. LMD_UNSUPPORTED for other
 * orders, which desc_act makes; LMD_BAD_FILE for another type or shape. */
lmd_status lmd_packed_check_g_idx(const lmd_tensor_view *g_idx, int32_t group_size,
                                  int64_t n_cols, lmd_err *err);

/* The canonical form of a weight that was checked, exact:
 *   4 bits  U4 ZERO    8 bits  I8 NONE (code - 128)
 * in groups of g; if g exceeds 128, in groups of the largest of 128, 64 and 32 that divides g,
 * because activations are never quantised in larger groups. */
lmd_weight_format lmd_packed_format(const lmd_packed_weight *self);

/* Decodes one group of the canonical form for LMD_PACKED_ROWS rows: the rows from first_row, a
 * multiple of LMD_PACKED_ROWS, and the n_cols columns from first_col. Zeros are whole numbers
 * stored as fp16; those of 8 bits are not written. */
void lmd_packed_decode(const lmd_packed_weight *self, int32_t first_row, int32_t first_col,
                       int32_t n_cols, uint8_t *codes, /* [LMD_PACKED_ROWS][n_cols] */
                       uint16_t *scales,               /* [LMD_PACKED_ROWS] half */
                       uint16_t *zeros);               /* [LMD_PACKED_ROWS] half */

#endif
