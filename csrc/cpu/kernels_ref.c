/* The reference kernels: the generic source with portable wrappers, for any machine and as the
 * oracle of every faster one. Never optimised by hand. */
#include <math.h>
#include <stdint.h>

#include "base/half.h"

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

#define fma1(a, b, c) fmaf((a), (b), (c))

static inline f32x8 fma8(f32x8 a, f32x8 b, f32x8 c) {
    f32x8 out;
    for (int32_t i = 0; i < 8; i++) out[i] = fmaf(a[i], b[i], c[i]);
    return out;
}

static inline f32x8 half8(const uint16_t *p) {
    f32x8 out;
    for (int32_t i = 0; i < 8; i++) out[i] = lmd_half_to_float(p[i]);
    return out;
}

#include "cpu/kernels_generic.h"

const lmd_cpu_kernels lmd_cpu_kernels_ref = {
    .isa = "ref",
    .panel = panel_any,
    .quantize = quantize,
    .rms_norm = rms_norm,
    .rope = rope,
    .silu_mul = silu_mul,
    .kv_write = kv_write,
    .attend_chunk = attend_chunk,
    .attend_fold = attend_fold,
};
