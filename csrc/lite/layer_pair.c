/* A layer of the original and of the quantised model: see layer_pair.h. */
#include "lite/layer_pair.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

struct lmd_layer_pair {
    lmd_layer_run *original, *drifted;
    int32_t input, hidden_dim;
};

/* What each model is run for, by the input. */
static const lmd_layer_wish original_wishes[] = {
    [LMD_QKV_INPUT] = {.inputs[LMD_QKV_INPUT] = true},
    [LMD_O_INPUT] = {.stream = true},
    [LMD_GATE_UP_INPUT] = {.inputs[LMD_GATE_UP_INPUT] = true, .from_middle = true},
    [LMD_DOWN_INPUT] = {.from_middle = true, .whole = true, .stream = true /* to write into */},
};
static const lmd_layer_wish drifted_wishes[] = {
    [LMD_QKV_INPUT] = {.inputs[LMD_QKV_INPUT] = true},
    [LMD_O_INPUT] = {.inputs[LMD_O_INPUT] = true},
    [LMD_GATE_UP_INPUT] = {.inputs[LMD_GATE_UP_INPUT] = true, .stream = true},
    [LMD_DOWN_INPUT] = {.inputs[LMD_DOWN_INPUT] = true, .from_middle = true},
};

lmd_status lmd_layer_pair_new(const lmd_model *original, const lmd_model *drifted,
                              lmd_texts texts, int32_t input, lmd_layer_pair **out,
                              lmd_err *err) {
    lmd_status status = LMD_OK;
    /* All widths decide how texts are cut into steps, which must be the same ones. */
    for (int32_t i = 0; i < LMD_INPUT_COUNT; i++)
        if (lmd_input_width(&drifted->config, i) != lmd_input_width(&original->config, i))
            return lmd_fail(err, LMD_INVALID, "the two models must have the same shape");
    lmd_layer_pair *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a pair of runs");
    self->input = input;
    self->hidden_dim = original->config.hidden_dim;
    LMD_TRY_OUT(
        lmd_layer_run_new(original, texts, &original_wishes[input], &self->original, err));
    LMD_TRY_OUT(lmd_layer_run_new(drifted, texts, &drifted_wishes[input], &self->drifted, err));
out:
    if (status != LMD_OK)
        lmd_layer_pair_free(self);
    else
        *out = self;
    return status;
}

void lmd_layer_pair_free(lmd_layer_pair *self) {
    if (!self) return;
    lmd_layer_run_free(self->original);
    lmd_layer_run_free(self->drifted);
    lmd_free(self);
}

static void subtract(float *from, const float *values, int64_t n) {
    for (int64_t i = 0; i < n; i++) from[i] -= values[i];
}

static void weigh_rows(float *rows, const double *weights, int32_t n, int32_t n_cols) {
    for (int32_t t = 0; weights && t < n; t++) {
        const float root = (float)sqrt(weights[t]);
        for (int32_t i = 0; i < n_cols; i++) rows[(int64_t)t * n_cols + i] *= root;
    }
}

/* Makes [n_tokens, hidden_dim] of what is wanted of the inputs, in a buffer of a run, and takes
 * the streams as far as they are known. */
static float *make_wanted(const lmd_layer_pair *self, lmd_layer_inputs *first,
                          lmd_layer_inputs *second, float *original, float *drifted) {
    const int64_t n = (int64_t)first->n_tokens * self->hidden_dim;
    const size_t n_bytes = (size_t)n * sizeof *original;
    float *wanted = first->rows[self->input];
    switch (self->input) {
    case LMD_O_INPUT:
        wanted = first->stream;
        memcpy(original, wanted, n_bytes);
        subtract(wanted, drifted, n);
        break;
    case LMD_GATE_UP_INPUT: memcpy(drifted, second->stream, n_bytes); break;
    case LMD_DOWN_INPUT:
        wanted = first->stream;
        memcpy(wanted, original, n_bytes);
        subtract(wanted, drifted, n);
        break;
    default: break;
    }
    return wanted;
}

lmd_status lmd_layer_pair_step(lmd_layer_pair *self, const lmd_compute *compute,
                               float *original, float *drifted, lmd_input_sums *sums,
                               int32_t *n_tokens, lmd_err *err) {
    lmd_layer_inputs first, second;
    LMD_TRY(lmd_layer_run_step(self->original, original, &first, err));
    LMD_TRY(lmd_layer_run_step(self->drifted, drifted, &second, err));
    const int32_t n = *n_tokens = first.n_tokens;
    if (n == 0) return LMD_OK;
    float *rows = second.rows[self->input], *wanted;
    const double *weights = second.weights[self->input];
    wanted = make_wanted(self, &first, &second, original, drifted);
    LMD_TRY(lmd_input_sums_add(sums, compute, rows, weights, second.positions, n, err));
    weigh_rows(wanted, weights, n, self->hidden_dim);
    return lmd_input_sums_add_wanted(sums, compute, wanted, rows, n, err);
}
