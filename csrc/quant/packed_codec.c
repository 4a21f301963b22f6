/* Decoding of packed weights: see packed_codec.h.
 * The inner loops move 8 codes at a time as the bytes of a 64-bit word, lowest byte first. */
#include "quant/packed_codec.h"

#include <string.h>

#include "base/half.h"
#include "base/memory.h"

static uint32_t read_word(const lmd_tensor_view *view, int64_t row, int64_t col) {
    uint32_t word;
    memcpy(&word, (const uint8_t *)view->data + (row * view->dims[1] + col) * 4, sizeof word);
    return word;
}

static bool is_awq(const lmd_packed_weight *self) { return self->packing == LMD_PACKING_AWQ; }

static bool is_compressed(const lmd_packed_weight *self) {
    return self->packing == LMD_PACKING_COMPRESSED;
}

/* Whether codes and zeros are bytes, not words. */
static bool is_bytes(const lmd_packed_weight *self) { return self->qweight->dtype == LMD_I8; }

/* 8 codes of 3 bits, from code 8 * run of a line of words on, which is a row of the tensor, or
 * a column of it. */
static uint32_t read_run3(const lmd_tensor_view *view, int64_t line, bool is_column,
                          int32_t run) {
    uint32_t bits = 0;
    for (int32_t i = 0; i < 3; i++) {
        const int32_t byte = 3 * run + i, at = byte / 4;
        const uint32_t word = is_column ? read_word(view, at, line) : read_word(view, line, at);
        bits |= (word >> byte % 4 * 8 & 0xff) << i * 8;
    }
    return bits;
}

/* Where tensors of one value for each group and row hold that of a group and a row. */
static int64_t value_at(const lmd_packed_weight *self, const lmd_tensor_view *view,
                        int32_t group, int32_t row) {
    return is_compressed(self) ? row * view->dims[1] + group : group * view->dims[1] + row;
}

/* ---- into memory ---- */

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

/* ---- zeros ---- */

static int32_t middle_code(const lmd_packed_weight *self) { return 1 << (self->bits - 1); }

/* Zeros that are read together: of a word, of 3 bits 8 of them. */
static int32_t zeros_in_word(const lmd_packed_weight *self) { return self->bits == 8 ? 4 : 8; }

static uint32_t read_zeros(const lmd_packed_weight *self, int32_t row, int32_t group) {
    const int32_t word = row / zeros_in_word(self);
    if (self->bits == 3)
        return read_run3(self->qzeros, group, is_compressed(self), self->zero_row / 8 + word);
    if (is_compressed(self)) return read_word(self->qzeros, word, group);
    return read_word(self->qzeros, group, word);
}

/* The word that holds the zero of a row, zeros as they are. */
static uint32_t zeros_word(const lmd_packed_weight *self, int32_t row, int32_t group) {
    static const uint32_t ones_of[] = {[3] = 0x00249249u, [4] = 0x11111111u, [8] = 0x01010101u};
    const uint32_t ones = ones_of[self->bits];
    if (!self->qzeros) return ones << (self->bits - 1);
    const uint32_t stored = read_zeros(self, row, group);
    const bool may_borrow = self->packing == LMD_PACKING_GPTQ_BORROW;
    if (may_borrow && self->bits != 3) return stored + ones;
    if (!may_borrow && self->packing != LMD_PACKING_GPTQ) return stored;
    /* 1 is added to each zero: the top bits apart, so that nothing carries into a neighbour. */
    const uint32_t top = ones << (self->bits - 1);
    return ((stored & ~top) + ones) ^ (stored & top);
}

/* The zero of a row in its word. */
static int32_t zero_in(const lmd_packed_weight *self, uint32_t word, int32_t row) {
    int32_t at = row % zeros_in_word(self);
    /* AWQ's nibbles 0 to 3 belong to rows 0 2 4 6, nibbles 4 to 7 to rows 1 3 5 7. */
    if (is_awq(self)) at = at / 2 + at % 2 * 4;
    return (int32_t)(word >> (at * self->bits) & ((1u << self->bits) - 1));
}

static int32_t zero_of(const lmd_packed_weight *self, int32_t row, int32_t group) {
    if (self->qzeros && is_bytes(self))
        return ((const int8_t *)self->qzeros->data)[value_at(self, self->qzeros, group, row)] +
               middle_code(self);
    return zero_in(self, zeros_word(self, row, group), row);
}

