/* The scheduler: who runs in the next step, with how many tokens, in which blocks.
 * Owns: sequences, the block pool, the plan's arrays. Needs lengths only: it can plan a step
 * while the last one runs, the newest token being a placeholder until update. Deterministic;
 * makes no malloc in a steady decode step. Must not know: models, devices, sampling, clocks,
 * Python. The engine's thread alone. */
#ifndef LMD_ENGINE_SCHEDULER_H
#define LMD_ENGINE_SCHEDULER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/plan.h"
#include "base/status.h"
#include "engine/snapshot.h"

typedef struct lmd_scheduler lmd_scheduler;

typedef struct lmd_scheduler_config {
    int32_t n_blocks, block_len;
    int32_t max_batch_size;        /* slots */
    int32_t max_prefill_token_num; /* the token budget of a step */
    int32_t session_len;           /* most tokens of one sequence */
    bool prefix_caching;           /* sequences whose texts begin alike share full blocks */
} lmd_scheduler_config;

enum {
    LMD_PRIORITY_STEP = 64,
    LMD_MAX_PRIORITY = 1000 /* and no lower than the negative of it */
};

typedef struct lmd_sequence_params {
    int64_t seq_id;           /* unique among live sequences */
    void *owner;              /* the caller's own: schedule reports it with the sequence */
    const int32_t *token_ids; /* [n_tokens] the prompt; copied */
    int32_t n_tokens;         /* at least 1 */
    int32_t max_len;          /* prompt and answer together, at most session_len */
    bool all_logits;  /* logits rows for every prompt token, and not for the last alone; each
                         once, even when the sequence is preempted */
    int32_t priority; /* each step of it lets the sequence pass those that came up to
                         LMD_PRIORITY_STEP before it: nobody is passed for ever */
    const lmd_snapshot *snapshot; /* the prompt begins with its KV; NULL: none */
    int64_t leader; /* a live sequence: this one waits until the leader's prompt is in KV, and
                       begins with it as far as the two texts agree; 0, or unknown: none */
} lmd_sequence_params;

typedef enum lmd_wait_reason {
    LMD_WAIT_SLOT,   /* the batch is full */
    LMD_WAIT_BUDGET, /* the step's tokens are spent */
    LMD_WAIT_BLOCKS, /* no block is free or evictable */
    LMD_WAIT_TURN    /* another one waits before it */
} lmd_wait_reason;

typedef struct lmd_waiting {
    int64_t seq_id;
    lmd_wait_reason reason;
} lmd_waiting;

/* What schedule() decided besides the plan. Arrays are valid until the next call. */
typedef struct lmd_schedule_report {
    int32_t budget; /* tokens that the step could have */
    int32_t n_preempted, n_waiting;
    const int64_t *preempted; /* seq_ids of sequences that lost their slot in this call */
    const lmd_waiting *waiting;
    void *const *owners; /* [n_seqs of the plan]; set when there is a plan */
    int64_t failed;     /* the sequence that can never proceed and must be finished; -1: none */
    void *failed_owner; /* its owner */
} lmd_schedule_report;

typedef struct lmd_scheduler_stats {
    int32_t n_running, n_waiting, n_free_blocks, n_active_blocks, n_cached_blocks;
    int32_t budget; /* tokens of the next step */
    int64_t n_preempted;
    int64_t n_prompt_tokens,
        n_cached_tokens; /* of sequences that ever had a slot; of these tokens, found in KV */
} lmd_scheduler_stats;

lmd_status lmd_scheduler_new(const lmd_scheduler_config *config, lmd_scheduler **out,
                             lmd_err *err);
void lmd_scheduler_free(lmd_scheduler *self);
/* The bytes that new allocates. */
size_t lmd_scheduler_bytes(const lmd_scheduler_config *config);

/* Queues a sequence, in its place by rank. LMD_INVALID, LMD_NO_MEMORY. */
lmd_status lmd_scheduler_add(lmd_scheduler *self, const lmd_sequence_params *params,
                             lmd_err *err);

