/* The operations of the seam: each names the launchers that it is made of.
 * Owns: nothing. Must not know: how kernels work, when they run. The engine's thread. */
#ifndef LMD_CUDA_CUDA_OPS_H
#define LMD_CUDA_CUDA_OPS_H

#include "cuda_workspace.h"

void lmd_cuda_embed(lmd_workspace *self, const lmd_weight *table, lmd_buffer *out);
void lmd_cuda_add_norm(lmd_workspace *self, lmd_buffer *residual, const lmd_weight *weight,
                       float eps, lmd_buffer *out);
void lmd_cuda_linear(lmd_workspace *self, const lmd_linear_args *args);
void lmd_cuda_attention(lmd_workspace *self, const lmd_attention_args *args);
void lmd_cuda_logits(lmd_workspace *self, lmd_buffer *residual, const lmd_weight *norm,
                     float eps, const lmd_weight *lm_head, int32_t first, int32_t n);
void lmd_cuda_sample(lmd_workspace *self, const lmd_sample_params *params, int32_t n,
                     lmd_sample_result *results);

#endif
