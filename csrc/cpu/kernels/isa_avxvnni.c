/* The AVX-VNNI kernels: AVX2 with vpdpwssd on pairs of int16, and vpdpbusd on codes by int8. */
enum { LANES = 8, BYTE_FLIP = 0 };

#if defined(__AVXVNNI__)
#include <immintrin.h>

#include "cpu/kernels/vector.h"

#define fma1(a, b, c) __builtin_fmaf((a), (b), (c))

INLINE f32v fma_v(f32v a, f32v b, f32v c) { return _mm256_fmadd_ps(a, b, c); }

INLINE f32v half_v(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

INLINE i32v dot_pairs(i32v acc, s16v w, s16v x) {
    return (i32v)_mm256_dpwssd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)x);
}

typedef i32v chain_v;

INLINE chain_v chain_begin(i32v acc) { return acc; }

INLINE chain_v chain_dot(chain_v chain, u8v w, i32v x, bool nibbles) {
    (void)nibbles;
    return (chain_v)_mm256_dpbusd_avx_epi32((__m256i)chain, (__m256i)w, (__m256i)x);
}

INLINE i32v chain_end(i32v acc, chain_v chain) {
    (void)acc;
    return chain;
}

#define KERNELS_NAME lmd_cpu_kernels_avxvnni
#define KERNELS_ISA  "avxvnni"
#else
#include "cpu/kernels/vector_portable.h"

#define KERNELS_NAME lmd_portable_kernels_avxvnni
#define KERNELS_ISA  "avxvnni (portable)"
#endif

#include "cpu/kernels/table_pairs.h"
