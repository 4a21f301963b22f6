/* Reading the rows of a weight's part: see part_rows.h. */
#include "backend/part_rows.h"

#include "base/ints.h"

/* Rows that lie in so many times their own room are read at once, with what is between them:
 * those of a head whose rotary pairs lie side by side are every second one. */
enum { MAX_SPREAD = 2 };

size_t lmd_part_rows_bytes(const lmd_weight_part *part, int32_t n_cols, int32_t n) {
    if (part->packed.packing) return 0;
    return (size_t)(MAX_SPREAD * n * lmd_dtype_row_bytes(part->tensor->dtype, n_cols));
}

static int32_t tensor_row(const lmd_weight_part *part, int32_t row) {
    return part->row_map ? part->row_map[row] : row;
}

lmd_status lmd_part_rows(const lmd_weight_part *part, int32_t n_cols, int32_t first, int32_t n,
                         uint8_t *buffer, const uint8_t **rows, lmd_err *err) {
    const lmd_tensor_view *tensor = part->tensor;
    const int64_t row_bytes = lmd_dtype_row_bytes(tensor->dtype, n_cols);
    int32_t low = tensor_row(part, first), high = low;
    for (int32_t i = 1; i < n; i++) {
        const int32_t row = tensor_row(part, first + i);
        low = lmd_min_i32(low, row);
        high = high > row ? high : row;
    }
    if (high - low < MAX_SPREAD * n) {
        const uint8_t *span;
        LMD_TRY(lmd_view_bytes(tensor, low * row_bytes, (size_t)((high - low + 1) * row_bytes),
                               buffer, &span, err));
        for (int32_t i = 0; i < n; i++)
            rows[i] = span + (tensor_row(part, first + i) - low) * row_bytes;
        return LMD_OK;
    }
    for (int32_t i = 0; i < n; i++)
        LMD_TRY(lmd_view_bytes(tensor, tensor_row(part, first + i) * row_bytes,
                               (size_t)row_bytes, buffer + i * row_bytes, &rows[i], err));
    return LMD_OK;
}
