/* A CPU workspace's memory: see cpu_workspace.h. Operations stand in cpu_ops.c, cpu_linear.c
 * and cpu_attention.c. */
#include "cpu/cpu_workspace.h"

#include <string.h>

#include "base/memory.h"

static lmd_kv_format kv_format(const lmd_workspace_config *config) {
    return (lmd_kv_format){config->block_len, config->head_dim, config->k_bits, config->v_bits};
}

size_t lmd_cpu_kv_block_bytes(const lmd_workspace_config *config) {
    const lmd_kv_format format = kv_format(config);
    return (size_t)(lmd_kv_head_bytes(&format) * config->n_kv_head * config->n_layer);
}

static size_t q_bytes(const lmd_buffer *buffer) {
    return (size_t)buffer->max_rows * (size_t)buffer->n_cols * sizeof(int16_t);
}

/* Of scales, sums and scaled sums: groups have at least 32 columns. */
static size_t group_bytes(const lmd_buffer *buffer) {
    return (size_t)buffer->max_rows * (size_t)(buffer->n_cols / 32) * sizeof(float);
}

static size_t x_bytes(const lmd_buffer *buffer) {
    return (size_t)buffer->max_rows * (size_t)buffer->n_cols * sizeof(float);
}

/* Every thread's scratch for the kernels grows to what n_cols columns need. */
static lmd_status grow_panel_scratch(lmd_workspace *workspace, int32_t n_cols, lmd_err *err) {
    size_t n_bytes = workspace->kernels->scratch_bytes(n_cols);
    if (n_bytes <= workspace->panel_scratch_bytes) return LMD_OK;
    for (int32_t i = 0; i < lmd_threads_count(workspace->threads); i++) {
        lmd_free_large(workspace->scratch[i]->panel, workspace->panel_scratch_bytes);
        workspace->scratch[i]->panel = NULL;
    }
    workspace->panel_scratch_bytes = n_bytes;
    for (int32_t i = 0; i < lmd_threads_count(workspace->threads); i++) {
        workspace->scratch[i]->panel = lmd_alloc_large(n_bytes);
        if (!workspace->scratch[i]->panel)
            return lmd_no_memory(err, "a panel of %d columns", n_cols);
    }
    return LMD_OK;
}

static lmd_status buffer_with_rows(lmd_workspace *workspace, int32_t n_rows, int32_t n_cols,
                                   lmd_buffer **out, lmd_err *err) {
    lmd_buffer *buffer = lmd_calloc(1, sizeof *buffer);
    if (!buffer) return lmd_no_memory(err, "activations");
    buffer->next = workspace->buffers;
    workspace->buffers = buffer; /* freed with the workspace, complete or not */
    buffer->max_rows = n_rows;
    buffer->n_cols = n_cols;
    lmd_acts *memory = &buffer->memory;
    memory->x = lmd_alloc_large(x_bytes(buffer));
    bool complete = memory->x != NULL;
    if (n_cols % 32 == 0) {
        memory->q = lmd_alloc_large(q_bytes(buffer));
        memory->scales = lmd_alloc_large(group_bytes(buffer));
        memory->sums = lmd_alloc_large(group_bytes(buffer));
        memory->scaled_sums = lmd_alloc_large(group_bytes(buffer));
        complete =
            complete && memory->q && memory->scales && memory->sums && memory->scaled_sums;
    }
    if (!complete) return lmd_no_memory(err, "activations of %d x %d", n_rows, n_cols);
    LMD_TRY(grow_panel_scratch(workspace, n_cols, err));
    *out = buffer;
    return LMD_OK;
}

lmd_status lmd_cpu_buffer_new(lmd_workspace *workspace, int32_t n_cols, lmd_buffer_role role,
                              lmd_buffer **out, lmd_err *err) {
    (void)role; /* a buffer has room for fp32 and for quantised rows */
    return buffer_with_rows(workspace, workspace->config.max_tokens, n_cols, out, err);
}

static void buffer_free(lmd_buffer *buffer) {
    lmd_free_large(buffer->memory.x, x_bytes(buffer));
    lmd_free_large(buffer->memory.q, q_bytes(buffer));
    lmd_free_large(buffer->memory.scales, group_bytes(buffer));
    lmd_free_large(buffer->memory.sums, group_bytes(buffer));
    lmd_free_large(buffer->memory.scaled_sums, group_bytes(buffer));
    lmd_free(buffer);
}

static size_t rope_bytes(const lmd_workspace_config *config) {
    return (size_t)config->n_positions * (size_t)config->head_dim * sizeof(float);
}

static size_t logits_bytes(const lmd_workspace_config *config) {
    return (size_t)config->max_logits_rows * (size_t)config->vocab_size * sizeof(float);
}

static size_t partial_bytes(const lmd_workspace *workspace) {
    return (size_t)workspace->max_partials * (size_t)(workspace->config.head_dim + 2) *
           sizeof(float);
}

