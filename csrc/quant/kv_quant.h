/* Quantisation of keys and values: the definition that every backend shares.
 * Owns: how one head's vector becomes codes of 8 or 4 bits with one {scale, min}, and back. The
 * quantisation is asymmetric, with one pair for each token and KV head; keys are quantised
 * after RoPE. Must not know: where codes and pairs lie in memory, which is a backend's secret.
 * Pure functions: no state, no allocation. Any thread. */
#ifndef LMD_QUANT_KV_QUANT_H
#define LMD_QUANT_KV_QUANT_H

#include <stdint.h>

typedef struct lmd_kv_params {
    uint16_t scale, min; /* halves */
} lmd_kv_params;

/* Encodes x as codes 0 .. 2^bits - 1, each in a byte:
 *   scale = half((max - min) / (2^bits - 1)), min = half(min), both to the nearest;
 *   code  = (x - min) * (1 / scale) in fp32 with the rounded pair, clamped, to the nearest
 *           integer, ties to even; 0 where scale is 0.
 * If x or the pair is not finite, scale and min become NaN and every code 0, so that decoding
 * gives NaN. bits: 8 or 4. */
lmd_kv_params lmd_kv_encode(const float *x, int32_t n, int32_t bits, uint8_t *codes /* [n] */);

/* Decodes: x = scale * code + min, in fp32, rounded once (an FMA). A scale of 0 means the
 * constant min. */
void lmd_kv_decode(const uint8_t *codes, int32_t n, lmd_kv_params params, float *x /* [n] */);

#endif
