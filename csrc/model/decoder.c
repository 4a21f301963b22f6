/* The decoder: see decoder.h. */
#include "model/decoder.h"

#include <stdio.h>

#include "base/ints.h"
#include "base/memory.h"
#include "model/rope.h"

enum { MAX_PLANS = 2 }; /* in flight at once */

/* What a plan in flight will give. */
typedef struct plan_results {
    int64_t plan_id; /* 0: none yet */
    int32_t n_rows;
    lmd_sample_result *rows; /* [max_tokens] */
} plan_results;

typedef struct decoder {
    lmd_executor base;
    const lmd_model *model;
    lmd_workspace *workspace;
    lmd_buffer *residual; /* [max_tokens, hidden_dim] */
    lmd_buffer *norm;     /* [max_tokens, hidden_dim] */
    lmd_buffer *qkv;      /* [max_tokens, (n_head + 2 n_kv_head) * head_dim] */
    lmd_buffer *attn;     /* [max_tokens, n_head * head_dim] */
    lmd_buffer *ffn;      /* [max_tokens, ffn_dim] */
    int32_t max_logits_rows;
    plan_results results[MAX_PLANS]; /* plan p has those at p % n_plans */
    int32_t n_plans;
    size_t kv_block_bytes;
    lmd_observer observer;
    int32_t last_place;
    bool from_middle;
    char kv_layout[64]; /* the backend's name for it, with what a block's form depends on */
} decoder;

/* Shows a buffer to the observer, if there is one. True: the layer ends here. */
static bool show(decoder *self, lmd_buffer *buffer, int32_t layer, int32_t place) {
    if (!self->observer.see) return false;
    self->model->backend->ops->observe(self->workspace, buffer, layer, place, &self->observer);
    return place == self->last_place;
}

/* True: the layer ends here. */
static bool attend(decoder *self, int32_t i) {
    const lmd_backend_ops *ops = self->model->backend->ops;
    const lmd_layer *layer = &self->model->layers[i];
    const float eps = (float)self->model->config.norm_eps;
    lmd_workspace *workspace = self->workspace;

    if (show(self, self->residual, i, LMD_PLACE_ATTN_RESIDUAL)) return true;
    ops->add_norm(workspace, self->residual, layer->attn_norm, eps, self->norm);
    if (show(self, self->norm, i, LMD_PLACE_QKV)) return true;
    ops->linear(workspace, &(lmd_linear_args){.weight = layer->qkv, /* one matrix: q, k, v */
                                              .bias = layer->qkv_bias,
                                              .in = self->norm,
                                              .out = self->qkv,
                                              .epilogue = LMD_EPILOGUE_STORE});
    /* q/k norm, RoPE, KV write, attend */
    ops->attention(workspace, &(lmd_attention_args){.layer = i,
                                                    .qkv = self->qkv,
                                                    .q_norm = layer->q_norm,
                                                    .k_norm = layer->k_norm,
                                                    .norm_eps = eps,
                                                    .out = self->attn});
    if (show(self, self->qkv, i, LMD_PLACE_KV)) return true;
    if (show(self, self->attn, i, LMD_PLACE_O)) return true;
    ops->linear(workspace, &(lmd_linear_args){.weight = layer->o,
                                              .bias = layer->o_bias,
                                              .in = self->attn,
                                              .out = self->residual, /* += */
                                              .epilogue = LMD_EPILOGUE_ADD});
    return false;
}

