/* A run of a layer, and sums of what its linears read.
 * Must not know: what becomes of the sums. One thread; the pool's and the model's own threads
 * help. */
#ifndef LMD_LITE_LAYER_SUMS_H
#define LMD_LITE_LAYER_SUMS_H

#include "lite/input_sums.h"
#include "lite/layer_run.h"

/* A run of the whole layer, or of its feed-forward part (from_middle: see lmd_layer_wish), that
 * keeps the inputs that there are sums for, NULL for what is not wanted. As
 * lmd_layer_run_new; LMD_INVALID for sums of another width, too. */
lmd_status lmd_layer_sums_new(const lmd_model *model, lmd_texts texts, bool from_middle,
                              lmd_input_sums *const sums[LMD_INPUT_COUNT], lmd_layer_run **out,
                              lmd_err *err);

/* As lmd_layer_run_step, and adds what was read to the sums, each token with its weight.
 * n_tokens: of the step. LMD_INVALID for an input that is not finite; then hidden and sums are
 * of no use. */
lmd_status lmd_layer_sums_step(lmd_layer_run *run, const lmd_compute *compute, float *hidden,
                               lmd_input_sums *const sums[LMD_INPUT_COUNT], int32_t *n_tokens,
                               lmd_err *err);

#endif
