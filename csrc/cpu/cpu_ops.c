/* A step on the CPU: recording operations, and running them in one parallel region. The
 * recorder knows which linear reads what a norm, an attention or another linear writes, and
 * has the writer quantise it while it is in the cache. */
#include <string.h>

#include "cpu/cpu_stream.h"

/* ---- recording ---- */

lmd_cpu_op *lmd_cpu_op_add(lmd_stream *stream,
                           void (*run)(lmd_stream *, lmd_cpu_op *, int32_t), lmd_buffer *out,
                           int32_t n_rows) {
    if (stream->n_ops == stream->max_ops) lmd_cpu_step_run(stream);
    lmd_cpu_op *op = &stream->ops[stream->n_ops++];
    memset(op, 0, sizeof *op);
    op->run = run;
    op->out = out;
    op->n_rows = n_rows;
    if (out) out->producer = op;
    return op;
}

lmd_acts lmd_cpu_private_acts(const lmd_stream *stream, const lmd_acts *shared,
                              int32_t thread_idx) {
    lmd_acts acts = *shared;
    if (thread_idx == 0) return acts;
    lmd_thread_scratch *scratch = stream->scratch[thread_idx];
    acts.x = scratch->private_x;
    acts.q = scratch->private_q;
    acts.scales = scratch->private_scales;
    acts.sums = scratch->private_sums;
    acts.scaled_sums = scratch->private_scaled_sums;
    return acts;
}

/* ---- operations on rows ---- */

typedef struct row_range {
    int32_t begin, end;
} row_range;

/* Takes the next rows: a whole tile where the output is quantised, for its rows share cache
 * lines. */
static bool take_rows(lmd_cpu_op *op, row_range *rows) {
    enum { TAKEN = 4 };
    const lmd_acts *acts = &op->out_acts;
    int32_t n_takes = op->quantizes ? acts->n_tiles : (op->n_rows + TAKEN - 1) / TAKEN;
    int32_t i = lmd_threads_take(&op->next[0], n_takes);
    if (i < 0) return false;
    if (op->quantizes) {
        *rows = (row_range){lmd_tile_begin(acts, i), lmd_tile_begin(acts, i + 1)};
    } else {
        int32_t end = (i + 1) * TAKEN;
        *rows = (row_range){i * TAKEN, end < op->n_rows ? end : op->n_rows};
    }
    return true;
}

static void embed_run(lmd_stream *stream, lmd_cpu_op *op, int32_t thread_idx) {
    (void)thread_idx;
    row_range rows = {0};
    while (take_rows(op, &rows))
        for (int32_t r = rows.begin; r < rows.end; r++)
            lmd_cpu_weight_row(op->weight, stream->plan->token_ids[r],
                               op->out->memory.x + (int64_t)r * op->out->n_cols);
}

void lmd_cpu_embed(lmd_stream *stream, const lmd_weight *table, lmd_buffer *out) {
    lmd_cpu_op *op = lmd_cpu_op_add(stream, embed_run, out, stream->plan->n_tokens);
    op->weight = table;
}

static void norm_row(const lmd_stream *stream, const lmd_cpu_op *op, const lmd_acts *to,
                     int32_t r) {
    const int32_t n_cols = op->in->n_cols, from = op->rows ? op->rows[r] : r;
    float *x = to->x + (int64_t)r * n_cols;
    stream->kernels->rms_norm(x, op->in->memory.x + (int64_t)from * n_cols, op->weight->vector,
                              n_cols, op->eps);
    if (op->quantizes) stream->kernels->quantize(to, r, 0, n_cols, x);
}

static void norm_run(lmd_stream *stream, lmd_cpu_op *op, int32_t thread_idx) {
    if (op->is_private) {
        lmd_acts acts = lmd_cpu_private_acts(stream, &op->out_acts, thread_idx);
        for (int32_t r = 0; r < op->n_rows; r++) norm_row(stream, op, &acts, r);
        return;
    }
    row_range rows = {0};
    while (take_rows(op, &rows))
        for (int32_t r = rows.begin; r < rows.end; r++) norm_row(stream, op, &op->out_acts, r);
}

