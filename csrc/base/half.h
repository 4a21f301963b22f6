/* 16-bit floats without intrinsics: IEEE half (fp16) and bfloat16 to and from fp32.
 * Owns: the one definition of both conversions (round to nearest even), bit for bit what F16C
 * does. Header only, so that the compiler can vectorise it. Any thread. */
#ifndef LMD_BASE_HALF_H
#define LMD_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float lmd_bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t lmd_float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float lmd_half_to_float(uint16_t h) {
    /* Mantissa and exponent are shifted into place, and one multiplication by 2^112 rebiases
     * the exponent: exact for normal and subnormal halves. Infinities and NaNs are set apart.
     */
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t magnitude = (uint32_t)(h & 0x7fffu) << 13;
    float scaled = lmd_bits_to_float(magnitude) * 0x1p112f;
    uint32_t bits = lmd_float_to_bits(scaled);
    uint32_t special = 0x7f800000u | (magnitude & 0x007fffffu);
    bits = magnitude >= 0x0f800000u ? special : bits;
    return lmd_bits_to_float(bits | sign);
}

static inline uint16_t lmd_float_to_half(float x) {
    uint32_t bits = lmd_float_to_bits(x);
    uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) /* NaN: keep it quiet */
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to infinity */
    if (magnitude < 0x38800000u) { /* subnormal half: the addition rounds at bit 2^-24 */
        float rounded = lmd_bits_to_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (lmd_float_to_bits(rounded) - 0x3f000000u));
    }
    uint32_t odd = magnitude >> 13 & 1u;
    return (uint16_t)(sign | (magnitude - 0x38000000u + 0xfffu + odd) >> 13);
}

static inline int lmd_half_is_finite(uint16_t h) { return (h & 0x7c00u) != 0x7c00u; }

static inline float lmd_bf16_to_float(uint16_t b) {
    return lmd_bits_to_float((uint32_t)b << 16);
}

static inline uint16_t lmd_float_to_bf16(float x) {
    uint32_t bits = lmd_float_to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#endif
