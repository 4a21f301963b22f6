/* The CPU workspace, for the thread sanitizer: runs a small decoder of random weights step by
 * step on 1 and on 3 threads. Every logit must have the same bits, and a step must allocate
 * nothing. Steps decode, prefill, or do both, and contexts are long enough to be split over
 * chunks. Exits 1 on a difference. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/memory.h"
#include "cpu/cpu_backend.h"

enum {
    N_LAYER = 3,
    N_HEAD = 6,
    N_KV_HEAD = 2,
    HEAD_DIM = 32,
    HIDDEN = 192,
    FFN = 320,
    VOCAB = 200,
    N_QKV = (N_HEAD + 2 * N_KV_HEAD) * HEAD_DIM,
    BLOCK_LEN = 64,
    N_SEQS = 5,
    BLOCKS_PER_SEQ = 12,
    MAX_TOKENS = 128,
    N_STEPS = 40,
    N_REPEATS = 60 /* of the logits in a step: more operations than a workspace has room for */
};

static uint64_t random_state;

static uint32_t random_u32(void) { /* xorshift64* */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)(random_state * 2685821657736338717u >> 32);
}

static void die(const char *what, const char *why) {
    printf("%s: %s\n", what, why);
    exit(1);
}

typedef struct layer {
    lmd_weight *attn_norm, *qkv, *o, *ffn_norm, *gate_up, *down;
} layer;

typedef struct machine {
    lmd_backend *backend;
    lmd_workspace *workspace;
    layer layers[N_LAYER];
    lmd_weight *embed, *final_norm;
    lmd_buffer *residual, *norm, *qkv, *attn, *ffn;
} machine;

/* Makes a random matrix of n_parts equal parts, whose half scales are ordinary numbers. */
static lmd_weight *make_weight(machine *self, lmd_dtype dtype, int n_parts, int n, int k) {
    lmd_err err;
    lmd_weight *weight;
    size_t n_bytes = (size_t)(lmd_dtype_row_bytes(dtype, k) * n);
    int block_bytes = lmd_dtype_block_bytes(dtype), n_scales = dtype == LMD_Q4_1 ? 2 : 1;
    lmd_weight_source src = {.n_parts = n_parts, .n_cols = k};
    lmd_tensor_view views[2];
    for (int p = 0; p < n_parts; p++) {
        uint8_t *data = malloc(n_bytes);
        if (!data) die("weight", "no memory");
        for (size_t i = 0; i < n_bytes; i++) data[i] = (uint8_t)random_u32();
        for (size_t at = 0; at < n_bytes; at += (size_t)block_bytes)
            for (int s = 0; s < n_scales; s++) {
                float scale = s ? -0.08f : 0.01f;
                uint16_t half = lmd_float_to_half(dtype == LMD_Q8_0 ? 0.0006f : scale);
                memcpy(data + at + 2 * s, &half, 2);
            }
        views[p] = (lmd_tensor_view){
            .name = "w", .dtype = dtype, .n_dims = 2, .dims = {n, k, 1, 1}, .data = data};
        src.parts[p] = (lmd_weight_part){.tensor = &views[p], .n_rows = n};
    }
    if (self->backend->ops->upload(self->backend, &src, &weight, &err) != LMD_OK)
        die("upload", err.message);
    for (int p = 0; p < n_parts; p++) free((void *)(uintptr_t)views[p].data);
    return weight;
}

static lmd_weight *make_vector(machine *self, int n) {
    lmd_err err;
    lmd_weight *weight;
    float values[HIDDEN];
    for (int i = 0; i < n; i++) values[i] = 0.5f + (float)(random_u32() % 1000) * 0.001f;
    if (self->backend->ops->upload_vector(self->backend, values, n, &weight, &err) != LMD_OK)
        die("vector", err.message);
    return weight;
}

