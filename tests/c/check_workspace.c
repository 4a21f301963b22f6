/* CPU workspaces without a model: the bytes that are predicted are those that are allocated, a
 * step allocates nothing, and a buffer that several linears read gives each of them what it
 * would have read alone. Exits 1 when one does not hold. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/memory.h"
#include "cpu/cpu_backend.h"
#include "cpu/cpu_features.h"
#include "cpu/cpu_workspace.h"

static int n_wrong;

static void die(const lmd_err *err) {
    printf("%s\n", err->message);
    exit(1);
}

static lmd_backend *open_backend(int32_t n_threads) {
    const lmd_backend_config config = {.n_threads = n_threads};
    lmd_backend *backend;
    lmd_err err;
    if (lmd_cpu_backend_open(&config, &backend, &err) != LMD_OK) die(&err);
    return backend;
}

static lmd_workspace *make_workspace(lmd_backend *backend, const lmd_workspace_config *config) {
    lmd_workspace *workspace;
    lmd_err err;
    if (backend->ops->workspace_new(backend, config, &workspace, &err) != LMD_OK) die(&err);
    return workspace;
}

static lmd_buffer *make_buffer(lmd_backend *backend, lmd_workspace *workspace, int32_t n_cols) {
    lmd_buffer *buffer;
    lmd_err err;
    if (backend->ops->buffer_new(workspace, n_cols, LMD_BUFFER_ACTIVATION, &buffer, &err) !=
        LMD_OK)
        die(&err);
    return buffer;
}

/* ---- sizes ---- */

static void expect_bytes(const char *what, const lmd_backend *backend, size_t predicted,
                         size_t allocated) {
    if (predicted == allocated) return;
    printf("%s on %s with %d threads: %zu bytes were predicted, %zu allocated\n", what,
           backend->ops->isa(backend), backend->ops->n_threads(backend), predicted, allocated);
    n_wrong++;
}

static void check_sizes_of(lmd_backend *backend, const lmd_workspace_config *config) {
    static const int32_t widths[] = {1, 32, 100, 1024, 3000};
    const lmd_backend_ops *ops = backend->ops;
    const size_t n_kv = (size_t)config->n_blocks * ops->kv_block_bytes(config);
    uint64_t before = lmd_alloc_bytes();
    lmd_workspace *workspace = make_workspace(backend, config);
    const size_t allocated = (size_t)(lmd_alloc_bytes() - before);
    size_t n_bytes = 0;
    n_wrong += ops->workspace_size(backend, config, &n_bytes, NULL) != LMD_OK;
    expect_bytes("a workspace", backend, n_bytes + n_kv, allocated);
    for (int i = 0; i < 5; i++) {
        if (widths[i] > config->max_cols) continue;
        before = lmd_alloc_bytes();
        make_buffer(backend, workspace, widths[i]);
        expect_bytes("a buffer", backend,
                     ops->buffer_bytes(backend, config, widths[i], LMD_BUFFER_ACTIVATION),
                     (size_t)(lmd_alloc_bytes() - before));
    }
    lmd_buffer *refused;
    n_wrong += ops->buffer_new(workspace, config->max_cols + 1, LMD_BUFFER_ACTIVATION, &refused,
                               NULL) != LMD_INVALID;
    ops->workspace_free(workspace);
}

/* Of every usable ISA, for they want scratch of their own; of 1, 2 and 5 threads; of many
 * shapes. */
static void check_sizes(void) {
    static const int32_t bits[][2] = {{16, 16}, {32, 32}, {8, 8}, {8, 4}, {4, 8}};
    static float rope[4096 * 128];
    lmd_isa isas[LMD_MAX_ISAS];
    const int n_isas = lmd_cpu_isas(isas);
    for (int i = 0; i < n_isas * 3; i++) {
        if (!isas[i / 3].usable) continue;
        setenv("LMDEPLOY_C_ISA", isas[i / 3].kernels->isa, 1);
        lmd_backend *backend = open_backend(i % 3 == 2 ? 5 : i % 3 + 1);
        for (int32_t b = 0; b < 5; b++) {
            lmd_workspace_config config = {.max_tokens = 64 << b,
                                           .max_seqs = 1 + 7 * b,
                                           .max_logits_rows = 64,
                                           .max_cols = b % 2 ? 3000 : 1024,
                                           .n_layer = 1 + b,
                                           .n_head = 12,
                                           .n_kv_head = b % 2 ? 1 : 4,
                                           .head_dim = 40 + 8 * b,
                                           .hidden_dim = 2048 - 100 * b,
                                           .vocab_size = 1000 + b,
                                           .n_blocks = 3 * b,
                                           .block_len = 16 << b,
                                           .k_bits = bits[b][0],
                                           .v_bits = bits[b][1],
                                           .n_positions = 4096 >> b,
                                           .rope_table = rope};
            check_sizes_of(backend, &config);
        }
        backend->ops->free(backend);
    }
    unsetenv("LMDEPLOY_C_ISA");
    printf("workspaces and buffers: %d of other sizes than predicted\n", n_wrong);
}