/* How many running sequences decode: all their tokens but the last are in KV. */
int32_t lmd_scheduler_n_decoding(const lmd_scheduler *self);

/* Sets the token budget of the steps to come (1..max_prefill_token_num). */
void lmd_scheduler_set_budget(lmd_scheduler *self, int32_t n_tokens);

/* Whether the next plan can hold decodes alone, one token for each running sequence; *n_seqs
 * says of how many. */
bool lmd_scheduler_only_decodes(const lmd_scheduler *self, int32_t *n_seqs);

/* Drafts n tokens after those of a sequence, for the next plan alone. The plan computes, with a
 * logits row for each, as many as fit budget and blocks once everyone else has their share, if
 * the sequence decodes and no other plan names it. */
void lmd_scheduler_draft(lmd_scheduler *self, int64_t seq_id, const int32_t *draft, int32_t n);

/* Fills *plan (samples stay NULL) and *report; returns false when there is nothing to run now.
 * One earlier plan may still be in flight; nothing that it names is preempted. Where a running
 * sequence lacks blocks, those after it in rank get no tokens and nobody a slot. */
bool lmd_scheduler_schedule(lmd_scheduler *self, lmd_plan *plan, lmd_schedule_report *report);

/* Ends the oldest plan in flight: token_ids[i] is what logits row i gave (-1: nothing), and is
 * appended. Of a sequence with a draft the tokens up to the first -1 count: the caller has put
 * -1 after the first token that the draft did not foresee. A sequence at max_len is not
 * scheduled again: the caller finishes it. */
lmd_status lmd_scheduler_update(lmd_scheduler *self, int64_t plan_id, const int32_t *token_ids,
                                lmd_err *err);

/* Ends a sequence; its blocks return once no plan in flight names them. LMD_UNKNOWN_ID. */
lmd_status lmd_scheduler_finish(lmd_scheduler *self, int64_t seq_id, lmd_err *err);

/* A live sequence's text and KV so far, as a snapshot that the caller owns; its blocks stay
 * cached when it ends. NULL when it is unknown or host memory is out. */
lmd_snapshot *lmd_scheduler_snapshot(lmd_scheduler *self, int64_t seq_id);

/* Makes a snapshot of a text (its tokens, n_tokens and n_computed) whose KV comes from outside:
 * `fill` writes the blocks, in the text's order, which then are cached. Where the pool has too
 * few blocks, the snapshot has fewer. LMD_NO_MEMORY, or what `fill` fails with. Between steps.
 * */
typedef lmd_status (*lmd_block_fill)(void *arg, const int32_t *block_ids, int32_t n);
lmd_status lmd_scheduler_import(lmd_scheduler *self, const lmd_snapshot_info *text,
                                lmd_block_fill fill, void *arg, lmd_snapshot **out,
                                lmd_err *err);
/* Whether a block still has the content that a snapshot remembers. */
bool lmd_scheduler_has_block(const lmd_scheduler *self, lmd_block_ref ref);
int32_t lmd_scheduler_block_len(const lmd_scheduler *self);

/* The tokens of a live sequence (prompt and answer so far); NULL when it is unknown. */
const int32_t *lmd_scheduler_tokens(const lmd_scheduler *self, int64_t seq_id,
                                    int32_t *n_tokens);

/* The same for sequence number seq_idx of a plan in flight. */
const int32_t *lmd_scheduler_plan_tokens(const lmd_scheduler *self, int64_t plan_id,
                                         int32_t seq_idx, int32_t *n_tokens);

/* Prompt tokens of a live sequence that were found in KV when it first ran; -1: it has not run
 * yet, or is unknown. */
int32_t lmd_scheduler_cached_len(const lmd_scheduler *self, int64_t seq_id);

/* Checks every invariant of queues and pool; LMD_INTERNAL names the broken one. */
lmd_status lmd_scheduler_check(const lmd_scheduler *self, lmd_err *err);

void lmd_scheduler_get_stats(const lmd_scheduler *self, lmd_scheduler_stats *out);

#endif
