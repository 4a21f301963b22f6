/* Tensor names in GGUF files, the same for every architecture; and the choice of a table. */
#include <string.h>

#include "model/arch.h"

#define LAYER "blk.{}."

const lmd_arch lmd_arch_gguf = {{
    [LMD_EMBED] = "token_embd.weight",
    [LMD_FINAL_NORM] = "output_norm.weight",
    [LMD_HEAD] = "output.weight",
    [LMD_ATTN_NORM] = LAYER "attn_norm.weight",
    [LMD_Q] = LAYER "attn_q.weight",
    [LMD_K] = LAYER "attn_k.weight",
    [LMD_V] = LAYER "attn_v.weight",
    [LMD_O] = LAYER "attn_output.weight",
    [LMD_Q_BIAS] = LAYER "attn_q.bias",
    [LMD_K_BIAS] = LAYER "attn_k.bias",
    [LMD_V_BIAS] = LAYER "attn_v.bias",
    [LMD_O_BIAS] = LAYER "attn_output.bias",
    [LMD_Q_NORM] = LAYER "attn_q_norm.weight",
    [LMD_K_NORM] = LAYER "attn_k_norm.weight",
    [LMD_FFN_NORM] = LAYER "ffn_norm.weight",
    [LMD_GATE] = LAYER "ffn_gate.weight",
    [LMD_UP] = LAYER "ffn_up.weight",
    [LMD_DOWN] = LAYER "ffn_down.weight",
    [LMD_ROPE_FREQS] = "rope_freqs.weight",
}};

lmd_status lmd_arch_of(const lmd_model_config *config, const lmd_arch **out, lmd_err *err) {
    static const char *const llama_family[] = {"llama", "mistral", "qwen2", "qwen3",
                                               "internlm3"};
    const lmd_arch *found = NULL;
    for (int32_t i = 0; i < 5; i++)
        if (strcmp(config->arch, llama_family[i]) == 0) found = &lmd_arch_llama;
    if (strcmp(config->arch, "internlm2") == 0) found = &lmd_arch_internlm2;
    if (!found)
        return lmd_fail(
            err, LMD_UNSUPPORTED,
            "architecture \"%s\" is not served; served: llama, mistral, qwen2, qwen3, "
            "internlm2, internlm3",
            config->arch);
    *out = config->naming == LMD_NAMING_GGUF ? &lmd_arch_gguf : found;
    return LMD_OK;
}
