/* Decoding of stored weight rows: into groups of codes that backends pack, and to fp32.
 * Owns: what each lmd_dtype's bits mean, and the error of re-expressing K-quants. Must not
 * know: how a backend packs. Pure functions: no state, no allocation, rows of any alignment and
 * any bits: hostile scales give infinities and NaNs, never undefined behaviour. Any thread. */
#ifndef LMD_QUANT_WEIGHT_CODEC_H
#define LMD_QUANT_WEIGHT_CODEC_H

#include <stdint.h>

#include "base/status.h"
#include "io/checkpoint.h"

/* The types that weights may be stored in, for messages. */
#define LMD_WEIGHT_TYPES                                                                       \
    "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, "     \
    "IQ4_XS"

typedef enum lmd_weight_kind {
    LMD_WEIGHT_FLOAT, /* rows of float_dtype; no codes */
    LMD_WEIGHT_U4,    /* codes 0..15 */
    LMD_WEIGHT_I4,    /* codes -8..7, stored plus 8 */
    LMD_WEIGHT_I8,    /* codes -128..127, two's complement */
    LMD_WEIGHT_U8     /* codes 0..255 */
} lmd_weight_kind;

enum { LMD_I4_BIAS = 8 };

typedef enum lmd_group_offset {
    LMD_OFFSET_NONE, /* value = scale * code */
    LMD_OFFSET_ZERO, /* value = scale * (code - zero) */
    LMD_OFFSET_MIN   /* value = scale * code + min */
} lmd_group_offset;

typedef struct lmd_weight_format {
    lmd_weight_kind kind;
    lmd_group_offset offset;
    int32_t group_size;    /* values of a row that share a scale; 0 for FLOAT */
    lmd_dtype float_dtype; /* of FLOAT; otherwise LMD_F32, what row_to_float gives */
} lmd_weight_format;

/* The canonical form of a stored type:
 *   F32 F16 BF16  FLOAT            as stored
 *   Q8_0          I8  NONE 32      exact
 *   Q4_0          I4  NONE 32      exact
 *   Q4_1          U4  MIN  32      exact
 *   Q5_0          I8  NONE 32      exact, codes -16..15
 *   Q5_1          U8  MIN  32      exact, codes 0..31
 *   IQ4_NL        I8  NONE 32      exact, codes are the 16 values of its table
 *   Q3_K          I8  NONE 32      exact: scale = -d, code = -sc*q, which is -128..124
 *   Q4_K          U4  MIN  32      scale = half(d*sc), min = half(-dmin*m)
 *   Q5_K          U8  MIN  32      the same, codes 0..31
 *   IQ4_XS        I8  NONE 32      scale = half(d*sc), codes as IQ4_NL's
 *   Q6_K          I8  NONE 32      two sub-groups of 16 under one scale
 *   Q2_K          U8  MIN  32      two sub-groups of 16 under one scale and one minimum
 * Errors against lmd_weight_row_to_float, where scales and minima are finite as halves:
 *   Q4_K, Q5_K: 2^-11 * (scale*code + |min|) + 2^-25 * (code + 1), from rounding to half.
 *   IQ4_XS: 2^-11 * |scale*code| + 2^-25 * |code|, for the same reason.
 *   Q6_K: max|group| / 253 + 2^-25: the scale is max|group| / 127, rounded up to a half. On
 *   normally distributed weights this adds 5 % to the rms error that Q6_K itself has made.
 *   Q2_K: (max - min) / 508 + 2^-11 * |min| + 2^-25, of the group's largest and smallest value.
 *   On normally distributed weights this adds 0.02 % to the rms error that Q2_K has made.
 * LMD_UNSUPPORTED, which names the served ones, for I32 and the types after it. */
lmd_status lmd_weight_format_of(const lmd_tensor_view *view, lmd_weight_format *out,
                                lmd_err *err);

/* Splits a row of a quantised dtype into codes, each in a byte, and a scale and an offset for
 * each group, as halves; zeros are whole numbers stored as fp16. With LMD_OFFSET_NONE offsets
 * is not written and may be NULL. n_cols must be a multiple of the dtype's block_len; a float
 * dtype, or one without a format, is a bug of the caller. */
void lmd_weight_decode_row(lmd_dtype dtype, const void *row, int64_t n_cols,
                           uint8_t *codes,     /* [n_cols] */
                           uint16_t *scales,   /* [n_cols / 32] half */
                           uint16_t *offsets); /* [n_cols / 32] half: zero or min */

/* Dequantises a row of any dtype that has a format, exactly as the stored type defines. */
void lmd_weight_row_to_float(lmd_dtype dtype, const void *row, int64_t n_cols,
                             float *out /* [n_cols] */);

#endif
