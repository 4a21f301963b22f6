/* The steps of the solver on a strip of rows: see solver_strip.h. */
#include "quant/solver_strip.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/ints.h"

enum { BLOCK = LMD_ROUND_BLOCK };

/* Unknowns of a refit: a scale for each group, and a minimum where the form has them. */
static int32_t n_unknowns(const lmd_solver_job *job) {
    const int32_t n_groups = job->feedback->n_cols / job->group_size;
    return job->config.form.has_min ? 2 * n_groups : n_groups;
}

lmd_status lmd_strip_init(lmd_strip *self, const lmd_matrix_kernels *kernels,
                          const lmd_solver_job *job, lmd_arena *arena, lmd_err *err) {
    const int32_t n_cols = job->feedback->n_cols, n_groups = n_cols / job->group_size;
    const int32_t n = job->config.n_rounds > 0 ? n_unknowns(job) : 0;
    const struct {
        float **array;
        int64_t n_vectors;
    } arrays[] = {
        {&self->weights, n_cols},        {&self->residual, n_cols},  {&self->codes, n_cols},
        {&self->reach, n_cols},          {&self->basis, n_cols},     {&self->scale, n_groups},
        {&self->offset, n_groups},       {&self->inverse, n_groups}, {&self->zero, n_groups},
        {&self->normal, (int64_t)n * n}, {&self->wanted, n},         {&self->row, n_cols},
        {&self->start, BLOCK},           {&self->sums, BLOCK},       {&self->change, BLOCK},
        {&self->rounded, BLOCK},
    };
    self->kernels = kernels;
    self->n_lanes = kernels->tile_cols;
    self->n_cols = n_cols;
    self->n_groups = n_groups;
    self->most = (float)((1 << job->config.form.bits) - 1);
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        const size_t n_bytes = (size_t)(arrays[i].n_vectors * self->n_lanes) * sizeof(float);
        *arrays[i].array = lmd_arena_alloc(arena, n_bytes);
        if (!*arrays[i].array) return lmd_no_memory(err, "the rows of a solver");
    }
    return LMD_OK;
}

static float column_scale(const lmd_solver_job *job, int32_t col) {
    return job->scales ? job->scales[col] : 1.0f;
}

void lmd_strip_load(lmd_strip *self, const lmd_solver_job *job, int32_t first_row) {
    const int32_t *order = job->feedback->order;
    for (int32_t lane = 0; lane < self->n_lanes; lane++) {
        const int32_t row = first_row + lane;
        const float *weights = job->weights + (int64_t)row * self->n_cols;
        for (int32_t p = 0; p < self->n_cols; p++)
            self->weights[p * self->n_lanes + lane] =
                row < job->n_rows ? weights[order[p]] * column_scale(job, order[p]) : 0.0f;
    }
}

/* ---- grids ---- */

static void set_grid(lmd_strip *self, int32_t at, lmd_grid grid, lmd_grid_form form) {
    self->scale[at] = lmd_half_to_float(grid.scale);
    self->inverse[at] = 1.0f / self->scale[at];
    self->zero[at] = (float)grid.zero;
    self->offset[at] =
        form.has_min ? lmd_half_to_float(grid.min) : -self->scale[at] * self->zero[at];
}

lmd_status lmd_strip_choose_grids(lmd_strip *self, const lmd_solver_job *job,
                                  const float *importance, int32_t first_row, lmd_err *err) {
    const lmd_solver_config *config = &job->config;
    const int32_t *order = job->feedback->order, size = job->group_size;
    for (int32_t lane = 0; lane < self->n_lanes; lane++) {
        for (int32_t p = 0; p < self->n_cols; p++)
            self->row[order[p]] = self->weights[p * self->n_lanes + lane];
        for (int32_t g = 0; g < self->n_groups; g++) {
            const float *weights = self->row + g * size;
            const lmd_grid grid = config->searches
                                      ? lmd_grid_search(weights, importance + g * size, size,
                                                        config->form, job->grid_error)
                                      : lmd_grid_min_max(weights, size, config->form);
            if (!lmd_half_is_finite(grid.scale) || !lmd_half_is_finite(grid.min))
                return lmd_fail(err, LMD_INVALID,
                                "row %d of the weight has a number that a scale of fp16 "
                                "cannot reach",
                                first_row + lane);
            set_grid(self, g * self->n_lanes + lane, grid, config->form);
        }
    }
    return LMD_OK;
}

