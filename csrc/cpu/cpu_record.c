/* A step on the CPU: recording operations, and running them as the stages of one run. The
 * recorder knows which linear reads what a norm, an attention or another linear writes, and
 * has the writer quantise it while it is in the cache. */
#include <assert.h>
#include <string.h>

#include "base/ints.h"
#include "cpu/cpu_workspace.h"

/* ---- recording ---- */

void lmd_cpu_ops_reserve(lmd_workspace *workspace, int32_t n) {
    if (workspace->n_ops + n > workspace->max_ops) lmd_cpu_step_run(workspace);
}

lmd_cpu_op *lmd_cpu_op_add(lmd_workspace *workspace, lmd_cpu_item_fn run, lmd_buffer *out,
                           int32_t n_rows) {
    lmd_cpu_op *op = &workspace->ops[workspace->n_ops++];
    memset(op, 0, sizeof *op);
    op->stage.run = run;
    op->out = out;
    op->n_rows = n_rows;
    if (out) out->producer = op;
    return op;
}

lmd_acts lmd_cpu_private_acts(const lmd_workspace *workspace, const lmd_acts *shared,
                              int32_t thread_idx) {
    lmd_acts acts = *shared;
    if (thread_idx == 0) return acts;
    lmd_thread_scratch *scratch = workspace->scratch[thread_idx];
    acts.x = scratch->private_x;
    acts.q = scratch->private_q;
    acts.scales = scratch->private_scales;
    acts.sums = scratch->private_sums;
    acts.scaled_sums = scratch->private_scaled_sums;
    return acts;
}

static const lmd_cpu_op *op_of(const lmd_stage *stage) { return (const lmd_cpu_op *)stage; }

/* ---- operations on rows ---- */

typedef struct row_range {
    int32_t begin, end;
} row_range;

enum { ROWS_TAKEN = 4 };

/* Cuts an operation on rows into items: a whole tile each where the output is quantised, for
 * its rows share cache lines. */
static void cut_rows(lmd_cpu_op *op) {
    op->stage.n_items =
        op->quantizes ? op->out_acts.n_tiles : lmd_ceil_div(op->n_rows, ROWS_TAKEN);
}

static row_range rows_of(const lmd_cpu_op *op, int32_t item) {
    const lmd_acts *acts = &op->out_acts;
    if (op->quantizes)
        return (row_range){lmd_tile_begin(acts, item), lmd_tile_begin(acts, item + 1)};
    int32_t begin = item * ROWS_TAKEN;
    return (row_range){begin, lmd_min_i32(begin + ROWS_TAKEN, op->n_rows)};
}

static void embed_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                       bool is_first) {
    const lmd_workspace *workspace = arg;
    const lmd_cpu_op *op = op_of(stage);
    const row_range rows = rows_of(op, item);
    (void)thread_idx, (void)is_first;
    for (int32_t r = rows.begin; r < rows.end; r++)
        lmd_cpu_weight_row(op->weight, workspace->plan->token_ids[r],
                           op->out->memory.x + (int64_t)r * op->out->n_cols);
}

void lmd_cpu_embed(lmd_workspace *workspace, const lmd_weight *table, lmd_buffer *out) {
    lmd_cpu_ops_reserve(workspace, 1);
    lmd_cpu_op *op = lmd_cpu_op_add(workspace, embed_item, out, workspace->plan->n_tokens);
    op->weight = table;
    cut_rows(op);
}

static void norm_row(const lmd_workspace *workspace, const lmd_cpu_op *op, const lmd_acts *to,
                     int32_t r) {
    const int32_t n_cols = op->in->n_cols, from = op->rows ? op->rows[r] : r;
    float *x = to->x + (int64_t)r * n_cols;
    workspace->kernels->rms_norm(x, op->in->memory.x + (int64_t)from * n_cols,
                                 op->weight->vector, n_cols, op->eps);
    if (op->quantizes) workspace->kernels->quantize(to, r, 0, n_cols, x);
}

static void norm_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                      bool is_first) {
    const lmd_cpu_op *op = op_of(stage);
    const row_range rows = rows_of(op, item);
    (void)thread_idx, (void)is_first;
    for (int32_t r = rows.begin; r < rows.end; r++) norm_row(arg, op, &op->out_acts, r);
}

