/* A step as a value: a plan, the parameters and results of its logits rows, and whose they are.
 * An engine has two of them: one whose tokens are waited for, and one that may already run.
 * Owns: arrays for the largest plan, allocated once. Must not know: executors. The
 * engine's thread alone. */
#ifndef LMD_ENGINE_STEP_H
#define LMD_ENGINE_STEP_H

#include "engine/live_request.h"

typedef struct lmd_step {
    lmd_plan plan; /* its arrays are the scheduler's, until update */
    /* [max_seqs], [max_rows]: the request of each sequence, of each logits row; NULL: the
     * request has ended. */
    lmd_live_request **seq_requests, **row_requests;
    lmd_sample_params *samples; /* [max_rows] of the plan's logits rows */
    int32_t *row_tokens;        /* [max_rows] the token of each row; -1: none */
    int64_t started;            /* when the plan was made, ns */
    int32_t budget;             /* tokens that the plan could have */
    int32_t n_preempted;        /* sequences, by this plan */
} lmd_step;

/* How many drafts a step had, and how many of them were right. */
typedef struct lmd_draft_counts {
    int32_t n_seqs, n_drafted, n_accepted;
} lmd_draft_counts;

lmd_status lmd_step_init(lmd_step *self, int32_t max_seqs, int32_t max_rows, lmd_err *err);
void lmd_step_clear(lmd_step *self);
/* The bytes that init reserves. */
size_t lmd_step_bytes(int32_t max_seqs, int32_t max_rows);

/* Begins with a plan that was made at `now`. */
void lmd_step_begin(lmd_step *self, const lmd_plan *plan, const lmd_schedule_report *report,
                    int64_t now);

/* Empties the step: it refers to no request any more. */
void lmd_step_end(lmd_step *self);

/* How many of the plan's logits rows, from number `first` on, are of sequence number seq_idx.
 */
int32_t lmd_step_count_rows(const lmd_step *self, int32_t seq_idx, int32_t first);

/* Makes n rows from number `first` on want no result: their request has ended. */
void lmd_step_drop_rows(lmd_step *self, int32_t first, int32_t n);

/* Replaces a request that ends by NULL. */
void lmd_step_forget(lmd_step *self, const lmd_live_request *request);

/* Reads the tokens that the rows gave. */
void lmd_step_read(lmd_step *self, const lmd_plan_result *result);

/* Drops the rows after the first token that a sequence's draft did not foresee. */
lmd_draft_counts lmd_step_reject_drafts(lmd_step *self);

#endif