/* ---- rounding ---- */

static int32_t block_width(const lmd_strip *self, int32_t begin) {
    return lmd_min_i32(BLOCK, self->n_cols - begin);
}

/* sums[j] = the sum over i < depth of rows[i] times panel's element (i, j), for a block. */
static void multiply_block(const lmd_strip *self, const float *panels, const float *rows,
                           int32_t depth) {
    const int32_t width = self->kernels->tile_rows, n_lanes = self->n_lanes;
    memset(self->sums, 0, (size_t)(BLOCK * n_lanes) * sizeof *self->sums);
    for (int32_t j = 0; depth > 0 && j < BLOCK; j += width)
        self->kernels->product(self->sums + j * n_lanes, n_lanes, panels + (int64_t)j * depth,
                               rows, depth);
}

static void round_block(const lmd_strip *self, const lmd_feedback *feedback, int32_t begin,
                        const float *start, const float *inside) {
    const lmd_round_args args = {
        .n = block_width(self, begin),
        .start = start,
        .sums = self->sums,
        .feedback = inside + (int64_t)begin * BLOCK, /* begin / BLOCK blocks of BLOCK^2 */
        .group = feedback->group + begin,
        .scale = self->scale,
        .offset = self->offset,
        .inverse = self->inverse,
        .most = self->most,
        .change = self->change,
        .codes = self->rounded,
    };
    self->kernels->round_block(&args);
    memcpy(self->codes + begin * self->n_lanes, self->rounded,
           (size_t)(args.n * self->n_lanes) * sizeof *self->codes);
}

void lmd_strip_round(lmd_strip *self, const lmd_feedback *feedback) {
    for (int32_t b = 0; b < feedback->n_blocks; b++) {
        const int32_t begin = b * BLOCK, at = begin * self->n_lanes;
        multiply_block(self, lmd_greedy_panel(feedback, b), self->residual, begin);
        round_block(self, feedback, begin, self->weights + at, feedback->greedy_inside);
        memcpy(self->residual + at, self->change,
               (size_t)(block_width(self, begin) * self->n_lanes) * sizeof *self->residual);
    }
}

void lmd_strip_sweep(lmd_strip *self, const lmd_feedback *feedback) {
    for (int32_t begin = 0; begin < self->n_cols; begin += BLOCK) {
        const int32_t at = begin * self->n_lanes, n = block_width(self, begin) * self->n_lanes;
        multiply_block(self, lmd_mutual_panel(feedback, begin), self->residual, self->n_cols);
        for (int32_t i = 0; i < n; i++)
            self->start[i] = self->weights[at + i] - self->residual[at + i];
        round_block(self, feedback, begin, self->start, feedback->mutual_inside);
        for (int32_t i = 0; i < n; i++) self->residual[at + i] += self->change[i];
    }
}

/* ---- refitting ---- */

void lmd_strip_prepare(lmd_strip *self, const lmd_feedback *feedback) {
    const int32_t n_lanes = self->n_lanes;
    for (int32_t begin = 0; begin < self->n_cols; begin += BLOCK) {
        multiply_block(self, lmd_mutual_panel(feedback, begin), self->weights, self->n_cols);
        for (int32_t j = 0; j < block_width(self, begin); j++)
            for (int32_t lane = 0; lane < n_lanes; lane++)
                self->reach[(begin + j) * n_lanes + lane] =
                    self->sums[j * n_lanes + lane] * feedback->diagonal[begin + j];
    }
}

/* to += x * y * factor, lane by lane. */
static void add_product(float *to, const float *x, const float *y, float factor, int32_t n) {
    for (int32_t i = 0; i < n; i++) to[i] += x[i] * y[i] * factor;
}

static void add_scaled(float *to, const float *x, float factor, int32_t n) {
    for (int32_t i = 0; i < n; i++) to[i] += x[i] * factor;
}

