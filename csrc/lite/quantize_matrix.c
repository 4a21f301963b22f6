/* A matrix to codes: see quantize_matrix.h. */
#include "lite/quantize_matrix.h"

#include <math.h>
#include <stdatomic.h>

#include "base/half.h"
#include "base/memory.h"
#include "cpu/cpu_features.h"

enum { ROWS_PER_ITEM = 4 };

typedef struct shared_job {
    const lmd_matrix_job *job;
    const lmd_cpu_kernels *kernels;
    lmd_matrix_codes out;
    float *scratch;     /* [n_threads][group_size] */
    atomic_int bad_row; /* one with a weight that is not finite or too large; -1: none */
} shared_job;

static bool are_finite(const float *x, int32_t n) {
    float probe = 0.0f; /* becomes NaN with the first that is not finite, and stays so */
    for (int32_t i = 0; i < n; i++) probe += x[i] * 0.0f;
    return probe == 0.0f;
}

static float mean_square(const float *x, int32_t n) {
    double sum = 0.0;
    for (int32_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return (float)(sum / n);
}

/* What the errors of a group's weights count: that of their columns, or by their own size, for
 * which there is scratch. */
static const float *importance_of(const lmd_matrix_job *job, const float *weights, int32_t col,
                                  float row_square, float *scratch) {
    if (job->importance) return job->importance + col;
    for (int32_t i = 0; i < job->group_size; i++)
        scratch[i] = weights[i] * weights[i] + row_square;
    return scratch;
}

/* False: a weight is not finite, or too large. */
static bool quantize_row(const shared_job *shared, int32_t row, float *scratch) {
    const lmd_matrix_job *job = shared->job;
    const lmd_matrix_codes *out = &shared->out;
    const int32_t group_size = job->group_size, n_groups = job->n_cols / group_size;
    const float *weights = job->weights + (int64_t)row * job->n_cols;
    if (!are_finite(weights, job->n_cols)) return false;
    const float row_square = mean_square(weights, job->n_cols);
    for (int32_t g = 0; g < n_groups; g++, weights += group_size) {
        lmd_grid grid = lmd_grid_min_max(weights, group_size, job->form);
        if (job->search)
            grid = lmd_grid_search(
                weights, importance_of(job, weights, g * group_size, row_square, scratch),
                group_size, job->form, shared->kernels->grid_error);
        if (!isfinite(lmd_half_to_float(grid.scale))) return false;
        lmd_grid_encode(weights, group_size, job->form, grid,
                        out->codes + (int64_t)row * job->n_cols + g * group_size);
        out->scales[(int64_t)row * n_groups + g] = grid.scale;
        out->zeros[(int64_t)row * n_groups + g] = grid.zero;
    }
    return true;
}

static void quantize_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                          bool is_first) {
    shared_job *shared = arg;
    float *scratch = shared->scratch + (int64_t)thread_idx * shared->job->group_size;
    (void)stage, (void)is_first;
    for (int32_t i = 0; i < ROWS_PER_ITEM; i++) {
        const int32_t row = item * ROWS_PER_ITEM + i;
        if (row < shared->job->n_rows && !quantize_row(shared, row, scratch))
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
    const size_t n_scratch =
        (size_t)lmd_threads_count(threads) * (size_t)job->group_size * sizeof(float);
    float *scratch = lmd_alloc_large(n_scratch);
    if (!scratch) return lmd_no_memory(err, "the search of grids");
    shared_job shared = {
        .job = job, .kernels = kernels, .out = out, .scratch = scratch, .bad_row = -1};
    lmd_stage stage = {.run = quantize_item,
                       .n_items = (job->n_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM};
    lmd_threads_run(threads, &stage, sizeof stage, 1, &shared);
    lmd_free_large(scratch, n_scratch);
    const int32_t bad_row = atomic_load(&shared.bad_row);
    if (bad_row < 0) return LMD_OK;
    return lmd_fail(err, LMD_INVALID,
                    "row %d of the weight has a NaN, an infinity, or a number that a scale of "
                    "fp16 cannot reach",
                    bad_row);
}
