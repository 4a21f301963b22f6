/* One layer of a model on the hidden states of texts, watched: in steps of many tokens, each of
 * which leaves what the linears read.
 * Owns: how texts are cut into steps, and a step's memory. Must not know: what becomes of the
 * inputs. One thread; the model's own threads help. */
#ifndef LMD_LITE_LAYER_RUN_H
#define LMD_LITE_LAYER_RUN_H

#include <stdbool.h>

#include "model/model.h"

/* What reads together: q, k and v; o; gate and up; down. And what attention reads: the keys,
 * normed and rotated, beside the values. */
enum {
    LMD_QKV_INPUT,
    LMD_O_INPUT,
    LMD_GATE_UP_INPUT,
    LMD_DOWN_INPUT,
    LMD_KV_INPUT,
    LMD_INPUT_COUNT
};

/* How many columns such an input has. */
int32_t lmd_input_width(const lmd_model_config *config, int32_t input);

/* Texts that lie one after another. */
typedef struct lmd_texts {
    int32_t n;
    const int32_t *lengths; /* [n] tokens, each 1 to 2^16 */
} lmd_texts;

/* What the linears read in a step.
 *
 * A token of o and down counts 1 over the mean square of its residual stream, by which the next
 * norm divides what the linear adds to it: without it the first token, whose stream is a
 * hundred times the others', is most of the sum. Of q, k, v, gate and up, whose inputs are
 * normed, and of attention each token counts 1. */
typedef struct lmd_layer_inputs {
    int32_t n_tokens;
    const int32_t *positions;     /* [n_tokens] of each token in its text */
    float *rows[LMD_INPUT_COUNT]; /* [n_tokens, width]; NULL: not kept */
    float *stream; /* [n_tokens, hidden_dim] the residual stream between attention and the
                      feed-forward part; NULL: not kept */
    double *weights[LMD_INPUT_COUNT]; /* [n_tokens] what each token counts; NULL: 1 */
} lmd_layer_inputs;

/* What a run is for. */
typedef struct lmd_layer_wish {
    bool inputs[LMD_INPUT_COUNT], stream; /* to be kept */
    bool from_middle; /* the hidden states are the residual stream between attention and the
                         feed-forward part, with which the layer begins */
    bool whole;       /* false: the layer ends where the last of these was seen, and the hidden
                         states stay what they were */
} lmd_layer_wish;

typedef struct lmd_layer_run lmd_layer_run;

/* Prepares to take texts through a model of one layer, which must outlive the run. Steps have
 * at most 1024 tokens, and fewer of a wide layer, so that what one takes is about 128 MiB
 * however many texts there are. LMD_INVALID, LMD_UNSUPPORTED for a device other than the CPU,
 * LMD_NO_MEMORY. */
lmd_status lmd_layer_run_new(const lmd_model *model, lmd_texts texts,
                             const lmd_layer_wish *wish, lmd_layer_run **out, lmd_err *err);
void lmd_layer_run_free(lmd_layer_run *self);

/* Replaces the hidden states [n_tokens, hidden_dim] of the next tokens, in the order of the
 * texts, by those after the layer, if it is run whole. out: is the run's, may be written, and
 * valid until its next step; n_tokens 0: no token was left. Runs of the same texts through
 * models of the same shape have the same steps. */
lmd_status lmd_layer_run_step(lmd_layer_run *self, float *hidden, lmd_layer_inputs *out,
                              lmd_err *err);

#endif
