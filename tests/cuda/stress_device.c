/* The whole engine on the emulated device, for the thread sanitizer: a small model of random
 * weights, several clients at once, few KV blocks, so that sequences are preempted, and plans
 * that are submitted while the one before runs. The kernels are the row "ref", whose bits do
 * not depend on a sequence's neighbours: each answer must be the one that its prompt gets
 * alone. Exits 1 on a difference. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "cuda_backend.h"
#include "engine/engine.h"
#include "model/decoder.h"

enum { N_CLIENTS = 4, N_PROMPTS = 12, N_ROUNDS = 20, MAX_NEW = 24, VOCAB = 96, HIDDEN = 64 };

static const lmd_model_config shape = {
    .arch = "llama",
    .n_layer = 2,
    .n_head = 4,
    .n_kv_head = 2,
    .head_dim = 16,
    .hidden_dim = HIDDEN,
    .ffn_dim = 96,
    .vocab_size = VOCAB,
    .max_position = 256,
    .norm_eps = 1e-5,
    .rope = {.theta = 10000.0, .factor = 1.0, .original_max_position = 256},
    .tie_embeddings = true,
};

static void die(const char *what, const lmd_err *err) {
    printf("%s: %s\n", what, err ? err->message : "");
    exit(1);
}

/* ---- the model ---- */

typedef struct writer {
    lmd_checkpoint *checkpoint;
    float *data;
    size_t len; /* floats */
    int32_t file_idx;
    unsigned seed;
} writer;

/* Adds a tensor of random values around `mean`. */
static void add(writer *self, const char *name, int64_t n_rows, int64_t n_cols, float mean) {
    lmd_err err;
    const size_t n = (size_t)(n_rows * (n_cols ? n_cols : 1));
    const lmd_tensor_spec spec = {.name = name,
                                  .dtype = LMD_F32,
                                  .n_dims = n_cols ? 2 : 1,
                                  .dims = {n_rows, n_cols},
                                  .file_idx = self->file_idx,
                                  .offset = self->len * sizeof(float),
                                  .n_bytes = n * sizeof(float)};
    for (size_t i = 0; i < n; i++)
        self->data[self->len++] = mean + ((float)rand_r(&self->seed) / (float)RAND_MAX - 0.5f);
    if (lmd_checkpoint_add_tensor(self->checkpoint, &spec, &err) != LMD_OK) die(name, &err);
}

static void add_layer(writer *self, int i) {
    const struct {
        const char *name;
        int64_t n_rows, n_cols;
    } tensors[] = {{"input_layernorm", HIDDEN, 0},   {"self_attn.q_proj", 64, HIDDEN},
                   {"self_attn.k_proj", 32, HIDDEN}, {"self_attn.v_proj", 32, HIDDEN},
                   {"self_attn.o_proj", HIDDEN, 64}, {"post_attention_layernorm", HIDDEN, 0},
                   {"mlp.gate_proj", 96, HIDDEN},    {"mlp.up_proj", 96, HIDDEN},
                   {"mlp.down_proj", HIDDEN, 96}};
    for (size_t t = 0; t < sizeof tensors / sizeof *tensors; t++) {
        char name[80];
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", i, tensors[t].name);
        add(self, name, tensors[t].n_rows, tensors[t].n_cols, tensors[t].n_cols ? 0.0f : 1.0f);
    }
}

static lmd_model *make_model(void) {
    static float data[1 << 17];
    writer self = {.data = data, .seed = 7};
    const lmd_backend_config backend_config = {.n_threads = 2};
    lmd_backend *backend;
    lmd_model *model;
    lmd_err err;
    if (lmd_checkpoint_new(&self.checkpoint, &err) != LMD_OK ||
        lmd_checkpoint_add_memory(self.checkpoint, (const uint8_t *)data, sizeof data,
                                  &self.file_idx, &err) != LMD_OK)
        die("a checkpoint", &err);
    add(&self, "model.embed_tokens.weight", VOCAB, HIDDEN, 0.0f);
    for (int i = 0; i < shape.n_layer; i++) add_layer(&self, i);
    add(&self, "model.norm.weight", HIDDEN, 0, 1.0f);
    if (lmd_cuda_open(0, &backend_config, &backend, &err) != LMD_OK ||
        lmd_model_load(&shape, self.checkpoint, backend, NULL, &model, &err) != LMD_OK)
        die("a model", &err);
    lmd_checkpoint_free(self.checkpoint);
    return model;
}

/* ---- the engine ---- */

