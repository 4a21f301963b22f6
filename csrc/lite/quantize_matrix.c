/* A matrix to codes: see quantize_matrix.h. */
#include "lite/quantize_matrix.h"

#include <math.h>
#include <stdatomic.h>

#include "base/half.h"
#include "cpu/cpu_features.h"
#include "quant/data_free.h"

enum { ROWS_PER_ITEM = 4 };

typedef struct shared_job {
    const lmd_matrix_job *job;
    const lmd_cpu_kernels *kernels;
    lmd_matrix_codes out;
    atomic_int bad_row; /* one with a weight that is not finite or too large; -1: none */
} shared_job;

/* Writes the codes of a group, and returns their grid. */
static lmd_grid quantize_group(const shared_job *shared, const float *weights, int32_t col,
                               float row_square, uint8_t *codes) {
    const lmd_matrix_job *job = shared->job;
    const int32_t n = job->group_size;
    if (job->search && !job->importance)
        return shared->kernels->data_free_codes(weights, n, row_square, job->form, codes);
    const lmd_grid grid = job->search ? lmd_grid_search(weights, job->importance + col, n,
                                                        job->form, shared->kernels->grid_error)
                                      : lmd_grid_min_max(weights, n, job->form);
    lmd_grid_encode(weights, n, job->form, grid, codes);
    return grid;
}

/* False: a weight is not finite, or too large. */
static bool quantize_row(const shared_job *shared, int32_t row) {
    const lmd_matrix_job *job = shared->job;
    const lmd_matrix_codes *out = &shared->out;
    const int32_t group_size = job->group_size, n_groups = job->n_cols / group_size;
    const int64_t first = (int64_t)row * job->n_cols;
    const float row_square = lmd_row_square(job->weights + first, job->n_cols);
    if (!isfinite(row_square)) return false;
    for (int32_t g = 0; g < n_groups; g++) {
        const int32_t col = g * group_size;
        const lmd_grid grid = quantize_group(shared, job->weights + first + col, col,
                                             row_square, out->codes + first + col);
        if (!isfinite(lmd_half_to_float(grid.scale))) return false;
        out->scales[(int64_t)row * n_groups + g] = grid.scale;
        out->zeros[(int64_t)row * n_groups + g] = grid.zero;
    }
    return true;
}

static void quantize_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                          bool is_first) {
    shared_job *shared = arg;
    (void)stage, (void)thread_idx, (void)is_first;
    for (int32_t i = 0; i < ROWS_PER_ITEM; i++) {
        const int32_t row = item * ROWS_PER_ITEM + i;
        if (row < shared->job->n_rows && !quantize_row(shared, row))
            atomic_store(&shared->bad_row, row);
    }
}

static lmd_status check(const lmd_matrix_job *job, lmd_err *err) {
    if (job->form.bits < 2 || job->form.bits > 8)
        return lmd_fail(err, LMD_INVALID, "bits must be 2 to 8, not %d", job->form.bits);
    if (job->n_rows < 1 || job->n_cols < 1)
        return lmd_fail(err, LMD_INVALID, "weight must have rows and columns, not %d x %d",
                        job->n_rows, job->n_cols);
    if (job->group_size < LMD_GRID_UNIT || job->group_size % LMD_GRID_UNIT ||
        job->n_cols % job->group_size)
        return lmd_fail(
            err, LMD_INVALID,
            "group_size must be a multiple of %d that divides the %d columns, not %d",
            LMD_GRID_UNIT, job->n_cols, job->group_size);
    for (int32_t i = 0; job->importance && i < job->n_cols; i++)
        if (!(job->importance[i] >= 0.0f && job->importance[i] <= 3e38f))
            return lmd_fail(
                err, LMD_INVALID,
                "importance must be finite and not negative; that of column %d is %g", i,
                (double)job->importance[i]);
    return LMD_OK;
}

lmd_status lmd_quantize_matrix(const lmd_matrix_job *job, lmd_threads *threads,
                               lmd_matrix_codes out, lmd_err *err) {
    const lmd_cpu_kernels *kernels;
    LMD_TRY(check(job, err));
    LMD_TRY(lmd_cpu_kernels_select(&kernels, err));
    shared_job shared = {.job = job, .kernels = kernels, .out = out, .bad_row = -1};
    lmd_stage stage = {.run = quantize_item,
                       .n_items = (job->n_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM};
    lmd_threads_run(threads, &stage, sizeof stage, 1, &shared);
    const int32_t bad_row = atomic_load(&shared.bad_row);
    if (bad_row < 0) return LMD_OK;
    return lmd_fail(err, LMD_INVALID,
                    "row %d of the weight has a NaN, an infinity, or a number that a scale of "
                    "fp16 cannot reach",
                    bad_row);
}