static void feed_forward(decoder *self, int32_t i) {
    const lmd_backend_ops *ops = self->model->backend->ops;
    const lmd_layer *layer = &self->model->layers[i];
    const float eps = (float)self->model->config.norm_eps;
    lmd_workspace *workspace = self->workspace;

    if (show(self, self->residual, i, LMD_PLACE_FFN_RESIDUAL)) return;
    ops->add_norm(workspace, self->residual, layer->ffn_norm, eps, self->norm);
    if (show(self, self->norm, i, LMD_PLACE_GATE_UP)) return;
    ops->linear(workspace, &(lmd_linear_args){.weight = layer->gate_up, /* silu(gate) * up */
                                              .bias = layer->gate_up_bias,
                                              .in = self->norm,
                                              .out = self->ffn,
                                              .epilogue = LMD_EPILOGUE_SILU_MUL});
    if (show(self, self->ffn, i, LMD_PLACE_DOWN)) return;
    ops->linear(workspace, &(lmd_linear_args){.weight = layer->down,
                                              .bias = layer->down_bias,
                                              .in = self->ffn,
                                              .out = self->residual, /* += */
                                              .epilogue = LMD_EPILOGUE_ADD});
}

static void decode_layer(decoder *self, int32_t i) {
    if (!self->from_middle && attend(self, i)) return;
    feed_forward(self, i);
}

/* Final norm and lm_head of n of the plan's logits rows. */
static void make_logits(decoder *self, int32_t first, int32_t n) {
    const lmd_model *model = self->model;
    model->backend->ops->logits(self->workspace, self->residual, model->final_norm,
                                (float)model->config.norm_eps, model->lm_head, first, n);
}

static lmd_status decoder_submit(lmd_executor *executor, const lmd_plan *plan, lmd_err *err) {
    (void)err; /* errors of the device come up in collect */
    decoder *self = (decoder *)executor;
    const lmd_model *model = self->model;
    const lmd_backend_ops *ops = model->backend->ops;
    plan_results *results = &self->results[plan->plan_id % self->n_plans];
    results->plan_id = plan->plan_id;
    results->n_rows = plan->n_logits_rows;

    ops->step_begin(self->workspace, plan);
    ops->embed(self->workspace, model->embed, self->residual);
    for (int32_t i = 0; i < model->config.n_layer; i++) decode_layer(self, i);
    if (self->last_place == LMD_PLACE_END)
        show(self, self->residual, model->config.n_layer, LMD_PLACE_ATTN_RESIDUAL);
    if (plan->n_logits_rows > 0 && plan->n_logits_rows <= self->max_logits_rows)
        make_logits(self, 0, plan->n_logits_rows);
    return LMD_OK;
}

/* More rows than exist at once are made and sampled in tiles. */
static lmd_status decoder_sample(lmd_executor *executor, const lmd_plan *plan, lmd_err *err) {
    (void)err;
    decoder *self = (decoder *)executor;
    const lmd_backend_ops *ops = self->model->backend->ops;
    lmd_sample_result *rows = self->results[plan->plan_id % self->n_plans].rows;
    const bool in_tiles = plan->n_logits_rows > self->max_logits_rows;
    for (int32_t first = 0; first < plan->n_logits_rows; first += self->max_logits_rows) {
        const int32_t n = lmd_min_i32(plan->n_logits_rows - first, self->max_logits_rows);
        if (in_tiles) make_logits(self, first, n);
        ops->sample(self->workspace, plan->samples + first, n, rows + first);
    }
    ops->step_end(self->workspace);
    return LMD_OK;
}

static lmd_status decoder_collect(lmd_executor *executor, int64_t plan_id, lmd_plan_result *out,
                                  lmd_err *err) {
    decoder *self = (decoder *)executor;
    const plan_results *results = &self->results[plan_id % self->n_plans];
    if (plan_id != results->plan_id)
        return lmd_fail(err, LMD_INTERNAL, "plan %lld was collected, but is not in flight",
                        (long long)plan_id);
    LMD_TRY(self->model->backend->ops->step_wait(self->workspace, plan_id, err));
    *out = (lmd_plan_result){plan_id, results->n_rows, results->rows};
    return LMD_OK;
}

static void decoder_free(lmd_executor *executor) {
    if (!executor) return;
    decoder *self = (decoder *)executor;
    if (self->workspace) self->model->backend->ops->workspace_free(self->workspace);
    for (int32_t i = 0; i < MAX_PLANS; i++) lmd_free(self->results[i].rows);
    lmd_free(self);
}

