/* How many tokens to draft: where drafts are worth their rows.
 * Owns: measured durations of decode steps by their rows, and for each request how often the
 * n-gram index foresees the next token, noted also while nothing is drafted. A step drafts what
 * is expected to give the most tokens a second. What it decides changes speed, never an answer.
 * Must not know: sequences, schedules, clocks. The engine's thread alone. */
#ifndef LMD_ENGINE_SPECULATION_H
#define LMD_ENGINE_SPECULATION_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/ngram.h"

enum {
    LMD_MAX_DRAFT_TOKENS = 32, /* of one sequence in a step */
    LMD_MAX_DRAFT_ROWS = 64    /* a step of more rows has no drafts */
};

/* How often a match of each length foresaw the next token: sums that fade. */
typedef struct lmd_acceptance {
    float n_right[LMD_NGRAM_MAX_LEN + 1], n_all[LMD_NGRAM_MAX_LEN + 1];
} lmd_acceptance;

void lmd_acceptance_init(lmd_acceptance *self);
void lmd_acceptance_note(lmd_acceptance *self, int32_t match_len, bool right);

typedef struct lmd_step_cost {
    double seconds;  /* a mean of recent steps, in which shorter ones weigh more */
    int64_t step_id; /* when it was last measured; 0: never */
} lmd_step_cost;

typedef struct lmd_speculation {
    int32_t n_max; /* most tokens drafted for a sequence; 0: none ever */
    bool adaptive; /* false: always n_max, to measure what adapting is worth */
    lmd_step_cost costs[LMD_MAX_DRAFT_ROWS + 1]; /* by rows */
    int64_t step_id;
    int32_t n_seqs;    /* sequences of the step that is being planned */
    int32_t n_rows;    /* rows of these sequences and of their drafts so far */
    double n_expected; /* tokens that the step is expected to give */
} lmd_speculation;

void lmd_speculation_init(lmd_speculation *self, int32_t n_max, bool adaptive);

/* Whether a step of n_seqs sequences that decode may have drafts at all. */
bool lmd_speculation_may_draft(const lmd_speculation *self, int32_t n_seqs);
/* Starts a step of n_seqs sequences that decode. */
void lmd_speculation_begin(lmd_speculation *self, int32_t n_seqs);
/* Chooses how many tokens, at most n_max, to draft for a sequence with a match of that length.
 * */
int32_t lmd_speculation_choose(lmd_speculation *self, const lmd_acceptance *acceptance,
                               int32_t match_len, int32_t n_max);
/* Notes how long a step took whose n_rows rows all gave logits. */
void lmd_speculation_note(lmd_speculation *self, int32_t n_rows, double seconds);

#endif
