/* A workspace on a CUDA device: see cuda_workspace.h. */
#include "cuda_workspace.h"

#include <stdlib.h>
#include <string.h>

#include "base/ints.h"
#include "base/memory.h"

/* ---- sizes ---- */

static lmd_cuda_kv_format kv_format_of(const lmd_workspace_config *config) {
    return (lmd_cuda_kv_format){config->block_len, config->head_dim, config->k_bits,
                                config->v_bits};
}

static size_t layer_bytes_of(const lmd_workspace_config *config) {
    const lmd_cuda_kv_format format = kv_format_of(config);
    return (size_t)lmd_kv_part_bytes(&format) * (size_t)config->n_kv_head;
}

size_t lmd_cuda_kv_block_bytes(const lmd_workspace_config *config) {
    return layer_bytes_of(config) * (size_t)config->n_layer;
}

static int32_t stride_of(int32_t n_cols, lmd_buffer_role role) {
    return role == LMD_BUFFER_RESIDUAL ? (n_cols + 3) / 4 * 4 : lmd_pad_cols(n_cols);
}

static size_t buffer_data_bytes(const lmd_workspace_config *config, int32_t n_cols,
                                lmd_buffer_role role) {
    const size_t value = role == LMD_BUFFER_RESIDUAL ? sizeof(float) : sizeof(uint16_t);
    return (size_t)config->max_tokens * (size_t)stride_of(n_cols, role) * value;
}

size_t lmd_cuda_buffer_bytes(const lmd_workspace_config *config, int32_t n_cols,
                             lmd_buffer_role role) {
    return buffer_data_bytes(config, n_cols, role);
}

static size_t mask_bytes(const lmd_workspace_config *config) {
    return ((size_t)config->vocab_size + 31) / 32 * sizeof(uint32_t);
}

/* Lists of one row at most: a bias and a count for each token, and a mask. Beside one such row
 * there is room for every other row of a step with a mask and 256 entries. */
static size_t lists_room_of(const lmd_workspace_config *config) {
    const size_t entry = sizeof(lmd_token_bias);
    const size_t one = 2 * (size_t)config->vocab_size * entry + mask_bytes(config);
    return lmd_cuda_aligned(one +
                            (size_t)config->max_seqs * (256 * entry + mask_bytes(config)) + 64);
}

static lmd_cuda_limits limits_of(const lmd_cuda_device *device,
                                 const lmd_workspace_config *config) {
    return (lmd_cuda_limits){
        .max_tokens = config->max_tokens,
        .max_seqs = config->max_seqs,
        .max_logits_rows = config->max_logits_rows,
        .max_cols = 2 * config->max_cols, /* gate and up: twice the ffn's buffer */
        .vocab_size = config->vocab_size,
        .n_head = config->n_head,
        .n_kv_head = config->n_kv_head,
        .head_dim = config->head_dim,
        .block_len = config->block_len,
        .n_positions = config->n_positions,
        .n_sms = device->n_sms,
        .batch_invariant = config->batch_invariant,
    };
}

/* A workspace with all its sizes, and nothing allocated. */
static lmd_workspace shaped_workspace(const lmd_cuda_device *device,
                                      const lmd_workspace_config *config) {
    const lmd_cuda_limits limits = limits_of(device, config);
    /* A layer enqueues ten operations at most, each tile of logits eight. */
    const int32_t n_tiles = lmd_ceil_div(config->max_tokens, config->max_logits_rows) + 1;
    const int32_t n_ops = 10 * config->n_layer + 8 * n_tiles + 16;
    lmd_workspace self = {
        .device = device,
        .config = *config,
        .kv_format = kv_format_of(config),
        .layer_bytes = layer_bytes_of(config),
        .block_bytes = lmd_cuda_kv_block_bytes(config),
        .final_stride = lmd_pad_cols(config->hidden_dim),
        .logits_stride = (config->vocab_size + 3) / 4 * 4,
        .scratch_bytes = device->kernels->scratch_bytes(&limits),
        .lists_room = lists_room_of(config),
        .args_room = device->kernels->on_host ? (size_t)n_ops * 512 : 0,
    };
    return self;
}

