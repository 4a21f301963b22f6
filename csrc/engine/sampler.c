/* The sampler's parameters and state: see sampler.h. */
#include "engine/sampler.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

struct lmd_sampler {
    lmd_sampler_params params; /* biases point to our copy; bad_words to nothing */
    lmd_token_match bad_words;
    lmd_token_bias *biases; /* [room] logit_bias first, then the row's bans */
    int32_t n_fixed, n_biases, room;
    lmd_token_count *counts; /* distinct tokens of prompt and answer */
    int32_t n_counts;
    int32_t *slots; /* [n_slots] hash of token ids: index into counts + 1, 0: empty */
    uint32_t n_slots;
    bool counting;   /* whether any penalty is on */
    int32_t *tokens; /* prompt and answer, for no_repeat_ngram_size; NULL: it is off */
    int32_t n_tokens;
};

void lmd_sampler_params_init(lmd_sampler_params *params) {
    *params = (lmd_sampler_params){.temperature = 1.0, .top_p = 1.0, .repetition_penalty = 1.0};
}

const lmd_sampler_range lmd_sampler_ranges[] = {
    {"temperature", offsetof(lmd_sampler_params, temperature), false, 0.0, 100.0},
    {"top_p", offsetof(lmd_sampler_params, top_p), false, 0.0, 1.0},
    {"min_p", offsetof(lmd_sampler_params, min_p), false, 0.0, 1.0},
    {"top_k", offsetof(lmd_sampler_params, top_k), true, 0.0, INT32_MAX},
    {"repetition_penalty", offsetof(lmd_sampler_params, repetition_penalty), false, 1e-3, 1e3},
    {"presence_penalty", offsetof(lmd_sampler_params, presence_penalty), false, -1e2, 1e2},
    {"frequency_penalty", offsetof(lmd_sampler_params, frequency_penalty), false, -1e2, 1e2},
    {"no_repeat_ngram_size", offsetof(lmd_sampler_params, no_repeat_ngram_size), true, 0.0,
     INT32_MAX},
    {"logprobs", offsetof(lmd_sampler_params, n_logprobs), true, 0.0, LMD_MAX_LOGPROBS},
    {NULL, 0, false, 0.0, 0.0},
};

static lmd_status check_range(const lmd_sampler_params *params, const lmd_sampler_range *range,
                              lmd_err *err) {
    const void *at = (const char *)params + range->offset;
    const double value = range->is_integer ? (double)*(const int64_t *)at : *(const double *)at;
    if (value >= range->low && value <= range->high) return LMD_OK; /* false for NaN */
    char low[LMD_NUMBER_LEN], high[LMD_NUMBER_LEN], given[LMD_NUMBER_LEN];
    return lmd_fail(err, LMD_INVALID, "%s must be %s to %s, not %s", range->name,
                    lmd_number_text(low, range->low), lmd_number_text(high, range->high),
                    lmd_number_text(given, value));
}

static lmd_status check_words(const lmd_token_words *words, int32_t vocab_size, lmd_err *err) {
    for (int32_t i = 0; i < words->n; i++)
        if (words->offsets[i + 1] <= words->offsets[i])
            return lmd_fail(err, LMD_INVALID, "bad_words[%d] is empty", i);
    for (int32_t i = 0; words->n && i < words->offsets[words->n]; i++)
        if (words->token_ids[i] < 0 || words->token_ids[i] >= vocab_size)
            return lmd_fail(err, LMD_INVALID, "bad_words: token id %d is not in 0 to %d",
                            words->token_ids[i], vocab_size - 1);
    return LMD_OK;
}

lmd_status lmd_sampler_params_check(const lmd_sampler_params *params, int32_t vocab_size,
                                    lmd_err *err) {
    for (const lmd_sampler_range *range = lmd_sampler_ranges; range->name; range++)
        LMD_TRY(check_range(params, range, err));
    for (int32_t i = 0; i < params->n_biases; i++) {
        lmd_token_bias bias = params->biases[i];
        if (bias.token_id < 0 || bias.token_id >= vocab_size)
            return lmd_fail(err, LMD_INVALID, "logit_bias: token id %d is not in 0 to %d",
                            bias.token_id, vocab_size - 1);
        if (isnan(bias.bias) || bias.bias == INFINITY)
            return lmd_fail(err, LMD_INVALID,
                            "logit_bias of token %d must be a number or -inf, not %g",
                            bias.token_id, (double)bias.bias);
    }
    return check_words(&params->bad_words, vocab_size, err);
}

/* ---- counts ---- */

static int32_t *find_slot(const lmd_sampler *self, int32_t token_id) {
    uint32_t slot = (uint32_t)token_id * 2654435761u & (self->n_slots - 1);
    while (self->slots[slot] && self->counts[self->slots[slot] - 1].token_id != token_id)
        slot = (slot + 1) & (self->n_slots - 1);
    return &self->slots[slot];
}

static void count_token(lmd_sampler *self, int32_t token_id, int32_t n_output) {
    if (!self->counting) return;
    int32_t *slot = find_slot(self, token_id);
    if (!*slot) {
        self->counts[self->n_counts] = (lmd_token_count){token_id, 0};
        *slot = ++self->n_counts;
    }
    self->counts[*slot - 1].n_output += n_output;
}

