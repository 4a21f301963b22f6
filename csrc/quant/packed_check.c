/* The tensors of a packed matrix, checked: see packed_check.h. */
#include "quant/packed_check.h"

#include <string.h>

#include "quant/packed_codec.h"

static lmd_status check_matrix(const lmd_tensor_view *view, lmd_dtype dtype, int64_t n_rows,
                               int64_t n_cols, lmd_err *err) {
    if (view->dtype == dtype && view->n_dims == 2 && view->dims[0] == n_rows &&
        view->dims[1] == n_cols)
        return LMD_OK;
    return lmd_fail(err, LMD_BAD_FILE,
                    "tensor \"%s\" is %s with shape %lld x %lld, but the config and its "
                    "neighbours ask for %s with shape %lld x %lld",
                    view->name, lmd_view_dtype_name(view), (long long)view->dims[0],
                    (long long)view->dims[1], lmd_dtype_name(dtype), (long long)n_rows,
                    (long long)n_cols);
}

static lmd_status check_words(const lmd_packed_weight *self, int64_t n_rows, int64_t n_cols,
                              lmd_err *err) {
    const int64_t bits = self->bits, words = n_cols * bits / 32;
    if (lmd_packed_is_awq(self))
        return check_matrix(self->qweight, LMD_I32, n_cols, n_rows * bits / 32, err);
    if (lmd_packed_by_rows(self))
        return check_matrix(self->qweight, LMD_I32, n_rows, words, err);
    return check_matrix(self->qweight, LMD_I32, words, n_rows, err);
}

/* Reads bits: words are as many as the codes of one dimension need. */
static lmd_status find_bits(lmd_packed_weight *self, int64_t n_rows, int64_t n_cols,
                            lmd_err *err) {
    const lmd_tensor_view *qweight = self->qweight;
    if (n_rows % LMD_PACKED_ROWS || n_cols % 32)
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "tensor \"%s\": %lld output rows of %lld values are not served packed, "
                        "only multiples of %d and of 32",
                        qweight->name, (long long)n_rows, (long long)n_cols, LMD_PACKED_ROWS);
    if (lmd_packed_by_rows(self) && lmd_packed_is_bytes(self)) {
        self->bits = 8;
        return check_matrix(qweight, LMD_I8, n_rows, n_cols, err);
    }
    const int64_t n_words = qweight->dims[lmd_packed_is_awq(self) || lmd_packed_by_rows(self)];
    const int64_t n_codes = lmd_packed_is_awq(self) ? n_rows : n_cols;
    const int64_t bits = n_words * 32 / n_codes;
    self->bits = 4;
    if (n_words * 32 % n_codes || bits < 1 || bits > 8)
        return check_words(self, n_rows, n_cols, err);
    self->bits = (int32_t)bits;
    LMD_TRY(check_words(self, n_rows, n_cols, err));
    if (bits == 4 || ((bits == 3 || bits == 8) && !lmd_packed_is_awq(self))) return LMD_OK;
    return lmd_fail(err, LMD_UNSUPPORTED,
                    "tensor \"%s\" has codes of %d bits, which are not served; served: 4, and "
                    "3 and 8 for GPTQ and compressed-tensors",
                    qweight->name, self->bits);
}

/* Reads group_size: scales and zeros are as many as there are groups. */
static lmd_status find_groups(lmd_packed_weight *self, int64_t n_rows, int64_t n_cols,
                              lmd_err *err) {
    const lmd_tensor_view *scales = self->scales;
    const int64_t zero_words = (n_rows * self->bits + 31) / 32;
    const int32_t group_dim = lmd_packed_by_rows(self);
    const int64_t n_groups = scales->dims[group_dim];
    if (scales->dtype > LMD_BF16 || scales->n_dims != 2 || scales->dims[!group_dim] != n_rows)
        return lmd_fail(err, LMD_BAD_FILE,
                        "tensor \"%s\" is %s with shape %lld x %lld, but must be F16, BF16 or "
                        "F32, with a scale for each group of each of %lld output rows",
                        scales->name, lmd_view_dtype_name(scales), (long long)scales->dims[0],
                        (long long)scales->dims[1], (long long)n_rows);
    if (n_groups < 1 || n_cols % n_groups)
        return lmd_fail(
            err, LMD_UNSUPPORTED,
            "tensor \"%s\": rows of %lld values in %lld groups are not served, only "
            "groups of one size",
            scales->name, (long long)n_cols, (long long)n_groups);
    self->group_size = (int32_t)(n_cols / n_groups);
    if (!self->qzeros) return LMD_OK;
    if (lmd_packed_is_bytes(self))
        return check_matrix(self->qzeros, LMD_I8, n_rows, n_groups, err);
    if (lmd_packed_by_rows(self))
        return check_matrix(self->qzeros, LMD_I32, zero_words, n_groups, err);
    return check_matrix(self->qzeros, LMD_I32, n_groups, zero_words, err);
}

