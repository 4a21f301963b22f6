/* RoPE: the table of cosines and sines that every backend rotates by.
 * Owns: the formulas of the scaled variants. Must not know: devices. Pure functions. */
#ifndef LMD_MODEL_ROPE_H
#define LMD_MODEL_ROPE_H

#include "model/model_config.h"

/* Fills table [n_positions, head_dim / 2, {cos, sin}]. n_positions is the engine's session_len;
 * dynamic NTK takes its base from it. freq_factors [head_dim / 2] divide the frequencies (NULL:
 * none). Angles are products of fp32 numbers, as transformers computes them. Sources: RoFormer
 * (arXiv 2104.09864); linear: arXiv 2306.15595; dynamic NTK, yarn: arXiv 2309.00071; llama3:
 * the Llama 3.1 model card's formula. */
void lmd_rope_table(const lmd_model_config *config, const float *freq_factors,
                    int32_t n_positions, float *table);

#endif
