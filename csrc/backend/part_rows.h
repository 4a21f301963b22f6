/* Reading the rows of a weight's part, for every backend's packing.
 * Must not know: layouts. Any thread. */
#ifndef LMD_BACKEND_PART_ROWS_H
#define LMD_BACKEND_PART_ROWS_H

#include "backend/backend.h"

/* Bytes of the buffer that reading n rows at once takes. */
size_t lmd_part_rows_bytes(const lmd_weight_part *part, int32_t n_cols, int32_t n);

/* The rows [first, first + n) of a part that is not packed, as row_map orders them: rows[i] is
 * in the buffer, or in place where the tensor is in memory. Errors as lmd_file_read. */
lmd_status lmd_part_rows(const lmd_weight_part *part, int32_t n_cols, int32_t first, int32_t n,
                         uint8_t *buffer, const uint8_t **rows, lmd_err *err);

#endif
