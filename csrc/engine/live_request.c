/* A live request: see live_request.h. */
#include "engine/live_request.h"

#include <string.h>

#include "base/clock.h"
#include "base/ints.h"
#include "base/memory.h"
#include "engine/limits.h"

/* ---- checks ---- */

static lmd_status check_ids(const char *what, const int32_t *ids, int64_t n, int32_t vocab_size,
                            lmd_err *err) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab_size)
            return lmd_fail(err, LMD_INVALID,
                            "%s[%lld] is token id %d, but this model's are 0 to %d", what,
                            (long long)i, ids[i], vocab_size - 1);
    return LMD_OK;
}

static lmd_status check_lengths(const lmd_request_params *params,
                                const lmd_engine_config *config, lmd_err *err) {
    const bool scores = params->return_ppl || params->prompt_logprobs ||
                        params->output_logits == LMD_LOGITS_ALL;
    if (params->n_tokens < 1)
        return lmd_fail(err, LMD_INVALID, "the prompt is empty: at least one token is needed");
    if (params->max_new_tokens < 0 || (params->max_new_tokens == 0 && !scores))
        return lmd_fail(err, LMD_INVALID, "max_new_tokens must be at least 1, got %lld.",
                        (long long)params->max_new_tokens);
    int64_t most = params->max_new_tokens ? config->session_len - 1 : config->session_len;
    if (params->n_tokens > most)
        return lmd_fail(
            err, LMD_INVALID,
            "the prompt has %lld tokens, but the context length is %d; shorten it or raise "
            "session_len",
            (long long)params->n_tokens, config->session_len);
    int64_t n_kv = (int64_t)config->n_blocks * config->block_len;
    if (params->n_tokens > n_kv)
        return lmd_fail(
            err, LMD_INVALID,
            "the prompt has %lld tokens, but the KV cache holds %lld; shorten it or raise "
            "cache_max_entry_count",
            (long long)params->n_tokens, (long long)n_kv);
    if (params->return_ppl && params->n_tokens < 2)
        return lmd_fail(err, LMD_INVALID, "return_ppl needs a prompt of at least two tokens");
    if (params->prompt_logprobs && params->sampler.n_logprobs < 1)
        return lmd_fail(err, LMD_INVALID, "prompt_logprobs needs logprobs of at least 1");
    char timeout[LMD_NUMBER_LEN];
    if (!(params->timeout >= 0.0 && params->timeout <= LMD_MAX_TIMEOUT))
        return lmd_fail(err, LMD_INVALID, "timeout must be 0 (none) to %d seconds, not %s",
                        LMD_MAX_TIMEOUT, lmd_number_text(timeout, params->timeout));
    if (params->min_new_tokens < 0)
        return lmd_fail(err, LMD_INVALID, "min_new_tokens must not be negative, but is %lld",
                        (long long)params->min_new_tokens);
    return LMD_OK;
}

lmd_status lmd_live_request_check(const lmd_request_params *params,
                                  const lmd_engine_config *config, lmd_err *err) {
    const lmd_token_words *stops = &params->stop_words;
    LMD_TRY(check_lengths(params, config, err));
    LMD_TRY(
        check_ids("token_ids", params->token_ids, params->n_tokens, config->vocab_size, err));
    for (int32_t i = 0; i < stops->n; i++)
        if (stops->offsets[i + 1] <= stops->offsets[i])
            return lmd_fail(err, LMD_INVALID, "stop_words[%d] is empty", i);
    if (stops->n)
        LMD_TRY(check_ids("stop_words", stops->token_ids, stops->offsets[stops->n],
                          config->vocab_size, err));
    return lmd_sampler_params_check(&params->sampler, config->vocab_size, err);
}

/* ---- lifetime ---- */

/* A request whose rows depend on the tokens before them has no drafts. */
static lmd_status setup_drafts(lmd_live_request *self, lmd_err *err) {
    if (self->max_new_tokens < 3 || !lmd_sampler_is_steady(self->sampler)) return LMD_OK;
    LMD_TRY(lmd_ngram_new(self->n_prompt + self->max_new_tokens, &self->ngram, err));
    for (int32_t i = 0; i < self->n_prompt; i++) lmd_ngram_push(self->ngram, self->prompt[i]);
    lmd_acceptance_init(&self->acceptance);
    return LMD_OK;
}

static lmd_status setup(lmd_live_request *self, const lmd_request_params *params,
                        const lmd_engine_config *config, lmd_err *err) {
    size_t n = (size_t)params->n_tokens;
    self->prompt = lmd_calloc(n, sizeof *self->prompt);
    if (!self->prompt) return lmd_no_memory(err, "a prompt");
    memcpy(self->prompt, params->token_ids, n * sizeof *self->prompt);
    LMD_TRY(lmd_token_match_init(&self->stops, &params->stop_words, err));
    lmd_sampler_room room = {.prompt = self->prompt,
                             .n_prompt = (int32_t)params->n_tokens,
                             .n_new = self->max_new_tokens,
                             .n_bans = params->stop_words.n,
                             .vocab_size = config->vocab_size};
    LMD_TRY(lmd_sampler_new(&params->sampler, &room, &self->sampler, err));
    return config->num_speculative_tokens > 0 ? setup_drafts(self, err) : LMD_OK;
}