/* ---- the one allocation: its parts, walked to add up and to hand out ---- */

typedef struct region {
    void *slot; /* the address of the pointer to it */
    size_t n_bytes;
} region;

enum { N_REGIONS = 10 };

static void list_regions(lmd_workspace *self, region out[N_REGIONS]) {
    const lmd_workspace_config *config = &self->config;
    const size_t n_rows = (size_t)config->max_logits_rows;
    const region regions[N_REGIONS] = {
        {&self->ints, lmd_cuda_plan_room(config) * sizeof *self->ints},
        {&self->newest, (size_t)config->max_seqs * sizeof *self->newest},
        {&self->rope, (size_t)config->n_positions * (size_t)config->head_dim * sizeof(float)},
        {&self->final, n_rows * (size_t)self->final_stride * sizeof *self->final},
        {&self->logits, n_rows * (size_t)self->logits_stride * sizeof *self->logits},
        {&self->scratch, self->scratch_bytes},
        {&self->rows, n_rows * sizeof *self->rows},
        {&self->results, n_rows * sizeof *self->results},
        {&self->tops, n_rows * sizeof *self->tops},
        {&self->lists, self->lists_room},
    };
    memcpy(out, regions, sizeof regions);
}

static size_t regions_bytes(lmd_workspace *self) {
    region regions[N_REGIONS];
    size_t n_bytes = 0;
    list_regions(self, regions);
    for (int32_t i = 0; i < N_REGIONS; i++) n_bytes += lmd_cuda_aligned(regions[i].n_bytes);
    return n_bytes;
}

/* Zeroes memory, so that padding is 0. */
static lmd_status zero(const lmd_workspace *self, void *data, size_t n_bytes, lmd_err *err) {
    if (self->device->kernels->on_host) {
        memset(data, 0, n_bytes);
        return LMD_OK;
    }
    LMD_CUDA_TRY(cudaMemsetAsync(data, 0, n_bytes, self->queue.stream), "clearing memory", err);
    LMD_CUDA_TRY(cudaStreamSynchronize(self->queue.stream), "clearing memory", err);
    return LMD_OK;
}

static lmd_status allocate_memory(lmd_workspace *self, lmd_err *err) {
    region regions[N_REGIONS];
    void *memory = NULL;
    const size_t n_bytes = regions_bytes(self);
    LMD_TRY(lmd_cuda_alloc(self->device, n_bytes, "the engine's workspace", &memory, err));
    self->memory = memory;
    LMD_TRY(zero(self, memory, n_bytes, err));
    list_regions(self, regions);
    uint8_t *at = self->memory;
    for (int32_t i = 0; i < N_REGIONS; i++) {
        memcpy(regions[i].slot, &at, sizeof at);
        at += lmd_cuda_aligned(regions[i].n_bytes);
    }
    LMD_CUDA_TRY(
        cudaMemcpy(self->rope, self->config.rope_table, regions[2].n_bytes, cudaMemcpyDefault),
        "copying the RoPE table", err);
    self->config.rope_table = NULL; /* the caller's goes away */
    return LMD_OK;
}

static lmd_status allocate_kv(lmd_workspace *self, lmd_err *err) {
    size_t n_bytes;
    void *kv = NULL;
    if (__builtin_mul_overflow(self->block_bytes, (size_t)self->config.n_blocks, &n_bytes))
        return lmd_fail(err, LMD_NO_MEMORY, "%d KV blocks do not fit in memory",
                        (int)self->config.n_blocks);
    LMD_TRY(lmd_cuda_alloc(self->device, n_bytes, "the KV cache", &kv, err));
    self->kv = kv;
    return LMD_OK;
}

/* ---- flights ---- */

static lmd_status pin(const lmd_workspace *self, void *slot, size_t n_bytes, lmd_err *err) {
    void *data = NULL;
    LMD_TRY(lmd_cuda_alloc_pinned(self->device, n_bytes, &data, err));
    memcpy(slot, &data, sizeof data);
    return LMD_OK;
}

