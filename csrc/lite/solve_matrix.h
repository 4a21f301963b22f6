/* A matrix to codes by what its linear reads: the checks before quant/solver.h.
 * Must not know: files, how codes are packed. One thread, which has a pool's workers help. */
#ifndef LMD_LITE_SOLVE_MATRIX_H
#define LMD_LITE_SOLVE_MATRIX_H

#include "lite/input_sums.h"
#include "quant/solver.h"

/* A matrix [n_rows, n_cols], row by row. sums: keep a gram of n_cols columns. scales: [n_cols]
 * positive, or NULL: as lmd_solver_job. */
typedef struct lmd_solve_request {
    const float *weights, *scales;
    int32_t n_rows, n_cols;
    lmd_input_sums *sums;
    lmd_solver_config solver;
    lmd_feedback_config feedback;
} lmd_solve_request;

/* LMD_INVALID for sizes or numbers that are not served, LMD_NO_MEMORY, or what the report gave;
 * then out holds nothing of use. */
lmd_status lmd_solve_matrix(const lmd_solve_request *request, lmd_threads *threads,
                            const lmd_solver_progress *progress, lmd_solver_codes out,
                            lmd_err *err);

#endif