/* ---- several readers of one buffer ---- */

enum { HIDDEN = 64, N_OUT = 96, N_TOKENS = 6, N_READERS = 4 };

static uint32_t random_u32(void) { /* xorshift */
    static uint32_t state = 2463534242u;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static lmd_weight *make_weight(lmd_backend *backend, lmd_dtype dtype, int32_t n, int32_t k,
                               int32_t n_parts) {
    static uint8_t stored[N_OUT * HIDDEN * 4];
    const int64_t n_bytes = lmd_dtype_row_bytes(dtype, k) * n;
    const int32_t block_bytes = dtype == LMD_F16 ? 2 : lmd_dtype_block_bytes(dtype);
    for (int64_t i = 0; i < n_bytes; i++) stored[i] = (uint8_t)random_u32();
    for (int64_t at = 0; at < n_bytes; at += block_bytes) {
        const uint16_t half = lmd_float_to_half((float)(random_u32() % 1000) * 1e-4f);
        memcpy(stored + at, &half, sizeof half); /* of a block: its scale */
    }
    const lmd_tensor_view view = {
        .name = "w", .dtype = dtype, .n_dims = 2, .dims = {n, k, 1, 1}, .data = stored};
    lmd_weight_source src = {.n_parts = n_parts, .n_cols = k};
    for (int32_t i = 0; i < n_parts; i++)
        src.parts[i] = (lmd_weight_part){.tensor = &view, .n_rows = n};
    lmd_weight *weight;
    lmd_err err;
    if (backend->ops->upload(backend, &src, &weight, &err) != LMD_OK) die(&err);
    return weight;
}

typedef struct readers {
    lmd_backend *backend;
    lmd_workspace *workspace;
    lmd_weight *embed, *norm_weight, *gate_up, *weights[N_READERS];
    lmd_buffer *residual, *norm, *ffn, *outs[N_READERS];
} readers;

static readers make_readers(int32_t n_threads, bool fast) {
    static float ones[HIDDEN], rope[256 * 32];
    /* Two forms of codes (fast activations make a third), and floats. */
    static const lmd_dtype dtypes[N_READERS] = {LMD_Q4_0, LMD_F16, LMD_Q8_0, LMD_Q4_0};
    const lmd_workspace_config config = {.max_tokens = N_TOKENS,
                                         .max_seqs = 1,
                                         .max_logits_rows = N_TOKENS,
                                         .max_cols = N_OUT,
                                         .n_layer = 1,
                                         .n_head = 2,
                                         .n_kv_head = 1,
                                         .head_dim = 32,
                                         .hidden_dim = HIDDEN,
                                         .vocab_size = N_OUT,
                                         .n_blocks = 1,
                                         .block_len = 16,
                                         .k_bits = 16,
                                         .v_bits = 16,
                                         .fast_activations = fast,
                                         .n_positions = 256,
                                         .rope_table = rope};
    readers self = {.backend = open_backend(n_threads)};
    lmd_err err;
    for (int i = 0; i < HIDDEN; i++) ones[i] = 1.0f;
    if (self.backend->ops->upload_vector(self.backend, ones, HIDDEN, &self.norm_weight, &err) !=
        LMD_OK)
        die(&err);
    self.workspace = make_workspace(self.backend, &config);
    self.embed = make_weight(self.backend, LMD_Q8_0, N_OUT, HIDDEN, 1);
    self.gate_up = make_weight(self.backend, LMD_Q4_0, HIDDEN, HIDDEN, 2);
    self.residual = make_buffer(self.backend, self.workspace, HIDDEN);
    self.norm = make_buffer(self.backend, self.workspace, HIDDEN);
    self.ffn = make_buffer(self.backend, self.workspace, HIDDEN);
    for (int i = 0; i < N_READERS; i++) {
        self.weights[i] = make_weight(self.backend, dtypes[i], N_OUT, HIDDEN, 1);
        self.outs[i] = make_buffer(self.backend, self.workspace, N_OUT);
    }
    return self;
}

static void free_readers(readers *self) {
    const lmd_backend_ops *ops = self->backend->ops;
    lmd_weight *others[] = {self->embed, self->norm_weight, self->gate_up};
    for (int i = 0; i < N_READERS; i++) ops->weight_free(self->backend, self->weights[i]);
    for (int i = 0; i < 3; i++) ops->weight_free(self->backend, others[i]);
    ops->workspace_free(self->workspace);
    ops->free(self->backend);
}

/* Runs a step in which the readers of `which` read the norm (or what gate and up make of it),
 * in an order that starts with `first`; false where it allocated. */
static bool run_readers(readers *self, unsigned which, int first, bool gated) {
    static const int32_t zero = 0, n_tokens = N_TOKENS, offsets[2] = {0, N_TOKENS},
                         block_offsets[2] = {0, 1}, ids[N_TOKENS] = {3, 1, 4, 1, 5, 9},
                         positions[N_TOKENS] = {0, 1, 2, 3, 4, 5};
    static const int64_t seq_id = 0;
    const lmd_plan plan = {.n_seqs = 1,
                           .n_tokens = N_TOKENS,
                           .seq_ids = &seq_id,
                           .slots = &zero,
                           .history_lens = &zero,
                           .input_lens = &n_tokens,
                           .token_offsets = offsets,
                           .token_ids = ids,
                           .positions = positions,
                           .block_offsets = block_offsets,
                           .block_ids = &zero};
    const lmd_backend_ops *ops = self->backend->ops;
    lmd_buffer *in = gated ? self->ffn : self->norm;
    const uint64_t before = lmd_alloc_count();
    ops->step_begin(self->workspace, &plan);
    ops->embed(self->workspace, self->embed, self->residual);
    ops->add_norm(self->workspace, self->residual, self->norm_weight, 1e-5f, self->norm);
    if (gated)
        ops->linear(self->workspace, &(lmd_linear_args){.weight = self->gate_up,
                                                        .in = self->norm,
                                                        .out = self->ffn,
                                                        .epilogue = LMD_EPILOGUE_SILU_MUL});
    for (int i = 0; i < N_READERS; i++) {
        const int r = (first + i) % N_READERS;
        if (which >> r & 1)
            ops->linear(
                self->workspace,
                &(lmd_linear_args){.weight = self->weights[r], .in = in, .out = self->outs[r]});
    }
    ops->step_end(self->workspace);
    if (ops->step_wait(self->workspace, plan.plan_id, NULL) != LMD_OK) n_wrong++;
    return lmd_alloc_count() == before;
}

/* What is left in a buffer from a step before must not look right. */
static void poison(readers *self) {
    lmd_buffer *buffers[] = {self->norm, self->ffn};
    for (int i = 0; i < 2; i++) {
        memset(buffers[i]->memory.x, 0xff, N_TOKENS * HIDDEN * sizeof(float));
        memset(buffers[i]->memory.q, 0x55, N_TOKENS * HIDDEN * sizeof(int16_t));
    }
    for (int i = 0; i < N_READERS; i++)
        memset(self->outs[i]->memory.x, 0xff, N_TOKENS * N_OUT * sizeof(float));
}

static int count_wrong_readers(readers *self, bool gated) {
    static float alone[N_READERS][N_TOKENS * N_OUT];
    int n_wrong_here = 0;
    for (int r = 0; r < N_READERS; r++) {
        poison(self);
        n_wrong_here += !run_readers(self, 1u << r, 0, gated);
        memcpy(alone[r], self->outs[r]->memory.x, sizeof alone[r]);
        for (int i = 0; i < N_TOKENS * N_OUT; i++)
            n_wrong_here += !(alone[r][i] * 0.0f == 0.0f);
    }
    for (unsigned which = 1; which < 1u << N_READERS; which++)
        for (int first = 0; first < N_READERS; first++) {
            poison(self);
            n_wrong_here += !run_readers(self, which, first, gated);
            for (int r = 0; r < N_READERS; r++)
                n_wrong_here += (which >> r & 1) &&
                                memcmp(alone[r], self->outs[r]->memory.x, sizeof alone[r]) != 0;
        }
    return n_wrong_here;
}

static void check_readers(void) {
    int n = 0;
    for (int i = 0; i < 8; i++) {
        readers self = make_readers(i & 1 ? 3 : 1, i & 2);
        n += count_wrong_readers(&self, i & 4);
        free_readers(&self);
    }
    printf("readers of one buffer: %d wrong\n", n);
    n_wrong += n;
}

int main(void) {
    check_sizes();
    check_readers();
    return n_wrong != 0;
}
