/* The matrix of a linear's inputs as rounding needs it: see feedback.h. */
#include "quant/feedback.h"

#include <math.h>

#include "base/ints.h"
#include "base/memory.h"

enum { BLOCK = LMD_ROUND_BLOCK };

/* H before it is ordered. */
typedef struct source {
    const float *gram, *scales;
    const lmd_feedback_config *config;
    int32_t n;
    float added; /* to the diagonal */
} source;

static float scale_of(const source *self, int32_t col) {
    return self->scales ? self->scales[col] : 1.0f;
}

static float element(const source *self, int32_t i, int32_t j) {
    const float h =
        self->gram[(int64_t)i * self->n + j] / (scale_of(self, i) * scale_of(self, j));
    return i == j ? h + self->added : (1.0f - self->config->shrink) * h;
}

/* ---- the order ---- */

/* Puts ids[0..n) into descending order of their keys, equal ones as they are. */
static void sort(int32_t *ids, int32_t n, const float *keys) {
    for (int32_t i = 1; i < n; i++) {
        const int32_t id = ids[i];
        int32_t at = i;
        for (; at > 0 && keys[ids[at - 1]] < keys[id]; at--) ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

static void order_columns(const source *self, lmd_feedback *out, int32_t *groups, float *keys,
                          float *group_keys) {
    const int32_t size = self->config->group_size, n_groups = self->n / size;
    for (int32_t i = 0; i < self->n; i++) keys[i] = element(self, i, i);
    for (int32_t g = 0; g < n_groups; g++) {
        groups[g] = g;
        group_keys[g] = keys[g * size];
        for (int32_t i = 1; i < size; i++)
            if (keys[g * size + i] > group_keys[g]) group_keys[g] = keys[g * size + i];
    }
    if (self->config->is_ordered) sort(groups, n_groups, group_keys);
    for (int32_t p = 0; p < self->n; p++) {
        out->group[p] = groups[p / size];
        out->order[p] = groups[p / size] * size + p % size;
    }
    for (int32_t p = 0; self->config->is_ordered && p < self->n; p += size)
        sort(out->order + p, size, keys);
    for (int32_t p = 0; p < self->n; p++) out->diagonal[p] = keys[out->order[p]];
}

static lmd_status make_order(const source *self, lmd_feedback *out, lmd_err *err) {
    const size_t n_groups = (size_t)(self->n / self->config->group_size);
    int32_t *groups = lmd_calloc(n_groups, sizeof *groups);
    float *keys = lmd_calloc((size_t)self->n + n_groups, sizeof *keys);
    const bool has_room = groups && keys;
    if (has_room) order_columns(self, out, groups, keys, keys + self->n);
    lmd_free(groups);
    lmd_free(keys);
    return has_room ? LMD_OK : lmd_no_memory(err, "an order of %d columns", self->n);
}

/* ---- the panels, a block of columns an item of work ---- */

typedef struct packing {
    const source *from;
    lmd_feedback *out;
    float *factor; /* [n, n] L of H in the opposite order: R[i][j] = L[n-1-i][n-1-j] */
} packing;

/* A row of H in the opposite order, up to the diagonal. */
static void copy_row(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                     bool is_first) {
    const packing *self = arg;
    const int32_t n = self->from->n, *order = self->out->order;
    float *row = self->factor + (int64_t)item * n;
    (void)stage, (void)thread_idx, (void)is_first;
    for (int32_t j = 0; j <= item; j++)
        row[j] = element(self->from, order[n - 1 - item], order[n - 1 - j]);
}

static float upper(const packing *self, int32_t i, int32_t j) {
    const int32_t n = self->from->n;
    return self->factor[(int64_t)(n - 1 - i) * n + (n - 1 - j)];
}

static void pack_greedy(void *arg, const lmd_stage *stage, int32_t block, int32_t thread_idx,
                        bool is_first) {
    const packing *self = arg;
    const int32_t n = self->from->n, begin = block * BLOCK, width = self->out->tile_rows;
    float *inside = self->out->greedy_inside + (int64_t)block * BLOCK * BLOCK;
    float *panels = (float *)lmd_greedy_panel(self->out, block);
    (void)stage, (void)thread_idx, (void)is_first;
    for (int32_t j = 0; j < lmd_min_i32(BLOCK, n - begin); j++) {
        float *panel = panels + (int64_t)(j / width * width) * begin + j % width;
        const float inverse = 1.0f / upper(self, begin + j, begin + j);
        for (int32_t i = 0; i < begin; i++)
            panel[i * width] = upper(self, i, begin + j) * inverse;
        for (int32_t i = 0; i < j; i++)
            inside[j * BLOCK + i] = upper(self, begin + i, begin + j) * inverse;
    }
}

static void pack_mutual(void *arg, const lmd_stage *stage, int32_t block, int32_t thread_idx,
                        bool is_first) {
    const packing *self = arg;
    const int32_t n = self->from->n, begin = block * BLOCK, width = self->out->tile_rows;
    const int32_t *order = self->out->order;
    float *inside = self->out->mutual_inside + (int64_t)block * BLOCK * BLOCK;
    float *panels = (float *)lmd_mutual_panel(self->out, begin);
    (void)stage, (void)thread_idx, (void)is_first;
    for (int32_t j = 0; j < lmd_min_i32(BLOCK, n - begin); j++) {
        float *panel = panels + (int64_t)(j / width * width) * n + j % width;
        const int32_t col = order[begin + j];
        const float inverse = 1.0f / self->out->diagonal[begin + j];
        for (int32_t i = 0; i < n; i++)
            panel[i * width] = element(self->from, col, order[i]) * inverse;
        for (int32_t i = 0; i < j; i++) inside[j * BLOCK + i] = panel[(begin + i) * width];
    }
}

static void run(const lmd_compute *compute, packing *self, int32_t n_items,
                void (*item)(void *, const lmd_stage *, int32_t, int32_t, bool)) {
    lmd_stage stage = {.run = item, .n_items = n_items};
    lmd_threads_run(compute->threads, &stage, sizeof stage, 1, self);
}

static lmd_status fill(const lmd_compute *compute, const source *from, lmd_feedback *out,
                       lmd_err *err) {
    const size_t n_bytes = (size_t)from->n * (size_t)from->n * sizeof(float);
    LMD_TRY(make_order(from, out, err));
    packing self = {from, out, lmd_alloc_large(n_bytes)};
    if (!self.factor) return lmd_no_memory(err, "a factor of %d columns", from->n);
    run(compute, &self, from->n, copy_row);
    const lmd_status status = lmd_cholesky(compute, self.factor, from->n, err);
    if (status == LMD_OK) run(compute, &self, out->n_blocks, pack_greedy);
    lmd_free_large(self.factor, n_bytes);
    if (status == LMD_OK) run(compute, &self, out->n_blocks, pack_mutual);
    return status;
}

static lmd_status allocate(lmd_feedback *self, lmd_err *err) {
    const size_t n = (size_t)self->n_cols, n_blocks = (size_t)self->n_blocks;
    self->n_inside = n_blocks * BLOCK * BLOCK;
    self->n_greedy = self->n_inside * (n_blocks - 1) / 2;
    self->n_mutual = n_blocks * BLOCK * n;
    self->order = lmd_calloc(n, sizeof *self->order);
    self->group = lmd_calloc(n, sizeof *self->group);
    self->diagonal = lmd_calloc(n, sizeof *self->diagonal);
    self->greedy = lmd_alloc_large(self->n_greedy * sizeof *self->greedy);
    self->greedy_inside = lmd_alloc_large(self->n_inside * sizeof *self->greedy_inside);
    self->mutual = lmd_alloc_large(self->n_mutual * sizeof *self->mutual);
    self->mutual_inside = lmd_alloc_large(self->n_inside * sizeof *self->mutual_inside);
    if (self->order && self->group && self->diagonal && self->greedy && self->greedy_inside &&
        self->mutual && self->mutual_inside)
        return LMD_OK;
    return lmd_no_memory(err, "the matrix of %d input columns", self->n_cols);
}

/* What is added to the diagonal: where it is all zero, enough to divide by. */
static float damping(const source *from) {
    double sum = 0.0;
    for (int32_t i = 0; i < from->n; i++) sum += element(from, i, i);
    return (float)(from->config->damp * sum / from->n) + 1e-12f;
}

lmd_status lmd_feedback_new(const lmd_compute *compute, const float *gram, int32_t n_cols,
                            const float *scales, const lmd_feedback_config *config,
                            lmd_feedback **out, lmd_err *err) {
    source from = {gram, scales, config, n_cols, 0.0f};
    lmd_feedback *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a feedback");
    self->n_cols = n_cols;
    self->n_blocks = lmd_ceil_div(n_cols, BLOCK);
    self->tile_rows = compute->kernels->tile_rows;
    from.added = damping(&from);
    lmd_status status = allocate(self, err);
    if (status == LMD_OK) status = fill(compute, &from, self, err);
    if (status == LMD_OK)
        *out = self;
    else
        lmd_feedback_free(self);
    return status;
}

void lmd_feedback_free(lmd_feedback *self) {
    if (!self) return;
    lmd_free(self->order);
    lmd_free(self->group);
    lmd_free(self->diagonal);
    lmd_free_large(self->greedy, self->n_greedy * sizeof *self->greedy);
    lmd_free_large(self->greedy_inside, self->n_inside * sizeof *self->greedy_inside);
    lmd_free_large(self->mutual, self->n_mutual * sizeof *self->mutual);
    lmd_free_large(self->mutual_inside, self->n_inside * sizeof *self->mutual_inside);
    lmd_free(self);
}
