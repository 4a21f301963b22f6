/* Tensor names of InternLM2 in Hugging Face checkpoints: q, k and v in one packed tensor. Data.
 */
#include "model/arch.h"

#define LAYER "model.layers.{}."

const lmd_arch lmd_arch_internlm2 = {{
    [LMD_EMBED] = "model.tok_embeddings.weight",
    [LMD_FINAL_NORM] = "model.norm.weight",
    [LMD_HEAD] = "output.weight",
    [LMD_ATTN_NORM] = LAYER "attention_norm.weight",
    [LMD_QKV] = LAYER "attention.wqkv.weight",
    [LMD_O] = LAYER "attention.wo.weight",
    [LMD_QKV_BIAS] = LAYER "attention.wqkv.bias",
    [LMD_O_BIAS] = LAYER "attention.wo.bias",
    [LMD_FFN_NORM] = LAYER "ffn_norm.weight",
    [LMD_GATE] = LAYER "feed_forward.w1.weight",
    [LMD_UP] = LAYER "feed_forward.w3.weight",
    [LMD_DOWN] = LAYER "feed_forward.w2.weight",
}};
