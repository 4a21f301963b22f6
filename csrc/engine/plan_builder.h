/* The plan builder: the arrays of one plan, allocated once for the largest step.
 * Owns: the arrays and, for each sequence of the plan, which row gives its next token. Must not
 * know: queues, pools. The engine's thread alone. */
#ifndef LMD_ENGINE_PLAN_BUILDER_H
#define LMD_ENGINE_PLAN_BUILDER_H

#include "backend/plan.h"
#include "engine/sequence.h"

typedef struct lmd_plan_entry {
    lmd_sequence *seq;
    int32_t history_len, input_len;
    int32_t n_draft;        /* of input_len: draft tokens after the known ones */
    int32_t logits_row_idx; /* of the row that gives the sequence's next token; the rows of its
                               draft follow; -1: no row gives one */
} lmd_plan_entry;

typedef struct lmd_plan_builder {
    int64_t plan_id;         /* 0: none yet */
    lmd_plan_entry *entries; /* [max_seqs] */
    int32_t n_entries;
    int32_t n_tokens, n_logits_rows, n_block_ids, n_copies;
    lmd_block_copy *copies; /* [max_seqs] */
    void **owners;          /* [max_seqs] of the plan's sequences */
    int64_t *seq_ids;
    int32_t *slots, *history_lens, *input_lens, *token_offsets, *token_ids, *positions;
    int32_t *block_offsets, *block_ids, *logits_rows;
} lmd_plan_builder;

/* Reserves for max_seqs sequences of up to seq_blocks blocks, and max_tokens rows. */
lmd_status lmd_plan_builder_init(lmd_plan_builder *self, int32_t max_seqs, int32_t max_tokens,
                                 int32_t seq_blocks, lmd_err *err);
void lmd_plan_builder_clear(lmd_plan_builder *self);
/* The bytes that init reserves. */
size_t lmd_plan_builder_bytes(int32_t max_seqs, int32_t max_tokens, int32_t seq_blocks);

/* Forgets the last plan's sequences. */
void lmd_plan_builder_begin(lmd_plan_builder *self);
/* Adds a sequence with n tokens of this step; its blocks must cover them. */
void lmd_plan_builder_add(lmd_plan_builder *self, lmd_sequence *seq, int32_t n);
/* Adds a block copy. Copies are made before the plan's own writes, in the order of these calls;
 * there is at most one for each sequence. */
void lmd_plan_builder_copy(lmd_plan_builder *self, lmd_block_copy copy);
/* Adds n draft tokens, which the sequence holds after its own, to an entry that decodes and is
 * the only one in flight of its sequence. Its blocks must cover them. */
void lmd_plan_builder_draft(lmd_plan_entry *entry, int32_t n);
/* Orders the sequences (decodes, then prefills), writes the arrays, and moves the sequences on:
 * history_len, n_pending, n_in_flight. */
void lmd_plan_builder_finish(lmd_plan_builder *self, int64_t plan_id, int32_t block_len,
                             lmd_plan *plan);

#endif
