/* Loading a model's weights: puts rows in the one order that the forward pass knows, uploads
 * each matrix and vector, and adds their sizes up. One thread. */
#include "base/memory.h"
#include "model/model.h"
#include "model/ready_source.h"
#include "model/weight_finder.h"

typedef struct loader {
    lmd_model *model;
    bool sizes_alone; /* everything is checked and added up, nothing uploaded */
    lmd_weight_finder finder;
    const lmd_progress *progress;
    size_t done_bytes;
    int32_t *q_map, *k_map, *v_map; /* rows of q, k, v in their tensors; NULL: in order */
    int32_t n_q_rows, n_kv_rows;
} loader;

/* Uploads a source, or adds its size up. */
static lmd_status upload_ready(loader *self, const lmd_weight_source *src, lmd_weight **out,
                               lmd_err *err) {
    lmd_backend *backend = self->model->backend;
    size_t n_bytes;
    LMD_TRY(backend->ops->weight_size(backend, src, &n_bytes, err));
    self->model->sizes.weight_bytes += n_bytes;
    return self->sizes_alone ? LMD_OK : backend->ops->upload(backend, src, out, err);
}

/* Counts a source's bytes, those of a tensor that its parts share once, and says so. */
static lmd_status report_done(loader *self, const lmd_weight_source *src, lmd_err *err) {
    for (int32_t i = 0; i < src->n_parts; i++) {
        const lmd_weight_part *part = &src->parts[i];
        const lmd_tensor_view *views[] = {part->tensor, part->packed.qweight,
                                          part->packed.qzeros, part->packed.scales};
        const bool repeated = i > 0 && part->tensor == src->parts[0].tensor &&
                              part->packed.qweight == src->parts[0].packed.qweight;
        for (int32_t j = 0; j < 4 && !repeated; j++)
            if (views[j]) self->done_bytes += views[j]->n_bytes;
    }
    if (!self->progress) return LMD_OK;
    return self->progress->report(self->progress->user, self->done_bytes,
                                  lmd_checkpoint_n_bytes(self->finder.checkpoint), err);
}

static lmd_status upload(loader *self, const lmd_weight_source *src, lmd_weight **out,
                         lmd_err *err) {
    lmd_ready_source ready;
    lmd_status status = lmd_ready_source_init(&ready, src, self->sizes_alone, err);
    if (status == LMD_OK) status = upload_ready(self, &ready.source, out, err);
    lmd_ready_source_clear(&ready);
    if (status == LMD_OK && !self->sizes_alone) status = report_done(self, src, err);
    lmd_weight_finder_forget(&self->finder);
    return status;
}

static lmd_status load_matrix(loader *self, lmd_tensor_role role, int32_t layer, int32_t n_rows,
                              int32_t n_cols, lmd_weight **out, lmd_err *err) {
    lmd_weight_source src = {.n_parts = 1, .n_cols = n_cols};
    lmd_packed_weight *packed = &src.parts[0].packed;
    LMD_TRY(
        lmd_weight_finder_part(&self->finder, role, layer, n_rows, n_cols, &src.parts[0], err));
    /* A row of the embedding is taken as it is, columns in order. */
    if (role == LMD_EMBED) packed->has_groups = packed->has_groups && !packed->g_idx;
    return upload(self, &src, out, err);
}

/* Reads n values of a vector into out, in the order of row_map. */
static lmd_status read_vector(loader *self, lmd_tensor_role role, int32_t layer,
                              int32_t n_tensor, const int32_t *row_map, int32_t n, float *out,
                              lmd_err *err) {
    const lmd_tensor_view *view;
    LMD_TRY(lmd_weight_finder_tensor(&self->finder, role, layer, n_tensor, 0, &view, err));
    if (lmd_dtype_block_len(view->dtype) != 1)
        return lmd_fail(err, LMD_BAD_FILE,
                        "tensor \"%s\" is a vector and must be F32, F16 or BF16, "
                        "not %s",
                        view->name, lmd_view_dtype_name(view));
    lmd_loaded_tensor loaded = {0};
    const lmd_status status = lmd_view_load(&view, &loaded, err);
    const uint8_t *data = status == LMD_OK ? view->data : NULL;
    const int32_t element_bytes = lmd_dtype_block_bytes(view->dtype);
    for (int32_t i = 0; data && i < n; i++)
        lmd_weight_row_to_float(view->dtype,
                                data + (int64_t)(row_map ? row_map[i] : i) * element_bytes, 1,
                                out + i);
    lmd_free(loaded.buffer);
    return status;
}

/* ---- q, k, v: rows of one matrix in the order of heads, half-split for RoPE ---- */

/* Row of a head's tensor that holds row i of the half-split order: llama.cpp stores the pairs
 * (i, i + head_dim / 2) next to each other. */
