/* Decoding of packed weights: see packed_codec.h.
 * The inner loops move 8 codes at a time as the bytes of a 64-bit word, lowest byte first. */
#include "quant/packed_codec.h"

#include <string.h>

#include "base/half.h"

static uint32_t read_word(const lmd_tensor_view *view, int64_t row, int64_t col) {
    uint32_t word;
    memcpy(&word, (const uint8_t *)view->data + (row * view->dims[1] + col) * 4, sizeof word);
    return word;
}

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
    return lmd_packed_by_rows(self) ? row * view->dims[1] + group : group * view->dims[1] + row;
}

/* ---- zeros ---- */

/* Zeros that are read together: of a word, of 3 bits 8 of them. */
static int32_t zeros_in_word(const lmd_packed_weight *self) { return self->bits == 8 ? 4 : 8; }

static uint32_t read_zeros(const lmd_packed_weight *self, int32_t row, int32_t group) {
    const int32_t word = row / zeros_in_word(self);
    if (self->bits == 3)
        return read_run3(self->qzeros, group, lmd_packed_by_rows(self),
                         self->zero_row / 8 + word);
    if (lmd_packed_by_rows(self)) return read_word(self->qzeros, word, group);
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
    if (lmd_packed_is_awq(self)) at = at / 2 + at % 2 * 4;
    return (int32_t)(word >> (at * self->bits) & ((1u << self->bits) - 1));
}

int32_t lmd_packed_zero(const lmd_packed_weight *self, int32_t row, int32_t group) {
    if (self->qzeros && lmd_packed_is_bytes(self))
        return ((const int8_t *)self->qzeros->data)[value_at(self, self->qzeros, group, row)] +
               lmd_packed_middle(self);
    return zero_in(self, zeros_word(self, row, group), row);
}

/* ---- codes ---- */

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
    const bool is_column = !lmd_packed_by_rows(self);
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
            uint32_t word = lmd_packed_by_rows(self) ? read_word(self->qweight, row, words)
                                                     : read_word(self->qweight, words, row);
            word ^= 0x80808080u; /* each byte becomes code - 128 */
            memcpy(codes + i * n_cols + k, &word, sizeof word);
        }
}

/* A code of the canonical form, of words that are not AWQ's. */
static uint8_t code_at(const lmd_packed_weight *self, int32_t row, int32_t col) {
    const lmd_tensor_view *qweight = self->qweight;
    const bool is_column = !lmd_packed_by_rows(self);
    if (lmd_packed_is_bytes(self))
        return ((const uint8_t *)qweight->data)[row * qweight->dims[1] + col];
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
    else if (lmd_packed_is_awq(self))
        decode_awq(self->qweight, first_row, first_col, n_cols, codes);
    else if (lmd_packed_is_bytes(self))
        decode_bytes(self->qweight, first_row, first_col, n_cols, codes);
    else if (self->bits == 8)
        decode_8_bits(self, first_row, first_col, n_cols, codes);
    else if (self->bits == 3)
        decode_3_bits(self, first_row, first_col, n_cols, codes);
    else if (lmd_packed_by_rows(self))
        decode_compressed4(self->qweight, first_row, first_col, n_cols, codes);
    else
        decode_gptq4(self->qweight, first_row, first_col, n_cols, codes);
}

/* ---- the canonical form ---- */

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
    if (self->scales->dtype == LMD_F16 && !lmd_packed_by_rows(self)) {
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
        zeros[i] = (float)(lmd_packed_zero(self, row, group) - bias);
    }
    for (int32_t k = 0; k < n_cols; k++) {
        if (k % COLS == 0) decode_codes(self, first_row, k, COLS, codes);
        const int32_t first = lmd_packed_group_of(self, k) * LMD_PACKED_ROWS;
        for (int32_t i = 0; i < LMD_PACKED_ROWS; i++) {
            const uint8_t code = codes[i * COLS + k % COLS];
            const float value = bias ? (float)(int8_t)code : (float)code;
            out[(int64_t)i * n_cols + k] = scales[first + i] * (value - zeros[first + i]);
        }
    }
}
