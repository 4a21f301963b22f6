/* Architectures as data: the names under which a checkpoint keeps each tensor of a decoder.
 * "{}" stands for the layer. A NULL name: this naming has no such tensor. No code, no state. */
#ifndef LMD_MODEL_ARCH_H
#define LMD_MODEL_ARCH_H

#include "model/model_config.h"

typedef enum lmd_tensor_role {
    LMD_EMBED,
    LMD_FINAL_NORM,
    LMD_HEAD,
    LMD_ATTN_NORM,
    LMD_Q,
    LMD_K,
    LMD_V,
    LMD_QKV, /* packed */
    LMD_O,
    LMD_Q_BIAS,
    LMD_K_BIAS,
    LMD_V_BIAS,
    LMD_QKV_BIAS, /* packed */
    LMD_O_BIAS,
    LMD_Q_NORM,
    LMD_K_NORM,
    LMD_FFN_NORM,
    LMD_GATE,
    LMD_UP,
    LMD_DOWN,
    LMD_GATE_BIAS,
    LMD_UP_BIAS,
    LMD_DOWN_BIAS,
    LMD_ROPE_FREQS,
    LMD_ROLE_COUNT
} lmd_tensor_role;

typedef struct lmd_arch {
    const char *names[LMD_ROLE_COUNT];
} lmd_arch;

extern const lmd_arch lmd_arch_llama;     /* Hugging Face: llama, mistral, qwen2, qwen3 */
extern const lmd_arch lmd_arch_internlm2; /* Hugging Face: internlm2 */
extern const lmd_arch lmd_arch_gguf;      /* GGUF: every architecture */

/* The table for a config's architecture and naming. LMD_UNSUPPORTED names those served. */
lmd_status lmd_arch_of(const lmd_model_config *config, const lmd_arch **out, lmd_err *err);

#endif
