/* Decoding of stored weight rows: see weight_codec.h.
 * The block layouts are those of ggml (ggml-common.h). */
#include "quant/weight_codec.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/half.h"

enum {
    GROUP = 32,    /* values that share a scale */
    SUB_GROUP = 16 /* those that share one in Q2_K, Q3_K and Q6_K */
};

static uint16_t read_u16(const uint8_t *at) {
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return bits;
}

static float read_half(const uint8_t *at) { return lmd_half_to_float(read_u16(at)); }

lmd_status lmd_weight_format_of(const lmd_tensor_view *view, lmd_weight_format *out,
                                lmd_err *err) {
    static const lmd_weight_format formats[LMD_I32] = {
        [LMD_F32] = {LMD_WEIGHT_FLOAT, LMD_OFFSET_NONE, 0, LMD_F32},
        [LMD_F16] = {LMD_WEIGHT_FLOAT, LMD_OFFSET_NONE, 0, LMD_F16},
        [LMD_BF16] = {LMD_WEIGHT_FLOAT, LMD_OFFSET_NONE, 0, LMD_BF16},
        [LMD_Q8_0] = {LMD_WEIGHT_I8, LMD_OFFSET_NONE, GROUP, LMD_F32},
        [LMD_Q4_0] = {LMD_WEIGHT_I4, LMD_OFFSET_NONE, GROUP, LMD_F32},
        [LMD_Q4_1] = {LMD_WEIGHT_U4, LMD_OFFSET_MIN, GROUP, LMD_F32},
        [LMD_Q4_K] = {LMD_WEIGHT_U4, LMD_OFFSET_MIN, GROUP, LMD_F32},
        [LMD_Q5_K] = {LMD_WEIGHT_U8, LMD_OFFSET_MIN, GROUP, LMD_F32},
        [LMD_Q6_K] = {LMD_WEIGHT_I8, LMD_OFFSET_NONE, GROUP, LMD_F32},
        [LMD_Q5_0] = {LMD_WEIGHT_I8, LMD_OFFSET_NONE, GROUP, LMD_F32},
        [LMD_Q5_1] = {LMD_WEIGHT_U8, LMD_OFFSET_MIN, GROUP, LMD_F32},
        [LMD_Q2_K] = {LMD_WEIGHT_U8, LMD_OFFSET_MIN, GROUP, LMD_F32},
        [LMD_Q3_K] = {LMD_WEIGHT_I8, LMD_OFFSET_NONE, GROUP, LMD_F32},
        [LMD_IQ4_NL] = {LMD_WEIGHT_I8, LMD_OFFSET_NONE, GROUP, LMD_F32},
        [LMD_IQ4_XS] = {LMD_WEIGHT_I8, LMD_OFFSET_NONE, GROUP, LMD_F32},
    };
    if (view->dtype == LMD_OTHER && !view->other_dtype)
        return lmd_fail(err, LMD_BAD_FILE, "tensor \"%s\" has a shape that no weight has",
                        view->name);
    if (view->dtype >= LMD_I32)
        return lmd_fail(
            err, LMD_UNSUPPORTED,
            "tensor \"%s\": weights of type %s are not served; served: " LMD_WEIGHT_TYPES,
            view->name, lmd_view_dtype_name(view));
    *out = formats[view->dtype];
    return LMD_OK;
}

/* ---- groups of 32 nibbles: values 0..15 low, 16..31 high ---- */

static void split_nibbles(const uint8_t *packed, uint8_t *codes) {
    for (int32_t i = 0; i < GROUP / 2; i++) {
        codes[i] = packed[i] & 15;
        codes[GROUP / 2 + i] = packed[i] >> 4;
    }
}

/* The same with a fifth bit for each code, in 32 bits before the nibbles. */
static void split_fives(const uint8_t *packed, uint8_t *codes) {
    split_nibbles(packed + 4, codes);
    for (int32_t i = 0; i < GROUP; i++)
        codes[i] |= (uint8_t)((packed[i / 8] >> i % 8 & 1) << 4);
}

/* Nibbles that stand for the int8 values of IQ4_NL's and IQ4_XS's table. */
static void split_iq4(const uint8_t *packed, uint8_t *codes) {
    static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
    split_nibbles(packed, codes);
    for (int32_t i = 0; i < GROUP; i++) codes[i] = (uint8_t)values[codes[i]];
}

/* ---- K-quants ---- */