static const char *decoder_kv_layout(const lmd_executor *executor) {
    return ((const decoder *)executor)->kv_layout;
}

static size_t decoder_kv_block_bytes(const lmd_executor *executor) {
    return ((const decoder *)executor)->kv_block_bytes;
}

static lmd_status decoder_kv_export(lmd_executor *executor, const int32_t *block_ids, int32_t n,
                                    uint8_t *out, lmd_err *err) {
    decoder *self = (decoder *)executor;
    return self->model->backend->ops->kv_export(self->workspace, block_ids, n, out, err);
}

static lmd_status decoder_kv_import(lmd_executor *executor, const int32_t *block_ids, int32_t n,
                                    const uint8_t *data, lmd_err *err) {
    decoder *self = (decoder *)executor;
    return self->model->backend->ops->kv_import(self->workspace, block_ids, n, data, err);
}

static const lmd_executor_ops decoder_ops = {
    .submit = decoder_submit,
    .sample = decoder_sample,
    .collect = decoder_collect,
    .free = decoder_free,
    .kv_layout = decoder_kv_layout,
    .kv_block_bytes = decoder_kv_block_bytes,
    .kv_export = decoder_kv_export,
    .kv_import = decoder_kv_import,
};

/* ---- lifetime ---- */

enum { N_BUFFERS = 5 };

/* The buffers of a forward pass, as fields of the decoder. */
typedef struct buffer_spec {
    lmd_buffer **buffer;
    int32_t n_cols;
    lmd_buffer_role role;
} buffer_spec;

static void list_buffers(decoder *self, const lmd_model_config *shape,
                         buffer_spec out[N_BUFFERS]) {
    const int32_t n_q = shape->n_head * shape->head_dim;
    const int32_t n_qkv = n_q + 2 * shape->n_kv_head * shape->head_dim;
    out[0] = (buffer_spec){&self->residual, shape->hidden_dim, LMD_BUFFER_RESIDUAL};
    out[1] = (buffer_spec){&self->norm, shape->hidden_dim, LMD_BUFFER_ACTIVATION};
    out[2] = (buffer_spec){&self->qkv, n_qkv, LMD_BUFFER_ACTIVATION};
    out[3] = (buffer_spec){&self->attn, n_q, LMD_BUFFER_ACTIVATION};
    out[4] = (buffer_spec){&self->ffn, shape->ffn_dim, LMD_BUFFER_ACTIVATION};
}

static lmd_workspace_config workspace_config(const lmd_model_config *shape,
                                             const lmd_decoder_config *config) {
    decoder none;
    buffer_spec buffers[N_BUFFERS];
    int32_t max_cols = 0;
    list_buffers(&none, shape, buffers);
    for (int32_t i = 0; i < N_BUFFERS; i++) max_cols = lmd_max_i32(max_cols, buffers[i].n_cols);
    return (lmd_workspace_config){
        .max_tokens = config->max_tokens,
        .max_seqs = config->max_seqs,
        .max_logits_rows = lmd_max_logits_rows(config->max_tokens, config->max_seqs),
        .max_cols = max_cols,
        .n_layer = shape->n_layer,
        .n_head = shape->n_head,
        .n_kv_head = shape->n_kv_head,
        .head_dim = shape->head_dim,
        .hidden_dim = shape->hidden_dim,
        .vocab_size = shape->vocab_size,
        .n_blocks = config->n_blocks,
        .block_len = config->block_len,
        .k_bits = config->k_bits,
        .v_bits = config->v_bits,
        .fast_activations = config->fast_activations,
        .batch_invariant = config->batch_invariant,
        .n_positions = config->session_len,
    };
}

static size_t rope_table_bytes(const lmd_workspace_config *config) {
    return (size_t)config->n_positions * (size_t)config->head_dim * sizeof *config->rope_table;
}

