/* The backend seam: the fused steps of a decoder layer, as one table of functions.
 * A backend owns weights in its own layout. A workspace owns what one engine needs on it: the
 * KV pool, the activation buffers, a copy of the plan, and the order of operations. Operations
 * never allocate and never fail: errors surface in step_wait. The engine's thread calls a
 * workspace; upload may run on any one thread. Must not know: architectures, sequences, Python.
 */
#ifndef LMD_BACKEND_BACKEND_H
#define LMD_BACKEND_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/plan.h"
#include "base/status.h"
#include "io/checkpoint.h"
#include "quant/packed_weight.h"
#include "quant/weight_codec.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lmd_backend lmd_backend;
typedef struct lmd_weight lmd_weight; /* a matrix or a vector in the backend's layout */
typedef struct lmd_buffer lmd_buffer; /* activations of a step in the backend's format */
typedef struct lmd_workspace lmd_workspace;

/* What upload makes of a model's matrices. */
typedef enum lmd_matrices {
    LMD_MATRICES_PACKED, /* from the checkpoint */
    LMD_MATRICES_BLANK   /* as large, of made-up values: operations take as long */
} lmd_matrices;

typedef struct lmd_backend_config {
    int32_t n_threads; /* 0: as many as the affinity mask and the cgroup quota allow */
    lmd_matrices matrices;
} lmd_backend_config;

/* Codes that floats become while they are uploaded (quant/data_free.h):
 *   4 bits  U4 ZERO    8 bits  I8 NONE, symmetric    0 bits: floats stay what they are */
typedef struct lmd_upload_codes {
    int32_t bits;
    int32_t group_size; /* 32, 64 or 128 */
} lmd_upload_codes;

/* Rows taken from one matrix of a checkpoint: row i is the matrix's row row_map[i] (NULL: row
 * i). The matrix is a tensor, or packed tensors in which lmd_packed_check found groups; then
 * row_map keeps runs of LMD_PACKED_ROWS rows together. */
typedef struct lmd_weight_part {
    const lmd_tensor_view *tensor; /* [>= n_rows, n_cols]; unused when packed */
    lmd_upload_codes codes;        /* of a tensor of floats */
    lmd_packed_weight packed;      /* LMD_PACKING_NONE: the matrix is `tensor` */
    const int32_t *row_map;        /* [n_rows] */
    int32_t n_rows;
} lmd_weight_part;

enum { LMD_MAX_WEIGHT_PARTS = 3 };

/* A matrix of parts on top of one another: q, k, v; or gate, up. They have one order of
 * columns: all packed with the same packed.order, or none with one. */
typedef struct lmd_weight_source {
    int32_t n_parts, n_cols;
    bool is_gated; /* gate and up, for LMD_EPILOGUE_SILU_MUL: two parts of equally many rows */
    lmd_weight_part parts[LMD_MAX_WEIGHT_PARTS];
} lmd_weight_source;

/* [n_cols] Column k of a source's matrix meets column order[k] of its input; NULL: column k.
 * The caller frees it after the upload. */
static inline const int32_t *lmd_weight_order(const lmd_weight_source *src) {
    return src->parts[0].packed.order;
}

typedef struct lmd_workspace_config {
    int32_t max_tokens, max_seqs; /* of one step */
    int32_t max_logits_rows;      /* rows of the logits buffer: lmd_max_logits_rows */
    int32_t max_cols;             /* of the widest buffer that buffer_new will make */
    int32_t n_layer, n_head, n_kv_head, head_dim, hidden_dim, vocab_size;
    int32_t n_blocks, block_len; /* the KV pool */
    int32_t k_bits, v_bits;      /* 16: fp16; 32: fp32; 8, 4: codes (quant/kv_quant.h) */
    bool fast_activations;       /* 4-bit weights may meet 8-bit activations */
    bool batch_invariant; /* a row's bits must not depend on the other rows of a step; the CPU
                             always keeps to that */
    int32_t n_positions;  /* most of one sequence: rows of the RoPE table */
    const float *rope_table; /* [n_positions, head_dim / 2, {cos, sin}] copied */
} lmd_workspace_config;