/* The 6-bit scale and minimum of sub-block j (0..7) from the 12 packed bytes. */
static void k_scale_min(const uint8_t *packed, int32_t j, int32_t *scale, int32_t *min) {
    if (j < 4) {
        *scale = packed[j] & 63;
        *min = packed[j + 4] & 63;
    } else {
        *scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
        *min = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
    }
}

/* Sub-block j of a Q4_K or Q5_K block: its codes and, in fp32, its scale and minimum. Blocks
 * start with d and dmin in half and the 12 scale bytes; Q5_K has 32 bytes of fifth bits before
 * its nibbles. */
static inline void k_sub_block(const uint8_t *block, bool has_fifth_bits, int32_t j,
                               uint8_t *codes, float *scale, float *min) {
    int32_t packed_scale, packed_min;
    k_scale_min(block + 4, j, &packed_scale, &packed_min);
    *scale = read_half(block) * (float)packed_scale;
    *min = -(read_half(block + 2) * (float)packed_min);
    const uint8_t *fifth = block + 16;
    const uint8_t *nibbles = fifth + (has_fifth_bits ? 32 : 0) + j / 2 * 32;
    for (int32_t i = 0; i < GROUP; i++) {
        uint8_t code = j % 2 ? nibbles[i] >> 4 : nibbles[i] & 15;
        if (has_fifth_bits) code |= (uint8_t)((fifth[i] >> j & 1) << 4);
        codes[i] = code;
    }
}

/* Group j (0..7) of a Q2_K block in fp32: two sub-groups, each with a scale and a minimum in a
 * byte at the block's start. The 2-bit codes of four groups lie in the same 32 bytes. */
static void q2_group(const uint8_t *block, int32_t j, float *out) {
    const uint8_t *scales = block + j * 2, *packed = block + 16 + j / 4 * 32;
    float d = read_half(block + 80), dmin = read_half(block + 82);
    for (int32_t i = 0; i < GROUP; i++) {
        uint8_t scale_min = scales[i / SUB_GROUP];
        float scale = d * (float)(scale_min & 15), min = dmin * (float)(scale_min >> 4);
        out[i] = scale * (float)(packed[i] >> (j % 4 * 2) & 3) - min;
    }
}

/* Group j (0..7) of a Q3_K block: codes -4..3 and the scales -32..31 of its sub-groups. The
 * codes' third bits come first in the block; the scales' low four and high two bits lie apart,
 * before d in half. */
static void q3_group(const uint8_t *block, int32_t j, int32_t *codes, int32_t *scales) {
    const uint8_t *packed = block + 32 + j / 4 * 32, *low = block + 96, *high = block + 104;
    for (int32_t i = 0; i < GROUP; i++)
        codes[i] = (packed[i] >> (j % 4 * 2) & 3) - (block[i] >> j & 1 ? 0 : 4);
    for (int32_t s = j * 2; s < j * 2 + 2; s++) {
        int32_t nibble = s < 8 ? low[s] & 15 : low[s - 8] >> 4;
        scales[s % 2] = (nibble | (high[s % 4] >> (s / 4 * 2) & 3) << 4) - 32;
    }
}

/* Group j (0..7) of a Q6_K block in fp32: two sub-groups with int8 scales. */
static void q6_group(const uint8_t *block, int32_t j, float *out) {
    const uint8_t *low = block + j / 4 * 64 + j % 2 * 32;
    const uint8_t *high = block + 128 + j / 4 * 32;
    const uint8_t *scales = block + 192 + j * 2;
    float d = read_half(block + 208);
    for (int32_t i = 0; i < GROUP; i++) {
        int32_t nibble = j % 4 >= 2 ? low[i] >> 4 : low[i] & 15;
        int32_t code = (nibble | (high[i] >> (j % 4 * 2) & 3) << 4) - 32;
        out[i] = d * (float)(int8_t)scales[i / SUB_GROUP] * (float)code;
    }
}

/* Group j (0..7) of an IQ4_XS block: its codes and, in fp32, its scale, of 6 bits times d. */
static void iq4_xs_group(const uint8_t *block, int32_t j, uint8_t *codes, float *scale) {
    int32_t low = block[4 + j / 2] >> (j % 2 * 4) & 15,
            high = block[2 + j / 4] >> (j % 4 * 2) & 3;
    *scale = read_half(block) * (float)((low | high << 4) - 32);
    split_iq4(block + 8 + j * GROUP / 2, codes);
}

