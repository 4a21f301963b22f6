/* One layer of a model on the hidden states of texts: see layer_run.h. */
#include "lite/layer_run.h"

#include <string.h>

#include "base/ints.h"
#include "base/memory.h"
#include "model/decoder.h"

enum {
    BLOCK_LEN = 64,
    MAX_TEXT_LEN = 1 << 16,
    MIN_STEP_LEN = 256, /* tokens */
    MAX_STEP_LEN = 1024,
    STEP_BYTES = 128 << 20
};

/* Whole texts, or a piece of one that is longer than a step. */
typedef struct layer_step {
    int32_t first, n_texts;
    int32_t history_len; /* tokens of the first text in steps before */
    int32_t n_tokens, n_blocks;
} layer_step;

struct lmd_layer_run {
    const lmd_model *model;
    lmd_texts texts;
    bool from_middle;
    int32_t step_len; /* most tokens of a step */
    layer_step step;  /* the one that ran last; of no tokens at first */
    lmd_executor *executor;
    lmd_layer_inputs inputs;
    float *hidden; /* the caller's, while a step runs */
    /* The plan's. */
    int64_t plan_id, *seq_ids;                  /* [max n_texts] */
    int32_t *slots, *history_lens, *input_lens; /* [max n_texts] */
    int32_t *token_offsets, *block_offsets;     /* [max n_texts + 1] */
    int32_t *token_ids, *positions;             /* [max n_tokens] */
    int32_t *block_ids;                         /* [max n_blocks] */
    lmd_arena arena;
};

int32_t lmd_input_width(const lmd_model_config *config, int32_t input) {
    if (input == LMD_O_INPUT) return config->n_head * config->head_dim;
    if (input == LMD_KV_INPUT) return 2 * config->n_kv_head * config->head_dim;
    return input == LMD_DOWN_INPUT ? config->ffn_dim : config->hidden_dim;
}

/* ---- cutting texts into steps ---- */

static int32_t blocks_of(int32_t n_tokens) { return lmd_ceil_div(n_tokens, BLOCK_LEN); }

static layer_step next_step(const lmd_layer_run *self) {
    const lmd_texts *texts = &self->texts;
    const layer_step *last = &self->step;
    layer_step next = {.first = last->first + last->n_texts};
    const int32_t n_done = last->history_len + last->n_tokens; /* where it is of one text */
    if (last->n_texts == 1 && n_done < texts->lengths[last->first])
        next = (layer_step){.first = last->first, .history_len = n_done};
    if (next.first == texts->n) return next;
    const int32_t n_left = texts->lengths[next.first] - next.history_len;
    if (next.history_len > 0 || n_left > self->step_len) {
        next.n_texts = 1;
        next.n_tokens = lmd_min_i32(n_left, self->step_len);
        next.n_blocks = blocks_of(next.history_len + next.n_tokens);
        return next;
    }
    for (int32_t i = next.first; i < texts->n; i++, next.n_texts++) {
        if (next.n_tokens + texts->lengths[i] > self->step_len) break;
        next.n_tokens += texts->lengths[i];
        next.n_blocks += blocks_of(texts->lengths[i]);
    }
    return next;
}

/* The most of every step, each number by itself. */
static layer_step largest_step(const lmd_layer_run *self) {
    lmd_layer_run walk = *self;
    layer_step most = {0};
    for (;;) {
        walk.step = next_step(&walk);
        if (walk.step.n_tokens == 0) return most;
        most.n_texts = lmd_max_i32(most.n_texts, walk.step.n_texts);
        most.n_tokens = lmd_max_i32(most.n_tokens, walk.step.n_tokens);
        most.n_blocks = lmd_max_i32(most.n_blocks, walk.step.n_blocks);
    }
}

/* Each column that the decoder keeps takes 4 bytes, and 3 more where it is quantised; then
 * there are the inputs and the stream, as if all were kept, so that every wish has the same
 * steps. */
