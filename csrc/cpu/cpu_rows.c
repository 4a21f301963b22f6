/* Operations on single rows: see cpu_rows.h. */
#include "cpu/cpu_rows.h"

#include "base/ints.h"
#include "cpu/cpu_weight.h"
#include "cpu/cpu_workspace.h"

typedef struct row_range {
    int32_t begin, end;
} row_range;

enum { ROWS_PER_ITEM = 4 };

/* An item is a whole tile where the output is quantised, because the rows of a tile share cache
 * lines. */
static void cut_rows(const lmd_workspace *workspace, lmd_cpu_op *op) {
    (void)workspace;
    op->stage.n_items =
        op->quantizes ? op->out_acts.n_tiles : lmd_ceil_div(op->n_rows, ROWS_PER_ITEM);
}

static row_range rows_of(const lmd_cpu_op *op, int32_t item) {
    const lmd_acts *acts = &op->out_acts;
    if (op->quantizes)
        return (row_range){lmd_tile_begin(acts, item), lmd_tile_begin(acts, item + 1)};
    int32_t begin = item * ROWS_PER_ITEM;
    return (row_range){begin, lmd_min_i32(begin + ROWS_PER_ITEM, op->n_rows)};
}

/* ---- embedding ---- */

static void embed_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                       bool is_first) {
    const lmd_workspace *workspace = arg;
    const lmd_cpu_op *op = (const lmd_cpu_op *)stage;
    const row_range rows = rows_of(op, item);
    (void)thread_idx, (void)is_first;
    for (int32_t r = rows.begin; r < rows.end; r++)
        lmd_cpu_weight_row(op->weight, workspace->plan->token_ids[r],
                           op->out->memory.x + (int64_t)r * op->out->n_cols);
}

void lmd_cpu_embed(lmd_workspace *workspace, const lmd_weight *table, lmd_buffer *out) {
    lmd_cpu_record_reserve(workspace, 1);
    lmd_cpu_op *op = lmd_cpu_record_add(workspace, embed_item, out, workspace->plan->n_tokens);
    op->weight = table;
    cut_rows(workspace, op);
}

/* ---- norm ---- */

static void norm_row(const lmd_workspace *workspace, const lmd_cpu_op *op, const lmd_acts *to,
                     int32_t r) {
    const int32_t n_cols = op->in->n_cols, from = op->norm.rows ? op->norm.rows[r] : r;
    float *x = to->x + (int64_t)r * n_cols;
    workspace->kernels->rms_norm(x, op->in->memory.x + (int64_t)from * n_cols,
                                 op->weight->vector, n_cols, op->norm.eps);
    if (op->quantizes) workspace->kernels->quantize(to, r, 0, n_cols, x);
}

static void norm_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                      bool is_first) {
    const lmd_cpu_op *op = (const lmd_cpu_op *)stage;
    const row_range rows = rows_of(op, item);
    (void)thread_idx, (void)is_first;
    for (int32_t r = rows.begin; r < rows.end; r++) norm_row(arg, op, &op->out_acts, r);
}

static void norm_all(const lmd_workspace *workspace, const lmd_cpu_op *op, const lmd_acts *to) {
    for (int32_t r = 0; r < op->n_rows; r++) norm_row(workspace, op, to, r);
}

void lmd_cpu_norm_rows(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *weight,
                       float eps, lmd_buffer *out, const int32_t *rows, int32_t n_rows) {
    lmd_cpu_record_reserve(workspace, 1);
    lmd_cpu_op *op = lmd_cpu_record_add(workspace, norm_item, out, n_rows);
    op->in = residual;
    op->weight = weight;
    op->norm = (lmd_cpu_norm_op){rows, eps};
    op->quantize_unit = out->n_cols;
    op->cut = cut_rows;
    op->write_all = norm_all;
    cut_rows(workspace, op);
}

void lmd_cpu_add_norm(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *weight,
                      float eps, lmd_buffer *out) {
    lmd_cpu_norm_rows(workspace, residual, weight, eps, out, NULL, workspace->plan->n_tokens);
}

