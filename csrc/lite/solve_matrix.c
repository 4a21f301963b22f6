/* A matrix to codes by what its linear reads: see solve_matrix.h. */
#include "lite/solve_matrix.h"

#include <math.h>

#include "cpu/cpu_features.h"

static lmd_status check_sizes(const lmd_solve_request *request, lmd_err *err) {
    const int32_t bits = request->solver.form.bits, size = request->feedback.group_size;
    if (bits < 2 || bits > 8)
        return lmd_fail(err, LMD_INVALID, "bits must be 2 to 8, not %d", bits);
    if (request->n_rows < 1 || request->n_cols < 1)
        return lmd_fail(err, LMD_INVALID, "weight must have rows and columns, not %d x %d",
                        request->n_rows, request->n_cols);
    if (size < LMD_GRID_UNIT || size % LMD_GRID_UNIT || request->n_cols % size)
        return lmd_fail(
            err, LMD_INVALID,
            "group_size must be a multiple of %d that divides the %d columns, not %d",
            LMD_GRID_UNIT, request->n_cols, size);
    if (!request->sums->gram || request->sums->n_cols != request->n_cols)
        return lmd_fail(err, LMD_INVALID, "sums must keep the gram of %d columns",
                        request->n_cols);
    if (request->sums->n_tokens < 1) return lmd_fail(err, LMD_INVALID, "sums are of no token");
    if (request->solver.n_rounds < 0 || request->solver.n_rounds > 100)
        return lmd_fail(err, LMD_INVALID, "rounds must be 0 to 100, not %d",
                        request->solver.n_rounds);
    if (request->solver.form.has_min && request->solver.form.is_symmetric)
        return lmd_fail(err, LMD_INVALID, "groups with minima are not symmetric");
    return LMD_OK;
}

static lmd_status check_numbers(const lmd_solve_request *request, lmd_err *err) {
    const float shrink = request->feedback.shrink, damp = request->feedback.damp;
    if (!(shrink >= 0.0f && shrink <= 1.0f))
        return lmd_fail(err, LMD_INVALID, "shrink must be 0 to 1, not %g", (double)shrink);
    if (!(damp >= 0.0f && damp <= 10.0f))
        return lmd_fail(err, LMD_INVALID, "damp must be 0 to 10, not %g", (double)damp);
    for (int32_t i = 0; request->scales && i < request->n_cols; i++)
        if (!(request->scales[i] > 0.0f && request->scales[i] < INFINITY))
            return lmd_fail(err, LMD_INVALID, "the scale of column %d is %g", i,
                            (double)request->scales[i]);
    for (int32_t row = 0; row < request->n_rows; row++) {
        const float *weights = request->weights + (int64_t)row * request->n_cols;
        float probe = 0.0f; /* becomes NaN with the first that is not finite, and stays so */
        for (int32_t i = 0; i < request->n_cols; i++) probe += weights[i] * 0.0f;
        if (!(probe == 0.0f))
            return lmd_fail(err, LMD_INVALID, "row %d of the weight has a NaN or an infinity",
                            row);
    }
    return LMD_OK;
}

lmd_status lmd_solve_matrix(const lmd_solve_request *request, lmd_threads *threads,
                            const lmd_solver_progress *progress, lmd_solver_codes out,
                            lmd_err *err) {
    const lmd_cpu_kernels *kernels;
    lmd_feedback *feedback;
    LMD_TRY(check_sizes(request, err));
    LMD_TRY(check_numbers(request, err));
    LMD_TRY(lmd_cpu_kernels_select(&kernels, err));
    const lmd_compute compute = {&kernels->matrix, threads};
    LMD_TRY(lmd_feedback_new(&compute, lmd_input_sums_gram(request->sums), request->n_cols,
                             request->scales, &request->feedback, &feedback, err));
    const lmd_solver_job job = {.weights = request->weights,
                                .scales = request->scales,
                                .n_rows = request->n_rows,
                                .feedback = feedback,
                                .group_size = request->feedback.group_size,
                                .grid_error = kernels->grid_error,
                                .config = request->solver};
    const lmd_status status = lmd_solve(&compute, &job, progress, out, err);
    lmd_feedback_free(feedback);
    return status;
}