/* The unknown of a group at a position of the order: its scale; with minima, its minimum is the
 * one after it. */
typedef struct equations {
    int32_t n, step; /* unknowns, and those of a group */
} equations;

static float *cell(const lmd_strip *self, const equations *of, int32_t row, int32_t col) {
    return self->normal + ((int64_t)row * of->n + col) * self->n_lanes;
}

/* What column j gives to the normal equations of unknown `col`, whose basis times H is in
 * `sums`: the rows of its own group. */
static void add_column(lmd_strip *self, const equations *of, int32_t j, int32_t group,
                       int32_t col, const float *sums, float diagonal) {
    const int32_t n_lanes = self->n_lanes, row = group * of->step;
    const float *basis = self->basis + j * n_lanes;
    if (row >= col) add_product(cell(self, of, row, col), basis, sums, diagonal, n_lanes);
    if (of->step == 2 && row + 1 >= col)
        add_scaled(cell(self, of, row + 1, col), sums, diagonal, n_lanes);
}

/* The column of the normal equations that belongs to an unknown of group h, whose basis is
 * rows[0..size): lower triangle. */
static void add_unknown(lmd_strip *self, const lmd_feedback *feedback, const equations *of,
                        int32_t h, int32_t size, int32_t col, const float *rows) {
    const int32_t width = self->kernels->tile_rows, n_lanes = self->n_lanes;
    for (int32_t j0 = h * size / width * width; j0 < self->n_cols; j0 += width) {
        memset(self->sums, 0, (size_t)(width * n_lanes) * sizeof *self->sums);
        self->kernels->product(self->sums, n_lanes,
                               lmd_mutual_panel(feedback, j0) + (int64_t)h * size * width, rows,
                               size);
        for (int32_t j = lmd_max_i32(j0, h * size); j < lmd_min_i32(j0 + width, self->n_cols);
             j++)
            add_column(self, of, j, j / size, col, self->sums + (j - j0) * n_lanes,
                       feedback->diagonal[j]);
    }
}

static void make_equations(lmd_strip *self, const lmd_solver_job *job, const equations *of) {
    const lmd_feedback *feedback = job->feedback;
    const int32_t n_lanes = self->n_lanes, size = job->group_size;
    memset(self->normal, 0, (size_t)((int64_t)of->n * of->n * n_lanes) * sizeof(float));
    memset(self->wanted, 0, (size_t)(of->n * n_lanes) * sizeof(float));
    for (int32_t p = 0; p < self->n_cols; p++) {
        const int32_t at = p * n_lanes, grid = feedback->group[p] * n_lanes;
        float *wanted = self->wanted + p / size * of->step * n_lanes;
        for (int32_t lane = 0; lane < n_lanes; lane++)
            self->basis[at + lane] =
                self->codes[at + lane] - (of->step == 2 ? 0.0f : self->zero[grid + lane]);
        add_product(wanted, self->basis + at, self->reach + at, 1.0f, n_lanes);
        if (of->step == 2) add_scaled(wanted + n_lanes, self->reach + at, 1.0f, n_lanes);
    }
    for (int32_t h = 0; h < self->n_groups; h++) {
        add_unknown(self, feedback, of, h, size, h * of->step,
                    self->basis + h * size * n_lanes);
        if (of->step == 2) {
            for (int32_t i = 0; i < size * n_lanes; i++) self->row[i] = 1.0f;
            add_unknown(self, feedback, of, h, size, h * of->step + 1, self->row);
        }
    }
}

/* Solves the equations by Cholesky, each lane's own; `wanted` becomes the solution. A pivot
 * that is nearly nothing, as that of a group whose codes are all zero, is raised. */
