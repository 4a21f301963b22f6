/* Sampling parameters on their way to a device, and results on their way back.
 * Owns: how rows and their lists travel: a row takes little, and only what it has. Must not
 * know: how a token is drawn. The engine's thread. */
#ifndef LMD_CUDA_CUDA_SAMPLING_H
#define LMD_CUDA_CUDA_SAMPLING_H

#include "cuda_workspace.h"

/* Enqueues the sampling of the n rows of logits that were made last. */
void lmd_cuda_sampling_run(lmd_workspace *self, const lmd_sample_params *params, int32_t n,
                           lmd_sample_result *results);
/* Hands a finished plan's results out. */
void lmd_cuda_sampling_read(const lmd_cuda_flight *flight);

#endif
