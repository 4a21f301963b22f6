/* Rows times the inverse of a matrix that is factored.
 * Owns: how rows are cut into strips for threads. The result has the same bits for every number
 * of threads and every instruction set. One thread, which has the pool's workers help. */
#ifndef LMD_QUANT_CHOLESKY_SOLVE_H
#define LMD_QUANT_CHOLESKY_SOLVE_H

#include "quant/product.h"

/* Replaces rows [n_rows, n] by rows times (L L^T)^-1; L [n, n] is in the lower triangle of
 * factor, as lmd_cholesky leaves it. LMD_NO_MEMORY. */
lmd_status lmd_cholesky_solve(const lmd_compute *compute, const float *factor, int32_t n,
                              float *rows, int32_t n_rows, lmd_err *err);

#endif
