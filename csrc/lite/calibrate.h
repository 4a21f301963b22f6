/* What a model's linears read: sums over the tokens of a text, which the quantizer weighs
 * errors by. Owns: running a text through a model's layers with an observer. Must not know:
 * what becomes of the sums. One thread; the model's own threads help. */
#ifndef LMD_LITE_CALIBRATE_H
#define LMD_LITE_CALIBRATE_H

#include "model/model.h"

/* For each layer, the weighted sum of squares of each input column: of q, k and v, of o, of
 * gate and up, of down. The weight of a token is 1 over the mean square of its residual stream,
 * by which the next norm divides what the linear adds to it: without it the first token, whose
 * stream is a hundred times as large, would outweigh all others. Inputs of q, k, v, gate and up
 * come out of a norm, and count as they are. */
typedef struct lmd_column_squares {
    double *qkv;     /* [n_layer, hidden_dim] */
    double *o;       /* [n_layer, n_head * head_dim] */
    double *gate_up; /* [n_layer, hidden_dim] */
    double *down;    /* [n_layer, ffn_dim] */
} lmd_column_squares;

/* Adds the sums of one text of 1 to 2^16 tokens to `out`. LMD_INVALID for tokens that the model
 * does not have, or too many; LMD_UNSUPPORTED where the device shows nothing; LMD_NO_MEMORY. */
lmd_status lmd_add_column_squares(const lmd_model *model, const int32_t *token_ids, int32_t n,
                                  lmd_column_squares out, lmd_err *err);

#endif
