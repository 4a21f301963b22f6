/* The wrappers of vector.h for AVX-512 (F, BW, VL, VNNI), where one vector holds a panel's 16
 * rows; without the compiler's flags for it, the portable bodies. For isa_avx512.c and
 * isa_amx.c. */
#ifndef LMD_CPU_KERNELS_VECTOR_AVX512_H
#define LMD_CPU_KERNELS_VECTOR_AVX512_H

enum { LANES = 16, BYTE_FLIP = 0 };

/* A row of W4A16 needs registers for the sums of two digits and for a running sum, a row of
 * fast activations for those of one digit: 24 of the 32 registers either way. */
#define WIDE_ROWS 8
#define FAST_ROWS 12

#if defined(__AVX512VNNI__)
#include <immintrin.h>

#include "cpu/kernels/vector_chains.h"

#define fma1(a, b, c) __builtin_fmaf((a), (b), (c))

INLINE f32v fma_v(f32v a, f32v b, f32v c) { return _mm512_fmadd_ps(a, b, c); }

INLINE f32v half_v(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

INLINE i32v dot_pairs(i32v acc, s16v w, s16v x) {
    return (i32v)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)w, (__m512i)x);
}

INLINE chain_v chain_dot(chain_v chain, u8v w, i32v x, bool nibbles) {
    (void)nibbles;
    return (chain_v)_mm512_dpbusd_epi32((__m512i)chain, (__m512i)w, (__m512i)x);
}
#else
#include "cpu/kernels/vector_portable.h"
#endif

#endif
