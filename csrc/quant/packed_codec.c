/* Decoding of packed weights: see packed_codec.h.
 * The inner loops move 8 codes at a time as the bytes of a 64-bit word, lowest byte first. */
#include "quant/packed_codec.h"

#include <stdbool.h>
#include <string.h>

#include "base/half.h"

static uint32_t read_word(const lmd_tensor_view *view, int64_t row, int64_t col) {
    uint32_t word;
    memcpy(&word, (const uint8_t *)view->data + (row * view->dims[1] + col) * 4, sizeof word);
    return word;
}

static bool is_awq(const lmd_packed_weight *self) { return self->packing == LMD_PACKING_AWQ; }

/* ---- checks ---- */

static lmd_status check_matrix(const lmd_tensor_view *view, lmd_dtype dtype, int64_t n_rows,
                               int64_t n_cols, lmd_err *err) {
    if (view->dtype == dtype && view->n_dims == 2 && view->dims[0] == n_rows &&
        view->dims[1] == n_cols)
        return LMD_OK;
    return lmd_fail(err, LMD_BAD_FILE,
                    "tensor \"%s\" is %s with shape %lld x %lld, but bits, group_size and the "
                    "config ask for %s with shape %lld x %lld",
                    view->name, lmd_view_dtype_name(view), (long long)view->dims[0],
                    (long long)view->dims[1], lmd_dtype_name(dtype), (long long)n_rows,
                    (long long)n_cols);
}

static lmd_status check_sizes(const lmd_packed_weight *self, int64_t n_rows, int64_t n_cols,
                              lmd_err *err) {
    const char *name = self->qweight->name;
    if (self->bits != 4 && !(self->bits == 8 && !is_awq(self)))
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "tensor \"%s\": %d bits are not served; served: 4, and 8 for GPTQ",
                        name, self->bits);
    if (self->group_size < 32 || self->group_size % 32 || n_cols % self->group_size)
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "tensor \"%s\": rows of %lld values in groups of %d are not served; "
                        "both must be multiples of 32, and rows whole groups",
                        name, (long long)n_cols, self->group_size);
    if (n_rows % LMD_PACKED_ROWS)
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "tensor \"%s\": %lld output rows are not served, only multiples of %d",
                        name, (long long)n_rows, LMD_PACKED_ROWS);
    return LMD_OK;
}

/* Codes become code - 128 as int8, which leaves no room for a zero: every zero must be 128. */
static lmd_status check_zeros_of_8_bits(const lmd_packed_weight *self, lmd_err *err) {
    const uint32_t wanted = self->packing == LMD_PACKING_GPTQ ? 0x7f7f7f7fu : 0x80808080u;
    for (int64_t g = 0; g < self->qzeros->dims[0]; g++)
        for (int64_t i = 0; i < self->qzeros->dims[1]; i++)
            if (read_word(self->qzeros, g, i) != wanted)
                return lmd_fail(err, LMD_UNSUPPORTED,
                                "tensor \"%s\": 8 bits are served with symmetric zeros only, "
                                "words 0x%08x; word %lld of group %lld is 0x%08x",
                                self->qzeros->name, wanted, (long long)i, (long long)g,
                                read_word(self->qzeros, g, i));
    return LMD_OK;
}

lmd_status lmd_packed_check(const lmd_packed_weight *self, int64_t n_rows, int64_t n_cols,
                            lmd_err *err) {
    LMD_TRY(check_sizes(self, n_rows, n_cols, err));
    const int64_t n_groups = n_cols / self->group_size, per_word = 32 / self->bits;
    if (is_awq(self))
        LMD_TRY(check_matrix(self->qweight, LMD_I32, n_cols, n_rows / per_word, err));
    else
        LMD_TRY(check_matrix(self->qweight, LMD_I32, n_cols / per_word, n_rows, err));
    LMD_TRY(check_matrix(self->qzeros, LMD_I32, n_groups, n_rows / per_word, err));
    LMD_TRY(check_matrix(self->scales, LMD_F16, n_groups, n_rows, err));
    return self->bits == 8 ? check_zeros_of_8_bits(self, err) : LMD_OK;
}

lmd_status lmd_packed_check_g_idx(const lmd_tensor_view *g_idx, int32_t group_size,
                                  int64_t n_cols, lmd_err *err) {
    if (g_idx->dtype != LMD_I32 || g_idx->n_dims != 1 || g_idx->dims[0] != n_cols)
        return lmd_fail(err, LMD_BAD_FILE,
                        "tensor \"%s\" is %s with shape %lld x %lld, but must be I32 with %lld "
                        "values, the group of each column",
                        g_idx->name, lmd_view_dtype_name(g_idx), (long long)g_idx->dims[0],
                        (long long)g_idx->dims[1], (long long)n_cols);
    for (int64_t k = 0; k < n_cols; k++) {
        int32_t group;
        memcpy(&group, (const uint8_t *)g_idx->data + k * 4, sizeof group);
        if (group != k / group_size)
            return lmd_fail(err, LMD_UNSUPPORTED,
                            "tensor \"%s\" puts column %lld into group %d: groups that are no "
                            "runs of %d columns (desc_act) are not served",
                            g_idx->name, (long long)k, group, group_size);
    }
    return LMD_OK;
}

/* ---- the canonical form ---- */