static lmd_status init_flight(const lmd_workspace *self, lmd_cuda_flight *flight,
                              lmd_err *err) {
    const lmd_workspace_config *config = &self->config;
    const size_t n_rows = (size_t)config->max_tokens;
    const int32_t n_tiles = lmd_ceil_div(config->max_tokens, config->max_logits_rows) + 1;
    LMD_TRY(pin(self, &flight->ints, lmd_cuda_plan_room(config) * sizeof *flight->ints, err));
    LMD_TRY(pin(self, &flight->rows, n_rows * sizeof *flight->rows, err));
    LMD_TRY(pin(self, &flight->results, n_rows * sizeof *flight->results, err));
    LMD_TRY(pin(self, &flight->tops, n_rows * sizeof *flight->tops, err));
    LMD_TRY(pin(self, &flight->lists, self->lists_room, err));
    flight->tiles = lmd_calloc((size_t)n_tiles, sizeof *flight->tiles);
    flight->args = lmd_calloc(self->args_room + 1, 1);
    if (!flight->tiles || !flight->args) return lmd_no_memory(err, "a plan in flight");
    LMD_CUDA_TRY(cudaEventCreateWithFlags(&flight->done, cudaEventDisableTiming),
                 "making an event", err);
    return LMD_OK;
}

static void clear_flight(const lmd_workspace *self, lmd_cuda_flight *flight) {
    const lmd_cuda_device *device = self->device;
    lmd_cuda_free_pinned(device, flight->ints);
    lmd_cuda_free_pinned(device, flight->rows);
    lmd_cuda_free_pinned(device, flight->results);
    lmd_cuda_free_pinned(device, flight->tops);
    lmd_cuda_free_pinned(device, flight->lists);
    lmd_free(flight->tiles);
    lmd_free(flight->args);
    if (flight->done && lmd_cuda_enter_to_free(device)) (void)cudaEventDestroy(flight->done);
}

/* ---- lifetime ---- */

static bool wants_graphs(void) {
    const char *value = getenv("LMDEPLOY_C_CUDA_GRAPHS");
    return !value || strcmp(value, "0") != 0;
}

static lmd_status check_served(const lmd_cuda_device *device,
                               const lmd_workspace_config *config, lmd_err *err) {
    LMD_TRY(lmd_workspace_config_check(config, err));
    if (config->k_bits == 32)
        return lmd_fail(
            err, LMD_UNSUPPORTED,
            "a KV cache of 32 bits is not served on CUDA: use kv_bits 16, 8 or 4, or "
            "device=\"cpu\"");
    if (!device->kernels->serves_head_dim(config->head_dim))
        return lmd_fail(
            err, LMD_UNSUPPORTED,
            "models of head_dim %d are not served on CUDA, only those of 64, 128 and "
            "256: use device=\"cpu\"",
            (int)config->head_dim);
    return LMD_OK;
}

lmd_status lmd_cuda_workspace_size(const lmd_cuda_device *device,
                                   const lmd_workspace_config *config, size_t *out,
                                   lmd_err *err) {
    LMD_TRY(check_served(device, config, err));
    lmd_workspace self = shaped_workspace(device, config);
    *out = regions_bytes(&self);
    return LMD_OK;
}

static lmd_status set_up(lmd_workspace *self, lmd_err *err) {
    LMD_TRY(lmd_cuda_enter(self->device, err));
    LMD_CUDA_TRY(cudaStreamCreateWithFlags(&self->queue.stream, cudaStreamNonBlocking),
                 "making a stream", err);
    self->queue.n_sms = self->device->n_sms;
    self->queue.blas = self->device->blas;
    self->uses_graphs = wants_graphs();
    LMD_TRY(allocate_kv(self, err));
    LMD_TRY(allocate_memory(self, err));
    for (int32_t i = 0; i < LMD_CUDA_FLIGHTS; i++)
        LMD_TRY(init_flight(self, &self->flights[i], err));
    return LMD_OK;
}

