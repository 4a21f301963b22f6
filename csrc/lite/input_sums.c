/* What a linear reads: see input_sums.h. */
#include "lite/input_sums.h"

#include <math.h>
#include <string.h>

#include "base/ints.h"
#include "base/memory.h"
#include "quant/cholesky_solve.h"

static size_t gram_bytes(const lmd_input_sums *self) {
    return (size_t)self->n_cols * (size_t)self->n_cols * sizeof *self->gram;
}

static size_t wanted_bytes(const lmd_input_sums *self) {
    return (size_t)self->n_wanted * (size_t)self->n_cols * sizeof *self->wanted;
}

lmd_status lmd_input_sums_new(int32_t n_cols, bool has_gram, int32_t n_wanted,
                              lmd_input_sums **out, lmd_err *err) {
    if (n_cols < 1)
        return lmd_fail(err, LMD_INVALID, "n_cols must be at least 1, not %d", n_cols);
    if (n_wanted < 0)
        return lmd_fail(err, LMD_INVALID, "n_wanted must be at least 0, not %d", n_wanted);
    lmd_input_sums *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "sums of inputs");
    const size_t n = (size_t)n_cols;
    self->n_cols = n_cols;
    self->n_wanted = n_wanted;
    self->squares = lmd_calloc(n, sizeof *self->squares);
    self->absolute = lmd_calloc(n, sizeof *self->absolute);
    self->least = lmd_calloc(n, sizeof *self->least);
    self->most = lmd_calloc(n, sizeof *self->most);
    if (has_gram) self->gram = lmd_alloc_large(gram_bytes(self));
    if (n_wanted > 0) self->wanted = lmd_alloc_large(wanted_bytes(self));
    const bool has_columns = self->squares && self->absolute && self->least && self->most;
    const bool has_matrices = (self->gram || !has_gram) && (self->wanted || n_wanted == 0);
    if (has_columns && has_matrices) {
        for (int32_t i = 0; i < n_cols; i++) {
            self->least[i] = INFINITY;
            self->most[i] = -INFINITY;
        }
        *out = self;
        return LMD_OK;
    }
    lmd_input_sums_free(self);
    return lmd_no_memory(err, "the sums of %d columns", n_cols);
}

void lmd_input_sums_free(lmd_input_sums *self) {
    if (!self) return;
    lmd_free(self->squares);
    lmd_free(self->absolute);
    lmd_free(self->least);
    lmd_free(self->most);
    if (self->gram) lmd_free_large(self->gram, gram_bytes(self));
    if (self->wanted) lmd_free_large(self->wanted, wanted_bytes(self));
    lmd_free(self);
}

