/* A snapshot: see snapshot.h. */
#include "engine/snapshot.h"

#include <stdatomic.h>
#include <string.h>

#include "base/memory.h"

struct lmd_snapshot {
    atomic_int refs;
    lmd_snapshot_info info;
    int32_t *tokens;
    lmd_block_ref *blocks;
};

static void free_snapshot(lmd_snapshot *self) {
    lmd_free(self->tokens);
    lmd_free(self->blocks);
    lmd_free(self);
}

lmd_snapshot *lmd_snapshot_new(const lmd_snapshot_info *info) {
    lmd_snapshot *self = lmd_calloc(1, sizeof *self);
    if (!self) return NULL;
    const size_t n_tokens = (size_t)info->n_tokens, n_blocks = (size_t)info->n_blocks;
    atomic_init(&self->refs, 1);
    self->info = *info;
    self->info.tokens = self->tokens = lmd_calloc(n_tokens, sizeof *self->tokens);
    self->info.blocks = self->blocks = lmd_calloc(n_blocks, sizeof *self->blocks);
    if (!self->tokens || !self->blocks) {
        free_snapshot(self);
        return NULL;
    }
    if (n_tokens) memcpy(self->tokens, info->tokens, n_tokens * sizeof *self->tokens);
    if (n_blocks) memcpy(self->blocks, info->blocks, n_blocks * sizeof *self->blocks);
    return self;
}

void lmd_snapshot_ref(lmd_snapshot *self) {
    if (self) atomic_fetch_add_explicit(&self->refs, 1, memory_order_relaxed);
}

void lmd_snapshot_unref(lmd_snapshot *self) {
    if (self && atomic_fetch_sub_explicit(&self->refs, 1, memory_order_acq_rel) == 1)
        free_snapshot(self);
}

const lmd_snapshot_info *lmd_snapshot_get(const lmd_snapshot *self) { return &self->info; }

int32_t lmd_snapshot_match(const lmd_snapshot *self, const int32_t *tokens, int32_t n_tokens) {
    int32_t n = 0;
    while (n < self->info.n_computed && n < n_tokens && tokens[n] == self->tokens[n]) n++;
    return n;
}