lmd_status lmd_cuda_workspace_new(const lmd_cuda_device *device,
                                  const lmd_workspace_config *config, lmd_workspace **out,
                                  lmd_err *err) {
    LMD_TRY(check_served(device, config, err));
    lmd_workspace *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a workspace");
    *self = shaped_workspace(device, config);
    const lmd_status status = set_up(self, err);
    if (status != LMD_OK) {
        lmd_cuda_workspace_free(self);
        return status;
    }
    *out = self;
    return LMD_OK;
}

void lmd_cuda_workspace_free(lmd_workspace *self) {
    if (!self) return;
    const lmd_cuda_device *device = self->device;
    if (lmd_cuda_enter_to_free(device) && self->queue.stream) {
        (void)cudaStreamSynchronize(self->queue.stream);
        for (int32_t i = 0; i < LMD_CUDA_MAX_GRAPHS; i++)
            if (self->graphs[i].exec) (void)cudaGraphExecDestroy(self->graphs[i].exec);
        (void)cudaStreamDestroy(self->queue.stream);
    }
    for (int32_t i = 0; i < LMD_CUDA_MAX_GRAPHS; i++) lmd_free(self->graphs[i].args);
    for (int32_t i = 0; i < LMD_CUDA_FLIGHTS; i++) clear_flight(self, &self->flights[i]);
    while (self->buffers) {
        lmd_buffer *buffer = self->buffers;
        self->buffers = buffer->next;
        lmd_cuda_free(device, buffer->data);
        lmd_free(buffer);
    }
    lmd_cuda_free(device, self->memory);
    lmd_cuda_free(device, self->kv);
    lmd_free(self);
}

lmd_status lmd_cuda_buffer_new(lmd_workspace *self, int32_t n_cols, lmd_buffer_role role,
                               lmd_buffer **out, lmd_err *err) {
    const size_t n_bytes = buffer_data_bytes(&self->config, n_cols, role);
    if (n_cols > self->config.max_cols)
        return lmd_fail(err, LMD_INVALID,
                        "a buffer of %d columns; the workspace has max_cols=%d", (int)n_cols,
                        (int)self->config.max_cols);
    lmd_buffer *buffer = lmd_calloc(1, sizeof *buffer);
    if (!buffer) return lmd_no_memory(err, "activations");
    *buffer = (lmd_buffer){.next = self->buffers,
                           .n_cols = n_cols,
                           .stride = stride_of(n_cols, role),
                           .role = role,
                           .unit = 1.0f};
    self->buffers = buffer; /* freed with the workspace, complete or not */
    LMD_TRY(lmd_cuda_alloc(self->device, n_bytes, "activations", &buffer->data, err));
    LMD_TRY(zero(self, buffer->data, n_bytes, err));
    *out = buffer;
    return LMD_OK;
}

/* ---- blocks of the KV pool ---- */

static lmd_status copy_blocks(lmd_workspace *self, const int32_t *block_ids, int32_t n,
                              uint8_t *host, bool is_export, lmd_err *err) {
    LMD_TRY(lmd_cuda_enter(self->device, err));
    for (int32_t i = 0; i < n; i++, host += self->block_bytes) {
        uint8_t *block = self->kv + (size_t)block_ids[i] * self->block_bytes;
        LMD_CUDA_TRY(cudaMemcpyAsync(is_export ? host : block, is_export ? block : host,
                                     self->block_bytes, cudaMemcpyDefault, self->queue.stream),
                     "copying KV blocks", err);
    }
    LMD_CUDA_TRY(cudaStreamSynchronize(self->queue.stream), "copying KV blocks", err);
    return LMD_OK;
}

lmd_status lmd_cuda_kv_export(lmd_workspace *self, const int32_t *block_ids, int32_t n,
                              uint8_t *out, lmd_err *err) {
    return copy_blocks(self, block_ids, n, out, true, err);
}

lmd_status lmd_cuda_kv_import(lmd_workspace *self, const int32_t *block_ids, int32_t n,
                              const uint8_t *data, lmd_err *err) {
    /* It is only read from: is_export is false. */
    return copy_blocks(self, block_ids, n, (uint8_t *)(uintptr_t)data, false, err);
}
