/* Vectors of LANES lanes for the kernels, which are written once and compiled for every
 * instruction set.
 * Owns: the vector types, and what can be said without intrinsics. An isa_<name>.c defines:
 *   LANES      lanes of 32 bits: 4, 8 or 16; a panel's 16 rows are HALVES vectors
 *   BYTE_FLIP  128 where the ISA multiplies signed bytes only: 8-bit codes are then exclusive-
 *              ored with it, which makes them code - 128; 0 elsewhere
 * and, each as an intrinsic or by the portable body in vector_portable.h:
 *   f32v half_v(const uint16_t *p)         LANES halves as floats
 *   f32v fma_v(a, b, c)                    a * b + c, rounded once; fma1 for a scalar
 *   i32v dot_pairs(acc, s16v w, s16v x)    acc + two products of int16 in each lane
 *   chain_v chain_begin(i32v acc)          begins a chain of products that continues acc
 *   chain_v chain_dot(chain, u8v w, i32v x, bool nibbles)
 *                                          adds, in each lane, four products of a code by an
 *                                          int8; a chain of nibbles (codes up to 15) has 8 of
 *                                          these at most, because int16 may hold its sums
 *   i32v chain_end(acc, chain_v chain)     the sum, with the acc that the chain began with
 * Must not know: what kernels compute. */
#ifndef LMD_CPU_KERNELS_VECTOR_H
#define LMD_CPU_KERNELS_VECTOR_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"
#include "cpu/kernels/kernels.h"

/* Makes one name of two, after expanding both. */
#define PASTE_TOKENS(a, b) a##b
#define PASTE(a, b)        PASTE_TOKENS(a, b)

#define INLINE static inline __attribute__((always_inline))

enum { HALVES = LMD_PANEL_ROWS / LANES, VECTOR_BYTES = LANES * 4 };

typedef float f32v __attribute__((vector_size(LANES * 4)));
typedef int32_t i32v __attribute__((vector_size(LANES * 4)));
typedef uint32_t u32v __attribute__((vector_size(LANES * 4)));
typedef int16_t s16v __attribute__((vector_size(LANES * 4)));
typedef uint16_t u16v __attribute__((vector_size(LANES * 4)));
typedef uint8_t u8v __attribute__((vector_size(LANES * 4)));
/* Narrower elements, one for each lane. */
typedef uint16_t u16n __attribute__((vector_size(LANES * 2)));
typedef int16_t s16n __attribute__((vector_size(LANES * 2)));
typedef int8_t s8n __attribute__((vector_size(LANES)));

INLINE f32v load_v(const float *p) {
    f32v v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store_v(float *p, f32v v) { memcpy(p, &v, sizeof v); }

INLINE u8v load_bytes(const uint8_t *p) {
    u8v v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Puts x into every lane. Compilers know that x - 0 is x and broadcast it; x + 0 they would
 * add, because of -0. */
INLINE f32v all_v(float x) { return x - (f32v){0}; }

/* Puts the same four bytes into every lane. */
INLINE i32v all_dwords(const uint8_t *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return (i32v){0} + x;
}

/* The lanes of a vector of integers, in the order of the given numbers. */
#if defined(__clang__)
#define pick_lanes(v, ...) __builtin_shufflevector((v), (v), __VA_ARGS__)
#else
#define pick_lanes(v, ...) __builtin_shuffle((v), (__typeof__(v)){__VA_ARGS__})
#endif

/* mask ? a : b in each lane; a comparison of vectors makes the mask. */
INLINE f32v select_v(i32v mask, f32v a, f32v b) {
    return (f32v)(((i32v)a & mask) | ((i32v)b & ~mask));
}

/* Reductions of 16 lanes, which are HALVES vectors: the second half is added to the first, and
 * so on, in an order that is the same for every width. */
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef int32_t i32x4 __attribute__((vector_size(16)));

INLINE float sum_chains(const f32v *chains) {
    f32x8 eight[2];
    f32x4 four[2];
    memcpy(eight, chains, sizeof eight);
    eight[0] += eight[1];
    memcpy(four, &eight[0], sizeof four);
    four[0] += four[1];
    return (four[0][0] + four[0][2]) + (four[0][1] + four[0][3]);
}

INLINE int32_t sum_lanes(const i32v *lanes) {
    i32x8 eight[2];
    i32x4 four[2];
    memcpy(eight, lanes, sizeof eight);
    eight[0] += eight[1];
    memcpy(four, &eight[0], sizeof four);
    four[0] += four[1];
    return (four[0][0] + four[0][2]) + (four[0][1] + four[0][3]);
}

INLINE int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

INLINE int32_t largest_lane(const i32v *lanes) {
    i32x8 eight[2];
    i32x4 four[2];
    memcpy(eight, lanes, sizeof eight);
    i32x8 first = eight[0] > eight[1];
    eight[0] = (eight[0] & first) | (eight[1] & ~first);
    memcpy(four, &eight[0], sizeof four);
    i32x4 second = four[0] > four[1];
    four[0] = (four[0] & second) | (four[1] & ~second);
    return max_i32(max_i32(four[0][0], four[0][2]), max_i32(four[0][1], four[0][3]));
}

#endif
