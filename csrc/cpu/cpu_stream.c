/* A CPU stream: see cpu_stream.h. Attention has a file of its own. */
#include "cpu/cpu_stream.h"

#include <string.h>

#include "base/memory.h"

enum {
    ROW_BLOCK = 64,  /* rows of activations that meet a panel while it is in the first cache */
    PANELS_TAKEN = 4 /* at once, so that a thread streams whole pages */
};

/* ---- engine lifetime ---- */

static int64_t kv_head_bytes(const lmd_stream_config *config) {
    return (int64_t)2 * config->block_len * config->head_dim * (config->kv_bits / 8);
}

size_t lmd_cpu_kv_block_bytes(const lmd_stream_config *config) {
    return (size_t)(kv_head_bytes(config) * config->n_kv_head * config->n_layer);
}

static lmd_status check_config(const lmd_stream_config *config, lmd_err *err) {
    if (config->kv_bits != 16 && config->kv_bits != 32)
        return lmd_fail(err, LMD_UNSUPPORTED, "kv_bits must be 16 or 32, not %d",
                        config->kv_bits);
    if (config->block_len < 16 || LMD_CHUNK_LEN % config->block_len != 0)
        return lmd_fail(err, LMD_INVALID,
                        "cache_block_seq_len must be 16, 32, 64, 128 or 256, not %d",
                        config->block_len);
    if (config->head_dim < 8 || config->head_dim > LMD_MAX_HEAD_DIM || config->head_dim % 8)
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "head_dim must be a multiple of 8 up to %d, not %d", LMD_MAX_HEAD_DIM,
                        config->head_dim);
    return LMD_OK;
}

static lmd_status buffer_with_rows(lmd_stream *stream, int32_t n_rows, int32_t n_cols,
                                   lmd_buffer **out, lmd_err *err) {
    lmd_buffer *buffer = lmd_calloc(1, sizeof *buffer);
    if (!buffer) return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for activations");
    buffer->next = stream->buffers;
    stream->buffers = buffer; /* freed with the stream, complete or not */
    buffer->n_cols = n_cols;
    size_t n = (size_t)n_rows * (size_t)n_cols;
    buffer->x_bytes = n * sizeof *buffer->x;
    buffer->x = lmd_alloc_large(buffer->x_bytes);
    bool complete = buffer->x != NULL;
    if (n_cols % 32 == 0) {
        buffer->q_bytes = n * sizeof *buffer->q;
        buffer->group_bytes = n / 32 * sizeof *buffer->scales;
        buffer->q = lmd_alloc_large(buffer->q_bytes);
        buffer->scales = lmd_alloc_large(buffer->group_bytes);
        buffer->sums = lmd_alloc_large(buffer->group_bytes);
        complete = complete && buffer->q && buffer->scales && buffer->sums;
    }
    if (!complete)
        return lmd_fail(err, LMD_NO_MEMORY, "out of host memory: activations of %d x %d",
                        n_rows, n_cols);
    *out = buffer;
    return LMD_OK;
}

lmd_status lmd_cpu_buffer_new(lmd_stream *stream, int32_t n_cols, lmd_buffer **out,
                              lmd_err *err) {
    return buffer_with_rows(stream, stream->config.max_tokens, n_cols, out, err);
}

static void buffer_free(lmd_buffer *buffer) {
    lmd_free_large(buffer->x, buffer->x_bytes);
    lmd_free_large(buffer->q, buffer->q_bytes);
    lmd_free_large(buffer->scales, buffer->group_bytes);
    lmd_free_large(buffer->sums, buffer->group_bytes);
    lmd_free(buffer);
}

static size_t rope_bytes(const lmd_stream_config *config) {
    return (size_t)config->n_positions * (size_t)config->head_dim * sizeof(float);
}

static size_t logits_bytes(const lmd_stream_config *config) {
    return (size_t)config->max_logits_rows * (size_t)config->vocab_size * sizeof(float);
}

static size_t partial_bytes(const lmd_stream *stream) {
    return (size_t)stream->max_partials * (size_t)(stream->config.head_dim + 2) * sizeof(float);
}