/* Checks g_idx, and forgets one that says nothing: columns in order, or all zero, which old
 * writers left where they had no order. */
static lmd_status find_order(lmd_packed_weight *self, int32_t n_cols, lmd_err *err) {
    const lmd_tensor_view *g_idx = self->g_idx;
    const int32_t n_groups = n_cols / self->group_size;
    bool in_order = true, all_zero = true;
    if (!g_idx) return LMD_OK;
    if (g_idx->dtype != LMD_I32 || g_idx->n_dims != 1 || g_idx->dims[0] != n_cols)
        return lmd_fail(err, LMD_BAD_FILE,
                        "tensor \"%s\" is %s with shape %lld x %lld, but must be I32 with %d "
                        "values, the group of each column",
                        g_idx->name, lmd_view_dtype_name(g_idx), (long long)g_idx->dims[0],
                        (long long)g_idx->dims[1], n_cols);
    for (int32_t k = 0; k < n_cols; k++) {
        const int32_t group = lmd_packed_group_of(self, k);
        if (group < 0 || group >= n_groups)
            return lmd_fail(err, LMD_BAD_FILE,
                            "tensor \"%s\" puts column %d into group %d of %d", g_idx->name, k,
                            group, n_groups);
        in_order = in_order && group == k / self->group_size;
        all_zero = all_zero && group == 0;
    }
    if (in_order || all_zero) self->g_idx = NULL;
    return LMD_OK;
}

static bool has_middle_zeros(const lmd_packed_weight *self, int32_t n_rows, int32_t n_groups) {
    for (int32_t g = 0; self->qzeros && g < n_groups; g++)
        for (int32_t row = 0; row < n_rows; row++)
            if (lmd_packed_zero(self, row, g) != lmd_packed_middle(self)) return false;
    return true;
}

lmd_status lmd_packed_check(lmd_packed_weight *self, int64_t n_rows, int64_t n_cols,
                            lmd_err *err) {
    LMD_TRY(find_bits(self, n_rows, n_cols, err));
    LMD_TRY(find_groups(self, n_rows, n_cols, err));
    LMD_TRY(find_order(self, (int32_t)n_cols, err));
    self->has_groups = self->group_size % 32 == 0;
    self->cut = self->group_size;
    if (self->cut > LMD_PACKED_COLS)
        for (self->cut = LMD_PACKED_COLS; self->group_size % self->cut;) self->cut /= 2;
    /* 8 bits become code - 128 as int8, which leaves no room for a zero. */
    if (self->has_groups && self->bits == 8)
        self->has_groups =
            has_middle_zeros(self, (int32_t)n_rows, (int32_t)n_cols / self->group_size);
    return LMD_OK;
}

bool lmd_packed_order(const lmd_packed_weight *self, int32_t n_cols, int32_t *n_placed,
                      int32_t *order) {
    const int32_t group_size = self->group_size, n_groups = n_cols / group_size;
    memset(n_placed, 0, (size_t)n_groups * sizeof *n_placed);
    for (int32_t k = 0; k < n_cols; k++) {
        const int32_t group = lmd_packed_group_of(self, k);
        if (n_placed[group] == group_size) return false;
        order[group * group_size + n_placed[group]++] = k;
    }
    return true; /* none has more, so none has less */
}

lmd_weight_format lmd_packed_format(const lmd_packed_weight *self) {
    if (self->bits == 8)
        return (lmd_weight_format){LMD_WEIGHT_I8, LMD_OFFSET_NONE, self->cut, LMD_F32};
    return (lmd_weight_format){LMD_WEIGHT_U4, LMD_OFFSET_ZERO, self->cut, LMD_F32};
}
