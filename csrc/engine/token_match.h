/* Words of tokens against a growing sequence: how much of each word its end matches.
 * Owns: the words and one Knuth-Morris-Pratt state for each, so that a token costs O(1)
 * amortised for a word, of any length. Must not know: what a match means. One thread. */
#ifndef LMD_ENGINE_TOKEN_MATCH_H
#define LMD_ENGINE_TOKEN_MATCH_H

#include <stdint.h>

#include "base/status.h"

/* n words: word i is token_ids[offsets[i] .. offsets[i + 1]). */
typedef struct lmd_token_words {
    int32_t n;
    const int32_t *token_ids;
    const int32_t *offsets; /* [n + 1] */
} lmd_token_words;

typedef struct lmd_token_match {
    int32_t n_words;
    int32_t *token_ids; /* copies of the caller's words */
    int32_t *offsets;   /* [n_words + 1] */
    int32_t *borders;   /* beside token_ids: the longest border of each prefix */
    int32_t *matched;   /* [n_words] length of the longest prefix that ends the sequence */
} lmd_token_match;

/* Copies the words; n == 0 allocates nothing. Words of length 0 are the caller's mistake. */
lmd_status lmd_token_match_init(lmd_token_match *self, const lmd_token_words *words,
                                lmd_err *err);
void lmd_token_match_clear(lmd_token_match *self);

/* Appends a token to the sequence. */
void lmd_token_match_push(lmd_token_match *self, int32_t token_id);

/* The length of word i, and its last token. */
static inline int32_t lmd_token_match_len(const lmd_token_match *self, int32_t i) {
    return self->offsets[i + 1] - self->offsets[i];
}
static inline int32_t lmd_token_match_last(const lmd_token_match *self, int32_t i) {
    return self->token_ids[self->offsets[i + 1] - 1];
}

/* The length of the longest proper prefix of word i that ends the sequence: all of the word but
 * its last token when the next one can complete it. */
int32_t lmd_token_match_pending(const lmd_token_match *self, int32_t i);

#endif
