/* The operations of the seam: see cuda_ops.h. */
#include "cuda_ops.h"

#include <assert.h>

#include "base/ints.h"
#include "cuda_sampling.h"
#include "cuda_stream.h"
#include "cuda_weight.h"

/* Whether an operation has to be enqueued: a graph that is replayed has it. */
static bool records(const lmd_workspace *self) { return self->mode != LMD_CUDA_REPLAY; }

static const lmd_cuda_kernels *kernels_of(const lmd_workspace *self) {
    return self->device->kernels;
}

void lmd_cuda_embed(lmd_workspace *self, const lmd_weight *table, lmd_buffer *out) {
    if (!records(self)) return;
    const lmd_cuda_embed_args args = {
        .table = table->segments[0].matrix,
        .token_ids = self->step.token_ids,
        .n_rows = self->step.n_tokens,
        .out = out->data,
        .out_stride = out->stride,
    };
    kernels_of(self)->embed(&args, &self->queue);
}

void lmd_cuda_add_norm(lmd_workspace *self, lmd_buffer *residual, const lmd_weight *weight,
                       float eps, lmd_buffer *out) {
    if (!records(self)) return;
    const lmd_cuda_norm_args args = {
        .x = residual->data,
        .weight = weight->vector,
        .eps = eps,
        .n_rows = self->step.n_tokens,
        .n_cols = residual->n_cols,
        .x_stride = residual->stride,
        .out_stride = out->stride,
        .out = out->data,
    };
    kernels_of(self)->norm(&args, &self->queue);
}

static lmd_cuda_epilogue epilogue_of(lmd_epilogue epilogue) {
    switch (epilogue) {
    case LMD_EPILOGUE_STORE: return LMD_CUDA_STORE;
    case LMD_EPILOGUE_ADD: return LMD_CUDA_ADD;
    case LMD_EPILOGUE_SILU_MUL: break;
    }
    return LMD_CUDA_SILU_MUL;
}

/* Multiplies by each matrix of a weight; `args` has the rest, and `out` for its first row. */
static void multiply(lmd_workspace *self, const lmd_weight *weight, lmd_cuda_linear_args args) {
    const bool wide = args.epilogue == LMD_CUDA_ADD || args.epilogue == LMD_CUDA_STORE_F32;
    const float *bias = args.bias;
    uint8_t *out = args.out;
    args.batch_invariant = self->config.batch_invariant;
    args.scratch = self->scratch;
    args.scratch_bytes = self->scratch_bytes;
    for (int32_t i = 0; i < weight->n_segments; i++) {
        const lmd_cuda_segment *segment = &weight->segments[i];
        const size_t first = (size_t)segment->first_row;
        args.weight = segment->matrix;
        args.bias = bias ? bias + first : NULL;
        args.out = out + first * (wide ? sizeof(float) : sizeof(uint16_t));
        kernels_of(self)->linear(&args, &self->queue);
    }
}

/* Brings an input's columns into the order of the weight that they will meet. */
static void reorder(lmd_workspace *self, const lmd_weight *weight, uint16_t *x,
                    int32_t x_stride, int32_t n_rows) {
    if (!weight->order) return;
    const lmd_cuda_reorder_args args = {
        .x = x,
        .order = weight->order,
        .n_rows = n_rows,
        .n_cols = weight->n_cols,
        .x_stride = x_stride,
    };
    kernels_of(self)->reorder(&args, &self->queue);
}

void lmd_cuda_linear(lmd_workspace *self, const lmd_linear_args *args) {
    args->out->unit = args->epilogue == LMD_EPILOGUE_SILU_MUL ? LMD_FFN_SCALE : 1.0f;
    if (!records(self)) return;
    reorder(self, args->weight, args->in->data, args->in->stride, self->step.n_tokens);
    multiply(self, args->weight,
             (lmd_cuda_linear_args){
                 .x = args->in->data,
                 .n_rows = self->step.n_tokens,
                 .x_stride = args->in->stride,
                 .bias = args->bias ? args->bias->vector : NULL,
                 .scale = 1.0f / args->in->unit,
                 .epilogue = epilogue_of(args->epilogue),
                 .out = args->out->data,
                 .out_stride = args->out->stride,
             });
}

