/* The AVX2 kernels (with FMA and F16C). W4A16 goes through vpmaddwd on pairs of int16, on
 * unpacked panels when many rows come; fast activations through vpmaddubsw on codes up to 15.
 */
enum { LANES = 8, BYTE_FLIP = 0 };

#if defined(__AVX2__)
#include <immintrin.h>

#include "cpu/kernels/vector.h"

#define fma1(a, b, c) __builtin_fmaf((a), (b), (c))

INLINE f32v fma_v(f32v a, f32v b, f32v c) { return _mm256_fmadd_ps(a, b, c); }

INLINE f32v half_v(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

INLINE i32v dot_pairs(i32v acc, s16v w, s16v x) {
    return acc + (i32v)_mm256_madd_epi16((__m256i)w, (__m256i)x);
}

/* Sums of int16: 8 products of two codes up to 15 by -128 reach -30720. */
typedef s16v chain_v;

INLINE chain_v chain_begin(i32v acc) {
    (void)acc;
    return (chain_v){0};
}

INLINE chain_v chain_dot(chain_v chain, u8v w, i32v x, bool nibbles) {
    (void)nibbles;
    return chain + (chain_v)_mm256_maddubs_epi16((__m256i)w, (__m256i)x);
}

INLINE i32v chain_end(i32v acc, chain_v chain) {
    return acc + (i32v)_mm256_madd_epi16((__m256i)chain, _mm256_set1_epi16(1));
}

#define KERNELS_NAME lmd_cpu_kernels_avx2
#define KERNELS_ISA  "avx2"
#else
#include "cpu/kernels/vector_portable.h"

#define KERNELS_NAME lmd_portable_kernels_avx2
#define KERNELS_ISA  "avx2 (portable)"
#endif

#include "cpu/kernels/table_pairs.h"
