/* The decoder: THE forward pass of every architecture, as an executor on a backend.
 * Owns: one workspace and its activation buffers. Must not know: how a backend computes, who
 * asked. The engine's thread alone. */
#ifndef LMD_MODEL_DECODER_H
#define LMD_MODEL_DECODER_H

#include "backend/executor.h"
#include "model/model.h"

typedef struct lmd_decoder_config {
    int32_t session_len; /* most tokens of a sequence; also what dynamic NTK is frozen for */
    int32_t max_tokens, max_seqs; /* of one step */
    int32_t n_blocks, block_len;
    int32_t k_bits, v_bits; /* of the KV cache: see lmd_workspace_config */
    bool fast_activations;  /* 4-bit weights may meet 8-bit activations */
    bool batch_invariant;   /* see lmd_workspace_config */
    lmd_observer observer; /* sees what the linears of each layer read; see NULL: nobody does */
    /* Of an observed model: its layers end where this was shown, and begin with attention, or
     * with the feed-forward part, before which the observer is to write the residual stream. */
    int32_t last_place;
    bool from_middle;
} lmd_decoder_config;

/* What an observer is shown in each layer, in this order; the residual stream after the last
 * layer as what one more would begin with. */
typedef enum lmd_place {
    LMD_PLACE_ATTN_RESIDUAL, /* the residual stream before attention */
    LMD_PLACE_QKV,           /* the input of q, k and v */
    LMD_PLACE_KV, /* q, k and v behind attention: keys and values are what the cache got */
    LMD_PLACE_O,
    LMD_PLACE_FFN_RESIDUAL, /* the residual stream before the feed-forward part */
    LMD_PLACE_GATE_UP,
    LMD_PLACE_DOWN,
    LMD_PLACE_END /* is not shown */
} lmd_place;

/* Allocates KV and buffers for one engine. The model must outlive the executor. */
lmd_status lmd_decoder_new(const lmd_model *model, const lmd_decoder_config *config,
                           lmd_executor **out, lmd_err *err);

/* The bytes that lmd_decoder_new allocates besides the KV blocks, the table of RoPE that it
 * frees again included. LMD_INVALID and LMD_UNSUPPORTED say what the backend does not serve. */
lmd_status lmd_decoder_size(const lmd_model_config *shape, const lmd_decoder_config *config,
                            const lmd_backend *backend, size_t *out, lmd_err *err);

#endif