static machine make_machine(int n_threads, bool fast, bool wide_groups) {
    machine self = {0};
    lmd_err err;
    lmd_backend_config config = {.n_threads = n_threads};
    static float rope[BLOCKS_PER_SEQ * BLOCK_LEN * HEAD_DIM];
    for (int i = 0; i < BLOCKS_PER_SEQ * BLOCK_LEN * HEAD_DIM; i++)
        rope[i] = i % 2 ? 0.6f : 0.8f;
    random_state = 88172645463325252u;
    if (lmd_cpu_backend_open(&config, &self.backend, &err) != LMD_OK)
        die("backend", err.message);
    lmd_dtype o_dtype = wide_groups ? LMD_F16 : LMD_Q4_0; /* float weights read fp32 */
    self.embed = make_weight(&self, LMD_Q8_0, 1, VOCAB, HIDDEN);
    self.final_norm = make_vector(&self, HIDDEN);
    for (int i = 0; i < N_LAYER; i++)
        self.layers[i] = (layer){.attn_norm = make_vector(&self, HIDDEN),
                                 .qkv = make_weight(&self, LMD_Q4_1, 1, N_QKV, HIDDEN),
                                 .o = make_weight(&self, o_dtype, 1, HIDDEN, N_HEAD * HEAD_DIM),
                                 .ffn_norm = make_vector(&self, HIDDEN),
                                 .gate_up = make_weight(&self, LMD_Q4_1, 2, FFN, HIDDEN),
                                 .down = make_weight(&self, LMD_Q8_0, 1, HIDDEN, FFN)};
    lmd_workspace_config workspace = {.max_tokens = MAX_TOKENS,
                                      .max_seqs = N_SEQS,
                                      .max_logits_rows = 16,
                                      .max_cols = N_QKV > FFN ? N_QKV : FFN,
                                      .n_layer = N_LAYER,
                                      .n_head = N_HEAD,
                                      .n_kv_head = N_KV_HEAD,
                                      .head_dim = HEAD_DIM,
                                      .hidden_dim = HIDDEN,
                                      .vocab_size = VOCAB,
                                      .n_blocks = N_SEQS * BLOCKS_PER_SEQ,
                                      .block_len = BLOCK_LEN,
                                      .k_bits = fast ? 8 : 16,
                                      .v_bits = fast ? 4 : 16,
                                      .fast_activations = fast,
                                      .n_positions = BLOCKS_PER_SEQ * BLOCK_LEN,
                                      .rope_table = rope};
    const lmd_backend_ops *ops = self.backend->ops;
    if (ops->workspace_new(self.backend, &workspace, &self.workspace, &err) != LMD_OK ||
        ops->buffer_new(self.workspace, HIDDEN, LMD_BUFFER_RESIDUAL, &self.residual, &err) !=
            LMD_OK ||
        ops->buffer_new(self.workspace, HIDDEN, LMD_BUFFER_ACTIVATION, &self.norm, &err) !=
            LMD_OK ||
        ops->buffer_new(self.workspace, N_QKV, LMD_BUFFER_ACTIVATION, &self.qkv, &err) !=
            LMD_OK ||
        ops->buffer_new(self.workspace, N_HEAD * HEAD_DIM, LMD_BUFFER_ACTIVATION, &self.attn,
                        &err) != LMD_OK ||
        ops->buffer_new(self.workspace, FFN, LMD_BUFFER_ACTIVATION, &self.ffn, &err) != LMD_OK)
        die("workspace", err.message);
    return self;
}

static void free_machine(machine *self) {
    const lmd_backend_ops *ops = self->backend->ops;
    ops->workspace_free(self->workspace);
    for (int i = 0; i < N_LAYER; i++) {
        layer *l = &self->layers[i];
        lmd_weight *weights[] = {l->attn_norm, l->qkv, l->o, l->ffn_norm, l->gate_up, l->down};
        for (int w = 0; w < 6; w++) ops->weight_free(self->backend, weights[w]);
    }
    ops->weight_free(self->backend, self->embed);
    ops->weight_free(self->backend, self->final_norm);
    ops->free(self->backend);
}

/* Runs a step that makes its logits again and again; returns how many rows then differ.
 * `pattern` says after which repeats they are sampled, so that the list of operations runs full
 * at any place. */
static int run_step(machine *self, const lmd_plan *plan, uint64_t pattern,
                    lmd_sample_result *results) {
    static lmd_sample_result repeated[N_REPEATS][N_SEQS];
    const lmd_backend_ops *ops = self->backend->ops;
    lmd_err err;
    const uint64_t n_allocations = lmd_alloc_count();
    ops->step_begin(self->workspace, plan);
    ops->embed(self->workspace, self->embed, self->residual);
    for (int i = 0; i < N_LAYER; i++) {
        const layer *l = &self->layers[i];
        ops->add_norm(self->workspace, self->residual, l->attn_norm, 1e-5f, self->norm);
        ops->linear(self->workspace,
                    &(lmd_linear_args){.weight = l->qkv, .in = self->norm, .out = self->qkv});
        ops->attention(self->workspace,
                       &(lmd_attention_args){.layer = i, .qkv = self->qkv, .out = self->attn});
        ops->linear(self->workspace, &(lmd_linear_args){.weight = l->o,
                                                        .in = self->attn,
                                                        .out = self->residual,
                                                        .epilogue = LMD_EPILOGUE_ADD});
        ops->add_norm(self->workspace, self->residual, l->ffn_norm, 1e-5f, self->norm);
        ops->linear(self->workspace, &(lmd_linear_args){.weight = l->gate_up,
                                                        .in = self->norm,
                                                        .out = self->ffn,
                                                        .epilogue = LMD_EPILOGUE_SILU_MUL});
        ops->linear(self->workspace, &(lmd_linear_args){.weight = l->down,
                                                        .in = self->ffn,
                                                        .out = self->residual,
                                                        .epilogue = LMD_EPILOGUE_ADD});
    }
    const int n_rows = plan->n_logits_rows;
    for (int i = 0; i < N_REPEATS; i++) {
        ops->logits(self->workspace, self->residual, self->final_norm, 1e-5f, self->embed, 0,
                    n_rows);
        if (pattern >> i & 1) ops->sample(self->workspace, plan->samples, n_rows, repeated[i]);
    }
    ops->logits(self->workspace, self->residual, self->final_norm, 1e-5f, self->embed, 0,
                n_rows);
    ops->sample(self->workspace, plan->samples, n_rows, results);
    if (ops->step_wait(self->workspace, plan->plan_id, &err) != LMD_OK)
        die("step", err.message);
    if (lmd_alloc_count() != n_allocations) die("step", "it allocated memory");
    int n_different = 0;
    for (int i = 0; i < N_REPEATS; i++)
        for (int r = 0; r < n_rows && (pattern >> i & 1); r++)
            n_different += repeated[i][r].token_id != results[r].token_id ||
                           repeated[i][r].token_logprob != results[r].token_logprob;
    return n_different;
}

