/* A sequence: see sequence.h. */
#include "engine/sequence.h"

#include <string.h>

#include "base/memory.h"

lmd_sequence *lmd_sequence_new(int64_t seq_id, const int32_t *token_ids, int32_t n_tokens,
                               int32_t max_len, int32_t block_len) {
    lmd_sequence *self = lmd_calloc(1, sizeof *self);
    if (!self) return NULL;
    int32_t max_blocks = (int32_t)(((int64_t)max_len + block_len - 1) / block_len);
    self->tokens = lmd_calloc((size_t)max_len, sizeof *self->tokens);
    self->blocks = lmd_calloc((size_t)max_blocks, sizeof *self->blocks);
    if (!self->tokens || !self->blocks) {
        lmd_sequence_free(self);
        return NULL;
    }
    memcpy(self->tokens, token_ids, (size_t)n_tokens * sizeof *self->tokens);
    self->seq_id = seq_id;
    self->n_prompt = n_tokens;
    self->n_tokens = n_tokens;
    self->max_len = max_len;
    self->slot = -1;
    self->prefix = LMD_PREFIX_ROOT;
    self->cached_len = -1;
    return self;
}

void lmd_sequence_free(lmd_sequence *self) {
    if (!self) return;
    lmd_free(self->tokens);
    lmd_free(self->blocks);
    lmd_free(self);
}

int32_t lmd_sequence_n_todo(const lmd_sequence *self) {
    int32_t total = self->n_tokens + self->n_pending;
    if (self->n_pending > 1) return 0; /* guesses in flight: how many hold is not known yet */
    if (total == self->max_len && total > self->n_prompt) return 0;
    return total - self->history_len;
}

bool lmd_sequence_grow(lmd_sequence *self, lmd_block_pool *pool, int32_t n_positions,
                       int32_t block_len) {
    int32_t wanted = (int32_t)(((int64_t)n_positions + block_len - 1) / block_len);
    int32_t available = lmd_block_pool_n_free(pool) + lmd_block_pool_n_cached(pool);
    if (wanted - self->n_blocks > available) return false;
    while (self->n_blocks < wanted && lmd_block_pool_alloc(pool, &self->blocks[self->n_blocks]))
        self->n_blocks++;
    return true;
}

void lmd_sequence_release_blocks(lmd_sequence *self, lmd_block_pool *pool) {
    for (int32_t i = self->n_blocks - 1; i >= 0; i--)
        lmd_block_pool_release(pool, self->blocks[i].block_id, true);
}

void lmd_sequence_drop_blocks(lmd_sequence *self, lmd_block_pool *pool,
                              const lmd_prefix_cache *cache) {
    for (int32_t i = self->n_blocks - 1; i >= 0; i--)
        lmd_block_pool_release(pool, self->blocks[i].block_id,
                               cache && lmd_prefix_cache_has(cache, self->blocks[i]));
    self->n_blocks = 0;
}

void lmd_sequence_index_blocks(lmd_sequence *self, lmd_prefix_cache *cache, int32_t n_computed,
                               int32_t block_len) {
    for (; (int64_t)(self->n_indexed + 1) * block_len <= n_computed; self->n_indexed++)
        lmd_prefix_cache_add(cache, &self->prefix,
                             self->tokens + (int64_t)self->n_indexed * block_len,
                             self->blocks[self->n_indexed]);
}

/* Goes on behind n_blocks full ones with blocks of other texts that begin like this one. */
static void share_blocks(lmd_sequence *self, lmd_prefix_cache *cache, int32_t block_len) {
    int32_t n = self->n_blocks;
    while ((int64_t)(n + 1) * block_len < self->n_tokens &&
           lmd_prefix_cache_take(cache, &self->prefix, self->tokens + (int64_t)n * block_len,
                                 &self->blocks[n]))
        n++;
    self->n_blocks = self->n_indexed = n;
    self->history_len = n * block_len;
}

void lmd_sequence_revive_blocks(lmd_sequence *self, lmd_block_pool *pool,
                                lmd_prefix_cache *cache, int32_t block_len) {
    int32_t n = 0, n_known = self->n_blocks;
    while (n < n_known && (int64_t)(n + 1) * block_len != self->n_tokens &&
           lmd_block_pool_revive(pool, self->blocks[n]))
        n++;
    self->n_blocks = n;
    int64_t kept = (int64_t)n * block_len;
    if (self->history_len > kept) self->history_len = (int32_t)kept;
    if (self->history_len > self->n_tokens - 1) self->history_len = self->n_tokens - 1;
    self->n_indexed = 0;
    self->prefix = LMD_PREFIX_ROOT;
    if (!cache) return;
    lmd_sequence_index_blocks(self, cache, self->history_len, block_len);
    if (self->history_len == kept && !self->all_logits) share_blocks(self, cache, block_len);
}