void lmd_cpu_private_norm(const lmd_workspace *workspace, const lmd_cpu_op *norm,
                          const lmd_acts *acts) {
    for (int32_t r = 0; r < norm->n_rows; r++) norm_row(workspace, norm, acts, r);
}

static lmd_cpu_op *add_norm(lmd_workspace *workspace, lmd_buffer *in, const lmd_weight *weight,
                            float eps, lmd_buffer *out, int32_t n_rows) {
    lmd_cpu_ops_reserve(workspace, 1);
    lmd_cpu_op *op = lmd_cpu_op_add(workspace, norm_item, out, n_rows);
    op->in = in;
    op->weight = weight;
    op->eps = eps;
    op->out_acts = out->memory;
    cut_rows(op);
    return op;
}

void lmd_cpu_add_norm(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *weight,
                      float eps, lmd_buffer *out) {
    add_norm(workspace, residual, weight, eps, out, workspace->plan->n_tokens);
}

static void sample_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                        bool is_first) {
    const lmd_workspace *workspace = arg;
    const lmd_cpu_op *op = op_of(stage);
    const int32_t vocab_size = workspace->config.vocab_size;
    (void)is_first;
    lmd_cpu_sample_row(workspace->kernels, workspace->logits + (int64_t)item * vocab_size,
                       vocab_size, &op->params[item], &workspace->scratch[thread_idx]->sample,
                       &op->results[item]);
}

void lmd_cpu_sample(lmd_workspace *workspace, const lmd_sample_params *params, int32_t n,
                    lmd_sample_result *results) {
    lmd_cpu_ops_reserve(workspace, 1);
    lmd_cpu_op *op = lmd_cpu_op_add(workspace, sample_item, NULL, n);
    op->params = params;
    op->results = results;
    op->stage.n_items = n;
}

/* ---- linear ---- */

static void quantize_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                          bool is_first) {
    const lmd_workspace *workspace = arg;
    const lmd_cpu_op *op = op_of(stage);
    const lmd_acts *acts = &op->out_acts;
    const row_range rows = rows_of(op, item);
    (void)thread_idx, (void)is_first;
    for (int32_t r = rows.begin; r < rows.end; r++)
        workspace->kernels->quantize(acts, r, 0, acts->n_cols,
                                     acts->x + (int64_t)r * acts->n_cols);
}

/* Whether an operation can quantise what it writes, piece by piece. */
static bool can_quantize(const lmd_workspace *workspace, const lmd_cpu_op *op,
                         int32_t group_size) {
    const lmd_cpu_item_fn run = op->stage.run;
    if (run == lmd_cpu_attention_item || run == lmd_cpu_fold_item)
        return workspace->config.head_dim % group_size == 0;
    if (run == lmd_cpu_linear_item) return op->epilogue == LMD_EPILOGUE_SILU_MUL;
    return run == norm_item;
}

static bool has_4_bits(const lmd_weight *weight) {
    for (int32_t i = 0; i < weight->n_segments; i++)
        if (!lmd_kind_is_nibbles(weight->segments[i].format.kind)) return false;
    return true;
}

static bool same_form(const lmd_acts *a, const lmd_acts *b) {
    return a->group_size == b->group_size && a->bits == b->bits && a->n_rows == b->n_rows;
}

/* The form in which a weight's kernel wants its input. */
static lmd_acts wanted_acts(const lmd_workspace *workspace, const lmd_buffer *in,
                            const lmd_weight *weight, int32_t n_rows) {
    lmd_acts acts = in->memory;
    acts.n_rows = n_rows;
    acts.n_cols = in->n_cols;
    acts.group_size = weight->group_size;
    acts.bits = workspace->config.fast_activations && has_4_bits(weight) ? 8 : 16;
    acts.n_tiles = lmd_ceil_div(n_rows, workspace->kernels->tile_rows(acts.bits, n_rows));
    return acts;
}

/* Makes sure that the linear to come finds its input quantised. Returns the norm that every
 * thread does for itself, where that is less than waiting for one another; or NULL. */