static int32_t step_len(const lmd_model_config *config) {
    const int64_t n_q = (int64_t)config->n_head * config->head_dim;
    const int64_t n_kv = (int64_t)config->n_kv_head * config->head_dim;
    int64_t n_bytes =
        7 * (2 * (int64_t)config->hidden_dim + 2 * (n_q + n_kv) + config->ffn_dim) +
        4 * (int64_t)config->hidden_dim;
    for (int32_t i = 0; i < LMD_INPUT_COUNT; i++)
        n_bytes += 4 * (int64_t)lmd_input_width(config, i);
    const int64_t n = STEP_BYTES / n_bytes;
    return n < MIN_STEP_LEN ? MIN_STEP_LEN : n > MAX_STEP_LEN ? MAX_STEP_LEN : (int32_t)n;
}

/* ---- what the observer does ---- */

static void copy_rows(float *to, const float *from, int32_t n, int32_t n_cols) {
    memcpy(to, from, (size_t)n * (size_t)n_cols * sizeof *to);
}

static void weigh_tokens(double *weights, const lmd_seen_rows *rows) {
    const float *row = rows->x;
    for (int32_t r = 0; r < rows->n; r++, row += rows->n_cols) {
        double sum = 0.0;
        for (int32_t c = 0; c < rows->n_cols; c++) sum += (double)row[c] * row[c];
        weights[r] = sum > 0.0 ? rows->n_cols / sum : 0.0;
    }
}

/* The stream before attention: the embedding's rows are replaced by the hidden states. The
 * stream after the layer, which is that before the next one's attention, replaces these. */
static void see_stream(lmd_layer_run *self, const lmd_seen_rows *rows) {
    float *hidden = self->hidden + (int64_t)rows->first * rows->n_cols;
    double *weights = self->inputs.weights[LMD_O_INPUT];
    if (rows->layer > 0) {
        copy_rows(hidden, rows->x, rows->n, rows->n_cols);
        return;
    }
    copy_rows(rows->x, hidden, rows->n, rows->n_cols);
    if (weights) weigh_tokens(weights + rows->first, rows);
}

static void see_middle(lmd_layer_run *self, const lmd_seen_rows *rows) {
    double *weights = self->inputs.weights[LMD_DOWN_INPUT];
    float *stream = self->inputs.stream;
    if (self->from_middle)
        copy_rows(rows->x, self->hidden + (int64_t)rows->first * rows->n_cols, rows->n,
                  rows->n_cols);
    if (weights) weigh_tokens(weights + rows->first, rows);
    if (stream)
        copy_rows(stream + (int64_t)rows->first * rows->n_cols, rows->x, rows->n, rows->n_cols);
}

static void see_input(lmd_layer_run *self, const lmd_seen_rows *rows, int32_t input) {
    float *kept = self->inputs.rows[input];
    if (kept)
        copy_rows(kept + (int64_t)rows->first * rows->n_cols, rows->x, rows->n, rows->n_cols);
}

/* Keys and values are the last columns. */
static void see_kv(lmd_layer_run *self, const lmd_seen_rows *rows) {
    const int32_t n_cols = lmd_input_width(&self->model->config, LMD_KV_INPUT);
    float *kept = self->inputs.rows[LMD_KV_INPUT];
    for (int32_t r = 0; kept && r < rows->n; r++)
        copy_rows(kept + (int64_t)(rows->first + r) * n_cols,
                  rows->x + (int64_t)(r + 1) * rows->n_cols - n_cols, 1, n_cols);
}

static void see(void *user, const lmd_seen_rows *rows) {
    lmd_layer_run *self = user;
    switch ((lmd_place)rows->place) {
    case LMD_PLACE_ATTN_RESIDUAL: see_stream(self, rows); break;
    case LMD_PLACE_QKV: see_input(self, rows, LMD_QKV_INPUT); break;
    case LMD_PLACE_KV: see_kv(self, rows); break;
    case LMD_PLACE_O: see_input(self, rows, LMD_O_INPUT); break;
    case LMD_PLACE_FFN_RESIDUAL: see_middle(self, rows); break;
    case LMD_PLACE_GATE_UP: see_input(self, rows, LMD_GATE_UP_INPUT); break;
    case LMD_PLACE_DOWN: see_input(self, rows, LMD_DOWN_INPUT); break;
    case LMD_PLACE_END: break;
    }
}

