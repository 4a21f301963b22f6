/* The quantizer's kernels, as quant/matrix_kernels.h describes them: written once for every
 * ISA, in the words of vector.h. A vector's lanes are rows of the weight, or columns of a
 * product, so the width of a vector changes no bit. */
#ifndef LMD_CPU_KERNELS_SOLVE_H
#define LMD_CPU_KERNELS_SOLVE_H

#include "cpu/kernels/rows.h"
#include "quant/matrix_kernels.h"

/* The sums of a tile, two vectors of columns and two more for the second operand fill 16
 * registers, or 32. */
enum { PRODUCT_ROWS = LANES == 8 ? 6 : 12, PRODUCT_COLS = 2 * LANES };

static void product(float *out, int64_t stride, const float *a, const float *b, int32_t depth) {
    f32v sums[PRODUCT_ROWS][2];
    for (int32_t i = 0; i < PRODUCT_ROWS; i++)
        for (int32_t h = 0; h < 2; h++) sums[i][h] = load_v(out + i * stride + h * LANES);
    for (int32_t k = 0; k < depth; k++, a += PRODUCT_ROWS, b += PRODUCT_COLS) {
        const f32v b0 = load_v(b), b1 = load_v(b + LANES);
        for (int32_t i = 0; i < PRODUCT_ROWS; i++) {
            const f32v x = all_v(a[i]);
            sums[i][0] = fma_v(x, b0, sums[i][0]);
            sums[i][1] = fma_v(x, b1, sums[i][1]);
        }
    }
    for (int32_t i = 0; i < PRODUCT_ROWS; i++)
        for (int32_t h = 0; h < 2; h++) store_v(out + i * stride + h * LANES, sums[i][h]);
}

/* Adds to a column of two vectors what the n changes before it feed back. Four chains at once
 * hide an addition's latency. */
INLINE void feed_back(f32v *wanted, const float *change, const float *feedback, int32_t n) {
    f32v even[2] = {all_v(0.0f), all_v(0.0f)}, odd[2] = {all_v(0.0f), all_v(0.0f)};
    int32_t i = 0;
    for (; i + 1 < n; i += 2, change += 2 * PRODUCT_COLS) {
        const f32v x = all_v(feedback[i]), y = all_v(feedback[i + 1]);
        for (int32_t h = 0; h < 2; h++) {
            even[h] = fma_v(x, load_v(change + h * LANES), even[h]);
            odd[h] = fma_v(y, load_v(change + PRODUCT_COLS + h * LANES), odd[h]);
        }
    }
    const f32v x = all_v(i < n ? feedback[i] : 0.0f);
    for (int32_t h = 0; h < 2; h++) {
        if (i < n) even[h] = fma_v(x, load_v(change + h * LANES), even[h]);
        wanted[h] = wanted[h] + (even[h] + odd[h]);
    }
}

static void round_block(const lmd_round_args *args) {
    const f32v zero = all_v(0.0f), most = all_v(args->most);
    for (int32_t j = 0; j < args->n; j++) {
        const int32_t at = j * PRODUCT_COLS, grid = args->group[j] * PRODUCT_COLS;
        f32v start[2], wanted[2];
        for (int32_t h = 0; h < 2; h++) {
            start[h] = load_v(args->start + at + h * LANES);
            wanted[h] = start[h] + load_v(args->sums + at + h * LANES);
        }
        feed_back(wanted, args->change, args->feedback + j * LMD_ROUND_BLOCK, j);
        for (int32_t h = 0; h < 2; h++) {
            const f32v offset = load_v(args->offset + grid + h * LANES);
            f32v code = (wanted[h] - offset) * load_v(args->inverse + grid + h * LANES);
            code = select_v(code > zero, code, zero);
            code = select_v(code < most, code, most);
            code = code + ROUND_MAGIC - ROUND_MAGIC;
            store_v(args->codes + at + h * LANES, code);
            const f32v value = fma_v(code, load_v(args->scale + grid + h * LANES), offset);
            store_v(args->change + at + h * LANES, start[h] - value);
        }
    }
}

#endif