static const lmd_cpu_op *have_quantized(lmd_workspace *workspace, lmd_buffer *in,
                                        const lmd_acts *acts) {
    lmd_cpu_op *producer = in->producer;
    /* A norm that one reader does for itself is done for a second one. */
    if (producer && producer->stage.run == norm_item && producer->stage.n_items == 0)
        cut_rows(producer);
    if (producer && producer->quantizes && same_form(&producer->out_acts, acts)) return NULL;
    if (!producer || producer->quantizes ||
        !can_quantize(workspace, producer, acts->group_size)) {
        for (lmd_cpu_op *op = producer; op; op = op->part) op->keeps_x = true;
        lmd_cpu_op *op = lmd_cpu_op_add(workspace, quantize_item, in, acts->n_rows);
        op->out_acts = *acts;
        op->quantizes = true;
        cut_rows(op);
        return NULL;
    }
    for (lmd_cpu_op *op = producer; op; op = op->part) {
        op->quantizes = true;
        op->out_acts = *acts;
    }
    if (producer->stage.run == lmd_cpu_linear_item) lmd_cpu_linear_cut(workspace, producer);
    if (producer->stage.run != norm_item) return NULL;
    cut_rows(producer);
    bool is_small = (int64_t)acts->n_rows * acts->n_cols <= LMD_PRIVATE_COLS;
    if (!is_small || producer != &workspace->ops[workspace->n_ops - 1]) return NULL;
    producer->stage.n_items = 0;
    return producer;
}

static lmd_cpu_op *add_linear(lmd_workspace *workspace, const lmd_weight *weight,
                              lmd_buffer *in, lmd_buffer *out, int32_t n_rows) {
    lmd_cpu_ops_reserve(workspace, 2); /* before it looks at who made its input */
    lmd_acts acts = wanted_acts(workspace, in, weight, n_rows);
    const lmd_cpu_op *norm = weight->group_size ? have_quantized(workspace, in, &acts) : NULL;
    lmd_cpu_op *op = lmd_cpu_op_add(workspace, lmd_cpu_linear_item, out, n_rows);
    op->weight = weight;
    op->in = in;
    op->acts = acts;
    op->norm = norm;
    return op;
}

void lmd_cpu_linear(lmd_workspace *workspace, const lmd_linear_args *args) {
    lmd_cpu_op *op =
        add_linear(workspace, args->weight, args->in, args->out, workspace->plan->n_tokens);
    op->bias = args->bias ? args->bias->vector : NULL;
    op->to = args->out->memory.x;
    op->n_to = args->out->n_cols;
    op->epilogue = args->epilogue;
    lmd_cpu_linear_cut(workspace, op);
}

void lmd_cpu_logits(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *norm,
                    float eps, const lmd_weight *lm_head, int32_t first, int32_t n) {
    add_norm(workspace, residual, norm, eps, workspace->final, n)->rows =
        workspace->plan->logits_rows + first;
    lmd_cpu_op *op = add_linear(workspace, lm_head, workspace->final, NULL, n);
    op->to = workspace->logits;
    op->n_to = workspace->config.vocab_size;
    op->epilogue = LMD_EPILOGUE_STORE;
    lmd_cpu_linear_cut(workspace, op);
}

/* ---- running ---- */

void lmd_cpu_step_begin(lmd_workspace *workspace, const lmd_plan *plan) {
    for (int32_t i = 0; i < plan->n_tokens; i++)
        assert(plan->token_ids[i] >= 0); /* one plan at a time: every token is known */
    workspace->plan = plan;              /* stays valid until it is collected */
    workspace->n_ops = 0;
    for (lmd_buffer *b = workspace->buffers; b; b = b->next) b->producer = NULL;
    if (plan->n_copies) lmd_cpu_kv_copy(workspace, plan->copies, plan->n_copies);
    lmd_cpu_attention_plan(workspace);
}

void lmd_cpu_step_run(lmd_workspace *workspace) {
    lmd_threads_run(workspace->threads, &workspace->ops->stage, sizeof *workspace->ops,
                    workspace->n_ops, workspace);
    workspace->n_ops = 0;
    for (lmd_buffer *b = workspace->buffers; b; b = b->next) b->producer = NULL;
}
