/* Texts through one layer of two models: the original, and the one that is being quantised,
 * whose hidden states have drifted from the original's. Sums what a linear of the latter reads,
 * and what is wanted of it, so that it can make up for the drift (GPTAQ, arXiv 2504.02692;
 * Qronos, arXiv 2505.11695). Must not know: what becomes of the sums. One thread; the pool's
 * and the models' own threads help. */
#ifndef LMD_LITE_LAYER_PAIR_H
#define LMD_LITE_LAYER_PAIR_H

#include "lite/input_sums.h"
#include "lite/layer_run.h"

typedef struct lmd_layer_pair lmd_layer_pair;

/* Prepares to take texts through the models, of one layer and of the same shape, which must
 * outlive the pair, to one input of a linear: first all texts to LMD_QKV_INPUT, then to the
 * next, up to LMD_DOWN_INPUT. As lmd_layer_run_new. */
lmd_status lmd_layer_pair_new(const lmd_model *original, const lmd_model *drifted,
                              lmd_texts texts, int32_t input, lmd_layer_pair **out,
                              lmd_err *err);
void lmd_layer_pair_free(lmd_layer_pair *self);

/* Adds the next tokens to sums, weighted as in lmd_layer_inputs. What is wanted of a row
 * [hidden_dim]: of q, k and v, gate and up the original's input; of o and down what the linear
 * should add to the drifted residual stream so that it becomes the original's.
 * original, drifted: the residual streams [n_tokens, hidden_dim] of the next tokens: before the
 * layer at first; the original's is replaced by that after attention with LMD_O_INPUT, and by
 * that after the layer with LMD_DOWN_INPUT, the drifted by that after attention with
 * LMD_GATE_UP_INPUT. n_tokens: of the step; 0: no token was left. LMD_INVALID for an input that
 * is not finite; then the sums are of no use. */
lmd_status lmd_layer_pair_step(lmd_layer_pair *self, const lmd_compute *compute,
                               float *original, float *drifted, lmd_input_sums *sums,
                               int32_t *n_tokens, lmd_err *err);

#endif