static lmd_cpu_op *add_norm(lmd_stream *stream, lmd_buffer *in, const lmd_weight *weight,
                            float eps, lmd_buffer *out, int32_t n_rows) {
    lmd_cpu_op *op = lmd_cpu_op_add(stream, norm_run, out, n_rows);
    op->in = in;
    op->weight = weight;
    op->eps = eps;
    op->out_acts = out->memory;
    return op;
}

void lmd_cpu_add_norm(lmd_stream *stream, lmd_buffer *residual, const lmd_weight *weight,
                      float eps, lmd_buffer *out) {
    add_norm(stream, residual, weight, eps, out, stream->plan->n_tokens);
}

static void sample_run(lmd_stream *stream, lmd_cpu_op *op, int32_t thread_idx) {
    const int32_t vocab_size = stream->config.vocab_size;
    for (int32_t i; (i = lmd_threads_take(&op->next[0], op->n_rows)) >= 0;)
        lmd_cpu_sample_row(stream->logits + (int64_t)i * vocab_size, vocab_size,
                           &stream->plan->samples[op->first + i],
                           &stream->scratch[thread_idx]->sample, &op->results[i]);
}

void lmd_cpu_sample(lmd_stream *stream, int32_t first, int32_t n, lmd_sample_result *results) {
    lmd_cpu_op *op = lmd_cpu_op_add(stream, sample_run, NULL, n);
    op->first = first;
    op->results = results;
}

/* ---- linear ---- */

static void quantize_run(lmd_stream *stream, lmd_cpu_op *op, int32_t thread_idx) {
    (void)thread_idx;
    const lmd_acts *acts = &op->out_acts;
    row_range rows = {0};
    while (take_rows(op, &rows))
        for (int32_t r = rows.begin; r < rows.end; r++)
            stream->kernels->quantize(acts, r, 0, acts->n_cols,
                                      acts->x + (int64_t)r * acts->n_cols);
}

/* Whether an operation can quantise what it writes, piece by piece. */
static bool can_quantize(const lmd_stream *stream, const lmd_cpu_op *op, int32_t group_size) {
    if (op->run == lmd_cpu_attention_run) return stream->config.head_dim % group_size == 0;
    if (op->run == lmd_cpu_linear_run) return op->epilogue == LMD_EPILOGUE_SILU_MUL;
    return op->run == norm_run;
}

static bool has_4_bits(const lmd_weight *weight) {
    for (int32_t i = 0; i < weight->n_segments; i++) {
        lmd_weight_kind kind = weight->segments[i].format.kind;
        if (kind != LMD_WEIGHT_U4 && kind != LMD_WEIGHT_I4) return false;
    }
    return true;
}

static bool same_form(const lmd_acts *a, const lmd_acts *b) {
    return a->group_size == b->group_size && a->bits == b->bits && a->n_rows == b->n_rows;
}

/* The form in which a weight's kernel wants its input. */
static lmd_acts wanted_acts(const lmd_stream *stream, const lmd_buffer *in,
                            const lmd_weight *weight, int32_t n_rows) {
    lmd_acts acts = in->memory;
    acts.n_rows = n_rows;
    acts.n_cols = in->n_cols;
    acts.group_size = weight->group_size;
    acts.bits = stream->config.fast_activations && has_4_bits(weight) ? 8 : 16;
    int32_t tile_rows = stream->kernels->tile_rows(acts.bits, n_rows);
    acts.n_tiles = (n_rows + tile_rows - 1) / tile_rows;
    return acts;
}

/* Makes sure that the linear to come finds its input quantised; true when each thread makes a
 * copy of its own. */
