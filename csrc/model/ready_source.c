/* A source that a backend takes: see ready_source.h. */
#include "model/ready_source.h"

#include <string.h>

#include "base/memory.h"
#include "quant/packed_check.h"
#include "quant/packed_codec.h"
#include "quant/packed_read.h"

/* Dequantises a packed matrix, all of its rows. */
static lmd_status dequantise(const lmd_packed_weight *packed, const lmd_tensor_view *view,
                             float **out, lmd_err *err) {
    const int32_t n_rows = (int32_t)view->dims[0], n_cols = (int32_t)view->dims[1];
    float *scratch =
        lmd_calloc((size_t)lmd_packed_scratch_len(packed, n_cols), sizeof *scratch);
    float *values = lmd_calloc(view->n_bytes, 1);
    if (!scratch || !values) {
        lmd_free(scratch);
        lmd_free(values);
        return lmd_no_memory(err, "tensor \"%s\" as fp32", packed->qweight->name);
    }
    for (int32_t row = 0; row < n_rows; row += LMD_PACKED_ROWS)
        lmd_packed_to_float(packed, row, n_cols, scratch, values + (int64_t)row * n_cols);
    lmd_free(scratch);
    *out = values;
    return LMD_OK;
}

/* The same for one whose tensors may be in files still. */
static lmd_status read_and_dequantise(lmd_packed_weight packed, const lmd_tensor_view *view,
                                      float **out, lmd_err *err) {
    lmd_packed_in_memory tensors;
    lmd_status status = lmd_packed_load(&packed, &tensors, err);
    if (status == LMD_OK) status = dequantise(&packed, view, out, err);
    lmd_packed_free(&tensors);
    return status;
}

/* Replaces the packed parts that have no groups by dense matrices, a repeated one once. */
static lmd_status make_dense(lmd_ready_source *self, bool sizes_alone, lmd_err *err) {
    lmd_weight_source *src = &self->source;
    const lmd_tensor_view *first = src->parts[0].packed.qweight;
    for (int32_t i = 0; i < src->n_parts; i++) {
        const lmd_packed_weight packed = src->parts[i].packed;
        lmd_tensor_view *view = &self->dense[i];
        if (!packed.packing || packed.has_groups) continue;
        src->parts[i].packed = (lmd_packed_weight){LMD_PACKING_NONE};
        src->parts[i].tensor = i > 0 && packed.qweight == first ? &self->dense[0] : view;
        if (src->parts[i].tensor != view) continue;
        *view = *packed.qweight;
        view->dtype = LMD_F32;
        view->dims[0] = packed.scales->dims[!lmd_packed_by_rows(&packed)];
        view->dims[1] = src->n_cols;
        view->n_bytes = (size_t)(view->dims[0] * view->dims[1]) * sizeof *self->values[i];
        if (sizes_alone) continue;
        LMD_TRY(read_and_dequantise(packed, view, &self->values[i], err));
        view->data = self->values[i];
    }
    return LMD_OK;
}

/* Finds the one order of columns of parts that are packed in groups with a g_idx. Where the
 * parts do not agree they get no groups. */
static lmd_status find_order(lmd_ready_source *self, lmd_err *err) {
    lmd_weight_source *src = &self->source;
    const lmd_packed_weight *first = &src->parts[0].packed;
    const size_t n_bytes = (size_t)src->n_cols * sizeof *self->order;
    bool is_ordered = false, agree = first->g_idx;
    for (int32_t i = 0; i < src->n_parts; i++) {
        const lmd_packed_weight *packed = &src->parts[i].packed;
        is_ordered = is_ordered || packed->g_idx;
        agree = agree && packed->g_idx && packed->has_groups &&
                packed->group_size == first->group_size &&
                memcmp(packed->g_idx->data, first->g_idx->data, n_bytes) == 0;
    }
    if (!is_ordered) return LMD_OK;
    if (agree) {
        int32_t *n_placed = lmd_calloc((size_t)src->n_cols, sizeof *n_placed);
        self->order = lmd_calloc(n_bytes, 1);
        if (n_placed && self->order)
            agree = lmd_packed_order(first, src->n_cols, n_placed, self->order);
        lmd_free(n_placed);
        if (!n_placed || !self->order)
            return lmd_no_memory(err, "an order of %d columns", src->n_cols);
    }
    for (int32_t i = 0; i < src->n_parts; i++) {
        lmd_packed_weight *packed = &src->parts[i].packed;
        packed->order = agree ? self->order : NULL;
        packed->has_groups = packed->has_groups && (agree || !packed->g_idx);
    }
    return LMD_OK;
}

/* Gives all packed parts groups of one size, as the parts of one matrix must have. */
static void share_groups(lmd_weight_source *src) {
    int32_t common = 0; /* the greatest common divisor; 0: no part has groups */
    for (int32_t i = 0; i < src->n_parts; i++)
        for (int32_t other = src->parts[i].packed.cut; other;) {
            const int32_t rest = common % other;
            common = other;
            other = rest;
        }
    for (int32_t i = 0; i < src->n_parts; i++) src->parts[i].packed.cut = common;
}

lmd_status lmd_ready_source_init(lmd_ready_source *self, const lmd_weight_source *src,
                                 bool sizes_alone, lmd_err *err) {
    *self = (lmd_ready_source){.source = *src};
    LMD_TRY(find_order(self, err));
    LMD_TRY(make_dense(self, sizes_alone, err));
    share_groups(&self->source);
    return LMD_OK;
}

void lmd_ready_source_clear(lmd_ready_source *self) {
    lmd_free(self->order);
    for (int32_t i = 0; i < LMD_MAX_WEIGHT_PARTS; i++) lmd_free(self->values[i]);
}
