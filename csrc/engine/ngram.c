/* The n-gram index: see ngram.h. */
#include "engine/ngram.h"

#include <stdbool.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"

enum { N_LENS = LMD_NGRAM_MAX_LEN - LMD_NGRAM_MIN_LEN + 1, NOWHERE = 0 };

struct lmd_ngram {
    int32_t *tokens; /* [max_tokens] */
    int32_t n_tokens, max_tokens;
    uint32_t n_slots;        /* of each table: a power of two, at least 2 * max_tokens */
    int32_t *tables[N_LENS]; /* [n_slots] tokens up to the end of an n-gram */
    int32_t earlier[N_LENS]; /* the place before, up to which the last n tokens occurred */
};

lmd_status lmd_ngram_new(int32_t max_tokens, lmd_ngram **out, lmd_err *err) {
    lmd_ngram *self = lmd_calloc(1, sizeof *self);
    bool complete = self != NULL;
    if (self) {
        self->max_tokens = max_tokens;
        self->n_slots = 16;
        while (self->n_slots < (uint64_t)max_tokens * 2) self->n_slots *= 2;
        self->tokens = lmd_calloc((size_t)max_tokens, sizeof *self->tokens);
        complete = self->tokens != NULL;
        for (int32_t i = 0; i < N_LENS; i++) {
            self->tables[i] = lmd_calloc(self->n_slots, sizeof *self->tables[i]);
            complete = complete && self->tables[i];
        }
    }
    if (!complete) {
        lmd_ngram_free(self);
        return lmd_no_memory(err, "the n-grams of %d tokens", max_tokens);
    }
    *out = self;
    return LMD_OK;
}

void lmd_ngram_free(lmd_ngram *self) {
    if (!self) return;
    for (int32_t i = 0; i < N_LENS; i++) lmd_free(self->tables[i]);
    lmd_free(self->tokens);
    lmd_free(self);
}

/* Notes where the sequence's last n-gram ends, and returns where it ended before. */
static int32_t note(lmd_ngram *self, int32_t *table, int32_t n) {
    const int32_t *end = self->tokens + self->n_tokens;
    const size_t n_bytes = (size_t)n * sizeof *end;
    const uint64_t hash = lmd_hash_tokens(0, end - n, n);
    uint32_t slot = (uint32_t)hash & (self->n_slots - 1);
    while (table[slot] != NOWHERE &&
           memcmp(self->tokens + table[slot] - n, end - n, n_bytes) != 0)
        slot = (slot + 1) & (self->n_slots - 1);
    int32_t before = table[slot];
    table[slot] = self->n_tokens;
    return before;
}

void lmd_ngram_push(lmd_ngram *self, int32_t token_id) {
    if (self->n_tokens == self->max_tokens) return;
    self->tokens[self->n_tokens++] = token_id;
    for (int32_t i = 0; i < N_LENS; i++)
        if (self->n_tokens >= LMD_NGRAM_MIN_LEN + i)
            self->earlier[i] = note(self, self->tables[i], LMD_NGRAM_MIN_LEN + i);
}

int32_t lmd_ngram_match_len(const lmd_ngram *self) {
    int32_t i = N_LENS;
    while (i > 0 && self->earlier[i - 1] == NOWHERE) i--;
    return i > 0 ? LMD_NGRAM_MIN_LEN + i - 1 : 0;
}

int32_t lmd_ngram_propose(const lmd_ngram *self, int32_t n_max, int32_t *out) {
    int32_t len = lmd_ngram_match_len(self);
    if (len == 0) return 0;
    const int32_t from = self->earlier[len - LMD_NGRAM_MIN_LEN];
    for (int32_t i = 0; i < n_max; i++) {
        int32_t at = from + i;
        out[i] = at < self->n_tokens ? self->tokens[at] : out[at - self->n_tokens];
    }
    return n_max;
}