/* ---- lifetime ---- */

static lmd_status check(const lmd_model *model, lmd_texts texts, lmd_err *err) {
    if (model->config.n_layer != 1)
        return lmd_fail(err, LMD_INVALID, "the model must have one layer, not %d",
                        model->config.n_layer);
    for (int32_t i = 0; i < texts.n; i++)
        if (texts.lengths[i] < 1 || texts.lengths[i] > MAX_TEXT_LEN)
            return lmd_fail(err, LMD_INVALID, "a text must have 1 to %d tokens, not %d",
                            MAX_TEXT_LEN, texts.lengths[i]);
    return LMD_OK;
}

/* An array of the run's, of zeros. */
static bool add_array(lmd_layer_run *self, void *slot, size_t n, size_t size) {
    void *array = lmd_arena_alloc(&self->arena, n * size);
    memcpy(slot, &array, sizeof array);
    return array;
}

static bool add_inputs(lmd_layer_run *self, const lmd_layer_wish *wish, size_t n) {
    const size_t hidden_dim = (size_t)self->model->config.hidden_dim;
    if (wish->stream && !add_array(self, &self->inputs.stream, n * hidden_dim, sizeof(float)))
        return false;
    for (int32_t i = 0; i < LMD_INPUT_COUNT; i++) {
        const size_t n_cols = (size_t)lmd_input_width(&self->model->config, i);
        const bool is_weighted = i == LMD_O_INPUT || i == LMD_DOWN_INPUT;
        if (!wish->inputs[i]) continue;
        if (!add_array(self, &self->inputs.rows[i], n * n_cols, sizeof(float))) return false;
        if (is_weighted && !add_array(self, &self->inputs.weights[i], n, sizeof(double)))
            return false;
    }
    return true;
}

static bool add_plan(lmd_layer_run *self, const layer_step *most) {
    const size_t n = (size_t)most->n_texts, n_tokens = (size_t)most->n_tokens;
    return add_array(self, &self->seq_ids, n, sizeof *self->seq_ids) &&
           add_array(self, &self->slots, n, sizeof *self->slots) &&
           add_array(self, &self->history_lens, n, sizeof *self->history_lens) &&
           add_array(self, &self->input_lens, n, sizeof *self->input_lens) &&
           add_array(self, &self->token_offsets, n + 1, sizeof *self->token_offsets) &&
           add_array(self, &self->block_offsets, n + 1, sizeof *self->block_offsets) &&
           add_array(self, &self->token_ids, n_tokens, sizeof *self->token_ids) &&
           add_array(self, &self->positions, n_tokens, sizeof *self->positions) &&
           add_array(self, &self->block_ids, (size_t)most->n_blocks, sizeof *self->block_ids);
}

/* The last place that has to be seen. */
static lmd_place last_place(const lmd_layer_wish *wish) {
    if (wish->whole) return LMD_PLACE_END;
    if (wish->inputs[LMD_DOWN_INPUT]) return LMD_PLACE_DOWN;
    if (wish->inputs[LMD_GATE_UP_INPUT]) return LMD_PLACE_GATE_UP;
    if (wish->stream) return LMD_PLACE_FFN_RESIDUAL;
    return wish->inputs[LMD_O_INPUT] ? LMD_PLACE_O : LMD_PLACE_QKV;
}

