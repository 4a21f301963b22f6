/* The wrappers of vector.h that the NEON tables share; the file that includes this one defines
 * the chains. For isa_neon*.c. */
#ifndef LMD_CPU_KERNELS_VECTOR_NEON_H
#define LMD_CPU_KERNELS_VECTOR_NEON_H

#include <arm_neon.h>

#include "cpu/kernels/vector.h"

#define fma1(a, b, c) __builtin_fmaf((a), (b), (c))

INLINE f32v fma_v(f32v a, f32v b, f32v c) {
    return (f32v)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

INLINE f32v half_v(const uint16_t *p) {
    return (f32v)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

INLINE i32v dot_pairs(i32v acc, s16v w, s16v x) {
    int16x8_t a = (int16x8_t)w, b = (int16x8_t)x;
    int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(b)), high = vmull_high_s16(a, b);
    return acc + (i32v)vpaddq_s32(low, high);
}

#endif
