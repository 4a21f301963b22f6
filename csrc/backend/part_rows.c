/* Reading the rows of a weight's part: see part_rows.h. */
#include "backend/part_rows.h"

#include <math.h>

#include "base/half.h"
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

/* ---- to codes ---- */

int32_t lmd_part_scratch_len(const lmd_weight_part *part, int32_t n_cols) {
    return part->codes.bits ? n_cols : 0;
}

static lmd_status refuse_row(const lmd_weight_part *part, lmd_err *err) {
    return lmd_fail(err, LMD_BAD_FILE,
                    "tensor \"%s\" cannot be quantised: it has a NaN, an infinity, or a number "
                    "that a scale of fp16 cannot reach",
                    part->tensor->name);
}

/* Makes codes of the row that is in the scratch. */
static lmd_status quantise_row(const lmd_row_decoder *self, const lmd_row_codes *out,
                               lmd_err *err) {
    const lmd_weight_part *part = self->part;
    const int32_t n = part->codes.group_size;
    const bool is_u4 = part->codes.bits == 4;
    const lmd_grid_form form = {part->codes.bits, !is_u4, false};
    const float row_square = lmd_row_square(self->scratch, self->n_cols);
    if (!isfinite(row_square)) return refuse_row(part, err);
    for (int32_t g = 0; g < self->n_cols / n; g++) {
        const lmd_grid grid =
            self->quantise(self->scratch + g * n, n, row_square, form, out->codes + g * n);
        if (!isfinite(lmd_half_to_float(grid.scale))) return refuse_row(part, err);
        out->scales[g] = grid.scale;
        if (is_u4) out->offsets[g] = lmd_float_to_half((float)grid.zero);
    }
    for (int32_t k = 0; !is_u4 && k < self->n_cols; k++) out->codes[k] ^= 0x80; /* code - 128 */
    return LMD_OK;
}

lmd_status lmd_part_decode_row(const lmd_row_decoder *self, const uint8_t *row,
                               const lmd_row_codes *out, lmd_err *err) {
    const lmd_dtype dtype = self->part->tensor->dtype;
    if (!self->part->codes.bits) {
        lmd_weight_decode_row(dtype, row, self->n_cols, out->codes, out->scales, out->offsets);
        return LMD_OK;
    }
    lmd_weight_row_to_float(dtype, row, self->n_cols, self->scratch);
    return quantise_row(self, out, err);
}