static lmd_status allocate(lmd_workspace *workspace, lmd_err *err) {
    const lmd_workspace_config *config = &workspace->config;
    int32_t n_threads = lmd_threads_count(workspace->threads);
    workspace->kv_format = kv_format(config);
    workspace->head_bytes = lmd_kv_head_bytes(&workspace->kv_format);
    workspace->block_stride = (int64_t)lmd_cpu_kv_block_bytes(config);
    if (__builtin_mul_overflow((size_t)workspace->block_stride, (size_t)config->n_blocks,
                               &workspace->kv_bytes) ||
        __builtin_add_overflow(workspace->kv_bytes, (size_t)LMD_KV_PADDING,
                               &workspace->kv_bytes))
        return lmd_fail(err, LMD_NO_MEMORY, "%d KV blocks do not fit in memory",
                        config->n_blocks);
    workspace->kv = lmd_alloc_large(workspace->kv_bytes);
    if (!workspace->kv)
        return lmd_fail(
            err, LMD_NO_MEMORY,
            "the KV cache of %zu bytes cannot be allocated; lower cache_max_entry_count",
            workspace->kv_bytes);
    /* Nine stages a layer, four of them with one that quantises before it, at most; a longer
     * list runs in pieces. */
    workspace->max_ops = 13 * config->n_layer + 16;
    workspace->ops = lmd_alloc_large((size_t)workspace->max_ops * sizeof *workspace->ops);
    lmd_cpu_attention_bounds(config, n_threads, &workspace->max_units,
                             &workspace->max_partials);
    workspace->rope_table = lmd_alloc_large(rope_bytes(config));
    workspace->row_seqs = lmd_calloc((size_t)config->max_tokens, sizeof *workspace->row_seqs);
    workspace->units = lmd_calloc((size_t)workspace->max_units, sizeof *workspace->units);
    workspace->partials = lmd_alloc_large(partial_bytes(workspace));
    workspace->seq_partials =
        lmd_calloc((size_t)config->max_seqs, sizeof *workspace->seq_partials);
    workspace->logits = lmd_alloc_large(logits_bytes(config));
    workspace->scratch = lmd_calloc((size_t)n_threads, sizeof *workspace->scratch);
    if (!workspace->ops || !workspace->rope_table || !workspace->row_seqs ||
        !workspace->units || !workspace->partials || !workspace->seq_partials ||
        !workspace->logits || !workspace->scratch)
        return lmd_no_memory(err, "the engine's buffers");
    memcpy(workspace->rope_table, config->rope_table, rope_bytes(config));
    workspace->config.rope_table = workspace->rope_table;
    for (int32_t i = 0; i < n_threads; i++) {
        workspace->scratch[i] = lmd_alloc_large(sizeof **workspace->scratch);
        if (!workspace->scratch[i]) return lmd_no_memory(err, "thread scratch");
        LMD_TRY(lmd_cpu_sample_scratch_init(&workspace->scratch[i]->sample, config->vocab_size,
                                            err));
    }
    return buffer_with_rows(workspace, config->max_logits_rows, config->hidden_dim,
                            &workspace->final, err);
}

lmd_status lmd_cpu_workspace_new(lmd_backend *backend, lmd_threads *threads,
                                 const lmd_cpu_kernels *kernels,
                                 const lmd_workspace_config *config, lmd_workspace **out,
                                 lmd_err *err) {
    LMD_TRY(lmd_workspace_config_check(config, err));
    lmd_workspace *workspace = lmd_calloc(1, sizeof *workspace);
    if (!workspace) return lmd_no_memory(err, "a workspace");
    workspace->backend = backend;
    workspace->threads = threads;
    workspace->kernels = kernels;
    workspace->config = *config;
    lmd_status status = allocate(workspace, err);
    if (status != LMD_OK) {
        lmd_cpu_workspace_free(workspace);
        return status;
    }
    *out = workspace;
    return LMD_OK;
}

void lmd_cpu_workspace_free(lmd_workspace *workspace) {
    if (!workspace) return;
    while (workspace->buffers) {
        lmd_buffer *next = workspace->buffers->next;
        buffer_free(workspace->buffers);
        workspace->buffers = next;
    }
    for (int32_t i = 0; workspace->scratch && i < lmd_threads_count(workspace->threads); i++) {
        if (!workspace->scratch[i]) continue;
        lmd_cpu_sample_scratch_clear(&workspace->scratch[i]->sample);
        lmd_free_large(workspace->scratch[i]->panel, workspace->panel_scratch_bytes);
        lmd_free_large(workspace->scratch[i], sizeof **workspace->scratch);
    }
    lmd_free(workspace->scratch);
    lmd_free_large(workspace->logits, logits_bytes(&workspace->config));
    lmd_free(workspace->seq_partials);
    lmd_free_large(workspace->ops, (size_t)workspace->max_ops * sizeof *workspace->ops);
    lmd_free_large(workspace->partials, partial_bytes(workspace));
    lmd_free(workspace->units);
    lmd_free(workspace->row_seqs);
    lmd_free_large(workspace->rope_table, rope_bytes(&workspace->config));
    lmd_free_large(workspace->kv, workspace->kv_bytes);
    lmd_free(workspace);
}

void lmd_cpu_kv_copy(lmd_workspace *workspace, const lmd_block_copy *copies, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        memcpy(workspace->kv + copies[i].to_block * workspace->block_stride,
               workspace->kv + copies[i].from_block * workspace->block_stride,
               (size_t)workspace->block_stride);
}

lmd_status lmd_cpu_kv_export(lmd_workspace *workspace, const int32_t *block_ids, int32_t n,
                             uint8_t *out, lmd_err *err) {
    (void)err; /* copying in host memory cannot fail */
    const size_t n_bytes = (size_t)workspace->block_stride;
    for (int32_t i = 0; i < n; i++, out += n_bytes)
        memcpy(out, workspace->kv + block_ids[i] * workspace->block_stride, n_bytes);
    return LMD_OK;
}

lmd_status lmd_cpu_kv_import(lmd_workspace *workspace, const int32_t *block_ids, int32_t n,
                             const uint8_t *data, lmd_err *err) {
    (void)err; /* nor can this */
    const size_t n_bytes = (size_t)workspace->block_stride;
    for (int32_t i = 0; i < n; i++, data += n_bytes)
        memcpy(workspace->kv + block_ids[i] * workspace->block_stride, data, n_bytes);
    return LMD_OK;
}