static lmd_status allocate(lmd_layer_run *self, const lmd_layer_wish *wish, lmd_err *err) {
    const layer_step most = largest_step(self);
    int32_t longest = 1;
    for (int32_t i = 0; i < self->texts.n; i++)
        longest = lmd_max_i32(longest, self->texts.lengths[i]);
    if (most.n_tokens == 0) return LMD_OK;
    if (!add_inputs(self, wish, (size_t)most.n_tokens) || !add_plan(self, &most))
        return lmd_no_memory(err, "a step of %d tokens", most.n_tokens);
    self->inputs.positions = self->positions;
    const lmd_decoder_config config = {.session_len = longest,
                                       .max_tokens = most.n_tokens,
                                       .max_seqs = most.n_texts,
                                       .n_blocks = most.n_blocks,
                                       .block_len = BLOCK_LEN,
                                       .k_bits = 16,
                                       .v_bits = 16,
                                       .observer = {see, self},
                                       .last_place = (int32_t)last_place(wish),
                                       .from_middle = wish->from_middle};
    return lmd_decoder_new(self->model, &config, &self->executor, err);
}

lmd_status lmd_layer_run_new(const lmd_model *model, lmd_texts texts,
                             const lmd_layer_wish *wish, lmd_layer_run **out, lmd_err *err) {
    LMD_TRY(check(model, texts, err));
    lmd_layer_run *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a run of a layer");
    self->model = model;
    self->texts = texts;
    self->from_middle = wish->from_middle;
    self->step_len = step_len(&model->config);
    const lmd_status status = allocate(self, wish, err);
    if (status != LMD_OK)
        lmd_layer_run_free(self);
    else
        *out = self;
    return status;
}

void lmd_layer_run_free(lmd_layer_run *self) {
    if (!self) return;
    if (self->executor) self->executor->ops->free(self->executor);
    lmd_arena_free(&self->arena);
    lmd_free(self);
}

/* ---- a step ---- */

/* Every token is token 0, whose embedding see_stream replaces. */
static lmd_plan plan_step(lmd_layer_run *self) {
    const layer_step *step = &self->step;
    int32_t n_tokens = 0, n_blocks = 0;
    for (int32_t i = 0; i < step->n_texts; i++) {
        const int32_t history_len = i == 0 ? step->history_len : 0;
        const int32_t n_left = self->texts.lengths[step->first + i] - history_len;
        const int32_t n = lmd_min_i32(n_left, step->n_tokens - n_tokens);
        self->seq_ids[i] = step->first + i;
        self->slots[i] = i;
        self->history_lens[i] = history_len;
        self->input_lens[i] = n;
        for (int32_t t = 0; t < n; t++) self->positions[n_tokens++] = history_len + t;
        for (int32_t b = 0; b < blocks_of(history_len + n); b++, n_blocks++)
            self->block_ids[n_blocks] = n_blocks;
        self->token_offsets[i + 1] = n_tokens;
        self->block_offsets[i + 1] = n_blocks;
    }
    return (lmd_plan){.plan_id = ++self->plan_id,
                      .n_seqs = step->n_texts,
                      .n_tokens = n_tokens,
                      .seq_ids = self->seq_ids,
                      .slots = self->slots,
                      .history_lens = self->history_lens,
                      .input_lens = self->input_lens,
                      .token_offsets = self->token_offsets,
                      .token_ids = self->token_ids,
                      .positions = self->positions,
                      .block_offsets = self->block_offsets,
                      .block_ids = self->block_ids};
}

lmd_status lmd_layer_run_step(lmd_layer_run *self, float *hidden, lmd_layer_inputs *out,
                              lmd_err *err) {
    lmd_plan_result result;
    self->step = next_step(self);
    self->inputs.n_tokens = self->step.n_tokens;
    if (self->step.n_tokens > 0) {
        const lmd_plan plan = plan_step(self);
        self->hidden = hidden;
        LMD_TRY(self->executor->ops->submit(self->executor, &plan, err));
        LMD_TRY(self->executor->ops->sample(self->executor, &plan, err));
        LMD_TRY(self->executor->ops->collect(self->executor, plan.plan_id, &result, err));
    }
    *out = self->inputs;
    return LMD_OK;
}
