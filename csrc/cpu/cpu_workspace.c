/* A CPU workspace's memory: see cpu_workspace.h. */
#include "cpu/cpu_workspace.h"

#include <string.h>

#include "base/ints.h"
#include "base/memory.h"

/* ---- lists of arrays: whatever allocates, frees or predicts sizes walks them ---- */

typedef struct array {
    void *slot; /* the address of the pointer to it */
    size_t n_bytes;
} array;

enum { MAX_ARRAYS = 16 };

typedef struct array_list {
    array arrays[MAX_ARRAYS];
    int32_t n;
} array_list;

static size_t list_bytes(const array_list *list) {
    size_t sum = 0;
    for (int32_t i = 0; i < list->n; i++) sum += list->arrays[i].n_bytes;
    return sum;
}

/* False when memory ran out; free_list then frees what there is. */
static bool allocate_list(const array_list *list) {
    for (int32_t i = 0; i < list->n; i++) {
        void *data = lmd_alloc_large(list->arrays[i].n_bytes);
        if (!data) return false;
        memcpy(list->arrays[i].slot, &data, sizeof data);
    }
    return true;
}

static void free_list(const array_list *list) {
    for (int32_t i = 0; i < list->n; i++) {
        void *data;
        memcpy(&data, list->arrays[i].slot, sizeof data);
        lmd_free_large(data, list->arrays[i].n_bytes);
    }
}

/* ---- buffers ---- */

static lmd_buffer shaped_buffer(int32_t max_rows, int32_t n_cols) {
    return (lmd_buffer){.max_rows = max_rows, .n_cols = n_cols};
}

static array_list buffer_arrays(lmd_buffer *buffer) {
    lmd_acts *memory = &buffer->memory;
    const size_t n = (size_t)buffer->max_rows * (size_t)buffer->n_cols;
    const size_t n_groups = (size_t)buffer->max_rows * (size_t)(buffer->n_cols / 32); /* most */
    array_list list = {{{&memory->x, n * sizeof *memory->x},
                        {&memory->q, n * sizeof(int16_t)},
                        {&memory->scales, n_groups * sizeof *memory->scales},
                        {&memory->sums, n_groups * sizeof *memory->sums},
                        {&memory->scaled_sums, n_groups * sizeof *memory->scaled_sums}},
                       5};
    if (buffer->n_cols % 32) list.n = 1; /* never quantised */
    return list;
}

static size_t buffer_bytes(int32_t max_rows, int32_t n_cols) {
    lmd_buffer buffer = shaped_buffer(max_rows, n_cols);
    const array_list list = buffer_arrays(&buffer);
    return sizeof buffer + list_bytes(&list);
}

static lmd_status add_buffer(lmd_workspace *workspace, int32_t max_rows, int32_t n_cols,
                             lmd_buffer **out, lmd_err *err) {
    lmd_buffer *buffer = lmd_calloc(1, sizeof *buffer);
    if (!buffer) return lmd_no_memory(err, "activations");
    *buffer = shaped_buffer(max_rows, n_cols);
    buffer->next = workspace->buffers;
    workspace->buffers = buffer; /* freed with the workspace, complete or not */
    const array_list list = buffer_arrays(buffer);
    if (!allocate_list(&list))
        return lmd_no_memory(err, "activations of %d x %d", max_rows, n_cols);
    *out = buffer;
    return LMD_OK;
}

static void free_buffers(lmd_workspace *workspace) {
    while (workspace->buffers) {
        lmd_buffer *buffer = workspace->buffers;
        const array_list list = buffer_arrays(buffer);
        workspace->buffers = buffer->next;
        free_list(&list);
        lmd_free(buffer);
    }
}

lmd_status lmd_cpu_buffer_new(lmd_workspace *workspace, int32_t n_cols, lmd_buffer_role role,
                              lmd_buffer **out, lmd_err *err) {
    (void)role; /* a buffer has room for fp32 and for quantised rows */
    if (n_cols > workspace->config.max_cols)
        return lmd_fail(err, LMD_INVALID,
                        "a buffer of %d columns; the workspace has max_cols=%d", n_cols,
                        workspace->config.max_cols);
    return add_buffer(workspace, workspace->config.max_tokens, n_cols, out, err);
}

