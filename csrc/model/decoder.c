/* The decoder: see decoder.h. */
#include "model/decoder.h"

#include <stdio.h>

#include "base/memory.h"
#include "model/rope.h"

enum {
    LOGITS_TILE = 64
}; /* rows of logits that exist at once; a plan with more goes in tiles */

typedef struct decoder {
    lmd_executor base;
    const lmd_model *model;
    lmd_workspace *workspace;
    lmd_buffer *residual;       /* [max_tokens, hidden_dim] fp32 */
    lmd_buffer *norm;           /* [max_tokens, hidden_dim] */
    lmd_buffer *qkv;            /* [max_tokens, (n_head + 2 n_kv_head) * head_dim] */
    lmd_buffer *attn;           /* [max_tokens, n_head * head_dim] */
    lmd_buffer *ffn;            /* [max_tokens, ffn_dim] */
    lmd_sample_result *results; /* [max_tokens] */
    size_t kv_block_bytes;
    char kv_layout[64]; /* the backend's name for it, with what a block's form depends on */
    int64_t plan_id;    /* in flight */
    int32_t n_rows;
} decoder;

static void decode_layer(decoder *self, int32_t i) {
    const lmd_backend_ops *ops = self->model->backend->ops;
    const lmd_layer *layer = &self->model->layers[i];
    const float eps = (float)self->model->config.norm_eps;
    lmd_workspace *workspace = self->workspace;

    ops->add_norm(workspace, self->residual, layer->attn_norm, eps, self->norm);
    ops->linear(workspace, &(lmd_linear_args){.weight = layer->qkv,
                                              .bias = layer->qkv_bias,
                                              .in = self->norm,
                                              .out = self->qkv,
                                              .epilogue = LMD_EPILOGUE_STORE});
    ops->attention(workspace, &(lmd_attention_args){.layer = i,
                                                    .qkv = self->qkv,
                                                    .q_norm = layer->q_norm,
                                                    .k_norm = layer->k_norm,
                                                    .norm_eps = eps,
                                                    .out = self->attn});
    ops->linear(workspace, &(lmd_linear_args){.weight = layer->o,
                                              .bias = layer->o_bias,
                                              .in = self->attn,
                                              .out = self->residual,
                                              .epilogue = LMD_EPILOGUE_ADD});

    ops->add_norm(workspace, self->residual, layer->ffn_norm, eps, self->norm);
    ops->linear(workspace, &(lmd_linear_args){.weight = layer->gate_up,
                                              .bias = layer->gate_up_bias,
                                              .in = self->norm,
                                              .out = self->ffn,
                                              .epilogue = LMD_EPILOGUE_SILU_MUL});
    ops->linear(workspace, &(lmd_linear_args){.weight = layer->down,
                                              .bias = layer->down_bias,
                                              .in = self->ffn,
                                              .out = self->residual,
                                              .epilogue = LMD_EPILOGUE_ADD});
}

static lmd_status decoder_submit(lmd_executor *executor, const lmd_plan *plan, lmd_err *err) {
    (void)err;
    decoder *self = (decoder *)executor;
    const lmd_model *model = self->model;
    const lmd_backend_ops *ops = model->backend->ops;
    self->plan_id = plan->plan_id;
    self->n_rows = plan->n_logits_rows;

    ops->step_begin(self->workspace, plan);
    ops->embed(self->workspace, model->embed, self->residual);
    for (int32_t i = 0; i < model->config.n_layer; i++) decode_layer(self, i);
    for (int32_t first = 0; first < plan->n_logits_rows; first += LOGITS_TILE) {
        int32_t left = plan->n_logits_rows - first;
        int32_t n = left < LOGITS_TILE ? left : LOGITS_TILE;
        ops->logits(self->workspace, self->residual, model->final_norm,
                    (float)model->config.norm_eps, model->lm_head, first, n);
        ops->sample(self->workspace, first, n, self->results + first);
    }
    return LMD_OK;
}

static lmd_status decoder_collect(lmd_executor *executor, int64_t plan_id, lmd_plan_result *out,
                                  lmd_err *err) {
    decoder *self = (decoder *)executor;
    if (plan_id != self->plan_id)
        return lmd_fail(err, LMD_INTERNAL, "plan %lld was collected, but %lld is in flight",
                        (long long)plan_id, (long long)self->plan_id);
    LMD_TRY(self->model->backend->ops->step_wait(self->workspace, err));
    *out = (lmd_plan_result){plan_id, self->n_rows, self->results};
    return LMD_OK;
}

