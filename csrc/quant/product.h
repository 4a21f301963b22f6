/* Products of large fp32 matrices, by the kernels of one instruction set and a pool of threads.
 * Owns: how matrices are cut into tiles and copied for the kernels. The result has the same
 * bits for every number of threads and every instruction set: an element is one chain of fused
 * multiplications and additions. Must not know: what the matrices mean. One thread, which has
 * the pool's workers help. */
#ifndef LMD_QUANT_PRODUCT_H
#define LMD_QUANT_PRODUCT_H

#include "base/status.h"
#include "base/threads.h"
#include "quant/matrix_kernels.h"

typedef struct lmd_compute {
    const lmd_matrix_kernels *kernels;
    lmd_threads *threads;
} lmd_compute;

/* A matrix whose columns are multiplied: element(k, column) is a[k * row_stride +
 * column * column_stride], k < depth, column < n. */
typedef struct lmd_operand {
    const float *a;
    int64_t row_stride, column_stride;
    int32_t n, depth;
} lmd_operand;

/* Adds left^T right to out [left.n, right.n]; both have the same depth. LMD_NO_MEMORY. */
lmd_status lmd_product_add(const lmd_compute *compute, const lmd_operand *left,
                           const lmd_operand *right, float *out, lmd_err *err);

/* Adds X^T X to the lower triangle of gram [n_cols, n_cols]; what is above it is undefined.
 * X [n_rows, n_cols]. LMD_NO_MEMORY. */
lmd_status lmd_gram_add(const lmd_compute *compute, const float *x, int32_t n_rows,
                        int32_t n_cols, float *gram, lmd_err *err);

/* Copies the lower triangle of a [n, n] above the diagonal. */
void lmd_mirror(float *a, int32_t n);

/* Replaces the lower triangle of a [n, n], which is symmetric, by its Cholesky factor L,
 * a = L L^T; what is above it is undefined. LMD_INVALID where a is not positive definite,
 * LMD_NO_MEMORY. */
lmd_status lmd_cholesky(const lmd_compute *compute, float *a, int32_t n, lmd_err *err);

#endif