size_t lmd_cpu_buffer_bytes(const lmd_workspace_config *config, int32_t n_cols) {
    return buffer_bytes(config->max_tokens, n_cols);
}

/* ---- workspaces ---- */

static lmd_kv_format kv_format(const lmd_workspace_config *config) {
    return (lmd_kv_format){config->block_len, config->head_dim, config->k_bits, config->v_bits};
}

size_t lmd_cpu_kv_block_bytes(const lmd_workspace_config *config) {
    const lmd_kv_format format = kv_format(config);
    return (size_t)(lmd_kv_head_bytes(&format) * config->n_kv_head * config->n_layer);
}

static size_t rope_bytes(const lmd_workspace_config *config) {
    return (size_t)config->n_positions * (size_t)config->head_dim * sizeof(float);
}

/* A workspace with all its sizes, and nothing allocated. */
static lmd_workspace shaped_workspace(lmd_threads *threads, const lmd_cpu_kernels *kernels,
                                      const lmd_workspace_config *config) {
    lmd_workspace workspace = {
        .threads = threads,
        .kernels = kernels,
        .config = *config,
        .kv_format = kv_format(config),
        .block_stride = (int64_t)lmd_cpu_kv_block_bytes(config),
        .max_ops = lmd_cpu_max_ops(config->n_layer),
    };
    /* A linear reads the buffers that are added, and the one of the logits. */
    const int32_t max_cols = lmd_max_i32(config->max_cols, config->hidden_dim);
    const size_t n_bytes = kernels->scratch_bytes(max_cols) + LMD_CACHE_LINE - 1;
    workspace.kernel_scratch_bytes = n_bytes / LMD_CACHE_LINE * LMD_CACHE_LINE;
    workspace.head_bytes = lmd_kv_head_bytes(&workspace.kv_format);
    lmd_cpu_units_bound(&workspace.cut, config, lmd_threads_count(threads));
    return workspace;
}

/* Everything but KV, buffers and what sampling allocates for itself. */
static array_list workspace_arrays(lmd_workspace *self) {
    const lmd_workspace_config *config = &self->config;
    lmd_cpu_units *cut = &self->cut;
    const size_t n_threads = (size_t)lmd_threads_count(self->threads);
    const size_t n_logits = (size_t)config->max_logits_rows * (size_t)config->vocab_size;
    const size_t partial_len = (size_t)config->head_dim + 2;
    return (array_list){
        {{&self->ops, (size_t)self->max_ops * sizeof *self->ops},
         {&self->rope_table, rope_bytes(config)},
         {&cut->row_seqs, (size_t)config->max_tokens * sizeof *cut->row_seqs},
         {&cut->units, (size_t)cut->max_units * sizeof *cut->units},
         {&cut->seq_partials, (size_t)config->max_seqs * sizeof *cut->seq_partials},
         {&self->partials, (size_t)cut->max_partials * partial_len * sizeof *self->partials},
         {&self->logits, n_logits * sizeof *self->logits},
         {&self->scratch, n_threads * sizeof *self->scratch},
         {&self->kernel_scratch, n_threads * self->kernel_scratch_bytes}},
        9};
}

size_t lmd_cpu_workspace_bytes(lmd_threads *threads, const lmd_cpu_kernels *kernels,
                               const lmd_workspace_config *config) {
    lmd_workspace workspace = shaped_workspace(threads, kernels, config);
    const array_list list = workspace_arrays(&workspace);
    return sizeof workspace + LMD_KV_PADDING + list_bytes(&list) +
           (size_t)lmd_threads_count(threads) *
               lmd_cpu_sample_scratch_bytes(config->vocab_size) +
           buffer_bytes(config->max_logits_rows, config->hidden_dim);
}

