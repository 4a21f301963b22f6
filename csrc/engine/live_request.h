/* A live request: what the engine's thread keeps for a request while it runs.
 * Owns: a reference to the request, its sampler, its stop words, its copy of the prompt.
 * Made by the client's thread, then the engine's alone. Must not know: scheduling, executors.
 */
#ifndef LMD_ENGINE_LIVE_REQUEST_H
#define LMD_ENGINE_LIVE_REQUEST_H

#include "engine/engine.h"
#include "engine/metrics.h"
#include "engine/speculation.h"

typedef struct lmd_live_request {
    struct lmd_live_request *next, *prev; /* in the engine's list, or its inbox */
    int64_t request_id;                   /* its sequence's seq_id too */
    lmd_request *request;
    lmd_sampler *sampler;
    lmd_token_match stops;
    int32_t *prompt; /* [n_prompt] until the scheduler has a copy of its own */
    int32_t n_prompt, n_generated, max_new_tokens, min_new_tokens;
    lmd_output_logits output_logits;
    bool return_ppl, prompt_logprobs;
    lmd_snapshot *snapshot; /* the prompt begins with its KV; or NULL */
    bool keep_snapshot;     /* the request leaves a snapshot */
    lmd_request *leader;    /* whose prompt it begins with, until it is admitted; or NULL */
    int32_t priority;
    int64_t deadline; /* of lmd_now_ns; INT64_MAX: none */
    double loss_sum;  /* of prompt tokens scored so far, natural log */
    int32_t n_losses;
    lmd_logits_chunk *chunk; /* logits of the current step; a list of one chunk a row when
                                several rows give tokens */
    lmd_ngram *ngram;        /* of prompt and answer; NULL: the request has no drafts */
    lmd_acceptance acceptance;
    lmd_request_times times;
} lmd_live_request;

/* Checks a client's parameters against the engine's config. LMD_INVALID says what to change. */
lmd_status lmd_live_request_check(const lmd_request_params *params,
                                  const lmd_engine_config *config, lmd_err *err);
/* Takes a reference to the request. The params must have passed the check. */
lmd_status lmd_live_request_new(const lmd_request_params *params,
                                const lmd_engine_config *config, lmd_request *request,
                                lmd_live_request **out, lmd_err *err);
void lmd_live_request_free(lmd_live_request *self);

/* Fills the parameters of one logits row, at `position`, whose next token in the sequence is
 * next_token (-1: not known yet, so that the row gives it). */
void lmd_live_request_fill(lmd_live_request *self, int32_t position, int32_t next_token,
                           lmd_sample_params *out);

/* Accepts a row's result: a score, a token, or both. Says how the request goes on; *why is
 * set for an error. */
lmd_finish_reason lmd_live_request_accept(lmd_live_request *self,
                                          const lmd_sample_params *params,
                                          const lmd_sample_result *result, lmd_err *why);

/* Drafts what follows the newest token: at most LMD_MAX_DRAFT_TOKENS, as many as are worth
 * their rows. The parameters of those rows do not depend on the draft, and no token of it
 * completes a stop word. Returns how many. */
int32_t lmd_live_request_draft(const lmd_live_request *self, lmd_speculation *speculation,
                               int32_t *out);

/* Forgets the logits of rows after a wrong draft token. */
void lmd_live_request_drop_rows(lmd_live_request *self);

/* Hands this step's logits to the client, when their rows gave no token. */
void lmd_live_request_hand_over(lmd_live_request *self);

/* Tells the client that the request has ended. */
void lmd_live_request_finish(lmd_live_request *self, lmd_finish_reason reason,
                             const lmd_err *why);

#endif