static lmd_status allocate(lmd_stream *stream, lmd_err *err) {
    const lmd_stream_config *config = &stream->config;
    int32_t n_threads = lmd_threads_count(stream->threads);
    stream->head_bytes = kv_head_bytes(config);
    stream->block_stride = (int64_t)lmd_cpu_kv_block_bytes(config);
    if (__builtin_mul_overflow((size_t)stream->block_stride, (size_t)config->n_blocks,
                               &stream->kv_bytes))
        return lmd_fail(err, LMD_NO_MEMORY, "%d KV blocks do not fit in memory",
                        config->n_blocks);
    stream->kv = lmd_alloc_large(stream->kv_bytes);
    if (!stream->kv)
        return lmd_fail(
            err, LMD_NO_MEMORY,
            "the KV cache of %zu bytes cannot be allocated; lower cache_max_entry_count",
            stream->kv_bytes);
    lmd_cpu_attention_bounds(config, &stream->max_units, &stream->max_partials);
    stream->rope_table = lmd_alloc_large(rope_bytes(config));
    stream->row_seqs = lmd_calloc((size_t)config->max_tokens, sizeof *stream->row_seqs);
    stream->units = lmd_calloc((size_t)stream->max_units, sizeof *stream->units);
    stream->partials = lmd_alloc_large(partial_bytes(stream));
    stream->seq_partials = lmd_calloc((size_t)config->max_seqs, sizeof *stream->seq_partials);
    stream->logits = lmd_alloc_large(logits_bytes(config));
    stream->scratch = lmd_calloc((size_t)n_threads, sizeof *stream->scratch);
    if (!stream->rope_table || !stream->row_seqs || !stream->units || !stream->partials ||
        !stream->seq_partials || !stream->logits || !stream->scratch)
        return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for the engine's buffers");
    memcpy(stream->rope_table, config->rope_table, rope_bytes(config));
    stream->config.rope_table = stream->rope_table;
    for (int32_t i = 0; i < n_threads; i++) {
        stream->scratch[i] = lmd_alloc_large(sizeof **stream->scratch);
        if (!stream->scratch[i])
            return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for thread scratch");
        LMD_TRY(
            lmd_cpu_sample_scratch_init(&stream->scratch[i]->sample, config->vocab_size, err));
    }
    return buffer_with_rows(stream, config->max_logits_rows, config->hidden_dim, &stream->final,
                            err);
}

lmd_status lmd_cpu_stream_new(lmd_backend *backend, lmd_threads *threads,
                              const lmd_cpu_kernels *kernels, const lmd_stream_config *config,
                              lmd_stream **out, lmd_err *err) {
    LMD_TRY(check_config(config, err));
    lmd_stream *stream = lmd_calloc(1, sizeof *stream);
    if (!stream) return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for a stream");
    stream->backend = backend;
    stream->threads = threads;
    stream->kernels = kernels;
    stream->config = *config;
    lmd_status status = allocate(stream, err);
    if (status != LMD_OK) {
        lmd_cpu_stream_free(stream);
        return status;
    }
    *out = stream;
    return LMD_OK;
}

void lmd_cpu_stream_free(lmd_stream *stream) {
    if (!stream) return;
    while (stream->buffers) {
        lmd_buffer *next = stream->buffers->next;
        buffer_free(stream->buffers);
        stream->buffers = next;
    }
    for (int32_t i = 0; stream->scratch && i < lmd_threads_count(stream->threads); i++) {
        if (!stream->scratch[i]) continue;
        lmd_cpu_sample_scratch_clear(&stream->scratch[i]->sample);
        lmd_free_large(stream->scratch[i], sizeof **stream->scratch);
    }
    lmd_free(stream->scratch);
    lmd_free_large(stream->logits, logits_bytes(&stream->config));
    lmd_free(stream->seq_partials);
    lmd_free_large(stream->partials, partial_bytes(stream));
    lmd_free(stream->units);
    lmd_free(stream->row_seqs);
    lmd_free_large(stream->rope_table, rope_bytes(&stream->config));
    lmd_free_large(stream->kv, stream->kv_bytes);
    lmd_free(stream);
}

/* ---- a step ---- */

void lmd_cpu_step_begin(lmd_stream *stream, const lmd_plan *plan) {
    stream->plan = plan; /* stays valid until it is collected */
    if (plan->n_copies) lmd_cpu_kv_copy(stream, plan->copies, plan->n_copies);
    lmd_cpu_attention_plan(stream);
}

/* What a region that works row by row needs; each operation uses its own few. */
typedef struct row_job {
    lmd_stream *stream;
    const lmd_weight *weight;
    const lmd_buffer *in;
    lmd_buffer *out;
    float eps;
    int32_t first, n_rows;
    lmd_sample_result *results;
} row_job;

static void run_rows(lmd_stream *stream, void (*region)(void *, int32_t), row_job *job) {
    if (job->out) job->out->group_size = 0;
    atomic_store(&stream->next[0], 0);
    lmd_threads_run(stream->threads, region, job);
}

static void embed_region(void *arg, int32_t thread_idx) {
    (void)thread_idx;
    row_job *job = arg;
    for (int32_t r; (r = lmd_threads_take(&job->stream->next[0], job->n_rows)) >= 0;)
        lmd_cpu_weight_row(job->weight, job->stream->plan->token_ids[r],
                           job->out->x + (int64_t)r * job->out->n_cols);
}