/* What a buffer is for. */
typedef enum lmd_buffer_role {
    LMD_BUFFER_RESIDUAL,  /* what every layer adds to: fp32 on every backend */
    LMD_BUFFER_ACTIVATION /* what an operation reads: in the backend's own format */
} lmd_buffer_role;

typedef enum lmd_epilogue {
    LMD_EPILOGUE_STORE,   /* out = x W^T + b */
    LMD_EPILOGUE_ADD,     /* out += x W^T + b, out being the residual stream */
    LMD_EPILOGUE_SILU_MUL /* out = silu(gate) * up, from a weight of two equal parts */
} lmd_epilogue;

typedef struct lmd_linear_args {
    const lmd_weight *weight; /* [n_out, n_in] */
    const lmd_weight *bias;   /* [n_out] or NULL */
    lmd_buffer *in, *out;     /* [n_tokens, n_in], [n_tokens, n_out]. What `in` holds
                                afterwards is undefined where the weight has an order */
    lmd_epilogue epilogue;
} lmd_linear_args;

typedef struct lmd_attention_args {
    int32_t layer;
    lmd_buffer *qkv; /* [n_tokens, (n_head + 2 n_kv_head) * head_dim]. Where the backend can
                        observe, keys and values are afterwards what it wrote into the cache,
                        before it rounded them */
    const lmd_weight *q_norm, *k_norm; /* [head_dim] per-head RMS norm before RoPE, or NULL */
    float norm_eps;
    lmd_buffer *out; /* [n_tokens, n_head * head_dim] */
} lmd_attention_args;

/* Rows [first, first + n) of a buffer in fp32: what an operation at that place of the layer
 * reads. */
typedef struct lmd_seen_rows {
    int32_t layer, place;
    int32_t first, n, n_cols;
    float *x; /* [n, n_cols] */
} lmd_seen_rows;

/* Is shown a buffer's rows, and may write those of the residual stream. It runs inside a step,
 * in the order of the operations; of one buffer, several threads show parts of the rows at
 * once. */
typedef struct lmd_observer {
    void (*see)(void *user, const lmd_seen_rows *rows);
    void *user;
} lmd_observer;

/* What a user who asks for nothing else gets on a device. */
typedef struct lmd_device_defaults {
    int32_t max_batch_size;        /* sequences of a step */
    int32_t max_prefill_token_num; /* tokens of a step */
    double step_seconds;           /* a step's time to aim at while sequences decode */
    double kv_fraction;            /* of the free memory, for the KV cache */
    size_t kv_max_bytes;           /* and no more than this; 0: no bound */
} lmd_device_defaults;

