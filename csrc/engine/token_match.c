/* Words of tokens against a growing sequence: see token_match.h. */
#include "engine/token_match.h"

#include <string.h>

#include "base/memory.h"

/* The longest border of each prefix of a word (Knuth, Morris, Pratt: Fast pattern matching in
 * strings). */
static void make_borders(const int32_t *word, int32_t len, int32_t *borders) {
    borders[0] = 0;
    for (int32_t i = 1, k = 0; i < len; i++) {
        while (k > 0 && word[i] != word[k]) k = borders[k - 1];
        if (word[i] == word[k]) k++;
        borders[i] = k;
    }
}

lmd_status lmd_token_match_init(lmd_token_match *self, const lmd_token_words *words,
                                lmd_err *err) {
    *self = (lmd_token_match){0};
    if (words->n == 0) return LMD_OK;
    size_t n = (size_t)words->n, n_ids = (size_t)words->offsets[words->n];
    self->n_words = words->n;
    self->token_ids = lmd_calloc(n_ids, sizeof *self->token_ids);
    self->offsets = lmd_calloc(n + 1, sizeof *self->offsets);
    self->borders = lmd_calloc(n_ids, sizeof *self->borders);
    self->matched = lmd_calloc(n, sizeof *self->matched);
    if (!self->token_ids || !self->offsets || !self->borders || !self->matched) {
        lmd_token_match_clear(self);
        return lmd_no_memory(err, "%zu words", n);
    }
    memcpy(self->token_ids, words->token_ids, n_ids * sizeof *self->token_ids);
    memcpy(self->offsets, words->offsets, (n + 1) * sizeof *self->offsets);
    for (int32_t i = 0; i < words->n; i++)
        make_borders(self->token_ids + self->offsets[i], lmd_token_match_len(self, i),
                     self->borders + self->offsets[i]);
    return LMD_OK;
}

void lmd_token_match_clear(lmd_token_match *self) {
    lmd_free(self->token_ids);
    lmd_free(self->offsets);
    lmd_free(self->borders);
    lmd_free(self->matched);
    *self = (lmd_token_match){0};
}

void lmd_token_match_push(lmd_token_match *self, int32_t token_id) {
    for (int32_t i = 0; i < self->n_words; i++) {
        const int32_t *word = self->token_ids + self->offsets[i];
        int32_t k = lmd_token_match_pending(self, i);
        const int32_t *borders = self->borders + self->offsets[i];
        while (k > 0 && word[k] != token_id) k = borders[k - 1];
        self->matched[i] = word[k] == token_id ? k + 1 : 0;
    }
}

int32_t lmd_token_match_pending(const lmd_token_match *self, int32_t i) {
    int32_t k = self->matched[i];
    return k == lmd_token_match_len(self, i) ? self->borders[self->offsets[i] + k - 1] : k;
}