static bool has_middle_zeros(const lmd_packed_weight *self, int32_t n_rows, int32_t n_groups) {
    for (int32_t g = 0; self->qzeros && g < n_groups; g++)
        for (int32_t row = 0; row < n_rows; row++)
            if (zero_of(self, row, g) != middle_code(self)) return false;
    return true;
}

/* ---- checks ---- */

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
    if (is_awq(self))
        return check_matrix(self->qweight, LMD_I32, n_cols, n_rows * bits / 32, err);
    if (is_compressed(self)) return check_matrix(self->qweight, LMD_I32, n_rows, words, err);
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
    if (is_compressed(self) && is_bytes(self)) {
        self->bits = 8;
        return check_matrix(qweight, LMD_I8, n_rows, n_cols, err);
    }
    const int64_t n_words = qweight->dims[is_awq(self) || is_compressed(self)];
    const int64_t n_codes = is_awq(self) ? n_rows : n_cols;
    const int64_t bits = n_words * 32 / n_codes;
    self->bits = 4;
    if (n_words * 32 % n_codes || bits < 1 || bits > 8)
        return check_words(self, n_rows, n_cols, err);
    self->bits = (int32_t)bits;
    LMD_TRY(check_words(self, n_rows, n_cols, err));
    if (bits == 4 || ((bits == 3 || bits == 8) && !is_awq(self))) return LMD_OK;
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
    const int32_t group_dim = is_compressed(self);
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
    if (is_bytes(self)) return check_matrix(self->qzeros, LMD_I8, n_rows, n_groups, err);
    if (is_compressed(self))
        return check_matrix(self->qzeros, LMD_I32, zero_words, n_groups, err);
    return check_matrix(self->qzeros, LMD_I32, n_groups, zero_words, err);
}

static int32_t group_of(const lmd_packed_weight *self, int32_t col) {
    if (!self->g_idx) return col / self->group_size;
    int32_t group;
    memcpy(&group, (const uint8_t *)self->g_idx->data + (int64_t)col * 4, sizeof group);
    return group;
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
        const int32_t group = group_of(self, k);
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
        const int32_t group = group_of(self, k);
        if (n_placed[group] == group_size) return false;
        order[group * group_size + n_placed[group]++] = k;
    }
    return true; /* none has more, so none has less */
}

/* ---- the canonical form ---- */

lmd_weight_format lmd_packed_format(const lmd_packed_weight *self) {
    if (self->bits == 8)
        return (lmd_weight_format){LMD_WEIGHT_I8, LMD_OFFSET_NONE, self->cut, LMD_F32};
    return (lmd_weight_format){LMD_WEIGHT_U4, LMD_OFFSET_ZERO, self->cut, LMD_F32};
}