void lmd_cpu_embed(lmd_stream *stream, const lmd_weight *table, lmd_buffer *out) {
    row_job job = {
        .stream = stream, .weight = table, .out = out, .n_rows = stream->plan->n_tokens};
    run_rows(stream, embed_region, &job);
}

static void norm_region(void *arg, int32_t thread_idx) {
    (void)thread_idx;
    row_job *job = arg;
    for (int32_t r; (r = lmd_threads_take(&job->stream->next[0], job->n_rows)) >= 0;) {
        int64_t at = (int64_t)r * job->in->n_cols;
        job->stream->kernels->rms_norm(job->out->x + at, job->in->x + at, job->weight->vector,
                                       job->in->n_cols, job->eps);
    }
}

void lmd_cpu_add_norm(lmd_stream *stream, lmd_buffer *residual, const lmd_weight *weight,
                      float eps, lmd_buffer *out) {
    row_job job = {.stream = stream,
                   .weight = weight,
                   .in = residual,
                   .out = out,
                   .eps = eps,
                   .n_rows = stream->plan->n_tokens};
    run_rows(stream, norm_region, &job);
}

/* ---- linear ---- */

typedef struct linear_job {
    lmd_stream *stream;
    const lmd_weight *weight;
    const float *bias; /* [n_rows of weight] or NULL */
    lmd_buffer *in;
    float *out; /* [n_rows, n_out] */
    int32_t n_out, n_rows, n_panels;
    lmd_epilogue epilogue;
    bool quantize;
} linear_job;

static void quantize_rows(const linear_job *job, atomic_int *counter) {
    lmd_buffer *in = job->in;
    const int32_t group_size = job->weight->group_size;
    const int32_t n_groups = in->n_cols / group_size;
    for (int32_t r; (r = lmd_threads_take(counter, job->n_rows)) >= 0;) {
        int64_t at = (int64_t)r * in->n_cols, group_at = (int64_t)r * n_groups;
        job->stream->kernels->quantize(in->q + at, in->scales + group_at, in->sums + group_at,
                                       in->x + at, in->n_cols, group_size);
    }
}

static void add_bias(float *tile, const float *bias, int32_t n_rows, int32_t n_valid) {
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t i = 0; i < n_valid; i++) tile[r * LMD_PANEL_ROWS + i] += bias[i];
}

/* Computes panel_idx of a segment for some rows and adds the bias. */
static void panel_tile(const linear_job *job, const lmd_weight_segment *segment,
                       int32_t panel_idx, const lmd_acts *acts, int32_t row0, int32_t n_rows,
                       float *tile) {
    int32_t first = panel_idx * LMD_PANEL_ROWS;
    int32_t n_valid =
        segment->n_rows - first < LMD_PANEL_ROWS ? segment->n_rows - first : LMD_PANEL_ROWS;
    job->stream->kernels->panel(tile, segment->panels + panel_idx * segment->panel_bytes,
                                &segment->format, acts, row0, n_rows);
    if (job->bias) add_bias(tile, job->bias + segment->first_row + first, n_rows, n_valid);
}

static void store_tile(const linear_job *job, const float *tile, int32_t row0, int32_t n_rows,
                       int32_t first_col, int32_t n_valid) {
    for (int32_t r = 0; r < n_rows; r++) {
        float *out = job->out + (int64_t)(row0 + r) * job->n_out + first_col;
        const float *from = tile + r * LMD_PANEL_ROWS;
        if (job->epilogue == LMD_EPILOGUE_ADD)
            for (int32_t i = 0; i < n_valid; i++) out[i] += from[i];
        else
            memcpy(out, from, (size_t)n_valid * sizeof *out);
    }
}

static void run_panel(const linear_job *job, int32_t panel_idx, const lmd_acts *acts) {
    const lmd_weight_segment *segment = job->weight->segments;
    float tile[ROW_BLOCK * LMD_PANEL_ROWS], up[ROW_BLOCK * LMD_PANEL_ROWS];
    const bool paired = job->epilogue == LMD_EPILOGUE_SILU_MUL;
    if (!paired)
        while (panel_idx >= segment->n_panels) panel_idx -= segment++->n_panels;
    int32_t first = panel_idx * LMD_PANEL_ROWS;
    int32_t n_valid =
        segment->n_rows - first < LMD_PANEL_ROWS ? segment->n_rows - first : LMD_PANEL_ROWS;
    int32_t first_col = paired ? first : segment->first_row + first;
    for (int32_t row = 0; row < job->n_rows; row += ROW_BLOCK) {
        int32_t n_rows = job->n_rows - row < ROW_BLOCK ? job->n_rows - row : ROW_BLOCK;
        panel_tile(job, segment, panel_idx, acts, row, n_rows, tile);
        if (paired) {
            panel_tile(job, segment + 1, panel_idx, acts, row, n_rows, up);
            job->stream->kernels->silu_mul(tile, tile, up, n_rows * LMD_PANEL_ROWS);
        }
        store_tile(job, tile, row, n_rows, first_col, n_valid);
    }
}

