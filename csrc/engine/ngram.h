/* An index of a sequence's own n-grams, for drafts without a second model (Saxena: Prompt
 * lookup decoding): the tokens that followed the last n tokens when they occurred before are
 * the draft of what comes next.
 * Owns: a copy of the tokens and, for each n of MIN_LEN to MAX_LEN, a hash table from an n-gram
 * to its latest place; all reserved at the start. A token costs O(1). Must not know: sampling,
 * schedules. One thread at a time. */
#ifndef LMD_ENGINE_NGRAM_H
#define LMD_ENGINE_NGRAM_H

#include <stdint.h>

#include "base/status.h"

enum { LMD_NGRAM_MIN_LEN = 2, LMD_NGRAM_MAX_LEN = 4 };

typedef struct lmd_ngram lmd_ngram;

/* For a sequence of at most max_tokens tokens. LMD_NO_MEMORY. */
lmd_status lmd_ngram_new(int32_t max_tokens, lmd_ngram **out, lmd_err *err);
void lmd_ngram_free(lmd_ngram *self);

/* Appends a token (at least 0). No malloc. */
void lmd_ngram_push(lmd_ngram *self, int32_t token_id);

/* The length of the longest n-gram that ends the sequence and occurred in it before; 0: none.
 */
int32_t lmd_ngram_match_len(const lmd_ngram *self);

/* Writes what followed that n-gram's latest earlier occurrence; where that reaches the end of
 * the sequence, it goes on with the draft itself. Returns n_max; 0: there is no match. */
int32_t lmd_ngram_propose(const lmd_ngram *self, int32_t n_max, int32_t *out);

#endif
