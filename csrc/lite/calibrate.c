/* What a model's linears read: see calibrate.h. */
#include "lite/calibrate.h"

#include "base/ints.h"
#include "base/memory.h"
#include "model/decoder.h"

enum { BLOCK_LEN = 64, MAX_TOKENS = 1 << 16 };

typedef struct watcher {
    lmd_column_squares out;
    double *token_weights; /* [n tokens] of the residual stream seen last */
} watcher;

static void weigh_tokens(watcher *self, const float *rows, int32_t n_rows, int32_t n_cols) {
    for (int32_t r = 0; r < n_rows; r++, rows += n_cols) {
        double sum = 0.0;
        for (int32_t c = 0; c < n_cols; c++) sum += (double)rows[c] * rows[c];
        self->token_weights[r] = sum > 0.0 ? n_cols / sum : 0.0;
    }
}

/* weights: of the tokens, or NULL: 1 each. */
static void add_squares(double *sums, const double *weights, const float *rows, int32_t n_rows,
                        int32_t n_cols) {
    for (int32_t r = 0; r < n_rows; r++, rows += n_cols) {
        const double weight = weights ? weights[r] : 1.0;
        for (int32_t c = 0; c < n_cols; c++) sums[c] += weight * ((double)rows[c] * rows[c]);
    }
}

static void see(void *user, int32_t layer, int32_t place, const float *rows, int32_t n_rows,
                int32_t n_cols) {
    watcher *self = user;
    const int64_t first = (int64_t)layer * n_cols;
    switch ((lmd_place)place) {
    case LMD_PLACE_RESIDUAL: weigh_tokens(self, rows, n_rows, n_cols); return;
    case LMD_PLACE_QKV: add_squares(self->out.qkv + first, NULL, rows, n_rows, n_cols); return;
    case LMD_PLACE_GATE_UP:
        add_squares(self->out.gate_up + first, NULL, rows, n_rows, n_cols);
        return;
    case LMD_PLACE_O:
        add_squares(self->out.o + first, self->token_weights, rows, n_rows, n_cols);
        return;
    case LMD_PLACE_DOWN:
        add_squares(self->out.down + first, self->token_weights, rows, n_rows, n_cols);
        return;
    }
}

/* Runs one step that computes the whole text, and no logits. */
static lmd_status run(lmd_executor *executor, const int32_t *token_ids, int32_t n,
                      int32_t *scratch /* [n + blocks] */, lmd_err *err) {
    const int64_t seq_id = 0;
    const int32_t slot = 0, history_len = 0, n_blocks = lmd_ceil_div(n, BLOCK_LEN);
    const int32_t token_offsets[2] = {0, n}, block_offsets[2] = {0, n_blocks};
    for (int32_t i = 0; i < n; i++) scratch[i] = i;
    for (int32_t i = 0; i < n_blocks; i++) scratch[n + i] = i;
    const lmd_plan plan = {.plan_id = 1,
                           .n_seqs = 1,
                           .n_tokens = n,
                           .seq_ids = &seq_id,
                           .slots = &slot,
                           .history_lens = &history_len,
                           .input_lens = &n,
                           .token_offsets = token_offsets,
                           .token_ids = token_ids,
                           .positions = scratch,
                           .block_offsets = block_offsets,
                           .block_ids = scratch + n};
    lmd_plan_result result;
    LMD_TRY(executor->ops->submit(executor, &plan, err));
    LMD_TRY(executor->ops->sample(executor, &plan, err));
    return executor->ops->collect(executor, plan.plan_id, &result, err);
}

static lmd_status check(const lmd_model *model, const int32_t *token_ids, int32_t n,
                        lmd_err *err) {
    if (n < 1 || n > MAX_TOKENS)
        return lmd_fail(err, LMD_INVALID, "a text must have 1 to %d tokens, not %d", MAX_TOKENS,
                        n);
    for (int32_t i = 0; i < n; i++)
        if (token_ids[i] < 0 || token_ids[i] >= lmd_model_vocab_size(model))
            return lmd_fail(err, LMD_INVALID, "token %d is %d; the model has %d", i,
                            token_ids[i], lmd_model_vocab_size(model));
    return LMD_OK;
}

lmd_status lmd_add_column_squares(const lmd_model *model, const int32_t *token_ids, int32_t n,
                                  lmd_column_squares out, lmd_err *err) {
    lmd_status status = LMD_OK;
    lmd_executor *executor = NULL;
    LMD_TRY(check(model, token_ids, n, err));
    const int32_t n_blocks = lmd_ceil_div(n, BLOCK_LEN);
    watcher self = {out, lmd_calloc((size_t)n, sizeof *self.token_weights)};
    int32_t *scratch = lmd_calloc((size_t)(n + n_blocks), sizeof *scratch);
    const lmd_decoder_config config = {.session_len = n,
                                       .max_tokens = n,
                                       .max_seqs = 1,
                                       .n_blocks = n_blocks,
                                       .block_len = BLOCK_LEN,
                                       .k_bits = 16,
                                       .v_bits = 16,
                                       .observer = {see, &self}};
    if (self.token_weights && scratch)
        LMD_TRY_OUT(lmd_decoder_new(model, &config, &executor, err));
    else
        LMD_TRY_OUT(lmd_no_memory(err, "the calibration of %d tokens", n));
    LMD_TRY_OUT(run(executor, token_ids, n, scratch, err));
out:
    if (executor) executor->ops->free(executor);
    lmd_free(self.token_weights);
    lmd_free(scratch);
    return status;
}
