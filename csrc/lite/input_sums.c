/* What a linear reads: see input_sums.h. */
#include "lite/input_sums.h"

#include <math.h>

#include "base/memory.h"

static size_t gram_bytes(const lmd_input_sums *self) {
    return (size_t)self->n_cols * (size_t)self->n_cols * sizeof *self->gram;
}

lmd_status lmd_input_sums_new(int32_t n_cols, bool has_gram, lmd_input_sums **out,
                              lmd_err *err) {
    if (n_cols < 1)
        return lmd_fail(err, LMD_INVALID, "n_cols must be at least 1, not %d", n_cols);
    lmd_input_sums *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "sums of inputs");
    const size_t n = (size_t)n_cols;
    self->n_cols = n_cols;
    self->squares = lmd_calloc(n, sizeof *self->squares);
    self->absolute = lmd_calloc(n, sizeof *self->absolute);
    self->largest = lmd_calloc(n, sizeof *self->largest);
    if (has_gram) self->gram = lmd_alloc_large(gram_bytes(self));
    if (self->squares && self->absolute && self->largest && (self->gram || !has_gram)) {
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
    lmd_free(self->largest);
    if (self->gram) lmd_free_large(self->gram, gram_bytes(self));
    lmd_free(self);
}

/* Weighs a row, and adds it to the columns' sums. Returns a NaN where a number is not finite.
 */
static float add_row(lmd_input_sums *self, float *row, double weight) {
    const float root = (float)sqrt(weight);
    float probe = 0.0f;
    for (int32_t i = 0; i < self->n_cols; i++) {
        const float size = fabsf(row[i]);
        self->absolute[i] += size;
        self->largest[i] = size > self->largest[i] ? size : self->largest[i];
        row[i] *= root;
        self->squares[i] += (double)row[i] * row[i];
        probe += size * 0.0f;
    }
    return probe;
}

lmd_status lmd_input_sums_add(lmd_input_sums *self, const lmd_compute *compute, float *rows,
                              const double *weights, int32_t n, lmd_err *err) {
    float probe = 0.0f;
    for (int32_t t = 0; t < n; t++)
        probe += add_row(self, rows + (int64_t)t * self->n_cols, weights ? weights[t] : 1.0);
    if (!(probe == 0.0f)) return lmd_fail(err, LMD_INVALID, "an input is a NaN or infinite");
    self->n_tokens += n;
    return self->gram ? lmd_gram_add(compute, rows, n, self->n_cols, self->gram, err) : LMD_OK;
}

const float *lmd_input_sums_gram(lmd_input_sums *self) {
    if (self->gram) lmd_mirror(self->gram, self->n_cols);
    return self->gram;
}

/* ---- what the sums say ---- */

/* The sum of x[i] * y[i], in 16 chains. */
static double dot(const float *x, const float *y, int32_t n) {
    enum { CHAINS = 16 };
    float chains[CHAINS] = {0};
    int32_t i = 0;
    for (; i + CHAINS <= n; i += CHAINS)
        for (int32_t c = 0; c < CHAINS; c++) chains[c] += x[i + c] * y[i + c];
    double sum = 0.0;
    for (int32_t c = 0; c < CHAINS; c++) sum += (double)chains[c];
    for (; i < n; i++) sum += (double)x[i] * y[i];
    return sum;
}

typedef struct error_work {
    const lmd_input_sums *sums;
    const float *differences;
    double *out;
} error_work;

static void add_error(void *arg, const lmd_stage *stage, int32_t row, int32_t thread_idx,
                      bool is_first) {
    const error_work *work = arg;
    const int64_t n = work->sums->n_cols;
    const float *x = work->differences + row * n;
    double error = 0.0;
    (void)stage, (void)thread_idx, (void)is_first;
    for (int32_t i = 0; i < n; i++) {
        const float *gram = work->sums->gram + i * n;
        error += (double)x[i] * (2.0 * dot(gram, x, i) + (double)gram[i] * x[i]);
    }
    work->out[row] = error;
}

void lmd_input_sums_errors(const lmd_input_sums *self, const lmd_compute *compute,
                           const float *differences, int32_t n, double *out) {
    error_work work = {self, differences, out};
    lmd_stage stage = {.run = add_error, .n_items = n};
    lmd_threads_run(compute->threads, &stage, sizeof stage, 1, &work);
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