static lmd_engine *make_engine(const lmd_model *model, int32_t n_seqs, int32_t n_blocks) {
    const lmd_decoder_config decoder = {.session_len = 128,
                                        .max_tokens = 24, /* long prompts come in chunks */
                                        .max_seqs = n_seqs,
                                        .n_blocks = n_blocks,
                                        .block_len = 16,
                                        .k_bits = 8,
                                        .v_bits = 4};
    const lmd_engine_config config = {.session_len = decoder.session_len,
                                      .max_batch_size = n_seqs,
                                      .max_prefill_token_num = decoder.max_tokens,
                                      .n_blocks = n_blocks,
                                      .block_len = decoder.block_len,
                                      .vocab_size = VOCAB,
                                      .prefix_caching = true};
    lmd_executor *executor;
    lmd_engine *engine;
    lmd_err err;
    if (lmd_decoder_new(model, &decoder, &executor, &err) != LMD_OK ||
        lmd_engine_new(&config, executor, &engine, &err) != LMD_OK)
        die("an engine", &err);
    return engine;
}

typedef struct answer {
    int32_t tokens[MAX_NEW], n;
} answer;

static int32_t make_prompt(int32_t idx, int32_t *tokens) {
    unsigned seed = (unsigned)idx / 2; /* two prompts begin alike */
    const int32_t n = 3 + idx * 5;
    for (int32_t i = 0; i < n; i++) tokens[i] = rand_r(&seed) % VOCAB;
    return n;
}

/* Asks and reads to the end; false for an error. Odd prompts sample, even ones are greedy. */
static bool ask(lmd_engine *engine, int32_t idx, answer *out) {
    int32_t prompt[128];
    lmd_request *request;
    lmd_output output;
    lmd_err err;
    const lmd_request_params params = {
        .token_ids = prompt,
        .n_tokens = make_prompt(idx, prompt),
        .max_new_tokens = MAX_NEW,
        .sampler = {.do_sample = idx % 2,
                    .top_k = 20,
                    .top_p = 0.9,
                    .temperature = 1.0,
                    .repetition_penalty = 1.1,
                    .seed = (uint64_t)idx},
    };
    out->n = 0;
    if (lmd_engine_submit(engine, &params, &request, &err) != LMD_OK) die("submit", &err);
    do {
        if (!lmd_request_wait(request, 60000) || !lmd_request_read(request, &output)) {
            lmd_fail(&err, LMD_BUSY, "no output within a minute");
            die("read", &err);
        }
        for (int32_t i = 0; i < output.n_tokens && out->n < MAX_NEW; i++)
            out->tokens[out->n++] = output.token_ids[i];
    } while (output.finish_reason == LMD_FINISH_NONE);
    const bool is_right = output.finish_reason != LMD_FINISH_ERROR;
    if (!is_right) printf("an answer ended with: %s\n", output.why->message);
    lmd_request_unref(request);
    return is_right;
}

/* ---- clients ---- */

typedef struct client {
    lmd_engine *engine;
    int32_t idx;
    const answer *wanted; /* [N_PROMPTS] */
    atomic_int *n_wrong;
} client;

static void *client_main(void *arg) {
    const client *self = arg;
    for (int32_t i = 0; i < N_ROUNDS; i++) {
        const int32_t idx = (i * 7 + self->idx * 3) % N_PROMPTS;
        const answer *wanted = &self->wanted[idx];
        answer got;
        if (ask(self->engine, idx, &got) && got.n == wanted->n &&
            memcmp(got.tokens, wanted->tokens, (size_t)got.n * sizeof *got.tokens) == 0)
            continue;
        atomic_fetch_add(self->n_wrong, 1);
    }
    return NULL;
}

int main(void) {
    static answer wanted[N_PROMPTS];
    lmd_model *model = make_model();
    lmd_engine *alone = make_engine(model, 1, 32);
    for (int32_t i = 0; i < N_PROMPTS; i++)
        if (!ask(alone, i, &wanted[i])) die("an answer alone", NULL);
    lmd_engine_free(alone);

    lmd_engine *engine = make_engine(model, N_CLIENTS, 10);
    atomic_int n_wrong = 0;
    pthread_t threads[N_CLIENTS];
    client clients[N_CLIENTS];
    for (int32_t i = 0; i < N_CLIENTS; i++) {
        clients[i] = (client){engine, i, wanted, &n_wrong};
        pthread_create(&threads[i], NULL, client_main, &clients[i]);
    }
    for (int32_t i = 0; i < N_CLIENTS; i++) pthread_join(threads[i], NULL);
    lmd_engine_stats stats;
    lmd_engine_get_stats(engine, &stats);
    printf("%d answers, %lld steps, %lld preempted, %d wrong\n", N_CLIENTS * N_ROUNDS,
           (long long)stats.n_steps, (long long)stats.scheduler.n_preempted,
           atomic_load(&n_wrong));
    lmd_engine_free(engine);
    lmd_model_free(model);
    return atomic_load(&n_wrong) != 0 || stats.scheduler.n_preempted == 0;
}