/* ---- groups under one scale ---- */

/* The smallest half that is not less than x, for finite x >= 0. */
static uint16_t half_at_least(float x) {
    uint16_t bits = lmd_float_to_half(x);
    return lmd_half_to_float(bits) < x ? (uint16_t)(bits + 1) : bits;
}

/* Requantises a group of fp32 values as int8 with one half scale. The scale is rounded up, so
 * that 127 steps reach the largest value even where subnormal halves are coarse. A group that
 * no half can scale becomes NaN: an infinite or NaN scale times code 0. */
static void quantize_i8(const float *values, uint8_t *codes, uint16_t *scale) {
    float max = 0.0f;
    bool finite = true;
    for (int32_t i = 0; i < GROUP; i++) {
        finite = finite && isfinite(values[i]);
        max = fabsf(values[i]) > max ? fabsf(values[i]) : max;
    }
    *scale = finite ? half_at_least(max / 127.0f) : 0x7e00;
    float step = lmd_half_to_float(*scale);
    memset(codes, 0, GROUP);
    if (!(step > 0.0f) || !isfinite(step)) return;
    for (int32_t i = 0; i < GROUP; i++) {
        float code = rintf(values[i] / step);
        code = code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code;
        codes[i] = (uint8_t)(int8_t)code;
    }
}

/* The same as uint8 with a scale and a minimum. */
static void quantize_u8(const float *values, uint8_t *codes, uint16_t *scale,
                        uint16_t *offset) {
    float min = values[0], max = values[0];
    bool finite = true;
    for (int32_t i = 0; i < GROUP; i++) {
        finite = finite && isfinite(values[i]);
        min = values[i] < min ? values[i] : min;
        max = values[i] > max ? values[i] : max;
    }
    *offset = lmd_float_to_half(min);
    float base = lmd_half_to_float(*offset), range = max > base ? max - base : 0.0f;
    *scale = finite && isfinite(base) ? half_at_least(range / 255.0f) : 0x7e00;
    float step = lmd_half_to_float(*scale);
    memset(codes, 0, GROUP);
    if (!(step > 0.0f) || !isfinite(step)) return;
    for (int32_t i = 0; i < GROUP; i++) {
        float code = rintf((values[i] - base) / step);
        codes[i] = (uint8_t)(code > 255.0f ? 255.0f : code < 0.0f ? 0.0f : code);
    }
}

/* ---- one group of any coded dtype ---- */

/* The block that holds group g of a row: a block is one group, or 8 groups (K-quants). */
static const uint8_t *block_of(lmd_dtype dtype, const uint8_t *row, int64_t g) {
    return row + g * GROUP / lmd_dtype_block_len(dtype) * lmd_dtype_block_bytes(dtype);
}

/* Group j (0..7) of a block of 256 values in the canonical form. */
static void decode_k_group(lmd_dtype dtype, const uint8_t *block, int32_t j, uint8_t *codes,
                           uint16_t *scale, uint16_t *offset) {
    float scale32, min32, values[GROUP];
    int32_t small_codes[GROUP], small_scales[2];
    switch (dtype) {
    case LMD_Q2_K:
        q2_group(block, j, values);
        quantize_u8(values, codes, scale, offset);
        break;
    case LMD_Q3_K: /* the product -32 * -4 fits an int8 with its sign changed alone */
        q3_group(block, j, small_codes, small_scales);
        *scale = read_u16(block + 108) ^ 0x8000;
        for (int32_t i = 0; i < GROUP; i++)
            codes[i] = (uint8_t)(-small_codes[i] * small_scales[i / SUB_GROUP]);
        break;
    case LMD_Q4_K:
    case LMD_Q5_K:
        k_sub_block(block, dtype == LMD_Q5_K, j, codes, &scale32, &min32);
        *scale = lmd_float_to_half(scale32);
        *offset = lmd_float_to_half(min32);
        break;
    case LMD_Q6_K:
        q6_group(block, j, values);
        quantize_i8(values, codes, scale);
        break;
    case LMD_IQ4_XS:
        iq4_xs_group(block, j, codes, &scale32);
        *scale = lmd_float_to_half(scale32);
        break;
    default: break;
    }
}