static int32_t head_row(const lmd_model_config *config, int32_t i) {
    int32_t half = config->head_dim / 2;
    return config->interleaved_rope ? i % half * 2 + i / half : i;
}

/* Maps the rows of n_heads heads; head h starts at row first + h / per_group * group_rows +
 * h % per_group * head_dim of its tensor. */
static void map_heads(const lmd_model_config *config, int32_t n_heads, int32_t per_group,
                      int32_t group_rows, int32_t first, bool rotated, int32_t *map) {
    for (int32_t h = 0; h < n_heads; h++) {
        int32_t start = first + h / per_group * group_rows + h % per_group * config->head_dim;
        for (int32_t i = 0; i < config->head_dim; i++)
            map[h * config->head_dim + i] = start + (rotated ? head_row(config, i) : i);
    }
}

static lmd_status make_row_maps(loader *self, lmd_err *err) {
    const lmd_model_config *config = &self->model->config;
    const int32_t head_dim = config->head_dim, group = config->n_head / config->n_kv_head;
    self->n_q_rows = config->n_head * head_dim;
    self->n_kv_rows = config->n_kv_head * head_dim;
    if (!config->interleaved_rope && !config->packed_qkv) return LMD_OK;
    self->q_map = lmd_calloc((size_t)self->n_q_rows, sizeof *self->q_map);
    self->k_map = lmd_calloc((size_t)self->n_kv_rows, sizeof *self->k_map);
    self->v_map = lmd_calloc((size_t)self->n_kv_rows, sizeof *self->v_map);
    if (!self->q_map || !self->k_map || !self->v_map) return lmd_no_memory(err, "row maps");
    if (config->packed_qkv) {
        int32_t group_rows = (group + 2) * head_dim;
        map_heads(config, config->n_head, group, group_rows, 0, true, self->q_map);
        map_heads(config, config->n_kv_head, 1, group_rows, group * head_dim, true,
                  self->k_map);
        map_heads(config, config->n_kv_head, 1, group_rows, (group + 1) * head_dim, false,
                  self->v_map);
    } else {
        map_heads(config, config->n_head, 1, head_dim, 0, true, self->q_map);
        map_heads(config, config->n_kv_head, 1, head_dim, 0, true, self->k_map);
        map_heads(config, config->n_kv_head, 1, head_dim, 0, false, self->v_map);
    }
    return LMD_OK;
}

static lmd_status load_qkv(loader *self, int32_t layer, lmd_weight **out, lmd_err *err) {
    const lmd_model_config *config = &self->model->config;
    static const lmd_tensor_role roles[] = {LMD_Q, LMD_K, LMD_V};
    const int32_t *const maps[] = {self->q_map, self->k_map, self->v_map};
    const int32_t n_rows[] = {self->n_q_rows, self->n_kv_rows, self->n_kv_rows};
    const int32_t n_all = self->n_q_rows + 2 * self->n_kv_rows;
    const bool packed = config->packed_qkv; /* one tensor for the three */
    lmd_weight_source src = {.n_parts = 3, .n_cols = config->hidden_dim};
    for (int32_t i = 0; i < 3; i++) {
        lmd_weight_part *part = &src.parts[i];
        LMD_TRY(lmd_weight_finder_part(&self->finder, packed ? LMD_QKV : roles[i], layer,
                                       packed ? n_all : n_rows[i], src.n_cols, part, err));
        part->row_map = maps[i];
        part->n_rows = n_rows[i];
    }
    return upload(self, &src, out, err);
}

/* One vector of up to three pieces, each some values of a tensor. */
typedef struct vector_part {
    lmd_tensor_role role;
    int32_t n_tensor;       /* values of the tensor */
    const int32_t *row_map; /* [n] or NULL */
    int32_t n;
} vector_part;

static lmd_status load_vector_of(loader *self, int32_t layer, const vector_part *parts,
                                 int32_t n_parts, lmd_weight **out, lmd_err *err) {
    lmd_status status = LMD_OK;
    int32_t n_all = 0, at = 0;
    for (int32_t i = 0; i < n_parts; i++) n_all += parts[i].n;
    float *values = lmd_calloc((size_t)n_all, sizeof *values);
    if (!values) return lmd_no_memory(err, "a vector of %d", n_all);
    for (int32_t i = 0; i < n_parts; at += parts[i++].n)
        LMD_TRY_OUT(read_vector(self, parts[i].role, layer, parts[i].n_tensor, parts[i].row_map,
                                parts[i].n, values + at, err));
    if (self->sizes_alone) goto out;
    LMD_TRY_OUT(self->model->backend->ops->upload_vector(self->model->backend, values, n_all,
                                                         out, err));
out:
    lmd_free(values);
    return status;
}