static void linear_region(void *arg, int32_t thread_idx) {
    (void)thread_idx;
    const linear_job *job = arg;
    lmd_stream *stream = job->stream;
    if (job->quantize) {
        quantize_rows(job, &stream->next[1]);
        lmd_threads_barrier(stream->threads);
    }
    const lmd_buffer *in = job->in;
    const int32_t group_size = job->weight->group_size;
    const lmd_acts acts = {.x = in->x,
                           .q = in->q,
                           .scales = in->scales,
                           .sums = in->sums,
                           .n_cols = in->n_cols,
                           .n_groups = group_size ? in->n_cols / group_size : 0};
    const int32_t n_takes = (job->n_panels + PANELS_TAKEN - 1) / PANELS_TAKEN;
    for (int32_t i; (i = lmd_threads_take(&stream->next[0], n_takes)) >= 0;) {
        int32_t end =
            (i + 1) * PANELS_TAKEN < job->n_panels ? (i + 1) * PANELS_TAKEN : job->n_panels;
        for (int32_t p = i * PANELS_TAKEN; p < end; p++) run_panel(job, p, &acts);
    }
}

static void run_linear(linear_job *job) {
    const lmd_weight *weight = job->weight;
    lmd_stream *stream = job->stream;
    int32_t n_segments = job->epilogue == LMD_EPILOGUE_SILU_MUL ? 1 : weight->n_segments;
    for (int32_t i = 0; i < n_segments; i++) job->n_panels += weight->segments[i].n_panels;
    job->quantize = weight->group_size && job->in->group_size != weight->group_size;
    atomic_store(&stream->next[0], 0);
    atomic_store(&stream->next[1], 0);
    lmd_threads_run(stream->threads, linear_region, job);
    if (job->quantize) job->in->group_size = weight->group_size;
}

void lmd_cpu_linear(lmd_stream *stream, const lmd_linear_args *args) {
    linear_job job = {.stream = stream,
                      .weight = args->weight,
                      .bias = args->bias ? args->bias->vector : NULL,
                      .in = args->in,
                      .out = args->out->x,
                      .n_out = args->out->n_cols,
                      .n_rows = stream->plan->n_tokens,
                      .epilogue = args->epilogue};
    args->out->group_size = 0;
    run_linear(&job);
}

/* ---- logits and sampling ---- */

static void final_norm_region(void *arg, int32_t thread_idx) {
    (void)thread_idx;
    row_job *job = arg;
    const int32_t *rows = job->stream->plan->logits_rows + job->first;
    for (int32_t i; (i = lmd_threads_take(&job->stream->next[0], job->n_rows)) >= 0;)
        job->stream->kernels->rms_norm(job->out->x + (int64_t)i * job->out->n_cols,
                                       job->in->x + (int64_t)rows[i] * job->in->n_cols,
                                       job->weight->vector, job->in->n_cols, job->eps);
}

void lmd_cpu_logits(lmd_stream *stream, lmd_buffer *residual, const lmd_weight *norm, float eps,
                    const lmd_weight *lm_head, int32_t first, int32_t n) {
    row_job rows = {.stream = stream,
                    .weight = norm,
                    .in = residual,
                    .out = stream->final,
                    .eps = eps,
                    .first = first,
                    .n_rows = n};
    run_rows(stream, final_norm_region, &rows);
    linear_job job = {.stream = stream,
                      .weight = lm_head,
                      .in = stream->final,
                      .out = stream->logits,
                      .n_out = stream->config.vocab_size,
                      .n_rows = n,
                      .epilogue = LMD_EPILOGUE_STORE};
    run_linear(&job);
}

static void sample_region(void *arg, int32_t thread_idx) {
    row_job *job = arg;
    lmd_stream *stream = job->stream;
    const int32_t vocab_size = stream->config.vocab_size;
    for (int32_t i; (i = lmd_threads_take(&stream->next[0], job->n_rows)) >= 0;)
        lmd_cpu_sample_row(stream->logits + (int64_t)i * vocab_size, vocab_size,
                           &stream->plan->samples[job->first + i],
                           &stream->scratch[thread_idx]->sample, &job->results[i]);
}

void lmd_cpu_sample(lmd_stream *stream, int32_t first, int32_t n, lmd_sample_result *results) {
    row_job job = {.stream = stream, .first = first, .n_rows = n, .results = results};
    run_rows(stream, sample_region, &job);
}

void lmd_cpu_kv_copy(lmd_stream *stream, const lmd_block_copy *copies, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        memcpy(stream->kv + copies[i].to_block * stream->block_stride,
               stream->kv + copies[i].from_block * stream->block_stride,
               (size_t)stream->block_stride);
}