/* ---- quantisation ---- */

/* Quantises a row whose columns are read in the order of the weight that they meet. */
static void quantize_ordered(const lmd_workspace *workspace, const lmd_acts *acts, int32_t r) {
    float some[1024];
    const int32_t most = (int32_t)(sizeof some / sizeof *some);
    const int32_t step = most / acts->group_size * acts->group_size;
    const float *x = acts->x + (int64_t)r * acts->n_cols;
    for (int32_t col = 0; col < acts->n_cols; col += step) {
        const int32_t n = lmd_min_i32(step, acts->n_cols - col);
        for (int32_t i = 0; i < n; i++) some[i] = x[acts->order[col + i]];
        workspace->kernels->quantize(acts, r, col, n, some);
    }
}

static void quantize_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                          bool is_first) {
    const lmd_workspace *workspace = arg;
    const lmd_cpu_op *op = (const lmd_cpu_op *)stage;
    const lmd_acts *acts = &op->out_acts;
    const row_range rows = rows_of(op, item);
    (void)thread_idx, (void)is_first;
    for (int32_t r = rows.begin; r < rows.end; r++)
        if (acts->order)
            quantize_ordered(workspace, acts, r);
        else
            workspace->kernels->quantize(acts, r, 0, acts->n_cols,
                                         acts->x + (int64_t)r * acts->n_cols);
}

void lmd_cpu_quantize(lmd_workspace *workspace, lmd_buffer *buffer, const lmd_acts *acts) {
    lmd_cpu_op *op = lmd_cpu_record_add(workspace, quantize_item, buffer, acts->n_rows);
    op->out_acts = *acts;
    op->quantizes = true;
    cut_rows(workspace, op);
}

/* ---- observation ---- */

enum { OBSERVED_ROWS = 64 }; /* of an item */

static void observe_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                         bool is_first) {
    const lmd_cpu_op *op = (const lmd_cpu_op *)stage;
    const lmd_cpu_observe_op *observe = &op->observe;
    const int32_t first = item * OBSERVED_ROWS, n_cols = op->in->n_cols;
    const lmd_seen_rows rows = {.layer = observe->layer,
                                .place = observe->place,
                                .first = first,
                                .n = lmd_min_i32(OBSERVED_ROWS, op->n_rows - first),
                                .n_cols = n_cols,
                                .x = op->in->memory.x + (int64_t)first * n_cols};
    (void)arg, (void)thread_idx, (void)is_first;
    observe->observer->see(observe->observer->user, &rows);
}

void lmd_cpu_observe(lmd_workspace *workspace, lmd_buffer *buffer, int32_t layer, int32_t place,
                     const lmd_observer *observer) {
    lmd_cpu_record_reserve(workspace, 1);
    lmd_cpu_record_keep_x(workspace, buffer);
    lmd_cpu_op *op =
        lmd_cpu_record_add(workspace, observe_item, NULL, workspace->plan->n_tokens);
    op->in = buffer;
    op->observe = (lmd_cpu_observe_op){observer, layer, place};
    op->stage.n_items = lmd_ceil_div(op->n_rows, OBSERVED_ROWS);
}

/* ---- sampling ---- */

static void sample_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                        bool is_first) {
    const lmd_workspace *workspace = arg;
    const lmd_cpu_op *op = (const lmd_cpu_op *)stage;
    const int32_t vocab_size = workspace->config.vocab_size;
    (void)is_first;
    lmd_cpu_sample_row(workspace->kernels, workspace->logits + (int64_t)item * vocab_size,
                       vocab_size, &op->sample.params[item],
                       &workspace->scratch[thread_idx].sample, &op->sample.results[item]);
}

void lmd_cpu_sample(lmd_workspace *workspace, const lmd_sample_params *params, int32_t n,
                    lmd_sample_result *results) {
    lmd_cpu_record_reserve(workspace, 1);
    lmd_cpu_op *op = lmd_cpu_record_add(workspace, sample_item, NULL, n);
    op->sample = (lmd_cpu_sample_op){params, results};
    op->stage.n_items = n;
}
