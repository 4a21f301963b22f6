/* A layer of the original and of the quantised model: see layer_pair.h. */
#include "lite/layer_pair.h"

#include <math.h>

#include "base/memory.h"

struct lmd_layer_pair {
    lmd_layer_run *original, *drifted;
    int32_t input, hidden_dim;
};

static bool adds_to_stream(int32_t input) {
    return input == LMD_O_INPUT || input == LMD_DOWN_INPUT;
}

lmd_status lmd_layer_pair_new(const lmd_model *original, const lmd_model *drifted,
                              lmd_texts texts, int32_t input, lmd_layer_pair **out,
                              lmd_err *err) {
    lmd_status status = LMD_OK;
    lmd_layer_wish first = {.stream = input == LMD_O_INPUT, .whole = input == LMD_DOWN_INPUT};
    lmd_layer_wish second = {.stream = input == LMD_DOWN_INPUT};
    first.inputs[input] = !adds_to_stream(input);
    second.inputs[input] = true;
    if (drifted->config.hidden_dim != original->config.hidden_dim ||
        lmd_input_width(&drifted->config, input) != lmd_input_width(&original->config, input))
        return lmd_fail(err, LMD_INVALID, "the two models must have the same shape");
    lmd_layer_pair *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a pair of runs");
    self->input = input;
    self->hidden_dim = original->config.hidden_dim;
    LMD_TRY_OUT(lmd_layer_run_new(original, texts, &first, &self->original, err));
    LMD_TRY_OUT(lmd_layer_run_new(drifted, texts, &second, &self->drifted, err));
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

/* out = a - b, where out may be one of them. */
static void subtract(float *out, const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = a[i] - b[i];
}

static void weigh_rows(float *rows, const double *weights, int32_t n, int32_t n_cols) {
    for (int32_t t = 0; weights && t < n; t++) {
        const float root = (float)sqrt(weights[t]);
        for (int32_t i = 0; i < n_cols; i++) rows[(int64_t)t * n_cols + i] *= root;
    }
}

lmd_status lmd_layer_pair_step(lmd_layer_pair *self, const lmd_compute *compute,
                               float *original, const float *drifted, lmd_input_sums *sums,
                               int32_t *n_tokens, lmd_err *err) {
    const int32_t input = self->input, width = self->hidden_dim;
    lmd_layer_inputs first, second;
    LMD_TRY(lmd_layer_run_step(self->original, original, &first, err));
    /* The run is not whole: it only reads the hidden states. */
    LMD_TRY(lmd_layer_run_step(self->drifted, (float *)drifted, &second, err));
    const int32_t n = *n_tokens = first.n_tokens;
    const int64_t n_values = (int64_t)n * width;
    float *wanted = first.rows[input];
    if (input == LMD_O_INPUT) {
        wanted = first.stream;
        subtract(wanted, first.stream, drifted, n_values);
    } else if (input == LMD_DOWN_INPUT) {
        wanted = second.stream;
        subtract(wanted, original, second.stream, n_values);
    }
    if (n == 0) return LMD_OK;
    LMD_TRY(lmd_input_sums_add(sums, compute, second.rows[input], second.weights[input],
                               second.positions, n, err));
    weigh_rows(wanted, second.weights[input], n, width);
    return lmd_input_sums_add_wanted(sums, compute, wanted, second.rows[input], n, err);
}