lmd_status lmd_live_request_new(const lmd_request_params *params,
                                const lmd_engine_config *config, lmd_request *request,
                                lmd_live_request **out, lmd_err *err) {
    lmd_live_request *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a request");
    int64_t room = config->session_len - params->n_tokens;
    int64_t max_new = params->max_new_tokens < room ? params->max_new_tokens : room;
    int64_t min_new = params->min_new_tokens < max_new ? params->min_new_tokens : max_new;
    self->n_prompt = (int32_t)params->n_tokens;
    self->max_new_tokens = (int32_t)max_new;
    self->min_new_tokens = (int32_t)min_new;
    self->output_logits = params->output_logits;
    self->return_ppl = params->return_ppl;
    self->prompt_logprobs = params->prompt_logprobs;
    self->keep_snapshot = params->keep_snapshot;
    self->priority = params->priority;
    self->deadline =
        params->timeout > 0.0 ? lmd_now_ns() + (int64_t)(params->timeout * 1e9) : INT64_MAX;
    self->snapshot = params->snapshot;
    lmd_snapshot_ref(self->snapshot);
    self->leader = params->leader;
    if (self->leader) lmd_request_ref(self->leader);
    lmd_status status = setup(self, params, config, err);
    if (status != LMD_OK) {
        lmd_live_request_free(self);
        return status;
    }
    lmd_request_ref(request);
    self->request = request;
    *out = self;
    return LMD_OK;
}

void lmd_live_request_free(lmd_live_request *self) {
    if (!self) return;
    lmd_request_unref(self->request);
    lmd_sampler_free(self->sampler);
    lmd_token_match_clear(&self->stops);
    lmd_logits_free(self->chunk);
    lmd_snapshot_unref(self->snapshot);
    lmd_request_unref(self->leader);
    lmd_ngram_free(self->ngram);
    lmd_free(self->prompt);
    lmd_free(self);
}

/* ---- rows ---- */

/* Bans the tokens that would complete a stop word before the answer has min_new_tokens. */
static void ban_early_stops(lmd_live_request *self) {
    for (int32_t i = 0; i < self->stops.n_words; i++) {
        int32_t n_before = lmd_token_match_len(&self->stops, i) - 1;
        if (self->n_generated - n_before < self->min_new_tokens &&
            lmd_token_match_pending(&self->stops, i) == n_before)
            lmd_sampler_ban(self->sampler, lmd_token_match_last(&self->stops, i));
    }
}

void lmd_live_request_fill(lmd_live_request *self, int32_t position, int32_t next_token,
                           lmd_sample_params *out) {
    if (next_token < 0 && self->max_new_tokens > 0) {
        lmd_sampler_begin(self->sampler);
        ban_early_stops(self);
        lmd_sampler_fill(self->sampler, position + 1, out);
        return;
    }
    *out = (lmd_sample_params){.target_id = -1};
    if (next_token < 0) return;
    if (self->return_ppl || self->prompt_logprobs) out->target_id = next_token;
    if (self->prompt_logprobs)
        out->n_logprobs = lmd_request_get_info(self->request)->n_logprobs - 1;
}

/* Whether a row may ban a stop word, now or later. */
static bool bans_stops(const lmd_live_request *self) {
    for (int32_t i = 0; i < self->stops.n_words; i++)
        if (self->n_generated - (lmd_token_match_len(&self->stops, i) - 1) <
            self->min_new_tokens)
            return true;
    return false;
}

static bool may_stop(const lmd_live_request *self, int32_t token_id) {
    for (int32_t i = 0; i < self->stops.n_words; i++)
        if (lmd_token_match_last(&self->stops, i) == token_id) return true;
    return false;
}

int32_t lmd_live_request_draft(const lmd_live_request *self, lmd_speculation *speculation,
                               int32_t *out) {
    const int32_t n_left = self->max_new_tokens - self->n_generated;
    const int32_t n_max = lmd_min_i32(speculation->n_max, n_left - 1);
    if (!self->ngram || self->n_generated == 0 || n_max < 1 || bans_stops(self)) return 0;
    int32_t n = 0, n_found = lmd_ngram_propose(self->ngram, n_max, out);
    while (n < n_found && !may_stop(self, out[n])) n++;
    return lmd_speculation_choose(speculation, &self->acceptance,
                                  lmd_ngram_match_len(self->ngram), n);
}

/* A token's entries: its own log-probability, then those of the most likely others. entries:
 * [n] */
static void fill_entries(lmd_logprob *entries, int32_t n, lmd_logprob own,
                         const lmd_sample_result *result) {
    int32_t filled = 0;
    if (n) entries[filled++] = own;
    for (int32_t i = 0; i < result->n_top && filled < n; i++)
        if (result->top_ids[i] != own.token_id)
            entries[filled++] = (lmd_logprob){result->top_ids[i], result->top_logprobs[i]};
    while (filled < n) entries[filled++] = (lmd_logprob){-1, 0.0f};
}

