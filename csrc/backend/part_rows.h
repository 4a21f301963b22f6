/* Reading the rows of a weight's part, for every backend's packing.
 * Owns: floats that become codes on their way. Must not know: layouts. Any thread. */
#ifndef LMD_BACKEND_PART_ROWS_H
#define LMD_BACKEND_PART_ROWS_H

#include "backend/backend.h"
#include "quant/data_free.h"

/* Bytes of the buffer that reading n rows at once takes. */
size_t lmd_part_rows_bytes(const lmd_weight_part *part, int32_t n_cols, int32_t n);

/* The rows [first, first + n) of a part that is not packed, as row_map orders them: rows[i] is
 * in the buffer, or in place where the tensor is in memory. Errors as lmd_file_read. */
lmd_status lmd_part_rows(const lmd_weight_part *part, int32_t n_cols, int32_t first, int32_t n,
                         uint8_t *buffer, const uint8_t **rows, lmd_err *err);

/* A row in its format: codes [n_cols], each in a byte; scales and offsets, a half for each of
 * the groups, as lmd_weight_decode_row gives them. */
typedef struct lmd_row_codes {
    uint8_t *codes;
    uint16_t *scales, *offsets;
} lmd_row_codes;

/* What a thread needs to decode rows of a part that is not packed. */
typedef struct lmd_row_decoder {
    const lmd_weight_part *part;
    int32_t n_cols;
    lmd_data_free_fn quantise; /* lmd_data_free_codes, or a faster one with its bits */
    float *scratch;            /* [lmd_part_scratch_len] */
} lmd_row_decoder;

int32_t lmd_part_scratch_len(const lmd_weight_part *part, int32_t n_cols);
/* The stored bytes of a row, whose format has groups, to codes. LMD_BAD_FILE names the tensor
 * whose floats cannot become codes. */
lmd_status lmd_part_decode_row(const lmd_row_decoder *self, const uint8_t *row,
                               const lmd_row_codes *out, lmd_err *err);

#endif