typedef struct lmd_backend_ops {
    const char *name;      /* "cpu" */
    const char *kv_layout; /* names the form of a KV block and its version */
    bool runs_ahead;       /* a plan may begin while the one before runs, with -1 for the tokens
                              that the one before gives: the device keeps each slot's newest */
    lmd_device_defaults defaults;

    /* Facts about the device, in bytes. Sizes are computed by the code that allocates. */
    lmd_status (*memory)(const lmd_backend *self, size_t *free_bytes, size_t *total_bytes,
                         lmd_err *err);
    lmd_status (*weight_size)(const lmd_backend *self, const lmd_weight_source *src,
                              size_t *out, lmd_err *err);
    size_t (*kv_block_bytes)(const lmd_workspace_config *config);
    /* Of a workspace without its KV blocks and its buffers. LMD_INVALID and LMD_UNSUPPORTED say
     * what of the config is not served. */
    lmd_status (*workspace_size)(const lmd_backend *self, const lmd_workspace_config *config,
                                 size_t *out, lmd_err *err);
    /* Of one such buffer. */
    size_t (*buffer_bytes)(const lmd_backend *self, const lmd_workspace_config *config,
                           int32_t n_cols, lmd_buffer_role role);

    /* Model lifetime. */
    const char *(*isa)(const lmd_backend *self);
    int32_t (*n_threads)(const lmd_backend *self);
    /* Makes room for all matrices that will be uploaded, in one piece: n_bytes is the sum of
     * their weight_size. */
    lmd_status (*reserve)(lmd_backend *self, size_t n_bytes, lmd_err *err);
    lmd_status (*upload)(lmd_backend *self, const lmd_weight_source *src, lmd_weight **out,
                         lmd_err *err);
    lmd_status (*upload_vector)(lmd_backend *self, const float *values, int32_t n,
                                lmd_weight **out, lmd_err *err);
    void (*weight_free)(lmd_backend *self, lmd_weight *weight);
    void (*free)(lmd_backend *self);

    /* Engine lifetime. */
    lmd_status (*workspace_new)(lmd_backend *self, const lmd_workspace_config *config,
                                lmd_workspace **out, lmd_err *err);
    lmd_status (*buffer_new)(lmd_workspace *workspace, int32_t n_cols, lmd_buffer_role role,
                             lmd_buffer **out, lmd_err *err);
    void (*workspace_free)(lmd_workspace *workspace); /* with its buffers */

    /* A step: begin, operations in order, sample, end; then wait. The plan and its arrays stay
     * until it was waited for. */
    void (*step_begin)(lmd_workspace *workspace, const lmd_plan *plan);
    /* The table has its columns in order. */
    void (*embed)(lmd_workspace *workspace, const lmd_weight *table, lmd_buffer *out);
    void (*add_norm)(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *weight,
                     float eps, lmd_buffer *out);
    void (*linear)(lmd_workspace *workspace, const lmd_linear_args *args);
    void (*attention)(lmd_workspace *workspace, const lmd_attention_args *args);
    /* Shows a buffer to an observer, which lives until the plan was waited for. NULL: this
     * device hands nothing out. */
    void (*observe)(lmd_workspace *workspace, lmd_buffer *buffer, int32_t layer, int32_t place,
                    const lmd_observer *observer);
    /* Final norm and lm_head of the plan's logits rows [first, first + n), n <=
     * max_logits_rows. */
    void (*logits)(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *norm,
                   float eps, const lmd_weight *lm_head, int32_t first, int32_t n);
    /* Scores, processes and samples the n rows that `logits` made last, with params[0..n), into
     * results[0..n). Both stay until the plan was waited for. */
    void (*sample)(lmd_workspace *workspace, const lmd_sample_params *params, int32_t n,
                   lmd_sample_result *results);
    void (*step_end)(lmd_workspace *workspace); /* nothing more comes for this plan */
    lmd_status (*step_wait)(lmd_workspace *workspace, int64_t plan_id, lmd_err *err);

    /* Between steps: n blocks of kv_block_bytes each, as the device keeps them. */
    lmd_status (*kv_export)(lmd_workspace *workspace, const int32_t *block_ids, int32_t n,
                            uint8_t *out, lmd_err *err);
    lmd_status (*kv_import)(lmd_workspace *workspace, const int32_t *block_ids, int32_t n,
                            const uint8_t *data, lmd_err *err);
} lmd_backend_ops;

struct lmd_backend {
    const lmd_backend_ops *ops;
};

/* Rows of logits that exist at once: those of a step of decodes, whole; a plan that wants more
 * makes and samples them in tiles. */
static inline int32_t lmd_max_logits_rows(int32_t max_tokens, int32_t max_seqs) {
    const int32_t most = max_seqs < 64 ? 64 : max_seqs;
    return max_tokens < most ? max_tokens : most;
}

/* What every backend asks of a workspace's config: block_len, head_dim, kv_bits. LMD_INVALID
 * and LMD_UNSUPPORTED name the field. */
lmd_status lmd_workspace_config_check(const lmd_workspace_config *config, lmd_err *err);

/* What every backend asks of a weight's source: whole groups, one group size, packed rows in
 * whole runs. Gives each part's format. LMD_BAD_FILE, LMD_UNSUPPORTED name the tensor. */
lmd_status lmd_weight_source_check(const lmd_weight_source *src,
                                   lmd_weight_format formats[LMD_MAX_WEIGHT_PARTS],
                                   lmd_err *err);

#ifdef __cplusplus
}
#endif

#endif
