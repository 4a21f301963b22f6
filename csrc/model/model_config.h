/* A model's shape, normalised: the same for GGUF and Hugging Face checkpoints.
 * Owns: the checks that make every size safe to compute with. Must not know: files, Python.
 * Plain data. */
#ifndef LMD_MODEL_MODEL_CONFIG_H
#define LMD_MODEL_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "quant/packed_weight.h"

typedef enum lmd_rope_type {
    LMD_ROPE_DEFAULT,
    LMD_ROPE_LINEAR,
    LMD_ROPE_DYNAMIC, /* NTK: the base depends on session_len, frozen for an engine's life */
    LMD_ROPE_LLAMA3,
    LMD_ROPE_YARN
} lmd_rope_type;

typedef enum lmd_naming { LMD_NAMING_HF, LMD_NAMING_GGUF } lmd_naming;

typedef struct lmd_rope_config {
    lmd_rope_type type;
    double theta, factor;
    int32_t original_max_position;                 /* of dynamic: max_position */
    double low_freq_factor, high_freq_factor;      /* llama3 */
    double beta_fast, beta_slow, attention_factor; /* yarn */
    bool truncate;                                 /* yarn: whole correction dims */
    bool freqs_tensor; /* GGUF's rope_freqs.weight divides the frequencies */
} lmd_rope_config;

typedef struct lmd_model_config {
    char arch[32];
    lmd_naming naming;
    int32_t n_layer, n_head, n_kv_head, head_dim;
    int32_t hidden_dim, ffn_dim, vocab_size, max_position;
    double norm_eps;
    lmd_rope_config rope;
    lmd_packing packing;   /* how packed matrices are stored; NONE: there are none */
    int32_t quantize_bits; /* that floats of the layers' linears get while they are loaded: 4,
                              8; 0: they stay floats */
    bool tie_embeddings;   /* lm_head is the embedding */
    bool qkv_bias, o_bias, mlp_bias; /* biases of the linears */
    bool qk_norm;                    /* per-head RMS norm of q and k before RoPE */
    bool packed_qkv;                 /* one tensor, rows grouped by KV head: q heads, k, v */
    bool interleaved_rope; /* q and k rows are in pairs (2i, 2i + 1); loading reorders them */
} lmd_model_config;

/* Checks sizes and their relations. LMD_INVALID or LMD_UNSUPPORTED name the field. */
lmd_status lmd_model_config_check(const lmd_model_config *config, lmd_err *err);

/* "default", "linear", ... to the enum. LMD_UNSUPPORTED. */
lmd_status lmd_rope_type_of(const char *name, lmd_rope_type *out, lmd_err *err);

/* Columns of a group where linears are quantised: the largest of 128, 64 and 32 that divides
 * the rows of all of them; 0: none does, which the check refuses. */
int32_t lmd_quantize_group_size(const lmd_model_config *config);

/* "w4" or "w8" to the bits. LMD_INVALID. */
lmd_status lmd_quantize_bits_of(const char *name, int32_t *out, lmd_err *err);

/* "none", "awq", "gptq", "gptq_borrow", "gptq_v2" or "compressed-tensors" to the enum.
 * LMD_UNSUPPORTED. */
lmd_status lmd_packing_of(const char *name, lmd_packing *out, lmd_err *err);

#endif