/* The sum of x[i]^2, in 16 chains. */
static double sum_of_squares(const float *x, int32_t n) {
    enum { CHAINS = 16 };
    float chains[CHAINS] = {0};
    int32_t i = 0;
    for (; i + CHAINS <= n; i += CHAINS)
        for (int32_t c = 0; c < CHAINS; c++) chains[c] += x[i + c] * x[i + c];
    double sum = 0.0;
    for (int32_t c = 0; c < CHAINS; c++) sum += (double)chains[c];
    for (; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

/* Rows that are added, a block of columns an item of work. */
typedef struct row_work {
    lmd_input_sums *sums;
    float *rows;    /* [n, n_cols] */
    float *roots;   /* [n] of the weights */
    double *masses; /* [n] */
    int32_t n;
} row_work;

enum { ADDED_COLS = 64, MASS_ROWS = 16 }; /* of an item */

static void weigh_rows(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                       bool is_first) {
    const row_work *work = arg;
    const int32_t n_cols = work->sums->n_cols, begin = item * MASS_ROWS;
    (void)stage, (void)thread_idx, (void)is_first;
    for (int32_t t = begin; t < lmd_min_i32(begin + MASS_ROWS, work->n); t++)
        work->masses[t] = sum_of_squares(work->rows + (int64_t)t * n_cols, n_cols);
}

/* Weighs the rows in some columns, and adds them to the columns' sums. */
static void add_columns(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                        bool is_first) {
    const row_work *work = arg;
    const lmd_input_sums *sums = work->sums;
    const int32_t begin = item * ADDED_COLS, n = lmd_min_i32(ADDED_COLS, sums->n_cols - begin);
    double absolute[ADDED_COLS], squares[ADDED_COLS];
    float least[ADDED_COLS], most[ADDED_COLS];
    (void)stage, (void)thread_idx, (void)is_first;
    memcpy(absolute, sums->absolute + begin, (size_t)n * sizeof *absolute);
    memcpy(squares, sums->squares + begin, (size_t)n * sizeof *squares);
    memcpy(least, sums->least + begin, (size_t)n * sizeof *least);
    memcpy(most, sums->most + begin, (size_t)n * sizeof *most);
    for (int32_t t = 0; t < work->n; t++) {
        float *row = work->rows + (int64_t)t * sums->n_cols + begin;
        const float root = work->roots[t];
        for (int32_t i = 0; i < n; i++) {
            absolute[i] += (double)fabsf(row[i]);
            least[i] = row[i] < least[i] ? row[i] : least[i];
            most[i] = row[i] > most[i] ? row[i] : most[i];
            row[i] *= root;
            squares[i] += (double)row[i] * (double)row[i];
        }
    }
    memcpy(sums->absolute + begin, absolute, (size_t)n * sizeof *absolute);
    memcpy(sums->squares + begin, squares, (size_t)n * sizeof *squares);
    memcpy(sums->least + begin, least, (size_t)n * sizeof *least);
    memcpy(sums->most + begin, most, (size_t)n * sizeof *most);
}

/* A sum of |x| in double stays finite as long as every x is. */
static bool is_finite(const lmd_input_sums *self) {
    for (int32_t i = 0; i < self->n_cols; i++)
        if (!(self->absolute[i] < INFINITY)) return false;
    return true;
}

static void add_rows(const lmd_compute *compute, row_work *work, const int32_t *positions) {
    lmd_input_sums *sums = work->sums;
    lmd_stage stages[] = {
        {.run = weigh_rows, .n_items = lmd_ceil_div(work->n, MASS_ROWS)},
        {.run = add_columns, .n_items = lmd_ceil_div(sums->n_cols, ADDED_COLS)},
    };
    lmd_threads_run(compute->threads, stages, sizeof *stages, sizeof stages / sizeof *stages,
                    work);
    for (int32_t t = 0; t < work->n; t++) {
        sums->total += work->masses[t];
        if ((positions ? positions[t] : t) == 0) sums->first += work->masses[t];
    }
    sums->n_tokens += work->n;
}

lmd_status lmd_input_sums_add(lmd_input_sums *self, const lmd_compute *compute, float *rows,
                              const double *weights, const int32_t *positions, int32_t n,
                              lmd_err *err) {
    row_work work = {.sums = self, .rows = rows, .n = n};
    work.roots = lmd_calloc((size_t)n, sizeof *work.roots);
    work.masses = lmd_calloc((size_t)n, sizeof *work.masses);
    const bool has_room = work.roots && work.masses;
    for (int32_t t = 0; has_room && t < n; t++)
        work.roots[t] = weights ? (float)sqrt(weights[t]) : 1.0f;
    if (has_room) add_rows(compute, &work, positions);
    lmd_free(work.roots);
    lmd_free(work.masses);
    if (!has_room) return lmd_no_memory(err, "the sums of %d rows", n);
    if (!is_finite(self)) return lmd_fail(err, LMD_INVALID, "an input is a NaN or infinite");
    self->is_mirrored = false;
    return self->gram ? lmd_gram_add(compute, rows, n, self->n_cols, self->gram, err) : LMD_OK;
}

lmd_status lmd_input_sums_add_wanted(lmd_input_sums *self, const lmd_compute *compute,
                                     const float *wanted, const float *rows, int32_t n,
                                     lmd_err *err) {
    const lmd_operand left = {wanted, self->n_wanted, 1, self->n_wanted, n};
    const lmd_operand right = {rows, self->n_cols, 1, self->n_cols, n};
    return lmd_product_add(compute, &left, &right, self->wanted, err);
}

const float *lmd_input_sums_gram(lmd_input_sums *self) {
    if (self->gram && !self->is_mirrored) lmd_mirror(self->gram, self->n_cols);
    self->is_mirrored = true;
    return self->gram;
}

/* ---- another order of columns ---- */

static lmd_status check_order(const int32_t *order, int32_t n, lmd_err *err) {
    lmd_status status = LMD_OK;
    bool *is_seen = lmd_calloc((size_t)n, sizeof *is_seen);
    if (!is_seen) return lmd_no_memory(err, "an order of %d columns", n);
    for (int32_t i = 0; i < n && status == LMD_OK; i++) {
        if (order[i] < 0 || order[i] >= n || is_seen[order[i]])
            status = lmd_fail(err, LMD_INVALID,
                              "order must have each of 0 to %d once; item %d is %d", n - 1, i,
                              order[i]);
        else
            is_seen[order[i]] = true;
    }
    lmd_free(is_seen);
    return status;
}

lmd_status lmd_input_sums_in_order(lmd_input_sums *self, const int32_t *order,
                                   lmd_input_sums **out, lmd_err *err) {
    const int32_t n = self->n_cols;
    lmd_input_sums *made;
    LMD_TRY(check_order(order, n, err));
    LMD_TRY(lmd_input_sums_new(n, self->gram != NULL, 0, &made, err));
    const float *gram = lmd_input_sums_gram(self);
    made->n_tokens = self->n_tokens;
    for (int32_t i = 0; i < n; i++) {
        made->squares[i] = self->squares[order[i]];
        made->absolute[i] = self->absolute[order[i]];
        made->least[i] = self->least[order[i]];
        made->most[i] = self->most[order[i]];
        const float *from = gram ? gram + (int64_t)order[i] * n : NULL;
        for (int32_t j = 0; from && j <= i; j++)
            made->gram[(int64_t)i * n + j] = from[order[j]];
    }
    *out = made;
    return LMD_OK;
}

/* ---- what the sums say ---- */

/* d gram d^T of rows d, in parts: each is of tile_rows columns j, the sum of d_j * (d gram)_j.
 * A strip is of tile_cols rows, one in each lane. */
typedef struct error_work {
    const lmd_input_sums *sums;
    const lmd_matrix_kernels *kernels;
    int32_t n_strips, n_parts;
    float *strips; /* [n_strips][n_cols][tile_cols] */
    double *parts; /* [n_strips][n_parts][tile_cols] */
    float *panels; /* [n_threads][n_cols][tile_rows] */
} error_work;

static const float *strip_at(const error_work *work, int32_t strip) {
    return work->strips + (int64_t)strip * work->sums->n_cols * work->kernels->tile_cols;
}

static double *part_at(const error_work *work, int32_t strip, int32_t part) {
    return work->parts + ((int64_t)strip * work->n_parts + part) * work->kernels->tile_cols;
}

static void add_part(void *arg, const lmd_stage *stage, int32_t part, int32_t thread_idx,
                     bool is_first) {
    const error_work *work = arg;
    const int32_t n = work->sums->n_cols, n_rows = work->kernels->tile_rows;
    const int32_t n_lanes = work->kernels->tile_cols, begin = part * n_rows;
    const int32_t width = lmd_min_i32(n_rows, n - begin);
    float *panel = work->panels + (int64_t)thread_idx * n * n_rows;
    (void)stage, (void)is_first;
    for (int32_t k = 0; k < n; k++) {
        const float *gram = work->sums->gram + (int64_t)k * n + begin;
        for (int32_t j = 0; j < width; j++) panel[k * n_rows + j] = gram[j];
        for (int32_t j = width; j < n_rows; j++) panel[k * n_rows + j] = 0.0f;
    }
    for (int32_t s = 0; s < work->n_strips; s++) {
        const float *rows = strip_at(work, s);
        double *sums = part_at(work, s, part);
        float tile[LMD_MAX_TILE_ROWS * LMD_MAX_TILE_COLS] = {0};
        work->kernels->product(tile, n_lanes, panel, rows, n);
        for (int32_t lane = 0; lane < n_lanes; lane++) {
            sums[lane] = 0.0;
            for (int32_t j = 0; j < width; j++)
                sums[lane] +=
                    (double)rows[(begin + j) * n_lanes + lane] * tile[j * n_lanes + lane];
        }
    }
}

/* Copies differences [n, n_cols] into strips, with rows of zeros after the last. */
static void fill_strips(error_work *work, const float *differences, int32_t n) {
    const int32_t n_lanes = work->kernels->tile_cols, n_cols = work->sums->n_cols;
    for (int32_t row = 0; row < work->n_strips * n_lanes; row++) {
        float *lane = (float *)strip_at(work, row / n_lanes) + row % n_lanes;
        for (int32_t k = 0; k < n_cols; k++)
            lane[k * n_lanes] = row < n ? differences[(int64_t)row * n_cols + k] : 0.0f;
    }
}

lmd_status lmd_input_sums_errors(lmd_input_sums *self, const lmd_compute *compute,
                                 const float *differences, int32_t n, double *out,
                                 lmd_err *err) {
    const lmd_matrix_kernels *kernels = compute->kernels;
    error_work work = {.sums = self,
                       .kernels = kernels,
                       .n_strips = lmd_ceil_div(n, kernels->tile_cols),
                       .n_parts = lmd_ceil_div(self->n_cols, kernels->tile_rows)};
    const size_t n_cols = (size_t)self->n_cols, n_parts = (size_t)work.n_parts;
    const size_t n_rows = (size_t)work.n_strips * (size_t)kernels->tile_cols;
    const size_t n_panels = (size_t)lmd_threads_count(compute->threads);
    lmd_arena arena = {0};
    work.strips = lmd_arena_alloc(&arena, n_rows * n_cols * sizeof *work.strips);
    work.parts = lmd_arena_alloc(&arena, n_rows * n_parts * sizeof *work.parts);
    work.panels = lmd_arena_alloc(&arena, n_panels * n_cols * (size_t)kernels->tile_rows *
                                              sizeof *work.panels);
    const bool has_room = work.strips && work.parts && work.panels;
    if (has_room) {
        lmd_stage stage = {.run = add_part, .n_items = work.n_parts};
        lmd_input_sums_gram(self);
        fill_strips(&work, differences, n);
        lmd_threads_run(compute->threads, &stage, sizeof stage, 1, &work);
    }
    for (int32_t row = 0; has_room && row < n; row++) {
        out[row] = 0.0;
        for (int32_t part = 0; part < work.n_parts; part++)
            out[row] +=
                part_at(&work, row / kernels->tile_cols, part)[row % kernels->tile_cols];
    }
    lmd_arena_free(&arena);
    return has_room ? LMD_OK : lmd_no_memory(err, "the errors of %d columns", self->n_cols);
}

lmd_status lmd_input_sums_regress(const lmd_input_sums *self, const lmd_compute *compute,
                                  float *products, int32_t n, double damp, lmd_err *err) {
    const int64_t n_cols = self->n_cols;
    double trace = 0.0;
    if (!(damp >= 0.0 && damp <= 10.0))
        return lmd_fail(err, LMD_INVALID, "damp must be 0 to 10, not %g", damp);
    float *factor = lmd_alloc_large(gram_bytes(self));
    if (!factor) return lmd_no_memory(err, "a matrix of %d columns", self->n_cols);
    memcpy(factor, self->gram, gram_bytes(self));
    for (int64_t i = 0; i < n_cols; i++) trace += self->gram[i * n_cols + i];
    const float added = (float)(damp * trace / (double)n_cols);
    for (int64_t i = 0; i < n_cols; i++) factor[i * n_cols + i] += added;
    lmd_status status = lmd_cholesky(compute, factor, self->n_cols, err);
    if (status == LMD_OK)
        status = lmd_cholesky_solve(compute, factor, self->n_cols, products, n, err);
    lmd_free_large(factor, gram_bytes(self));
    return status;
}

double lmd_input_sums_shrink(const lmd_input_sums *self, const lmd_input_sums *other) {
    double both = 0.0, own = 0.0;
    const int64_t n = self->n_cols;
    for (int64_t i = 0; i < n; i++) {
        const float *a = self->gram + i * n, *b = other->gram + i * n;
        for (int64_t j = 0; j < i; j++) {
            const double norm = self->squares[i] * self->squares[j];
            const double norm_b = other->squares[i] * other->squares[j];
            if (!(norm > 0.0 && norm_b > 0.0)) continue;
            const double x = a[j] / sqrt(norm);
            both += x * (b[j] / sqrt(norm_b));
            own += x * x;
        }
    }
    const double kept = own > 0.0 ? both / own : 1.0;
    return kept > 1.0 ? 0.0 : kept < 0.0 ? 1.0 : 1.0 - kept;
}
