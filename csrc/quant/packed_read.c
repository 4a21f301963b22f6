/* Reading packed weights from files: see packed_read.h. */
#include "quant/packed_read.h"

#include "base/memory.h"

/* ---- all of the tensors ---- */

lmd_status lmd_packed_load(lmd_packed_weight *self, lmd_packed_in_memory *out, lmd_err *err) {
    *out = (lmd_packed_in_memory){0};
    if (!self->packing) return LMD_OK;
    LMD_TRY(lmd_view_load(&self->qweight, &out->tensors[0], err));
    LMD_TRY(lmd_view_load(&self->scales, &out->tensors[1], err));
    LMD_TRY(lmd_view_load(&self->qzeros, &out->tensors[2], err));
    return lmd_view_load(&self->g_idx, &out->tensors[3], err);
}

void lmd_packed_free(lmd_packed_in_memory *self) {
    for (size_t i = 0; i < sizeof self->tensors / sizeof *self->tensors; i++)
        lmd_free(self->tensors[i].buffer);
}

/* ---- windows ---- */

/* The lines of a tensor that a window needs. */
typedef struct line_range {
    int64_t first, n;
} line_range;

static line_range word_lines(const lmd_packed_weight *self, int32_t first) {
    if (lmd_packed_by_rows(self)) return (line_range){first, LMD_PACKED_ROWS};
    if (lmd_packed_is_awq(self)) return (line_range){first, self->cut};
    return (line_range){(int64_t)first * self->bits / 32, self->cut * self->bits / 32};
}

static line_range scale_lines(const lmd_packed_weight *self, int32_t first) {
    if (lmd_packed_by_rows(self)) return (line_range){first, LMD_PACKED_ROWS};
    return (line_range){first / self->group_size, 1};
}

/* Words of 3 bits begin anew with every 32 rows only. */
static int32_t zero_row_of(const lmd_packed_weight *self, int32_t first) {
    return self->bits == 3 && lmd_packed_by_rows(self) ? first % 32 : 0;
}

static line_range zero_lines(const lmd_packed_weight *self, int32_t first) {
    if (!lmd_packed_by_rows(self)) return (line_range){first / self->group_size, 1};
    if (lmd_packed_is_bytes(self)) return (line_range){first, LMD_PACKED_ROWS};
    if (self->bits != 3)
        return (line_range){(int64_t)first * self->bits / 32,
                            LMD_PACKED_ROWS * self->bits / 32};
    const int64_t from = (int64_t)first / 32 * 3, left = self->qzeros->dims[0] - from;
    return (line_range){from, left < 3 ? left : 3};
}

static size_t line_bytes(const lmd_tensor_view *view) {
    return (size_t)(view->dims[1] * lmd_dtype_block_bytes(view->dtype));
}

size_t lmd_packed_window_bytes(const lmd_packed_weight *self) {
    if (!self->packing) return 0;
    const size_t n_bytes = (size_t)word_lines(self, 0).n * line_bytes(self->qweight) +
                           (size_t)scale_lines(self, 0).n * line_bytes(self->scales);
    return n_bytes +
           (self->qzeros ? (size_t)zero_lines(self, 0).n * line_bytes(self->qzeros) : 0);
}

/* Reads lines of a tensor to *buffer, which moves on. */
static lmd_status read_lines(const lmd_tensor_view *view, line_range lines, uint8_t **buffer,
                             lmd_tensor_view *out, lmd_err *err) {
    const size_t n_bytes = line_bytes(view);
    const uint8_t *data;
    LMD_TRY(lmd_view_bytes(view, lines.first * (int64_t)n_bytes, (size_t)lines.n * n_bytes,
                           *buffer, &data, err));
    *buffer += (size_t)lines.n * n_bytes;
    *out = *view;
    out->dims[0] = lines.n;
    out->data = data;
    return LMD_OK;
}

lmd_status lmd_packed_read_window(const lmd_packed_weight *self, int32_t first, uint8_t *buffer,
                                  lmd_packed_window *out, lmd_err *err) {
    out->weight = *self;
    out->weight.qweight = &out->qweight;
    out->weight.scales = &out->scales;
    out->weight.zero_row = zero_row_of(self, first);
    LMD_TRY(read_lines(self->qweight, word_lines(self, first), &buffer, &out->qweight, err));
    LMD_TRY(read_lines(self->scales, scale_lines(self, first), &buffer, &out->scales, err));
    if (self->qzeros) {
        out->weight.qzeros = &out->qzeros;
        LMD_TRY(read_lines(self->qzeros, zero_lines(self, first), &buffer, &out->qzeros, err));
    }
    if (!lmd_packed_by_rows(self))
        out->weight.group_size = self->cut; /* the window's only group */
    return LMD_OK;
}
