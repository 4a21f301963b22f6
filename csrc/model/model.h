/* A model: its config, and its weights in a backend's layout.
 * Owns: the backend and every weight. Immutable once loaded; any thread may read it.
 * Must not know: requests, plans, Python. */
#ifndef LMD_MODEL_MODEL_H
#define LMD_MODEL_MODEL_H

#include "backend/backend.h"
#include "io/checkpoint.h"
#include "model/model_config.h"

typedef struct lmd_layer {
    lmd_weight *attn_norm;       /* [hidden_dim] */
    lmd_weight *qkv;             /* [(n_head + 2 n_kv_head) * head_dim, hidden_dim] */
    lmd_weight *qkv_bias;        /* [(n_head + 2 n_kv_head) * head_dim] or NULL */
    lmd_weight *q_norm, *k_norm; /* [head_dim] or NULL */
    lmd_weight *o;               /* [hidden_dim, n_head * head_dim] */
    lmd_weight *o_bias;          /* [hidden_dim] or NULL */
    lmd_weight *ffn_norm;        /* [hidden_dim] */
    lmd_weight *gate_up;         /* two parts of [ffn_dim, hidden_dim] */
    lmd_weight *gate_up_bias;    /* [2 ffn_dim] or NULL */
    lmd_weight *down;            /* [hidden_dim, ffn_dim] */
    lmd_weight *down_bias;       /* [hidden_dim] or NULL */
} lmd_layer;

typedef struct lmd_model_sizes {
    size_t weight_bytes; /* of all matrices, as the backend keeps them */
    size_t read_bytes;   /* of these, what one decoded token reads: not an embedding that is no
                            lm_head, of which it reads a row */
} lmd_model_sizes;

typedef struct lmd_model {
    lmd_model_config config;
    lmd_backend *backend;
    lmd_layer *layers;      /* [n_layer] */
    lmd_weight *embed;      /* [vocab_size, hidden_dim] */
    lmd_weight *final_norm; /* [hidden_dim] */
    lmd_weight *lm_head;    /* [vocab_size, hidden_dim]; the same object as embed when tied */
    float *rope_factors;    /* [head_dim / 2] or NULL */
    lmd_model_sizes sizes;
} lmd_model;

/* Called after each weight with the checkpoint's bytes done so far; not LMD_OK stops the load.
 */
typedef struct lmd_progress {
    lmd_status (*report)(void *user, size_t done_bytes, size_t total_bytes, lmd_err *err);
    void *user;
} lmd_progress;

/* Loads the weights that config asks for, and takes the backend over (freed on failure too).
 * LMD_BAD_FILE names the tensor, what was wanted and what was there. */
lmd_status lmd_model_load(const lmd_model_config *config, const lmd_checkpoint *checkpoint,
                          lmd_backend *backend, const lmd_progress *progress, lmd_model **out,
                          lmd_err *err);
/* Says what loading would take: reads headers and small vectors, and refuses what a load
 * refuses. Takes the backend over and frees it. */
lmd_status lmd_model_measure(const lmd_model_config *config, const lmd_checkpoint *checkpoint,
                             lmd_backend *backend, lmd_model_sizes *out, lmd_err *err);
void lmd_model_free(lmd_model *self);

int32_t lmd_model_vocab_size(const lmd_model *self);

#endif
