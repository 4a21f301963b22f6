/* A session: see session.h. */
#include "engine/session.h"

#include <stdatomic.h>
#include <string.h>

#include "base/memory.h"

struct lmd_session {
    atomic_int refs;
    lmd_session_info info;
    int32_t *tokens;
    lmd_block_ref *blocks;
};

static void free_session(lmd_session *self) {
    lmd_free(self->tokens);
    lmd_free(self->blocks);
    lmd_free(self);
}

lmd_session *lmd_session_new(const lmd_session_info *info) {
    lmd_session *self = lmd_calloc(1, sizeof *self);
    if (!self) return NULL;
    const size_t n_tokens = (size_t)info->n_tokens, n_blocks = (size_t)info->n_blocks;
    atomic_init(&self->refs, 1);
    self->info = *info;
    self->info.tokens = self->tokens = lmd_calloc(n_tokens, sizeof *self->tokens);
    self->info.blocks = self->blocks = lmd_calloc(n_blocks, sizeof *self->blocks);
    if (!self->tokens || !self->blocks) {
        free_session(self);
        return NULL;
    }
    if (n_tokens) memcpy(self->tokens, info->tokens, n_tokens * sizeof *self->tokens);
    if (n_blocks) memcpy(self->blocks, info->blocks, n_blocks * sizeof *self->blocks);
    return self;
}

void lmd_session_ref(lmd_session *self) {
    if (self) atomic_fetch_add_explicit(&self->refs, 1, memory_order_relaxed);
}

void lmd_session_unref(lmd_session *self) {
    if (self && atomic_fetch_sub_explicit(&self->refs, 1, memory_order_acq_rel) == 1)
        free_session(self);
}

const lmd_session_info *lmd_session_get(const lmd_session *self) { return &self->info; }

int32_t lmd_session_match(const lmd_session *self, const int32_t *tokens, int32_t n_tokens) {
    int32_t n = 0;
    while (n < self->info.n_computed && n < n_tokens && tokens[n] == self->tokens[n]) n++;
    return n;
}