static lmd_status load_vector(loader *self, lmd_tensor_role role, int32_t layer, int32_t n,
                              lmd_weight **out, lmd_err *err) {
    const vector_part part = {role, n, NULL, n};
    return load_vector_of(self, layer, &part, 1, out, err);
}

static lmd_status load_qkv_bias(loader *self, int32_t layer, lmd_weight **out, lmd_err *err) {
    const int32_t n_q = self->n_q_rows, n_kv = self->n_kv_rows, n_all = n_q + 2 * n_kv;
    const vector_part apart[] = {{LMD_Q_BIAS, n_q, self->q_map, n_q},
                                 {LMD_K_BIAS, n_kv, self->k_map, n_kv},
                                 {LMD_V_BIAS, n_kv, self->v_map, n_kv}};
    const vector_part packed[] = {{LMD_QKV_BIAS, n_all, self->q_map, n_q},
                                  {LMD_QKV_BIAS, n_all, self->k_map, n_kv},
                                  {LMD_QKV_BIAS, n_all, self->v_map, n_kv}};
    return load_vector_of(self, layer, self->model->config.packed_qkv ? packed : apart, 3, out,
                          err);
}

static lmd_status load_gate_up_bias(loader *self, int32_t layer, lmd_weight **out,
                                    lmd_err *err) {
    const int32_t n = self->model->config.ffn_dim;
    const vector_part parts[] = {{LMD_GATE_BIAS, n, NULL, n}, {LMD_UP_BIAS, n, NULL, n}};
    return load_vector_of(self, layer, parts, 2, out, err);
}

static lmd_status load_gate_up(loader *self, int32_t layer, lmd_weight **out, lmd_err *err) {
    const lmd_model_config *config = &self->model->config;
    const int32_t n_rows = config->ffn_dim, n_cols = config->hidden_dim;
    lmd_weight_source src = {.n_parts = 2, .n_cols = n_cols, .is_gated = true};
    LMD_TRY(lmd_weight_finder_part(&self->finder, LMD_GATE, layer, n_rows, n_cols,
                                   &src.parts[0], err));
    LMD_TRY(lmd_weight_finder_part(&self->finder, LMD_UP, layer, n_rows, n_cols, &src.parts[1],
                                   err));
    return upload(self, &src, out, err);
}

/* ---- layers and model ---- */

static lmd_status load_layer(loader *self, int32_t i, lmd_err *err) {
    const lmd_model_config *config = &self->model->config;
    const int32_t hidden_dim = config->hidden_dim, head_dim = config->head_dim;
    lmd_layer *layer = &self->model->layers[i];
    LMD_TRY(load_vector(self, LMD_ATTN_NORM, i, hidden_dim, &layer->attn_norm, err));
    LMD_TRY(load_qkv(self, i, &layer->qkv, err));
    if (config->qkv_bias) LMD_TRY(load_qkv_bias(self, i, &layer->qkv_bias, err));
    if (config->qk_norm) {
        LMD_TRY(load_vector(self, LMD_Q_NORM, i, head_dim, &layer->q_norm, err));
        LMD_TRY(load_vector(self, LMD_K_NORM, i, head_dim, &layer->k_norm, err));
    }
    LMD_TRY(load_matrix(self, LMD_O, i, hidden_dim, self->n_q_rows, &layer->o, err));
    if (config->o_bias)
        LMD_TRY(load_vector(self, LMD_O_BIAS, i, hidden_dim, &layer->o_bias, err));
    LMD_TRY(load_vector(self, LMD_FFN_NORM, i, hidden_dim, &layer->ffn_norm, err));
    LMD_TRY(load_gate_up(self, i, &layer->gate_up, err));
    LMD_TRY(load_matrix(self, LMD_DOWN, i, hidden_dim, config->ffn_dim, &layer->down, err));
    if (!config->mlp_bias) return LMD_OK;
    LMD_TRY(load_gate_up_bias(self, i, &layer->gate_up_bias, err));
    return load_vector(self, LMD_DOWN_BIAS, i, hidden_dim, &layer->down_bias, err);
}

/* Walks all tensors in the order of loading. */
static lmd_status visit_all(loader *self, lmd_err *err) {
    lmd_model *model = self->model;
    const lmd_model_config *config = &model->config;
    model->sizes = (lmd_model_sizes){0};
    LMD_TRY(load_matrix(self, LMD_EMBED, 0, config->vocab_size, config->hidden_dim,
                        &model->embed, err));
    const size_t embed_bytes = model->sizes.weight_bytes;
    for (int32_t i = 0; i < config->n_layer; i++) LMD_TRY(load_layer(self, i, err));
    LMD_TRY(load_vector(self, LMD_FINAL_NORM, 0, config->hidden_dim, &model->final_norm, err));
    if (config->tie_embeddings) {
        model->lm_head = model->embed;
        model->sizes.read_bytes = model->sizes.weight_bytes;
        return LMD_OK;
    }
    LMD_TRY(load_matrix(self, LMD_HEAD, 0, config->vocab_size, config->hidden_dim,
                        &model->lm_head, err));
    model->sizes.read_bytes = model->sizes.weight_bytes - embed_bytes;
    return LMD_OK;
}