static lmd_cuda_kv kv_of(const lmd_workspace *self, int32_t layer) {
    return (lmd_cuda_kv){
        .format = self->kv_format,
        .layer = self->kv + (size_t)layer * self->layer_bytes,
        .block_stride = (int64_t)self->block_bytes,
        .n_kv_head = self->config.n_kv_head,
    };
}

static const lmd_cuda_unit *units_at(const lmd_workspace *self, size_t offset) {
    return (const lmd_cuda_unit *)(const void *)(self->ints + offset);
}

void lmd_cuda_attention(lmd_workspace *self, const lmd_attention_args *args) {
    if (!records(self)) return;
    const lmd_cuda_packed *packed = &self->current->packed;
    const lmd_cuda_kv kv = kv_of(self, args->layer);
    const lmd_cuda_write_kv_args write = {
        .step = self->step,
        .kv = kv,
        .qkv = args->qkv->data,
        .qkv_stride = args->qkv->stride,
        .n_head = self->config.n_head,
        .q_norm = args->q_norm ? args->q_norm->vector : NULL,
        .k_norm = args->k_norm ? args->k_norm->vector : NULL,
        .norm_eps = args->norm_eps,
        .rope = self->rope,
    };
    const lmd_cuda_attention_args attend = {
        .step = self->step,
        .kv = kv,
        .q = args->qkv->data,
        .q_stride = args->qkv->stride,
        .n_head = self->config.n_head,
        .narrow = units_at(self, packed->narrow),
        .wide = units_at(self, packed->wide),
        .n_narrow = packed->n_narrow,
        .n_wide = packed->n_wide,
        .out = args->out->data,
        .out_stride = args->out->stride,
        .batch_invariant = self->config.batch_invariant,
        .scratch = self->scratch,
        .scratch_bytes = self->scratch_bytes,
    };
    args->out->unit = 1.0f;
    kernels_of(self)->write_kv(&write, &self->queue);
    kernels_of(self)->attention(&attend, &self->queue);
}

void lmd_cuda_logits(lmd_workspace *self, lmd_buffer *residual, const lmd_weight *norm,
                     float eps, const lmd_weight *lm_head, int32_t first, int32_t n) {
    const lmd_cuda_packed *packed = &self->current->packed;
    const bool is_whole = first == 0 && n == self->current->plan->n_logits_rows;
    assert(n <= self->config.max_logits_rows);
    if (records(self)) {
        const int32_t n_rows = is_whole ? packed->n_logits_rows : n; /* with padding */
        const lmd_cuda_norm_args args = {
            .x = residual->data,
            .rows = self->ints + packed->logits_rows + first,
            .weight = norm->vector,
            .eps = eps,
            .n_rows = n_rows,
            .n_cols = residual->n_cols,
            .x_stride = residual->stride,
            .out_stride = self->final_stride,
            .out = self->final,
        };
        kernels_of(self)->norm(&args, &self->queue);
        reorder(self, lm_head, self->final, self->final_stride, n_rows);
        multiply(self, lm_head,
                 (lmd_cuda_linear_args){
                     .x = self->final,
                     .n_rows = n_rows,
                     .x_stride = self->final_stride,
                     .scale = 1.0f,
                     .epilogue = LMD_CUDA_STORE_F32,
                     .out = self->logits,
                     .out_stride = self->logits_stride,
                 });
    }
    if (is_whole) lmd_cuda_stream_end_forward(self); /* so that it starts before its sampling */
}

void lmd_cuda_sample(lmd_workspace *self, const lmd_sample_params *params, int32_t n,
                     lmd_sample_result *results) {
    lmd_cuda_stream_end_forward(self);
    lmd_cuda_sampling_run(self, params, n, results);
}
