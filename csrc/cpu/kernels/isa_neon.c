/* The kernels for any aarch64: smlal on digits. Every aarch64 machine has these instructions,
 * so this file needs no compiler flags. */
#define ISA neon

enum { LANES = 4, BYTE_FLIP = 128 };

#if defined(__ARM_NEON)
#include "cpu/kernels/vector_neon.h"

/* Products of nibbles are summed in int16: 8 products of 15 by -128 reach -15360, and two such
 * sums still fit together. Products of bytes are widened at once. */
typedef struct chain_v {
    int32x4_t sums;
    int16x8_t low, high; /* for the bytes of lanes 0 and 1, and of lanes 2 and 3 */
} chain_v;

INLINE chain_v chain_begin(i32v acc) {
    return (chain_v){(int32x4_t)acc, vdupq_n_s16(0), vdupq_n_s16(0)};
}

INLINE chain_v chain_dot(chain_v chain, u8v w, i32v x, bool nibbles) {
    int8x16_t a = (int8x16_t)w, b = (int8x16_t)x;
    if (nibbles) {
        chain.low = vmlal_s8(chain.low, vget_low_s8(a), vget_low_s8(b));
        chain.high = vmlal_high_s8(chain.high, a, b);
    } else {
        int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
        chain.sums = vaddq_s32(chain.sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
    }
    return chain;
}

INLINE i32v chain_end(i32v acc, chain_v chain) {
    (void)acc;
    return (i32v)vpadalq_s16(chain.sums, vpaddq_s16(chain.low, chain.high));
}
#else
#include "cpu/kernels/vector_portable.h"
#endif

/* A row of two digits has 16 vectors of int16 sums. */
#define WIDE_ROWS 1
#define FAST_ROWS 2

#include "cpu/kernels/table_digits.h"
