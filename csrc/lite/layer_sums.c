/* A run of a layer, and sums of what its linears read: see layer_sums.h. */
#include "lite/layer_sums.h"

lmd_status lmd_layer_sums_new(const lmd_model *model, lmd_texts texts, bool from_middle,
                              lmd_input_sums *const sums[LMD_INPUT_COUNT], lmd_layer_run **out,
                              lmd_err *err) {
    lmd_layer_wish wish = {.whole = true, .from_middle = from_middle};
    for (int32_t i = 0; i < LMD_INPUT_COUNT; i++) {
        const int32_t width = lmd_input_width(&model->config, i);
        wish.inputs[i] = sums[i] != NULL;
        if (sums[i] && sums[i]->n_cols != width)
            return lmd_fail(err, LMD_INVALID,
                            "sums %d have %d columns; the layer's input has %d", i,
                            sums[i]->n_cols, width);
    }
    return lmd_layer_run_new(model, texts, &wish, out, err);
}

lmd_status lmd_layer_sums_step(lmd_layer_run *run, const lmd_compute *compute, float *hidden,
                               lmd_input_sums *const sums[LMD_INPUT_COUNT], int32_t *n_tokens,
                               lmd_err *err) {
    lmd_layer_inputs inputs;
    LMD_TRY(lmd_layer_run_step(run, hidden, &inputs, err));
    for (int32_t i = 0; i < LMD_INPUT_COUNT; i++)
        if (sums[i])
            LMD_TRY(lmd_input_sums_add(sums[i], compute, inputs.rows[i], inputs.weights[i],
                                       inputs.positions, inputs.n_tokens, err));
    *n_tokens = inputs.n_tokens;
    return LMD_OK;
}