static void solve_equations(lmd_strip *self, const equations *of) {
    const float ridge = 1e-4f, least = 1e-5f;
    const int32_t n = of->n, n_lanes = self->n_lanes;
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j <= i; j++) {
            float *a = cell(self, of, i, j);
            float diagonal[LMD_MAX_TILE_COLS];
            memcpy(diagonal, a, (size_t)n_lanes * sizeof *a);
            for (int32_t lane = 0; i == j && lane < n_lanes; lane++)
                a[lane] += ridge * a[lane] + 1e-30f;
            for (int32_t k = 0; k < j; k++)
                add_product(a, cell(self, of, i, k), cell(self, of, j, k), -1.0f, n_lanes);
            const float *pivot = cell(self, of, j, j);
            for (int32_t lane = 0; lane < n_lanes; lane++)
                if (i > j)
                    a[lane] /= pivot[lane];
                else
                    a[lane] = sqrtf(fmaxf(a[lane], least * diagonal[lane] + 1e-30f));
        }
    for (int32_t i = 0; i < n; i++) {
        float *x = self->wanted + i * n_lanes;
        for (int32_t k = 0; k < i; k++)
            add_product(x, cell(self, of, i, k), self->wanted + k * n_lanes, -1.0f, n_lanes);
        for (int32_t lane = 0; lane < n_lanes; lane++) x[lane] /= cell(self, of, i, i)[lane];
    }
    for (int32_t i = n - 1; i >= 0; i--) {
        float *x = self->wanted + i * n_lanes;
        for (int32_t k = i + 1; k < n; k++)
            add_product(x, cell(self, of, k, i), self->wanted + k * n_lanes, -1.0f, n_lanes);
        for (int32_t lane = 0; lane < n_lanes; lane++) x[lane] /= cell(self, of, i, i)[lane];
    }
}

/* Takes the solution over where it is near the old scale, rounded to halves. */
static void take_grids(lmd_strip *self, const lmd_solver_job *job, const equations *of) {
    const float lowest = 0.3f, highest = 3.0f;
    for (int32_t h = 0; h < self->n_groups; h++) {
        const int32_t at = job->feedback->group[h * job->group_size] * self->n_lanes;
        const float *solution = self->wanted + h * of->step * self->n_lanes;
        for (int32_t lane = 0; lane < self->n_lanes; lane++) {
            const float old = self->scale[at + lane], wanted = solution[lane];
            if (!(wanted > lowest * old && wanted < highest * old)) continue;
            lmd_grid grid = {.scale = lmd_float_to_half(wanted),
                             .zero = (uint8_t)self->zero[at + lane]};
            if (of->step == 2) grid.min = lmd_float_to_half(solution[self->n_lanes + lane]);
            if (lmd_half_to_float(grid.scale) < 0x1p-14f || !lmd_half_is_finite(grid.scale) ||
                !lmd_half_is_finite(grid.min))
                continue;
            set_grid(self, at + lane, grid, job->config.form);
        }
    }
}

void lmd_strip_refit(lmd_strip *self, const lmd_solver_job *job) {
    const int32_t n_lanes = self->n_lanes;
    const equations of = {n_unknowns(job), job->config.form.has_min ? 2 : 1};
    make_equations(self, job, &of);
    solve_equations(self, &of);
    take_grids(self, job, &of);
    for (int32_t p = 0; p < self->n_cols; p++) {
        const int32_t at = p * n_lanes, grid = job->feedback->group[p] * n_lanes;
        for (int32_t lane = 0; lane < n_lanes; lane++)
            self->residual[at + lane] =
                self->weights[at + lane] -
                (self->codes[at + lane] * self->scale[grid + lane] + self->offset[grid + lane]);
    }
}

void lmd_strip_store(const lmd_strip *self, const lmd_solver_job *job, int32_t first_row,
                     lmd_solver_codes out) {
    const int32_t *order = job->feedback->order;
    for (int32_t lane = 0; lane < lmd_min_i32(self->n_lanes, job->n_rows - first_row); lane++) {
        const int64_t row = first_row + lane;
        for (int32_t p = 0; p < self->n_cols; p++)
            out.codes[row * self->n_cols + order[p]] =
                (uint8_t)self->codes[p * self->n_lanes + lane];
        for (int32_t g = 0; g < self->n_groups; g++) {
            const int32_t at = g * self->n_lanes + lane;
            const int64_t to = row * self->n_groups + g;
            out.scales[to] = lmd_float_to_half(self->scale[at]);
            if (out.mins) out.mins[to] = lmd_float_to_half(self->offset[at]);
            if (out.zeros) out.zeros[to] = (uint8_t)self->zero[at];
        }
    }
}