static int32_t count_plans(const lmd_backend *backend) {
    return backend->ops->runs_ahead ? MAX_PLANS : 1;
}

lmd_status lmd_decoder_size(const lmd_model_config *shape, const lmd_decoder_config *config,
                            const lmd_backend *backend, size_t *out, lmd_err *err) {
    const lmd_workspace_config workspace = workspace_config(shape, config);
    decoder none;
    buffer_spec buffers[N_BUFFERS];
    size_t n_bytes;
    LMD_TRY(backend->ops->workspace_size(backend, &workspace, &n_bytes, err));
    n_bytes +=
        sizeof(decoder) + rope_table_bytes(&workspace) +
        (size_t)count_plans(backend) * (size_t)config->max_tokens * sizeof *none.results->rows;
    list_buffers(&none, shape, buffers);
    for (int32_t i = 0; i < N_BUFFERS; i++)
        n_bytes +=
            backend->ops->buffer_bytes(backend, &workspace, buffers[i].n_cols, buffers[i].role);
    *out = n_bytes;
    return LMD_OK;
}

static lmd_status new_workspace(decoder *self, lmd_workspace_config *config, lmd_err *err) {
    const lmd_model *model = self->model;
    const size_t n_bytes = rope_table_bytes(config);
    float *table = lmd_alloc_large(n_bytes);
    if (!table) return lmd_no_memory(err, "a RoPE table of %zu bytes", n_bytes);
    lmd_rope_table(&model->config, model->rope_factors, config->n_positions, table);
    config->rope_table = table;
    lmd_status status =
        model->backend->ops->workspace_new(model->backend, config, &self->workspace, err);
    lmd_free_large(table, n_bytes);
    return status;
}

static lmd_status allocate(decoder *self, const lmd_decoder_config *config, lmd_err *err) {
    const lmd_model_config *shape = &self->model->config;
    const lmd_backend_ops *ops = self->model->backend->ops;
    lmd_workspace_config wanted = workspace_config(shape, config);
    buffer_spec buffers[N_BUFFERS];
    if (config->observer.see && !ops->observe)
        return lmd_fail(err, LMD_UNSUPPORTED, "device %s shows no activations; the CPU does",
                        ops->name);
    self->observer = config->observer;
    self->last_place = config->last_place;
    self->from_middle = config->observer.see && config->from_middle;
    self->max_logits_rows = wanted.max_logits_rows;
    self->kv_block_bytes = ops->kv_block_bytes(&wanted);
    snprintf(self->kv_layout, sizeof self->kv_layout, "%s k%d v%d block %d", ops->kv_layout,
             (int)wanted.k_bits, (int)wanted.v_bits, (int)wanted.block_len);
    for (int32_t i = 0; i < self->n_plans; i++) {
        lmd_sample_result **rows = &self->results[i].rows;
        *rows = lmd_calloc((size_t)config->max_tokens, sizeof **rows);
        if (!*rows) return lmd_no_memory(err, "the results of %d rows", config->max_tokens);
    }
    LMD_TRY(new_workspace(self, &wanted, err));
    list_buffers(self, shape, buffers);
    for (int32_t i = 0; i < N_BUFFERS; i++)
        LMD_TRY(ops->buffer_new(self->workspace, buffers[i].n_cols, buffers[i].role,
                                buffers[i].buffer, err));
    return LMD_OK;
}

lmd_status lmd_decoder_new(const lmd_model *model, const lmd_decoder_config *config,
                           lmd_executor **out, lmd_err *err) {
    decoder *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a decoder");
    self->base.ops = &decoder_ops;
    self->base.runs_ahead = model->backend->ops->runs_ahead;
    self->n_plans = count_plans(model->backend);
    self->model = model;
    lmd_status status = allocate(self, config, err);
    if (status != LMD_OK) {
        decoder_free(&self->base);
        return status;
    }
    *out = &self->base;
    return LMD_OK;
}