static lmd_status load_rope_factors(loader *self, lmd_err *err) {
    lmd_model *model = self->model;
    const int32_t n = model->config.head_dim / 2;
    if (!model->config.rope.freqs_tensor) return LMD_OK;
    model->rope_factors = lmd_calloc((size_t)n, sizeof *model->rope_factors);
    if (!model->rope_factors) return lmd_no_memory(err, "RoPE factors");
    return read_vector(self, LMD_ROPE_FREQS, 0, n, NULL, n, model->rope_factors, err);
}

/* Adds the sizes up, so that the backend can allocate once, and then loads unless the sizes are
 * all that is wanted. */
static lmd_status load_all(loader *self, lmd_err *err) {
    lmd_model *model = self->model;
    const bool sizes_alone = self->sizes_alone;
    self->finder.config = &model->config;
    LMD_TRY(lmd_arch_of(&model->config, &self->finder.arch, err));
    LMD_TRY(make_row_maps(self, err));
    self->finder.codes = (lmd_upload_codes){model->config.quantize_bits,
                                            lmd_quantize_group_size(&model->config)};
    LMD_TRY(load_rope_factors(self, err));
    self->sizes_alone = true;
    LMD_TRY(visit_all(self, err));
    if (sizes_alone) return LMD_OK;
    self->sizes_alone = false;
    LMD_TRY(model->backend->ops->reserve(model->backend, model->sizes.weight_bytes, err));
    return visit_all(self, err);
}

/* Loads a new model, which owns the backend, or measures it. */
static lmd_status load(loader *self, const lmd_model_config *config, lmd_backend *backend,
                       lmd_model **out, lmd_err *err) {
    lmd_status status = lmd_model_config_check(config, err);
    lmd_model *model = status == LMD_OK ? lmd_calloc(1, sizeof *model) : NULL;
    if (!model) {
        backend->ops->free(backend);
        return status != LMD_OK ? status : lmd_no_memory(err, "a model");
    }
    model->config = *config;
    model->backend = backend;
    self->model = model;
    model->layers = lmd_calloc((size_t)config->n_layer, sizeof *model->layers);
    if (model->layers)
        status = load_all(self, err);
    else
        status = lmd_no_memory(err, "%d layers", config->n_layer);
    lmd_weight_finder_forget(&self->finder);
    lmd_free(self->q_map);
    lmd_free(self->k_map);
    lmd_free(self->v_map);
    if (status != LMD_OK) {
        lmd_model_free(model);
        return status;
    }
    *out = model;
    return LMD_OK;
}

lmd_status lmd_model_load(const lmd_model_config *config, const lmd_checkpoint *checkpoint,
                          lmd_backend *backend, const lmd_progress *progress, lmd_model **out,
                          lmd_err *err) {
    loader self = {.finder = {.checkpoint = checkpoint}, .progress = progress};
    return load(&self, config, backend, out, err);
}

lmd_status lmd_model_measure(const lmd_model_config *config, const lmd_checkpoint *checkpoint,
                             lmd_backend *backend, lmd_model_sizes *out, lmd_err *err) {
    loader self = {.finder = {.checkpoint = checkpoint}, .sizes_alone = true};
    lmd_model *model = NULL;
    LMD_TRY(load(&self, config, backend, &model, err));
    *out = model->sizes;
    lmd_model_free(model);
    return LMD_OK;
}

static void free_layer(lmd_backend *backend, lmd_layer *layer) {
    lmd_weight *const weights[] = {layer->attn_norm,    layer->qkv,      layer->qkv_bias,
                                   layer->q_norm,       layer->k_norm,   layer->o,
                                   layer->o_bias,       layer->ffn_norm, layer->gate_up,
                                   layer->gate_up_bias, layer->down,     layer->down_bias};
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        backend->ops->weight_free(backend, weights[i]);
}

void lmd_model_free(lmd_model *self) {
    if (!self) return;
    lmd_backend *backend = self->backend;
    for (int32_t i = 0; self->layers && i < self->config.n_layer; i++)
        free_layer(backend, &self->layers[i]);
    if (self->lm_head != self->embed) backend->ops->weight_free(backend, self->lm_head);
    backend->ops->weight_free(backend, self->embed);
    backend->ops->weight_free(backend, self->final_norm);
    backend->ops->free(backend);
    lmd_free(self->rope_factors);
    lmd_free(self->layers);
    lmd_free(self);
}

int32_t lmd_model_vocab_size(const lmd_model *self) { return self->config.vocab_size; }