/* The 8 nibbles of a word as bytes, in order. */
static uint64_t spread_nibbles(uint32_t word) {
    uint64_t x = word;
    x = (x | x << 16) & 0x0000ffff0000ffffu;
    x = (x | x << 8) & 0x00ff00ff00ff00ffu;
    return (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
}

/* 8 codes of 3 bits as bytes, in order. */
static uint64_t spread_threes(uint32_t bits) {
    uint64_t x = bits;
    x = (x | x << 20) & 0x00000fff00000fffu;
    x = (x | x << 10) & 0x003f003f003f003fu;
    return (x | x << 5) & 0x0707070707070707u;
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

static void decode_compressed4(const lmd_tensor_view *qweight, int32_t first_row,
                               int32_t first_col, int32_t n_cols, uint8_t *codes) {
    for (int32_t i = 0; i < LMD_PACKED_ROWS; i++)
        for (int32_t k = 0; k < n_cols; k += 8) {
            uint64_t x = spread_nibbles(read_word(qweight, first_row + i, (first_col + k) / 8));
            memcpy(codes + i * n_cols + k, &x, sizeof x);
        }
}

static void decode_3_bits(const lmd_packed_weight *self, int32_t first_row, int32_t first_col,
                          int32_t n_cols, uint8_t *codes) {
    const bool is_column = !is_compressed(self);
    for (int32_t k = 0; k < n_cols; k += 8)
        for (int32_t i = 0; i < LMD_PACKED_ROWS; i++) {
            const uint32_t run =
                read_run3(self->qweight, first_row + i, is_column, (first_col + k) / 8);
            const uint64_t x = spread_threes(run);
            memcpy(codes + i * n_cols + k, &x, sizeof x);
        }
}

/* Bytes are stored in the canonical form. */
static void decode_bytes(const lmd_tensor_view *qweight, int32_t first_row, int32_t first_col,
                         int32_t n_cols, uint8_t *codes) {
    const uint8_t *from = (const uint8_t *)qweight->data + first_col;
    for (int32_t i = 0; i < LMD_PACKED_ROWS; i++)
        memcpy(codes + i * n_cols, from + (first_row + i) * qweight->dims[1], (size_t)n_cols);
}

static void decode_8_bits(const lmd_packed_weight *self, int32_t first_row, int32_t first_col,
                          int32_t n_cols, uint8_t *codes) {
    for (int32_t k = 0; k < n_cols; k += 4)
        for (int32_t i = 0; i < LMD_PACKED_ROWS; i++) {
            const int32_t row = first_row + i, words = (first_col + k) / 4;
            uint32_t word = is_compressed(self) ? read_word(self->qweight, row, words)
                                                : read_word(self->qweight, words, row);
            word ^= 0x80808080u; /* each byte becomes code - 128 */
            memcpy(codes + i * n_cols + k, &word, sizeof word);
        }
}

/* A code of the canonical form, of words that are not AWQ's. */
static uint8_t code_at(const lmd_packed_weight *self, int32_t row, int32_t col) {
    const lmd_tensor_view *qweight = self->qweight;
    const bool is_column = !is_compressed(self);
    if (is_bytes(self)) return ((const uint8_t *)qweight->data)[row * qweight->dims[1] + col];
    if (self->bits == 3) return read_run3(qweight, row, is_column, col / 8) >> col % 8 * 3 & 7;
    const int32_t per_word = 32 / self->bits, at = col / per_word;
    const uint32_t mask = (1u << self->bits) - 1, flip = self->bits == 8 ? 0x80 : 0;
    const uint32_t word = is_column ? read_word(qweight, at, row) : read_word(qweight, row, at);
    return (uint8_t)((word >> col % per_word * self->bits & mask) ^ flip);
}

/* Columns in an order of their own: each is looked up in its words. */
static void decode_ordered(const lmd_packed_weight *self, int32_t first_row, int32_t first_col,
                           int32_t n_cols, uint8_t *codes) {
    for (int32_t k = 0; k < n_cols; k++)
        for (int32_t i = 0; i < LMD_PACKED_ROWS; i++)
            codes[i * n_cols + k] = code_at(self, first_row + i, self->order[first_col + k]);
}

static void decode_codes(const lmd_packed_weight *self, int32_t first_row, int32_t first_col,
                         int32_t n_cols, uint8_t *codes) {
    if (self->order)
        decode_ordered(self, first_row, first_col, n_cols, codes);
    else if (is_awq(self))
        decode_awq(self->qweight, first_row, first_col, n_cols, codes);
    else if (is_bytes(self))
        decode_bytes(self->qweight, first_row, first_col, n_cols, codes);
    else if (self->bits == 8)
        decode_8_bits(self, first_row, first_col, n_cols, codes);
    else if (self->bits == 3)
        decode_3_bits(self, first_row, first_col, n_cols, codes);
    else if (is_compressed(self))
        decode_compressed4(self->qweight, first_row, first_col, n_cols, codes);
    else
        decode_gptq4(self->qweight, first_row, first_col, n_cols, codes);
}

static float scale_of(const lmd_packed_weight *self, int32_t row, int32_t group) {
    const lmd_tensor_view *scales = self->scales;
    const int32_t n_bytes = lmd_dtype_block_bytes(scales->dtype);
    float scale;
    lmd_weight_row_to_float(scales->dtype,
                            (const uint8_t *)scales->data +
                                value_at(self, scales, group, row) * n_bytes,
                            1, &scale);
    return scale;
}

static void decode_scales(const lmd_packed_weight *self, int32_t first_row, int32_t group,
                          uint16_t *scales) {
    if (self->scales->dtype == LMD_F16 && !is_compressed(self)) {
        memcpy(scales,
               (const uint8_t *)self->scales->data +
                   value_at(self, self->scales, group, first_row) * 2,
               LMD_PACKED_ROWS * sizeof *scales);
        return;
    }
    for (int32_t i = 0; i < LMD_PACKED_ROWS; i++)
        scales[i] = lmd_float_to_half(scale_of(self, first_row + i, group));
}

void lmd_packed_decode(const lmd_packed_weight *self, int32_t first_row, int32_t first_col,
                       int32_t n_cols, uint8_t *codes, uint16_t *scales, uint16_t *zeros) {
    const int32_t group = first_col / self->group_size;
    decode_codes(self, first_row, first_col, n_cols, codes);
    decode_scales(self, first_row, group, scales);
    if (self->bits == 8) return;
    const uint32_t word = zeros_word(self, first_row, group); /* of all LMD_PACKED_ROWS rows */
    for (int32_t i = 0; i < LMD_PACKED_ROWS; i++)
        zeros[i] = lmd_float_to_half((float)zero_in(self, word, i));
}

/* ---- windows ---- */

/* The lines of a tensor that a window needs. */
typedef struct line_range {
    int64_t first, n;
} line_range;

static line_range word_lines(const lmd_packed_weight *self, int32_t first) {
    if (is_compressed(self)) return (line_range){first, LMD_PACKED_ROWS};
    if (is_awq(self)) return (line_range){first, self->cut};
    return (line_range){(int64_t)first * self->bits / 32, self->cut * self->bits / 32};
}

static line_range scale_lines(const lmd_packed_weight *self, int32_t first) {
    if (is_compressed(self)) return (line_range){first, LMD_PACKED_ROWS};
    return (line_range){first / self->group_size, 1};
}

/* Words of 3 bits begin anew with every 32 rows only. */
static int32_t zero_row_of(const lmd_packed_weight *self, int32_t first) {
    return self->bits == 3 && is_compressed(self) ? first % 32 : 0;
}

static line_range zero_lines(const lmd_packed_weight *self, int32_t first) {
    if (!is_compressed(self)) return (line_range){first / self->group_size, 1};
    if (is_bytes(self)) return (line_range){first, LMD_PACKED_ROWS};
    if (self->bits != 3)
        return (line_range){(int64_t)first * self->bits / 32,
                            LMD_PACKED_ROWS * self->bits / 32};
    const int64_t from = (int64_t)first / 32 * 3, left = self->qzeros->dims[0] - from;
    return (line_range){from, left < 3 ? left : 3};
}

static size_t line_bytes(const lmd_tensor_view *view) {
    return (size_t)(view->dims[1] * lmd_dtype_block_bytes(view->dtype));
}

bool lmd_packed_by_rows(const lmd_packed_weight *self) { return is_compressed(self); }

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
    if (!is_compressed(self)) out->weight.group_size = self->cut; /* the window's only group */
    return LMD_OK;
}

/* ---- to fp32 ---- */

int64_t lmd_packed_scratch_len(const lmd_packed_weight *self, int32_t n_cols) {
    return (int64_t)n_cols / self->group_size * LMD_PACKED_ROWS * 2;
}

void lmd_packed_to_float(const lmd_packed_weight *self, int32_t first_row, int32_t n_cols,
                         float *scratch, float *out) {
    enum { COLS = 32 };
    const int32_t bias = self->bits == 8 ? 128 : 0; /* that decode_codes took off */
    const int32_t n_groups = n_cols / self->group_size;
    float *scales = scratch, *zeros = scratch + n_groups * LMD_PACKED_ROWS;
    uint8_t codes[LMD_PACKED_ROWS * COLS];
    for (int32_t i = 0; i < n_groups * LMD_PACKED_ROWS; i++) {
        const int32_t row = first_row + i % LMD_PACKED_ROWS, group = i / LMD_PACKED_ROWS;
        scales[i] = scale_of(self, row, group);
        zeros[i] = (float)(zero_of(self, row, group) - bias);
    }
    for (int32_t k = 0; k < n_cols; k++) {
        if (k % COLS == 0) decode_codes(self, first_row, k, COLS, codes);
        const int32_t first = group_of(self, k) * LMD_PACKED_ROWS;
        for (int32_t i = 0; i < LMD_PACKED_ROWS; i++) {
            const uint8_t code = codes[i * COLS + k % COLS];
            const float value = bias ? (float)(int8_t)code : (float)code;
            out[(int64_t)i * n_cols + k] = scales[first + i] * (value - zeros[first + i]);
        }
    }
}