/* Reserves counts for every token that can come, so that no step allocates. */
static lmd_status reserve_counts(lmd_sampler *self, const lmd_sampler_room *room,
                                 lmd_err *err) {
    int64_t n = (int64_t)room->n_prompt + room->n_new;
    if (n > room->vocab_size) n = room->vocab_size;
    self->n_slots = 16;
    while (self->n_slots < (uint64_t)n * 2) self->n_slots *= 2;
    self->counts = lmd_calloc((size_t)n + 1, sizeof *self->counts);
    self->slots = lmd_calloc(self->n_slots, sizeof *self->slots);
    if (self->counts && self->slots) return LMD_OK;
    return lmd_no_memory(err, "penalties");
}

/* ---- n-grams ---- */

/* Bans the tokens that would end an n-gram which the sequence has already. */
static void ban_repeats(lmd_sampler *self) {
    const int32_t n_before = (int32_t)self->params.no_repeat_ngram_size - 1;
    const int32_t n_grams = self->n_tokens - n_before; /* that a next token may repeat */
    const size_t n_bytes = (size_t)n_before * sizeof *self->tokens;
    for (int32_t i = 0; i < n_grams; i++)
        if (memcmp(self->tokens + i, self->tokens + n_grams, n_bytes) == 0)
            lmd_sampler_ban(self, self->tokens[i + n_before]);
}

/* Notes a token of the prompt or the answer. */
static void note_token(lmd_sampler *self, int32_t token_id, int32_t n_output) {
    count_token(self, token_id, n_output);
    lmd_token_match_push(&self->bad_words, token_id);
    if (self->tokens) self->tokens[self->n_tokens++] = token_id;
}

/* ---- lifetime ---- */

static lmd_status setup(lmd_sampler *self, const lmd_sampler_params *params,
                        const lmd_sampler_room *room, lmd_err *err) {
    LMD_TRY(lmd_token_match_init(&self->bad_words, &params->bad_words, err));
    const int32_t n_tokens = params->no_repeat_ngram_size ? room->n_prompt + room->n_new : 0;
    self->room = params->n_biases + room->n_bans + params->bad_words.n + n_tokens;
    self->biases = lmd_calloc((size_t)self->room + 1, sizeof *self->biases);
    if (!self->biases) return lmd_no_memory(err, "biases");
    if (params->n_biases)
        memcpy(self->biases, params->biases, (size_t)params->n_biases * sizeof *self->biases);
    self->n_fixed = params->n_biases;
    self->counting = params->repetition_penalty != 1.0 || params->presence_penalty != 0.0 ||
                     params->frequency_penalty != 0.0;
    if (self->counting) LMD_TRY(reserve_counts(self, room, err));
    if (n_tokens) self->tokens = lmd_calloc((size_t)n_tokens, sizeof *self->tokens);
    if (n_tokens && !self->tokens) return lmd_no_memory(err, "n-grams of %d tokens", n_tokens);
    for (int32_t i = 0; i < room->n_prompt; i++) note_token(self, room->prompt[i], 0);
    return LMD_OK;
}

lmd_status lmd_sampler_new(const lmd_sampler_params *params, const lmd_sampler_room *room,
                           lmd_sampler **out, lmd_err *err) {
    lmd_sampler *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a sampler");
    self->params = *params;
    lmd_status status = setup(self, params, room, err);
    if (status != LMD_OK) {
        lmd_sampler_free(self);
        return status;
    }
    *out = self;
    return LMD_OK;
}

void lmd_sampler_free(lmd_sampler *self) {
    if (!self) return;
    lmd_token_match_clear(&self->bad_words);
    lmd_free(self->biases);
    lmd_free(self->counts);
    lmd_free(self->slots);
    lmd_free(self->tokens);
    lmd_free(self);
}

/* ---- a row ---- */

void lmd_sampler_begin(lmd_sampler *self) {
    self->n_biases = self->n_fixed;
    for (int32_t i = 0; i < self->bad_words.n_words; i++)
        if (lmd_token_match_pending(&self->bad_words, i) ==
            lmd_token_match_len(&self->bad_words, i) - 1)
            lmd_sampler_ban(self, lmd_token_match_last(&self->bad_words, i));
    if (self->tokens) ban_repeats(self);
}

void lmd_sampler_ban(lmd_sampler *self, int32_t token_id) {
    self->biases[self->n_biases++] = (lmd_token_bias){token_id, -INFINITY};
}

bool lmd_sampler_is_steady(const lmd_sampler *self) {
    for (int32_t i = 0; i < self->bad_words.n_words; i++)
        if (lmd_token_match_len(&self->bad_words, i) > 1) return false;
    return !self->counting && !self->tokens;
}

void lmd_sampler_fill(const lmd_sampler *self, int32_t position, lmd_sample_params *out) {
    const lmd_sampler_params *params = &self->params;
    *out = (lmd_sample_params){
        .wants_token = true,
        .greedy = !params->do_sample,
        .top_k = (int32_t)params->top_k,
        .top_p = (float)params->top_p,
        .min_p = (float)params->min_p,
        .temperature = (float)params->temperature,
        .repetition_penalty = (float)params->repetition_penalty,
        .presence_penalty = (float)params->presence_penalty,
        .frequency_penalty = (float)params->frequency_penalty,
        .n_biases = self->n_biases,
        .n_counts = self->n_counts,
        .biases = self->biases,
        .counts = self->counts,
        .seed = params->seed,
        .position = (uint32_t)position,
        .target_id = -1,
        .n_logprobs = (int32_t)params->n_logprobs,
    };
}

void lmd_sampler_push(lmd_sampler *self, int32_t token_id) { note_token(self, token_id, 1); }
