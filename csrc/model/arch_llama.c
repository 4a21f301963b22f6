/* Tensor names of the Llama family in Hugging Face checkpoints: llama, mistral, qwen2, qwen3,
 * and internlm3. Data. */
#include "model/arch.h"

#define LAYER "model.layers.{}."

const lmd_arch lmd_arch_llama = {{
    [LMD_EMBED] = "model.embed_tokens.weight",
    [LMD_FINAL_NORM] = "model.norm.weight",
    [LMD_HEAD] = "lm_head.weight",
    [LMD_ATTN_NORM] = LAYER "input_layernorm.weight",
    [LMD_Q] = LAYER "self_attn.q_proj.weight",
    [LMD_K] = LAYER "self_attn.k_proj.weight",
    [LMD_V] = LAYER "self_attn.v_proj.weight",
    [LMD_O] = LAYER "self_attn.o_proj.weight",
    [LMD_Q_BIAS] = LAYER "self_attn.q_proj.bias",
    [LMD_K_BIAS] = LAYER "self_attn.k_proj.bias",
    [LMD_V_BIAS] = LAYER "self_attn.v_proj.bias",
    [LMD_O_BIAS] = LAYER "self_attn.o_proj.bias",
    [LMD_Q_NORM] = LAYER "self_attn.q_norm.weight",
    [LMD_K_NORM] = LAYER "self_attn.k_norm.weight",
    [LMD_FFN_NORM] = LAYER "post_attention_layernorm.weight",
    [LMD_GATE] = LAYER "mlp.gate_proj.weight",
    [LMD_UP] = LAYER "mlp.up_proj.weight",
    [LMD_DOWN] = LAYER "mlp.down_proj.weight",
    [LMD_GATE_BIAS] = LAYER "mlp.gate_proj.bias",
    [LMD_UP_BIAS] = LAYER "mlp.up_proj.bias",
    [LMD_DOWN_BIAS] = LAYER "mlp.down_proj.bias",
}};
