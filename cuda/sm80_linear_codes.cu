/* The linear of the row "sm80" for weights of 4-bit and 8-bit codes: see sm80_linear.h.
 * Owns: how codes become halves, exactly as cuda_layout.h defines their values. A code becomes
 * the half 1024 + code by setting the bits of 1024 around it; what follows is exact but for the
 * last operation, which rounds once. */
#include "sm80_linear.h"

enum {
    HALVES_1024 = 0x64006400, /* 1024: the last 10 bits are the integers added to it */
    HALVES_960 = 0x63806380,
    HALVES_MINUS_64 = (int)0xd400d400,
    HALVES_SIXTEENTH = 0x2c002c00
};

LMD_DEVICE uint32_t low_twice(uint32_t pair) { return byte_perm(pair, 0, 0x1010); }
LMD_DEVICE uint32_t high_twice(uint32_t pair) { return byte_perm(pair, 0, 0x3232); }

/* ---- how a code is scaled ---- */

/* (code - zero) * scale. The offset of the group is 1024 + zero. */
struct by_zero {
    /* What is subtracted from 1024 + code, and what is added to 64 + code. */
    static __device__ __forceinline__ uint32_t from_1024(uint32_t group) {
        return high_twice(group);
    }
    static __device__ __forceinline__ uint32_t to_64(uint32_t group) {
        return hsub2(HALVES_960, high_twice(group)); /* -(64 + zero) */
    }
    static __device__ __forceinline__ uint32_t value(uint32_t integers, uint32_t group) {
        return hmul2(integers, low_twice(group));
    }
};

/* code * scale + min. The offset of the group is min. */
struct by_min {
    static __device__ __forceinline__ uint32_t from_1024(uint32_t) { return HALVES_1024; }
    static __device__ __forceinline__ uint32_t to_64(uint32_t) {
        return (uint32_t)HALVES_MINUS_64;
    }
    static __device__ __forceinline__ uint32_t value(uint32_t integers, uint32_t group) {
        return hfma2(integers, low_twice(group), high_twice(group));
    }
};

/* ---- forms ---- */

/* A slice of a tile is N times 32 lanes of 16 bytes. */
template <int N> LMD_DEVICE const uint8_t *find_codes(const lmd_linear_job *job, int32_t tile) {
    const int64_t lanes = (int64_t)tile * job->n_slices * N * 32 + threadIdx.x % 32;
    return job->args.weight.codes + lanes * 16;
}

template <int N> LMD_DEVICE void load_codes(uint32_t *words, const uint8_t *from) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        const uint4 v = load16(from + i * 512);
        words[i * 4] = v.x, words[i * 4 + 1] = v.y;
        words[i * 4 + 2] = v.z, words[i * 4 + 3] = v.w;
    }
}

/* A form is made of:
 *   LOADS        16-byte loads of a lane for a slice of a tile of rows
 *   SLICE_BYTES  from a lane's weights of a slice to those of the next
 *   HAS_GROUPS   whether decode() needs pairs of groups
 *   IN_ROWS      which order of columns x is read in
 *   find()       where the lane's weights of a tile's first slice lie
 *   load()       makes the loads of a slice
 *   decode()     makes the A operand of 16 of the slice's columns, number `step`, from the
 * words loaded and the pairs of groups of rows g and g + 8 */

template <typename scaling> struct form_u4 {
    static constexpr int LOADS = 1, SLICE_BYTES = 512;
    static constexpr bool HAS_GROUPS = true, IN_ROWS = false;

    static __device__ __forceinline__ const uint8_t *find(const lmd_linear_job *job,
                                                          int32_t tile) {
        return find_codes<1>(job, tile);
    }
    static __device__ __forceinline__ void load(uint32_t words[4], const lmd_linear_job *,
                                                const uint8_t *from) {
        load_codes<1>(words, from);
    }
    /* Bits 0 to 3 and 16 to 19: 1024 + code. */
    static __device__ __forceinline__ uint32_t even(uint32_t word, uint32_t group) {
        const uint32_t x = lop3<(0xf0 & 0xcc) | 0xaa>(word, 0x000f000f, HALVES_1024);
        return scaling::value(hsub2(x, scaling::from_1024(group)), group);
    }
    /* Bits 4 to 7 and 20 to 23: 1024 + 16 * code, and a sixteenth of it is 64 + code. */
    static __device__ __forceinline__ uint32_t odd(uint32_t word, uint32_t group) {
        const uint32_t x = lop3<(0xf0 & 0xcc) | 0xaa>(word, 0x00f000f0, HALVES_1024);
        return scaling::value(hfma2(x, HALVES_SIXTEENTH, scaling::to_64(group)), group);
    }
    static __device__ __forceinline__ void decode(uint32_t a[4], const uint32_t words[4],
                                                  int step, uint32_t low, uint32_t high) {
        a[0] = even(words[step], low);
        a[1] = odd(words[step], high);
        a[2] = even(words[step] >> 8, low);
        a[3] = odd(words[step] >> 8, high);
    }
};

template <typename scaling> struct form_u8 {
    static constexpr int LOADS = 2, SLICE_BYTES = 1024;
    static constexpr bool HAS_GROUPS = true, IN_ROWS = false;

    static __device__ __forceinline__ const uint8_t *find(const lmd_linear_job *job,
                                                          int32_t tile) {
        return find_codes<2>(job, tile);
    }
    static __device__ __forceinline__ void load(uint32_t words[8], const lmd_linear_job *,
                                                const uint8_t *from) {
        load_codes<2>(words, from);
    }
    /* Two bytes that `selector` puts below bytes of 0x64: 1024 + code. */
    static __device__ __forceinline__ uint32_t pick(uint32_t word, uint32_t selector,
                                                    uint32_t group) {
        const uint32_t x = byte_perm(word, HALVES_1024, selector);
        return scaling::value(hsub2(x, scaling::from_1024(group)), group);
    }
    static __device__ __forceinline__ void decode(uint32_t a[4], const uint32_t words[8],
                                                  int step, uint32_t low, uint32_t high) {
        a[0] = pick(words[step * 2], 0x5150, low);
        a[1] = pick(words[step * 2], 0x5352, high);
        a[2] = pick(words[step * 2 + 1], 0x5150, low);
        a[3] = pick(words[step * 2 + 1], 0x5352, high);
    }
};

/* ---- launching ---- */

void lmd_sm80_linear_codes(const lmd_linear_job *job, lmd_linear_shape_id shape,
                           lmd_cuda_queue *queue) {
    switch (job->args.weight.form) {
    case LMD_FORM_U4_ZERO: linear_launch<form_u4<by_zero>>(job, shape, queue); break;
    case LMD_FORM_U4_MIN: linear_launch<form_u4<by_min>>(job, shape, queue); break;
    case LMD_FORM_U8_ZERO: linear_launch<form_u8<by_zero>>(job, shape, queue); break;
    case LMD_FORM_U8_MIN: linear_launch<form_u8<by_min>>(job, shape, queue); break;
    case LMD_FORM_F16:
    case LMD_FORM_COUNT: break;
    }
}

cudaError_t lmd_sm80_linear_codes_prepare(void) {
    cudaError_t error = linear_prepare<form_u4<by_zero>>();
    if (error == cudaSuccess) error = linear_prepare<form_u4<by_min>>();
    if (error == cudaSuccess) error = linear_prepare<form_u8<by_zero>>();
    if (error == cudaSuccess) error = linear_prepare<form_u8<by_min>>();
    return error;
}
