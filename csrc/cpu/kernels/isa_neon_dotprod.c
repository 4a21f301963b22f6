/* The kernels for aarch64 with dot products (Armv8.2 and later): sdot on digits. */
enum { LANES = 4, BYTE_FLIP = 128 };

#if defined(__ARM_FEATURE_DOTPROD)
#include "cpu/kernels/vector_neon.h"

typedef i32v chain_v;

INLINE chain_v chain_begin(i32v acc) { return acc; }

INLINE chain_v chain_dot(chain_v chain, u8v w, i32v x, bool nibbles) {
    (void)nibbles;
    return (chain_v)vdotq_s32((int32x4_t)chain, (int8x16_t)w, (int8x16_t)x);
}

INLINE i32v chain_end(i32v acc, chain_v chain) {
    (void)acc;
    return chain;
}

#define KERNELS_NAME lmd_cpu_kernels_neon_dotprod
#define KERNELS_ISA  "neon_dotprod"
#else
#include "cpu/kernels/vector_portable.h"

#define KERNELS_NAME lmd_portable_kernels_neon_dotprod
#define KERNELS_ISA  "neon_dotprod (portable)"
#endif

/* 16 vectors of sums, of 32 registers. */
#define WIDE_ROWS 2
#define FAST_ROWS 4

#include "cpu/kernels/table_digits.h"
