/* One layer of a model, watched: see layer_run.h. */
#include "lite/layer_run.h"

#include <string.h>

#include "base/ints.h"
#include "base/memory.h"
#include "model/decoder.h"

enum { BLOCK_LEN = 64, MAX_TOKENS = 1 << 16 };

/* What the observer copies while the layer runs. */
typedef struct watcher {
    lmd_input_sums *const *sums;  /* [LMD_INPUT_COUNT] */
    float *rows[LMD_INPUT_COUNT]; /* [n_tokens, columns]; NULL: not wanted */
    double *weights[2]; /* [n_tokens] of what is added to the stream after attention, and after
                           the feed-forward part */
    float *hidden;
    int32_t n_seen; /* residual streams so far */
    lmd_arena arena;
} watcher;

int32_t lmd_input_width(const lmd_model_config *config, int32_t input) {
    if (input == LMD_O_INPUT) return config->n_head * config->head_dim;
    return input == LMD_DOWN_INPUT ? config->ffn_dim : config->hidden_dim;
}

static void weigh_tokens(double *weights, const float *rows, int32_t n_rows, int32_t n_cols) {
    for (int32_t r = 0; r < n_rows; r++, rows += n_cols) {
        double sum = 0.0;
        for (int32_t c = 0; c < n_cols; c++) sum += (double)rows[c] * rows[c];
        weights[r] = sum > 0.0 ? n_cols / sum : 0.0;
    }
}

/* The stream before attention, before the feed-forward part, and after the layer. */
static void see_residual(watcher *self, const float *rows, int32_t n_rows, int32_t n_cols) {
    if (self->n_seen < 2) weigh_tokens(self->weights[self->n_seen], rows, n_rows, n_cols);
    if (self->n_seen == 2)
        memcpy(self->hidden, rows, (size_t)n_rows * (size_t)n_cols * sizeof *rows);
    self->n_seen++;
}

static int32_t input_of(lmd_place place) {
    switch (place) {
    case LMD_PLACE_QKV: return LMD_QKV_INPUT;
    case LMD_PLACE_O: return LMD_O_INPUT;
    case LMD_PLACE_GATE_UP: return LMD_GATE_UP_INPUT;
    default: return LMD_DOWN_INPUT;
    }
}

static void see(void *user, int32_t layer, int32_t place, const float *rows, int32_t n_rows,
                int32_t n_cols) {
    watcher *self = user;
    (void)layer;
    if (place == LMD_PLACE_RESIDUAL) {
        see_residual(self, rows, n_rows, n_cols);
        return;
    }
    float *copy = self->rows[input_of((lmd_place)place)];
    if (copy) memcpy(copy, rows, (size_t)n_rows * (size_t)n_cols * sizeof *rows);
}

/* ---- a step in which each token's embedding is its hidden state ---- */

static lmd_status run_step(lmd_executor *executor, int32_t n,
                           int32_t *scratch /* [n + blocks] */, lmd_err *err) {
    const int64_t seq_id = 0;
    const int32_t slot = 0, history_len = 0, n_blocks = lmd_ceil_div(n, BLOCK_LEN);
    const int32_t token_offsets[2] = {0, n}, block_offsets[2] = {0, n_blocks};
    for (int32_t i = 0; i < n; i++) scratch[i] = i;
    for (int32_t i = 0; i < n_blocks; i++) scratch[n + i] = i;
    const lmd_plan plan = {.plan_id = 1,
                           .n_seqs = 1,
                           .n_tokens = n,
                           .seq_ids = &seq_id,
                           .slots = &slot,
                           .history_lens = &history_len,
                           .input_lens = &n,
                           .token_offsets = token_offsets,
                           .token_ids = scratch,
                           .positions = scratch,
                           .block_offsets = block_offsets,
                           .block_ids = scratch + n};
    lmd_plan_result result;
    LMD_TRY(executor->ops->submit(executor, &plan, err));
    LMD_TRY(executor->ops->sample(executor, &plan, err));
    return executor->ops->collect(executor, plan.plan_id, &result, err);
}

