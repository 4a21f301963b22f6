/* Rows times the inverse of a factored matrix: see cholesky_solve.h. */
#include "quant/cholesky_solve.h"

#include "base/ints.h"
#include "base/memory.h"

enum {
    BLOCK = LMD_ROUND_BLOCK, /* columns; a multiple of every tile_rows */
    STRIPS = 4               /* of an item: they share the panels that are copied for them */
};

/* A row is in a lane: a strip is of tile_cols rows, [n][tile_cols]. */
typedef struct solve_work {
    const lmd_matrix_kernels *kernels;
    const float *factor;
    int32_t n, n_rows;
    float *rows;
    float *strips; /* [n_threads][STRIPS][n][tile_cols] */
    float *panels; /* [n_threads][n][tile_rows] */
} solve_work;

/* One item on one thread. */
typedef struct solver {
    const solve_work *work;
    float *strips, *panel;
} solver;

static float *strip_at(const solver *self, int32_t strip, int32_t col) {
    const solve_work *work = self->work;
    return self->strips + ((int64_t)strip * work->n + col) * work->kernels->tile_cols;
}

static float factor_at(const solve_work *work, int32_t row, int32_t col) {
    return work->factor[(int64_t)row * work->n + col];
}

/* Takes from columns [first, end) what the solved columns [begin, begin + depth) put into them:
 * those before, by the factor's rows, or those after, by its columns. */
static void take_solved(solver *self, int32_t first, int32_t end, int32_t begin,
                        int32_t depth) {
    const solve_work *work = self->work;
    const lmd_matrix_kernels *kernels = work->kernels;
    const int32_t n_lanes = kernels->tile_cols, tile_rows = kernels->tile_rows;
    for (int32_t col = first; col < end && depth > 0; col += tile_rows) {
        const int32_t width = lmd_min_i32(tile_rows, end - col);
        for (int32_t k = 0; k < depth; k++)
            for (int32_t r = 0; r < tile_rows; r++) {
                const int32_t at = begin + k;
                float value = 0.0f;
                if (r < width)
                    value =
                        at < col ? factor_at(work, col + r, at) : factor_at(work, at, col + r);
                self->panel[k * tile_rows + r] = value;
            }
        for (int32_t s = 0; s < STRIPS; s++) {
            float tile[LMD_MAX_TILE_ROWS * LMD_MAX_TILE_COLS] = {0};
            kernels->product(tile, n_lanes, self->panel, strip_at(self, s, begin), depth);
            float *x = strip_at(self, s, col);
            for (int32_t i = 0; i < width * n_lanes; i++) x[i] -= tile[i];
        }
    }
}

/* x[col] = (x[col] - the sum over the block's solved columns) / L[col][col] */
static void solve_column(solver *self, int32_t col, int32_t begin, int32_t end) {
    const solve_work *work = self->work;
    const int32_t n_lanes = work->kernels->tile_cols;
    const float inverse = 1.0f / factor_at(work, col, col);
    for (int32_t s = 0; s < STRIPS; s++) {
        float *x = strip_at(self, s, col);
        for (int32_t i = begin; i < end; i++) {
            const float l = i < col ? factor_at(work, col, i) : factor_at(work, i, col);
            const float *solved = strip_at(self, s, i);
            for (int32_t lane = 0; lane < n_lanes; lane++) x[lane] -= l * solved[lane];
        }
        for (int32_t lane = 0; lane < n_lanes; lane++) x[lane] *= inverse;
    }
}

/* x L^T = b, from the first column; then x L = that, from the last. */
static void solve_strips(solver *self) {
    const int32_t n = self->work->n;
    for (int32_t first = 0; first < n; first += BLOCK) {
        const int32_t end = lmd_min_i32(first + BLOCK, n);
        take_solved(self, first, end, 0, first);
        for (int32_t col = first; col < end; col++) solve_column(self, col, first, col);
    }
    for (int32_t first = (n - 1) / BLOCK * BLOCK; first >= 0; first -= BLOCK) {
        const int32_t end = lmd_min_i32(first + BLOCK, n);
        take_solved(self, first, end, end, n - end);
        for (int32_t col = end - 1; col >= first; col--) solve_column(self, col, col + 1, end);
    }
}

static void solve_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                       bool is_first) {
    const solve_work *work = arg;
    const int32_t n = work->n, n_lanes = work->kernels->tile_cols, n_item = STRIPS * n_lanes;
    solver self = {.work = work,
                   .strips = work->strips + (int64_t)thread_idx * n_item * n,
                   .panel = work->panels + (int64_t)thread_idx * n * work->kernels->tile_rows};
    float *rows = work->rows + (int64_t)item * n_item * n;
    const int32_t n_rows = lmd_min_i32(n_item, work->n_rows - item * n_item);
    (void)stage, (void)is_first;
    for (int32_t row = 0; row < n_item; row++) {
        float *lane = strip_at(&self, row / n_lanes, 0) + row % n_lanes;
        for (int32_t col = 0; col < n; col++)
            lane[col * n_lanes] = row < n_rows ? rows[(int64_t)row * n + col] : 0.0f;
    }
    solve_strips(&self);
    for (int32_t row = 0; row < n_rows; row++) {
        const float *lane = strip_at(&self, row / n_lanes, 0) + row % n_lanes;
        for (int32_t col = 0; col < n; col++)
            rows[(int64_t)row * n + col] = lane[col * n_lanes];
    }
}

lmd_status lmd_cholesky_solve(const lmd_compute *compute, const float *factor, int32_t n,
                              float *rows, int32_t n_rows, lmd_err *err) {
    const lmd_matrix_kernels *kernels = compute->kernels;
    solve_work work = {
        .kernels = kernels, .factor = factor, .n = n, .n_rows = n_rows, .rows = rows};
    const int32_t n_item = STRIPS * kernels->tile_cols;
    const size_t n_threads = (size_t)lmd_threads_count(compute->threads);
    const size_t n_column = n_threads * (size_t)n * sizeof(float);
    lmd_arena arena = {0};
    work.strips = lmd_arena_alloc(&arena, n_column * (size_t)n_item);
    work.panels = lmd_arena_alloc(&arena, n_column * (size_t)kernels->tile_rows);
    const bool has_room = work.strips && work.panels;
    if (has_room) {
        lmd_stage stage = {.run = solve_item, .n_items = lmd_ceil_div(n_rows, n_item)};
        lmd_threads_run(compute->threads, &stage, sizeof stage, 1, &work);
    }
    lmd_arena_free(&arena);
    return has_room ? LMD_OK : lmd_no_memory(err, "solving for %d rows", n_rows);
}