static bool have_quantized(lmd_stream *stream, lmd_buffer *in, const lmd_acts *acts) {
    lmd_cpu_op *producer = in->producer;
    if (producer && producer->quantizes && same_form(&producer->out_acts, acts))
        return producer->run == norm_run && producer->is_private;
    if (!producer || producer->quantizes ||
        !can_quantize(stream, producer, acts->group_size)) {
        if (producer) producer->keeps_x = true;
        lmd_cpu_op *op = lmd_cpu_op_add(stream, quantize_run, in, acts->n_rows);
        op->out_acts = *acts;
        op->quantizes = true;
        return false;
    }
    producer->quantizes = true;
    producer->out_acts = *acts;
    if (producer->run == lmd_cpu_linear_run) lmd_cpu_linear_cut(stream, producer);
    if (producer->run != norm_run) return false;
    producer->is_private = producer == &stream->ops[stream->n_ops - 1] &&
                           (int64_t)acts->n_rows * acts->n_cols <= LMD_PRIVATE_COLS;
    return producer->is_private;
}

static lmd_cpu_op *add_linear(lmd_stream *stream, const lmd_weight *weight, lmd_buffer *in,
                              lmd_buffer *out, int32_t n_rows) {
    lmd_acts acts = wanted_acts(stream, in, weight, n_rows);
    bool is_private = weight->group_size && have_quantized(stream, in, &acts);
    lmd_cpu_op *op = lmd_cpu_op_add(stream, lmd_cpu_linear_run, out, n_rows);
    op->weight = weight;
    op->in = in;
    op->acts = acts;
    op->is_private = is_private;
    return op;
}

void lmd_cpu_linear(lmd_stream *stream, const lmd_linear_args *args) {
    lmd_cpu_op *op =
        add_linear(stream, args->weight, args->in, args->out, stream->plan->n_tokens);
    op->bias = args->bias ? args->bias->vector : NULL;
    op->to = args->out->memory.x;
    op->n_to = args->out->n_cols;
    op->epilogue = args->epilogue;
    lmd_cpu_linear_cut(stream, op);
}

void lmd_cpu_logits(lmd_stream *stream, lmd_buffer *residual, const lmd_weight *norm, float eps,
                    const lmd_weight *lm_head, int32_t first, int32_t n) {
    add_norm(stream, residual, norm, eps, stream->final, n)->rows =
        stream->plan->logits_rows + first;
    lmd_cpu_op *op = add_linear(stream, lm_head, stream->final, NULL, n);
    op->to = stream->logits;
    op->n_to = stream->config.vocab_size;
    op->epilogue = LMD_EPILOGUE_STORE;
    lmd_cpu_linear_cut(stream, op);
}

void lmd_cpu_attention(lmd_stream *stream, const lmd_attention_args *args) {
    lmd_cpu_op *op =
        lmd_cpu_op_add(stream, lmd_cpu_attention_run, args->out, stream->plan->n_tokens);
    op->attention = *args;
    op->out_acts = args->out->memory;
}

/* ---- running ---- */

void lmd_cpu_step_begin(lmd_stream *stream, const lmd_plan *plan) {
    stream->plan = plan; /* stays valid until it is collected */
    stream->n_ops = 0;
    for (lmd_buffer *b = stream->buffers; b; b = b->next) b->producer = NULL;
    if (plan->n_copies) lmd_cpu_kv_copy(stream, plan->copies, plan->n_copies);
    lmd_cpu_attention_plan(stream);
}

static void step_region(void *arg, int32_t thread_idx) {
    lmd_stream *stream = arg;
    for (int32_t i = 0; i < stream->n_ops; i++) {
        lmd_cpu_op *op = &stream->ops[i];
        op->run(stream, op, thread_idx);
        bool nobody_waits = op->run == norm_run && op->is_private;
        if (!nobody_waits && i + 1 < stream->n_ops) lmd_threads_barrier(stream->threads);
    }
}

void lmd_cpu_step_run(lmd_stream *stream) {
    if (stream->n_ops == 0) return;
    lmd_threads_run(stream->threads, step_region, stream);
    stream->n_ops = 0;
    for (lmd_buffer *b = stream->buffers; b; b = b->next) b->producer = NULL;
}