lmd_weight_format lmd_packed_format(const lmd_packed_weight *self) {
    int32_t group_size = self->group_size;
    if (group_size > LMD_PACKED_COLS)
        for (group_size = LMD_PACKED_COLS; self->group_size % group_size;) group_size /= 2;
    if (self->bits == 8)
        return (lmd_weight_format){LMD_WEIGHT_I8, LMD_OFFSET_NONE, group_size, LMD_F32};
    return (lmd_weight_format){LMD_WEIGHT_U4, LMD_OFFSET_ZERO, group_size, LMD_F32};
}

/* The 8 nibbles of a word as bytes, in order. */
static uint64_t spread_nibbles(uint32_t word) {
    uint64_t x = word;
    x = (x | x << 16) & 0x0000ffff0000ffffu;
    x = (x | x << 8) & 0x00ff00ff00ff00ffu;
    return (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
}

/* Byte i of split_nibbles of an AWQ word belongs to row awq_rows[i] of the run. */
static const uint8_t awq_rows[LMD_PACKED_ROWS] = {0, 4, 1, 5, 2, 6, 3, 7};

/* The 8 nibbles of a word as bytes, the even ones first, which is cheaper than in order. */
static uint64_t split_nibbles(uint32_t word) {
    return (word & 0x0f0f0f0fu) | (uint64_t)(word >> 4 & 0x0f0f0f0fu) << 32;
}

static void swap_bits(uint64_t *a, uint64_t *b, int32_t shift, uint64_t mask) {
    uint64_t differ = (*a >> shift ^ *b) & mask;
    *a ^= differ << shift;
    *b ^= differ;
}

/* Exchanges byte j of x[i] with byte i of x[j]. */
static void transpose_bytes(uint64_t x[8]) {
    for (int32_t i = 0; i < 4; i++) swap_bits(&x[i], &x[i + 4], 32, 0x00000000ffffffffu);
    for (int32_t i = 0; i < 8; i += 4) {
        swap_bits(&x[i], &x[i + 2], 16, 0x0000ffff0000ffffu);
        swap_bits(&x[i + 1], &x[i + 3], 16, 0x0000ffff0000ffffu);
    }
    for (int32_t i = 0; i < 8; i += 2) swap_bits(&x[i], &x[i + 1], 8, 0x00ff00ff00ff00ffu);
}

/* A word holds one column of 8 rows, so the words of 8 columns are an 8 x 8 matrix, which is
 * transposed. */
static void decode_awq(const lmd_tensor_view *qweight, int32_t first_row, int32_t first_col,
                       int32_t n_cols, uint8_t *codes) {
    for (int32_t k = 0; k < n_cols; k += 8) {
        uint64_t x[8];
        for (int32_t j = 0; j < 8; j++)
            x[j] = split_nibbles(read_word(qweight, first_col + k + j, first_row / 8));
        transpose_bytes(x);
        for (int32_t i = 0; i < LMD_PACKED_ROWS; i++)
            memcpy(codes + awq_rows[i] * n_cols + k, &x[i], sizeof x[i]);
    }
}

/* A word holds 8 columns of one row. */
static void decode_gptq4(const lmd_tensor_view *qweight, int32_t first_row, int32_t first_col,
                         int32_t n_cols, uint8_t *codes) {
    for (int32_t k = 0; k < n_cols; k += 8)
        for (int32_t i = 0; i < LMD_PACKED_ROWS; i++) {
            uint64_t x = spread_nibbles(read_word(qweight, (first_col + k) / 8, first_row + i));
            memcpy(codes + i * n_cols + k, &x, sizeof x);
        }
}

static void decode_gptq8(const lmd_tensor_view *qweight, int32_t first_row, int32_t first_col,
                         int32_t n_cols, uint8_t *codes) {
    for (int32_t k = 0; k < n_cols; k += 4)
        for (int32_t i = 0; i < LMD_PACKED_ROWS; i++) {
            uint32_t word = read_word(qweight, (first_col + k) / 4, first_row + i);
            word ^= 0x80808080u; /* each byte becomes code - 128 */
            memcpy(codes + i * n_cols + k, &word, sizeof word);
        }
}

static void decode_zeros(const lmd_packed_weight *self, int32_t first_row, int32_t group,
                         uint16_t *zeros) {
    const uint32_t word = read_word(self->qzeros, group, first_row / 8);
    for (int32_t i = 0; i < LMD_PACKED_ROWS; i++) {
        uint32_t zero = word >> (i * 4) & 15;
        if (self->packing == LMD_PACKING_GPTQ) zero = (zero + 1) & 15;
        /* AWQ's nibbles 0 to 3 belong to rows 0 2 4 6, nibbles 4 to 7 to rows 1 3 5 7. */
        int32_t row = !is_awq(self) ? i : i < 4 ? i * 2 : i * 2 - 7;
        zeros[row] = lmd_float_to_half((float)zero);
    }
}

void lmd_packed_decode(const lmd_packed_weight *self, int32_t first_row, int32_t first_col,
                       int32_t n_cols, uint8_t *codes, uint16_t *scales, uint16_t *zeros) {
    const int32_t group = first_col / self->group_size;
    if (is_awq(self))
        decode_awq(self->qweight, first_row, first_col, n_cols, codes);
    else if (self->bits == 4)
        decode_gptq4(self->qweight, first_row, first_col, n_cols, codes);
    else
        decode_gptq8(self->qweight, first_row, first_col, n_cols, codes);
    if (self->bits == 4) decode_zeros(self, first_row, group, zeros);
    memcpy(scales,
           (const uint8_t *)self->scales->data +
               (group * self->scales->dims[1] + first_row) * 2,
           LMD_PACKED_ROWS * sizeof *scales);
}