static lmd_status run_embedded(const lmd_model *model, watcher *self, int32_t n, lmd_err *err) {
    lmd_status status = LMD_OK;
    lmd_executor *executor = NULL;
    const int32_t n_blocks = lmd_ceil_div(n, BLOCK_LEN);
    int32_t *scratch = lmd_calloc((size_t)(n + n_blocks), sizeof *scratch);
    const lmd_decoder_config config = {.session_len = n,
                                       .max_tokens = n,
                                       .max_seqs = 1,
                                       .n_blocks = n_blocks,
                                       .block_len = BLOCK_LEN,
                                       .k_bits = 16,
                                       .v_bits = 16,
                                       .observer = {see, self}};
    if (!scratch) LMD_TRY_OUT(lmd_no_memory(err, "a text of %d tokens", n));
    LMD_TRY_OUT(lmd_decoder_new(model, &config, &executor, err));
    LMD_TRY_OUT(run_step(executor, n, scratch, err));
out:
    if (executor) executor->ops->free(executor);
    lmd_free(scratch);
    return status;
}

/* Uploads the hidden states as the embedding of tokens 0 .. n - 1, and runs these. */
static lmd_status run(const lmd_model *model, watcher *self, int32_t n, lmd_err *err) {
    const int32_t width = model->config.hidden_dim;
    const lmd_tensor_view states = {.name = "hidden states",
                                    .dtype = LMD_F32,
                                    .n_dims = 2,
                                    .dims = {n, width, 1, 1},
                                    .data = self->hidden,
                                    .n_bytes = (size_t)n * (size_t)width * sizeof(float)};
    const lmd_weight_source source = {
        .n_parts = 1, .n_cols = width, .parts = {{.tensor = &states, .n_rows = n}}};
    lmd_backend *backend = model->backend;
    lmd_model embedded = *model;
    LMD_TRY(backend->ops->upload(backend, &source, &embedded.embed, err));
    embedded.config.vocab_size = n;
    const lmd_status status = run_embedded(&embedded, self, n, err);
    backend->ops->weight_free(backend, embedded.embed);
    return status;
}

static lmd_status allocate(watcher *self, const lmd_model_config *config, int32_t n,
                           lmd_err *err) {
    bool has_room = true;
    for (int32_t i = 0; i < 2; i++) {
        self->weights[i] = lmd_arena_alloc(&self->arena, (size_t)n * sizeof(double));
        has_room = has_room && self->weights[i];
    }
    for (int32_t i = 0; i < LMD_INPUT_COUNT; i++) {
        if (!self->sums[i]) continue;
        const size_t n_cols = (size_t)lmd_input_width(config, i);
        self->rows[i] = lmd_arena_alloc(&self->arena, (size_t)n * n_cols * sizeof(float));
        has_room = has_room && self->rows[i];
    }
    return has_room ? LMD_OK : lmd_no_memory(err, "the inputs of %d tokens", n);
}

/* Adds what was seen. */
static lmd_status add_sums(watcher *self, const lmd_compute *compute, int32_t n, lmd_err *err) {
    const double *weights[LMD_INPUT_COUNT] = {NULL};
    weights[LMD_O_INPUT] = self->weights[0];
    weights[LMD_DOWN_INPUT] = self->weights[1];
    for (int32_t i = 0; i < LMD_INPUT_COUNT; i++)
        if (self->rows[i])
            LMD_TRY(
                lmd_input_sums_add(self->sums[i], compute, self->rows[i], weights[i], n, err));
    return LMD_OK;
}

static lmd_status check(const lmd_model *model, int32_t n,
                        lmd_input_sums *const sums[LMD_INPUT_COUNT], lmd_err *err) {
    if (model->config.n_layer != 1)
        return lmd_fail(err, LMD_INVALID, "the model must have one layer, not %d",
                        model->config.n_layer);
    if (n < 1 || n > MAX_TOKENS)
        return lmd_fail(err, LMD_INVALID, "a text must have 1 to %d tokens, not %d", MAX_TOKENS,
                        n);
    for (int32_t i = 0; i < LMD_INPUT_COUNT; i++)
        if (sums[i] && sums[i]->n_cols != lmd_input_width(&model->config, i))
            return lmd_fail(err, LMD_INVALID,
                            "sums %d have %d columns; the layer's input has %d", i,
                            sums[i]->n_cols, lmd_input_width(&model->config, i));
    return LMD_OK;
}

lmd_status lmd_layer_run(const lmd_model *model, const lmd_compute *compute, float *hidden,
                         int32_t n, lmd_input_sums *const sums[LMD_INPUT_COUNT], lmd_err *err) {
    lmd_status status = LMD_OK;
    watcher self = {.sums = sums, .hidden = hidden};
    LMD_TRY(check(model, n, sums, err));
    LMD_TRY_OUT(allocate(&self, &model->config, n, err));
    LMD_TRY_OUT(run(model, &self, n, err));
    LMD_TRY_OUT(add_sums(&self, compute, n, err));
out:
    lmd_arena_free(&self.arena);
    return status;
}
