/* The AVX-VNNI kernels: AVX2 with vpdpwssd for pairs of int16 and vpdpbusd for codes by int8.
 */
#define ISA avxvnni

enum { LANES = 8, BYTE_FLIP = 0 };

#if defined(__AVXVNNI__)
#include "cpu/kernels/vector_avx2.h"
#include "cpu/kernels/vector_chains.h"

INLINE i32v dot_pairs(i32v acc, s16v w, s16v x) {
    return (i32v)_mm256_dpwssd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)x);
}

INLINE chain_v chain_dot(chain_v chain, u8v w, i32v x, bool nibbles) {
    (void)nibbles;
    return (chain_v)_mm256_dpbusd_avx_epi32((__m256i)chain, (__m256i)w, (__m256i)x);
}
#else
#include "cpu/kernels/vector_portable.h"
#endif

#include "cpu/kernels/table_pairs.h"