static lmd_status allocate_kv(lmd_workspace *workspace, lmd_err *err) {
    const int32_t n_blocks = workspace->config.n_blocks;
    size_t n_bytes;
    if (__builtin_mul_overflow((size_t)workspace->block_stride, (size_t)n_blocks, &n_bytes) ||
        __builtin_add_overflow(n_bytes, (size_t)LMD_KV_PADDING, &n_bytes))
        return lmd_fail(err, LMD_NO_MEMORY, "%d KV blocks do not fit in memory", n_blocks);
    workspace->kv_bytes = n_bytes;
    workspace->kv = lmd_alloc_large(n_bytes);
    if (!workspace->kv)
        return lmd_fail(
            err, LMD_NO_MEMORY,
            "the KV cache of %zu bytes cannot be allocated; lower cache_max_entry_count",
            n_bytes);
    return LMD_OK;
}

static lmd_status allocate(lmd_workspace *workspace, lmd_err *err) {
    lmd_workspace_config *config = &workspace->config;
    LMD_TRY(allocate_kv(workspace, err));
    const array_list list = workspace_arrays(workspace);
    if (!allocate_list(&list)) return lmd_no_memory(err, "the engine's buffers");
    memcpy(workspace->rope_table, config->rope_table, rope_bytes(config));
    config->rope_table = workspace->rope_table;
    for (int32_t i = 0; i < lmd_threads_count(workspace->threads); i++) {
        lmd_thread_scratch *scratch = &workspace->scratch[i];
        scratch->kernel =
            workspace->kernel_scratch + (size_t)i * workspace->kernel_scratch_bytes;
        LMD_TRY(lmd_cpu_sample_scratch_init(&scratch->sample, config->vocab_size, err));
    }
    return add_buffer(workspace, config->max_logits_rows, config->hidden_dim, &workspace->final,
                      err);
}

lmd_status lmd_cpu_workspace_new(lmd_threads *threads, const lmd_cpu_kernels *kernels,
                                 const lmd_workspace_config *config, lmd_workspace **out,
                                 lmd_err *err) {
    LMD_TRY(lmd_workspace_config_check(config, err));
    lmd_workspace *workspace = lmd_calloc(1, sizeof *workspace);
    if (!workspace) return lmd_no_memory(err, "a workspace");
    *workspace = shaped_workspace(threads, kernels, config);
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
    free_buffers(workspace);
    for (int32_t i = 0; workspace->scratch && i < lmd_threads_count(workspace->threads); i++)
        lmd_cpu_sample_scratch_clear(&workspace->scratch[i].sample);
    const array_list list = workspace_arrays(workspace);
    free_list(&list);
    lmd_free_large(workspace->kv, workspace->kv_bytes);
    lmd_free(workspace);
}

/* ---- blocks of the KV pool ---- */

static uint8_t *block_at(const lmd_workspace *workspace, int32_t block_id) {
    return workspace->kv + block_id * workspace->block_stride;
}

void lmd_cpu_kv_copy(lmd_workspace *workspace, const lmd_block_copy *copies, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        memcpy(block_at(workspace, copies[i].to_block),
               block_at(workspace, copies[i].from_block), (size_t)workspace->block_stride);
}

lmd_status lmd_cpu_kv_export(lmd_workspace *workspace, const int32_t *block_ids, int32_t n,
                             uint8_t *out, lmd_err *err) {
    (void)err; /* copying in host memory cannot fail */
    const size_t n_bytes = (size_t)workspace->block_stride;
    for (int32_t i = 0; i < n; i++, out += n_bytes)
        memcpy(out, block_at(workspace, block_ids[i]), n_bytes);
    return LMD_OK;
}

lmd_status lmd_cpu_kv_import(lmd_workspace *workspace, const int32_t *block_ids, int32_t n,
                             const uint8_t *data, lmd_err *err) {
    (void)err; /* copying in host memory cannot fail */
    const size_t n_bytes = (size_t)workspace->block_stride;
    for (int32_t i = 0; i < n; i++, data += n_bytes)
        memcpy(block_at(workspace, block_ids[i]), data, n_bytes);
    return LMD_OK;
}