static void decoder_free(lmd_executor *executor) {
    if (!executor) return;
    decoder *self = (decoder *)executor;
    if (self->workspace) self->model->backend->ops->workspace_free(self->workspace);
    lmd_free(self->results);
    lmd_free(self);
}

static const char *decoder_kv_layout(const lmd_executor *executor) {
    return ((const decoder *)executor)->kv_layout;
}

static size_t decoder_kv_block_bytes(const lmd_executor *executor) {
    return ((const decoder *)executor)->kv_block_bytes;
}

static void decoder_kv_export(lmd_executor *executor, int32_t block_id, uint8_t *out) {
    decoder *self = (decoder *)executor;
    self->model->backend->ops->kv_export(self->workspace, block_id, out);
}

static void decoder_kv_import(lmd_executor *executor, int32_t block_id, const uint8_t *data) {
    decoder *self = (decoder *)executor;
    self->model->backend->ops->kv_import(self->workspace, block_id, data);
}

static const lmd_executor_ops decoder_ops = {
    .submit = decoder_submit,
    .collect = decoder_collect,
    .free = decoder_free,
    .kv_layout = decoder_kv_layout,
    .kv_block_bytes = decoder_kv_block_bytes,
    .kv_export = decoder_kv_export,
    .kv_import = decoder_kv_import,
};

static lmd_workspace_config workspace_config(const lmd_model *model,
                                             const lmd_decoder_config *config) {
    const lmd_model_config *shape = &model->config;
    int32_t max_rows = config->max_tokens < LOGITS_TILE ? config->max_tokens : LOGITS_TILE;
    return (lmd_workspace_config){
        .max_tokens = config->max_tokens,
        .max_seqs = config->max_seqs,
        .max_logits_rows = max_rows,
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
        .n_positions = config->session_len,
    };
}

static lmd_status allocate(decoder *self, const lmd_decoder_config *config, lmd_err *err) {
    const lmd_model_config *shape = &self->model->config;
    const lmd_backend_ops *ops = self->model->backend->ops;
    lmd_workspace_config workspace = workspace_config(self->model, config);
    size_t table_bytes =
        (size_t)config->session_len * (size_t)shape->head_dim * sizeof *workspace.rope_table;
    float *table = lmd_alloc_large(table_bytes);
    self->results = lmd_calloc((size_t)config->max_tokens, sizeof *self->results);
    if (!table || !self->results) {
        lmd_free_large(table, table_bytes);
        return lmd_fail(err, LMD_NO_MEMORY, "out of host memory: a RoPE table of %zu bytes",
                        table_bytes);
    }
    lmd_rope_table(shape, self->model->rope_factors, config->session_len, table);
    workspace.rope_table = table;
    self->kv_block_bytes = ops->kv_block_bytes(&workspace);
    snprintf(self->kv_layout, sizeof self->kv_layout, "%s k%d v%d block %d", ops->kv_layout,
             (int)workspace.k_bits, (int)workspace.v_bits, (int)workspace.block_len);
    lmd_status status =
        ops->workspace_new(self->model->backend, &workspace, &self->workspace, err);
    lmd_free_large(table, table_bytes);
    LMD_TRY(status);
    const int32_t n_q = shape->n_head * shape->head_dim;
    const int32_t n_qkv = n_q + 2 * shape->n_kv_head * shape->head_dim;
    LMD_TRY(ops->buffer_new(self->workspace, shape->hidden_dim, &self->residual, err));
    LMD_TRY(ops->buffer_new(self->workspace, shape->hidden_dim, &self->norm, err));
    LMD_TRY(ops->buffer_new(self->workspace, n_qkv, &self->qkv, err));
    LMD_TRY(ops->buffer_new(self->workspace, n_q, &self->attn, err));
    return ops->buffer_new(self->workspace, shape->ffn_dim, &self->ffn, err);
}

lmd_status lmd_decoder_new(const lmd_model *model, const lmd_decoder_config *config,
                           lmd_executor **out, lmd_err *err) {
    decoder *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for a decoder");
    self->base.ops = &decoder_ops;
    self->model = model;
    lmd_status status = allocate(self, config, err);
    if (status != LMD_OK) {
        decoder_free(&self->base);
        return status;
    }
    *out = &self->base;
    return LMD_OK;
}
