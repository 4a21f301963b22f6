/* Portable bodies of the wrappers that vector.h names: for the reference, and so that the
 * harness can run the source of an ISA that this machine lacks. Including it makes the table a
 * portable one (see table.h). */
#ifndef LMD_CPU_KERNELS_VECTOR_PORTABLE_H
#define LMD_CPU_KERNELS_VECTOR_PORTABLE_H

#include "cpu/kernels/vector_chains.h"

#define IS_PORTABLE

#define fma1(a, b, c) fmaf((a), (b), (c))

static inline f32v fma_v(f32v a, f32v b, f32v c) {
    for (int32_t i = 0; i < LANES; i++) c[i] = fmaf(a[i], b[i], c[i]);
    return c;
}

static inline f32v half_v(const uint16_t *p) {
    f32v out;
    for (int32_t i = 0; i < LANES; i++) out[i] = lmd_half_to_float(p[i]);
    return out;
}

static inline i32v dot_pairs(i32v acc, s16v w, s16v x) {
    for (int32_t i = 0; i < LANES; i++)
        acc[i] += w[2 * i] * x[2 * i] + w[2 * i + 1] * x[2 * i + 1];
    return acc;
}

static inline chain_v chain_dot(chain_v chain, u8v w, i32v x, bool nibbles) {
    for (int32_t i = 0; i < LANES; i++)
        for (int32_t j = 0; j < 4; j++) {
            int8_t a = (int8_t)((uint32_t)x[i] >> (8 * j));
            uint8_t code = w[4 * i + j];
            chain[i] += (BYTE_FLIP != 0 && !nibbles ? (int8_t)code : code) * a;
        }
    return chain;
}

#endif