/* A step of some sequences, each of which decodes one token or prefills a few. */
typedef struct step_plan {
    lmd_plan plan;
    int64_t seq_ids[N_SEQS];
    int32_t slots[N_SEQS], history_lens[N_SEQS], input_lens[N_SEQS];
    int32_t token_offsets[N_SEQS + 1], token_ids[MAX_TOKENS], positions[MAX_TOKENS];
    int32_t block_offsets[N_SEQS + 1], block_ids[N_SEQS * BLOCKS_PER_SEQ], logits_rows[N_SEQS];
    lmd_sample_params samples[N_SEQS];
    float logits[N_SEQS][VOCAB];
} step_plan;

static void make_step(step_plan *self, int32_t *lens) {
    int n_seqs = 0, n_tokens = 0, n_blocks = 0;
    bool prefills = random_u32() % 3 == 0;
    for (int s = 0; s < N_SEQS; s++) {
        if (random_u32() % 4 == 0) continue;
        int n = lens[s] == 0 || (prefills && s == 1) ? 1 + (int)(random_u32() % 24) : 1;
        if (s == 0 && lens[s] == 0) n = 20;
        if (lens[s] + n > BLOCKS_PER_SEQ * BLOCK_LEN) continue;
        self->seq_ids[n_seqs] = s;
        self->slots[n_seqs] = s;
        self->history_lens[n_seqs] = lens[s];
        self->input_lens[n_seqs] = n;
        self->token_offsets[n_seqs] = n_tokens;
        self->block_offsets[n_seqs] = n_blocks;
        for (int i = 0; i < n; i++) {
            self->token_ids[n_tokens] = (int32_t)(random_u32() % VOCAB);
            self->positions[n_tokens++] = lens[s] + i;
        }
        for (int b = 0; b < BLOCKS_PER_SEQ; b++)
            self->block_ids[n_blocks++] = s + (BLOCKS_PER_SEQ - 1 - b) * N_SEQS;
        self->logits_rows[n_seqs] = n_tokens - 1;
        self->samples[n_seqs] = (lmd_sample_params){.wants_token = true,
                                                    .greedy = true,
                                                    .target_id = -1,
                                                    .logits_out = self->logits[n_seqs]};
        lens[s] += n;
        n_seqs++;
    }
    self->token_offsets[n_seqs] = n_tokens;
    self->block_offsets[n_seqs] = n_blocks;
    self->plan = (lmd_plan){.n_seqs = n_seqs,
                            .n_tokens = n_tokens,
                            .n_logits_rows = n_seqs,
                            .seq_ids = self->seq_ids,
                            .slots = self->slots,
                            .history_lens = self->history_lens,
                            .input_lens = self->input_lens,
                            .token_offsets = self->token_offsets,
                            .token_ids = self->token_ids,
                            .positions = self->positions,
                            .block_offsets = self->block_offsets,
                            .block_ids = self->block_ids,
                            .logits_rows = self->logits_rows,
                            .samples = self->samples};
}

/* Runs the same steps on both; returns how many rows differ. */
static int compare(bool fast, bool wide_groups) {
    machine one = make_machine(1, fast, wide_groups),
            three = make_machine(3, fast, wide_groups);
    static step_plan step;
    static float first[N_SEQS][VOCAB];
    lmd_sample_result results[N_SEQS];
    int32_t lens[N_SEQS] = {0};
    int n_different = 0;
    random_state = 12345;
    for (int i = 0; i < N_STEPS; i++) {
        if (i == N_STEPS / 2)
            lens[0] = 300; /* the positions skipped hold zeros; the context is split anyway */
        make_step(&step, lens);
        if (step.plan.n_seqs == 0) continue;
        uint64_t pattern = (uint64_t)random_u32() << 32 | random_u32();
        n_different += run_step(&one, &step.plan, pattern, results);
        memcpy(first, step.logits, sizeof first);
        n_different += run_step(&three, &step.plan, pattern, results);
        for (int r = 0; r < step.plan.n_seqs; r++) {
            bool finite = !results[r].not_finite;
            n_different += !finite || memcmp(first[r], step.logits[r], sizeof first[r]) != 0;
        }
    }
    free_machine(&one);
    free_machine(&three);
    return n_different;
}

int main(void) {
    int n_different = 0;
    for (int i = 0; i < 4; i++) n_different += compare(i % 2, i / 2);
    printf("a step on 1 and on 3 threads: %d rows differ\n", n_different);
    return n_different != 0;
}
