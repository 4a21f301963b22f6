/* Codes for a linear's weight: see solver.h. */
#include "quant/solver.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/ints.h"
#include "base/memory.h"
#include "quant/solver_strip.h"

typedef struct shared_work {
    const lmd_compute *compute;
    const lmd_solver_job *job;
    lmd_solver_codes out;
    lmd_strip *strips; /* [n_threads] */
    const float *importance;
    int32_t first_row; /* of the strips at hand */
    lmd_failure failure;
} shared_work;

static void solve_strip(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                        bool is_first) {
    shared_work *work = arg;
    lmd_strip *strip = &work->strips[thread_idx];
    const lmd_solver_job *job = work->job;
    const int32_t first_row = work->first_row + item * strip->n_lanes;
    lmd_err err;
    (void)stage, (void)is_first;
    lmd_strip_load(strip, job, first_row);
    if (lmd_strip_choose_grids(strip, job, work->importance, first_row, &err) != LMD_OK) {
        lmd_failure_note(&work->failure, &err);
        return;
    }
    lmd_strip_round(strip, job->feedback);
    if (job->config.n_rounds > 0) lmd_strip_prepare(strip, job->feedback);
    for (int32_t round = 0; round < job->config.n_rounds; round++) {
        lmd_strip_refit(strip, job);
        for (int32_t i = 0; i < LMD_SWEEPS; i++) lmd_strip_sweep(strip, job->feedback);
    }
    if (job->config.n_rounds > 0) lmd_strip_refit(strip, job);
    lmd_strip_store(strip, job, first_row, work->out);
}

/* A few strips for each thread at a time, and a report between them. */
static lmd_status solve_all(shared_work *work, const lmd_solver_progress *progress,
                            lmd_err *err) {
    enum { STRIPS_PER_THREAD = 4 };
    const int32_t n_lanes = work->compute->kernels->tile_cols, n_rows = work->job->n_rows;
    const int32_t most =
        n_lanes * STRIPS_PER_THREAD * lmd_threads_count(work->compute->threads);
    while (work->first_row < n_rows) {
        const int32_t n = lmd_min_i32(most, n_rows - work->first_row);
        lmd_stage stage = {.run = solve_strip, .n_items = lmd_ceil_div(n, n_lanes)};
        lmd_threads_run(work->compute->threads, &stage, sizeof stage, 1, work);
        LMD_TRY(lmd_failure_get(&work->failure, err));
        work->first_row += n;
        if (progress) LMD_TRY(progress->report(progress->user, work->first_row, err));
    }
    return LMD_OK;
}

/* What the search of grids weighs errors by: each column's own share of H, in the weight's
 * order. */
static float *make_importance(const lmd_feedback *feedback) {
    float *importance = lmd_calloc((size_t)feedback->n_cols, sizeof *importance);
    for (int32_t p = 0; importance && p < feedback->n_cols; p++)
        importance[feedback->order[p]] = feedback->diagonal[p];
    return importance;
}

lmd_status lmd_solve(const lmd_compute *compute, const lmd_solver_job *job,
                     const lmd_solver_progress *progress, lmd_solver_codes out, lmd_err *err) {
    lmd_status status = LMD_OK;
    const int32_t n_threads = lmd_threads_count(compute->threads);
    lmd_arena arena = {0};
    float *importance = make_importance(job->feedback);
    lmd_strip *strips = lmd_calloc((size_t)n_threads, sizeof *strips);
    if (!importance || !strips) LMD_TRY_OUT(lmd_no_memory(err, "the solver"));
    for (int32_t i = 0; i < n_threads; i++)
        LMD_TRY_OUT(lmd_strip_init(&strips[i], compute->kernels, job, &arena, err));
    shared_work work = {
        .compute = compute, .job = job, .out = out, .strips = strips, .importance = importance};
    LMD_TRY_OUT(solve_all(&work, progress, err));
out:
    lmd_arena_free(&arena);
    lmd_free(strips);
    lmd_free(importance);
    return status;
}