static void decode_group(lmd_dtype dtype, const uint8_t *row, int64_t g, uint8_t *codes,
                         uint16_t *scale, uint16_t *offset) {
    const uint8_t *block = block_of(dtype, row, g);
    switch (dtype) {
    case LMD_Q8_0:
        *scale = read_u16(block);
        memcpy(codes, block + 2, GROUP);
        break;
    case LMD_Q4_0:
        *scale = read_u16(block);
        split_nibbles(block + 2, codes);
        break;
    case LMD_Q4_1:
        *scale = read_u16(block);
        *offset = read_u16(block + 2);
        split_nibbles(block + 4, codes);
        break;
    case LMD_Q5_0:
        *scale = read_u16(block);
        split_fives(block + 2, codes);
        for (int32_t i = 0; i < GROUP; i++) codes[i] = (uint8_t)(codes[i] - 16);
        break;
    case LMD_Q5_1:
        *scale = read_u16(block);
        *offset = read_u16(block + 2);
        split_fives(block + 4, codes);
        break;
    case LMD_IQ4_NL:
        *scale = read_u16(block);
        split_iq4(block + 2, codes);
        break;
    default: decode_k_group(dtype, block, (int32_t)(g % 8), codes, scale, offset); break;
    }
}

void lmd_weight_decode_row(lmd_dtype dtype, const void *row, int64_t n_cols, uint8_t *codes,
                           uint16_t *scales, uint16_t *offsets) {
    uint16_t unused;
    for (int64_t g = 0; g < n_cols / GROUP; g++)
        decode_group(dtype, row, g, codes + g * GROUP, scales + g,
                     offsets ? offsets + g : &unused);
}

/* ---- to fp32 ---- */

static void float_row(lmd_dtype dtype, const uint8_t *row, int64_t n_cols, float *out) {
    if (dtype == LMD_F32) {
        memcpy(out, row, (size_t)n_cols * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < n_cols; i++) {
        uint16_t bits = read_u16(row + i * 2);
        out[i] = dtype == LMD_F16 ? lmd_half_to_float(bits) : lmd_bf16_to_float(bits);
    }
}

/* Group j (0..7) of a block of 256 values in fp32; false for types with blocks of 32. */
static bool k_group_to_float(lmd_dtype dtype, const uint8_t *block, int32_t j, float *out) {
    uint8_t codes[GROUP];
    int32_t small_codes[GROUP], small_scales[2];
    float scale, min = 0.0f;
    switch (dtype) {
    case LMD_Q2_K: q2_group(block, j, out); return true;
    case LMD_Q3_K:
        q3_group(block, j, small_codes, small_scales);
        scale = read_half(block + 108);
        for (int32_t i = 0; i < GROUP; i++)
            out[i] = scale * (float)small_scales[i / SUB_GROUP] * (float)small_codes[i];
        return true;
    case LMD_Q4_K:
    case LMD_Q5_K:
        k_sub_block(block, dtype == LMD_Q5_K, j, codes, &scale, &min);
        for (int32_t i = 0; i < GROUP; i++) out[i] = scale * (float)codes[i] + min;
        return true;
    case LMD_Q6_K: q6_group(block, j, out); return true;
    case LMD_IQ4_XS:
        iq4_xs_group(block, j, codes, &scale);
        for (int32_t i = 0; i < GROUP; i++) out[i] = scale * (float)(int8_t)codes[i];
        return true;
    default: return false;
    }
}

static void group_to_float(lmd_dtype dtype, const uint8_t *row, int64_t g, float *out) {
    uint8_t codes[GROUP];
    uint16_t scale_bits, offset_bits = 0;
    if (k_group_to_float(dtype, block_of(dtype, row, g), (int32_t)(g % 8), out)) return;
    decode_group(dtype, row, g, codes, &scale_bits, &offset_bits);
    float scale = lmd_half_to_float(scale_bits), offset = lmd_half_to_float(offset_bits);
    for (int32_t i = 0; i < GROUP; i++) {
        if (dtype == LMD_Q4_0)
            out[i] = scale * (float)(codes[i] - LMD_I4_BIAS);
        else if (dtype == LMD_Q4_1 || dtype == LMD_Q5_1)
            out[i] = scale * (float)codes[i] + offset;
        else
            out[i] = scale * (float)(int8_t)codes[i];
    }
}

void lmd_weight_row_to_float(lmd_dtype dtype, const void *row, int64_t n_cols, float *out) {
    if (dtype <= LMD_BF16) {
        float_row(dtype, row, n_cols, out);
        return;
    }
    for (int64_t g = 0; g < n_cols / GROUP; g++) group_to_float(dtype, row, g, out + g * GROUP);
}
