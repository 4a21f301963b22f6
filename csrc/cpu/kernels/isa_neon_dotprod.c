/* The kernels for aarch64 with dot products (Armv8.2 and later): sdot on digits. */
#define ISA neon_dotprod

enum { LANES = 4, BYTE_FLIP = 128 };

#if defined(__ARM_FEATURE_DOTPROD)
#include "cpu/kernels/vector_chains.h"
#include "cpu/kernels/vector_neon.h"

INLINE chain_v chain_dot(chain_v chain, u8v w, i32v x, bool nibbles) {
    (void)nibbles;
    return (chain_v)vdotq_s32((int32x4_t)chain, (int8x16_t)w, (int8x16_t)x);
}
#else
#include "cpu/kernels/vector_portable.h"
#endif

/* The sums of a tile fill 16 of the 32 registers. */
#define WIDE_ROWS 2
#define FAST_ROWS 4

#include "cpu/kernels/table_digits.h"
