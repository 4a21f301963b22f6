/* The AVX2 kernels (with FMA and F16C). W4A16 multiplies pairs of int16 (vpmaddwd), from panels
 * that are unpacked first when a step has many rows; fast activations multiply codes up to 15
 * by int8 (vpmaddubsw). */
#define ISA avx2

enum { LANES = 8, BYTE_FLIP = 0 };

#if defined(__AVX2__)
#include "cpu/kernels/vector_avx2.h"

INLINE i32v dot_pairs(i32v acc, s16v w, s16v x) {
    return acc + (i32v)_mm256_madd_epi16((__m256i)w, (__m256i)x);
}

/* Sums of int16: 8 times two products of a code up to 15 by -128 reach -30720. */
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
#else
#include "cpu/kernels/vector_portable.h"
#endif

#include "cpu/kernels/table_pairs.h"