static void append_token(lmd_live_request *self, const lmd_sample_result *result) {
    lmd_logprob entries[LMD_MAX_LOGPROBS + 1];
    const int32_t n = lmd_request_get_info(self->request)->n_logprobs;
    const lmd_logprob own = {result->token_id, result->token_logprob};
    fill_entries(entries, n, own, result);
    lmd_request_append(self->request, result->token_id, n ? entries : NULL);
}

/* Appends what a row says of a prompt's token. */
static void append_score(lmd_live_request *self, int32_t token_id,
                         const lmd_sample_result *result) {
    lmd_logprob entries[LMD_MAX_LOGPROBS + 1];
    const int32_t n = lmd_request_get_info(self->request)->n_logprobs;
    fill_entries(entries, n, (lmd_logprob){token_id, result->target_logprob}, result);
    lmd_request_append_score(self->request, entries);
}

/* Tokens at the end that belong to the longest complete stop word; 0: none is complete. */
static int32_t matched_stop_len(const lmd_live_request *self) {
    int32_t longest = 0;
    for (int32_t i = 0; i < self->stops.n_words; i++) {
        int32_t len = lmd_token_match_len(&self->stops, i);
        if (self->stops.matched[i] == len && len > longest) longest = len;
    }
    return longest;
}

/* Tokens at the end that could be the beginning of a stop word. */
static int32_t held_back_len(const lmd_live_request *self) {
    int32_t longest = 0;
    for (int32_t i = 0; i < self->stops.n_words; i++)
        if (self->stops.matched[i] > longest) longest = self->stops.matched[i];
    return longest;
}

/* Removes this step's logits from the request. The client sees them together with the newest
 * token, so they are held back with that; logits of the prompt are shown at once. */
static lmd_logits_chunk *pop_chunk(lmd_live_request *self) {
    lmd_logits_chunk *chunk = self->chunk;
    const bool of_prompt = self->output_logits == LMD_LOGITS_ALL && self->n_generated <= 1;
    if (!chunk) return NULL;
    self->chunk = chunk->next;
    chunk->next = NULL;
    chunk->n_tokens = of_prompt ? 0 : self->n_generated;
    return chunk;
}

/* Notes a token, and whether the n-gram index foresaw it. */
static void push_ngram(lmd_live_request *self, int32_t token_id) {
    int32_t foreseen;
    if (lmd_ngram_propose(self->ngram, 1, &foreseen))
        lmd_acceptance_note(&self->acceptance, lmd_ngram_match_len(self->ngram),
                            foreseen == token_id);
    lmd_ngram_push(self->ngram, token_id);
}

static lmd_finish_reason accept_token(lmd_live_request *self, const lmd_sample_result *result) {
    append_token(self, result);
    if (self->ngram) push_ngram(self, result->token_id);
    lmd_sampler_push(self->sampler, result->token_id);
    lmd_token_match_push(&self->stops, result->token_id);
    self->n_generated++;
    int32_t stop_len = matched_stop_len(self);
    if (stop_len) {
        lmd_request_publish(self->request, self->n_generated - stop_len, pop_chunk(self));
        return LMD_FINISH_STOP;
    }
    const bool full = self->n_generated == self->max_new_tokens;
    int32_t held = full ? 0 : held_back_len(self);
    lmd_request_publish(self->request, self->n_generated - held, pop_chunk(self));
    return full ? LMD_FINISH_LENGTH : LMD_FINISH_NONE;
}

lmd_finish_reason lmd_live_request_accept(lmd_live_request *self,
                                          const lmd_sample_params *params,
                                          const lmd_sample_result *result, lmd_err *why) {
    if (result->not_finite) {
        lmd_fail(why, LMD_INTERNAL,
                 "the logits hold a NaN or an infinity: the model's weights or activations "
                 "overflow");
        return LMD_FINISH_ERROR;
    }
    if (params->target_id >= 0) {
        self->loss_sum -= (double)result->target_logprob;
        self->n_losses++;
        if (self->prompt_logprobs) append_score(self, params->target_id, result);
    }
    if (!params->wants_token) return LMD_FINISH_NONE;
    if (result->token_id < 0) {
        lmd_fail(why, LMD_INVALID, "bad_words, logit_bias and min_new_tokens ban every token");
        return LMD_FINISH_ERROR;
    }
    return accept_token(self, result);
}

void lmd_live_request_drop_rows(lmd_live_request *self) {
    lmd_logits_free(self->chunk);
    self->chunk = NULL;
}

void lmd_live_request_hand_over(lmd_live_request *self) {
    if (self->chunk) lmd_request_publish(self->request, self->n_generated, pop_chunk(self));
}

void lmd_live_request_finish(lmd_live_request *self, lmd_finish_reason reason,
                             const lmd_err *why) {
    const bool scored = self->return_ppl && self->n_losses > 0 && reason != LMD_FINISH_ERROR;
    double ppl = scored ? self->loss_sum / self->n_losses : 0.0;
    lmd_request_finish(self->request, reason, why, scored ? &ppl : NULL);
}
