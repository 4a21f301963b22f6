/* One layer of a model on the hidden states of a text, watched: what its linears read goes into
 * sums. Owns: running it. Must not know: what becomes of the sums. One thread; the pool's and
 * the model's own threads help. */
#ifndef LMD_LITE_LAYER_RUN_H
#define LMD_LITE_LAYER_RUN_H

#include "lite/input_sums.h"
#include "model/model.h"

/* What reads together: q, k and v; o; gate and up; down. */
enum { LMD_QKV_INPUT, LMD_O_INPUT, LMD_GATE_UP_INPUT, LMD_DOWN_INPUT, LMD_INPUT_COUNT };

/* How many columns such an input has. */
int32_t lmd_input_width(const lmd_model_config *config, int32_t input);

/* Runs a model of one layer on one text's hidden states [n, hidden_dim], n from 1 to 2^16, and
 * replaces them by those after the layer. sums: NULL for what is not wanted.
 *
 * Tokens of o and down count 1 over the mean square of their residual stream, by which the next
 * norm divides what the linear adds to it: without it the first token, whose stream is a
 * hundred times as large, would outweigh all others. Inputs of q, k, v, gate and up come out of
 * a norm, and count as they are.
 *
 * LMD_INVALID for a model of other than one layer, for sizes, and for states or inputs that are
 * not finite; LMD_UNSUPPORTED where the device shows nothing; LMD_NO_MEMORY. */
lmd_status lmd_layer_run(const lmd_model *model, const lmd_compute *compute, float *hidden,
                         int32_t n, lmd_input_sums *const sums[LMD_INPUT_COUNT], lmd_err *err);

#endif
