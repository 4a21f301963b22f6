/* The AVX-512 kernels (F, BW, VL, VNNI): vpdpbusd on digits, two for W4A16 and one for fast
 * activations; one vector holds a panel's 16 rows. */
enum { LANES = 16 };

#if defined(__AVX512VNNI__)
#include <immintrin.h>

#include "cpu/kernels_vector.h"

#define fma1(a, b, c) __builtin_fmaf((a), (b), (c))

INLINE f32v fma_v(f32v a, f32v b, f32v c) { return _mm512_fmadd_ps(a, b, c); }

INLINE f32v half_v(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

INLINE i32v dot_pairs(i32v acc, s16v w, s16v x) {
    return (i32v)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)w, (__m512i)x);
}

typedef i32v chain_v;

INLINE chain_v chain_begin(i32v acc) { return acc; }

INLINE chain_v chain_dot(chain_v chain, u8v w, i32v x) {
    return (chain_v)_mm512_dpbusd_epi32((__m512i)chain, (__m512i)w, (__m512i)x);
}

INLINE i32v chain_end(i32v acc, chain_v chain) {
    (void)acc;
    return chain;
}

#define KERNELS_NAME lmd_cpu_kernels_avx512
#define KERNELS_ISA "avx512"
#else
#include "cpu/kernels_portable.h"

#define KERNELS_NAME lmd_portable_kernels_avx512
#define KERNELS_ISA "avx512 (portable)"
#endif

#include "cpu/kernels_digits.h"
