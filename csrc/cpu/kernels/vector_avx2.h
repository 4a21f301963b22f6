/* The wrappers of vector.h that the tables of 256-bit vectors share (AVX2, FMA and F16C). The
 * file that includes this one defines dot_pairs and the chains. For isa_avx2.c and
 * isa_avxvnni.c. */
#ifndef LMD_CPU_KERNELS_VECTOR_AVX2_H
#define LMD_CPU_KERNELS_VECTOR_AVX2_H

#include <immintrin.h>

#include "cpu/kernels/vector.h"

#define fma1(a, b, c) __builtin_fmaf((a), (b), (c))

INLINE f32v fma_v(f32v a, f32v b, f32v c) { return _mm256_fmadd_ps(a, b, c); }

INLINE f32v half_v(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

#endif
