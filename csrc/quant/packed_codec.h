/* Decoding of packed weights: into groups of codes that backends pack, and to fp32.
 * Owns: the order of codes and zeros in the words. Pure functions of a checked weight in
 * memory: no state, no allocation, data of any alignment, any bits. Any thread. */
#ifndef LMD_QUANT_PACKED_CODEC_H
#define LMD_QUANT_PACKED_CODEC_H

#include "quant/packed_weight.h"

/* The zero of a row and a group. */
int32_t lmd_packed_zero(const lmd_packed_weight *self, int32_t row, int32_t group);

/* Decodes one group of the canonical form for LMD_PACKED_ROWS rows: the rows from first_row, a
 * multiple of LMD_PACKED_ROWS, and the n_cols columns from first_col. Zeros are whole numbers
 * stored as fp16; those of 8 bits are not written. */
void lmd_packed_decode(const lmd_packed_weight *self, int32_t first_row, int32_t first_col,
                       int32_t n_cols, uint8_t *codes, /* [LMD_PACKED_ROWS][n_cols] */
                       uint16_t *scales,               /* [LMD_PACKED_ROWS] half */
                       uint16_t *zeros);               /* [LMD_PACKED_ROWS] half */

/* Dequantises LMD_PACKED_ROWS rows of any checked weight, from first_row, a multiple of
 * LMD_PACKED_ROWS, exactly, columns as they come: for weights that have no groups, because
 * g_idx makes some larger than others, or they are too small, or 8 bits have zeros that no code
 * can hold. */
void lmd_packed_to_float(const lmd_packed_weight *self, int32_t first_row, int32_t n_cols,
                         float *scratch, /* [lmd_packed_scratch_len] */
                         float *out);    /* [LMD_PACKED_ROWS][n_cols] */
int64_t lmd_packed_scratch_len(const lmd_packed_weight *self, int32_t n_cols);

#endif
