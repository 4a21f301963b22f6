/* A sequence: see sequence.h. */
#include "engine/sequence.h"

#include <string.h>

#include "base/ints.h"
#include "base/memory.h"

lmd_sequence *lmd_sequence_new(int64_t seq_id, const int32_t *token_ids, int32_t n_tokens,
                               int32_t max_len, int32_t block_len) {
    lmd_sequence *self = lmd_calloc(1, sizeof *self);
    if (!self) return NULL;
    int32_t max_blocks = lmd_ceil_div(max_len, block_len);
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

bool lmd_sequence_is_before(const lmd_sequence *self, const lmd_sequence *other) {
    return self->rank != other->rank ? self->rank < other->rank
                                     : self->arrival < other->arrival;
}

int32_t lmd_sequence_n_todo(const lmd_sequence *self) {
    int32_t total = self->n_tokens + self->n_pending;
    if (self->n_pending > 1)
        return 0; /* a draft is in flight: its accepted length is unknown */
    if (total == self->max_len && total > self->n_prompt) return 0;
    return total - self->history_len;
}

void lmd_sequence_begin_with(lmd_sequence *self, const lmd_snapshot *snapshot,
                             int32_t block_len) {
    const lmd_snapshot_info *info = lmd_snapshot_get(snapshot);
    if (self->all_logits) return; /* every position is wanted, so all are computed */
    self->history_len = lmd_min_i32(lmd_snapshot_match(snapshot, self->tokens, self->n_tokens),
                                    self->n_tokens - 1);
    self->n_blocks = lmd_ceil_div(self->history_len, block_len);
    if (self->n_blocks)
        memcpy(self->blocks, info->blocks, (size_t)self->n_blocks * sizeof *self->blocks);
    self->n_kept = self->n_blocks;
    self->is_private = info->is_private;
}

lmd_snapshot *lmd_sequence_snapshot(lmd_sequence *self, int32_t block_len) {
    const bool waits = self->state == LMD_SEQ_WAITING; /* then nothing is in flight */
    lmd_snapshot_info info = {
        .tokens = self->tokens,
        .n_tokens = self->n_tokens,
        .n_computed = lmd_min_i32(waits ? self->history_len : self->n_computed, self->n_tokens),
        .blocks = self->blocks,
        .is_private = self->is_private,
    };
    info.n_blocks = lmd_ceil_div(info.n_computed, block_len);
    lmd_snapshot *snapshot = lmd_snapshot_new(&info);
    if (snapshot && !waits) self->n_kept = info.n_blocks;
    return snapshot;
}

bool lmd_sequence_grow(lmd_sequence *self, lmd_block_pool *pool, int32_t n_positions,
                       int32_t block_len, int32_t n_spare) {
    int32_t wanted = lmd_ceil_div(n_positions, block_len);
    if (lmd_max_i32(wanted - self->n_blocks, 0) + n_spare > lmd_block_pool_n_available(pool))
        return false;
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
                               i < self->n_kept ||
                                   (cache && lmd_prefix_cache_has(cache, self->blocks[i])));
    self->n_blocks = 0;
}

void lmd_sequence_index_blocks(lmd_sequence *self, lmd_prefix_cache *cache, int32_t n_computed,
                               int32_t block_len) {
    if (self->is_private) return;
    for (; (int64_t)(self->n_indexed + 1) * block_len <= n_computed; self->n_indexed++)
        lmd_prefix_cache_add(cache, &self->prefix,
                             self->tokens + (int64_t)self->n_indexed * block_len,
                             self->blocks[self->n_indexed]);
}

/* Adds blocks of other sequences whose texts begin like this one, after n_blocks full ones. */
static void share_blocks(lmd_sequence *self, lmd_prefix_cache *cache, int32_t block_len) {
    int32_t n = self->n_blocks;
    while ((int64_t)(n + 1) * block_len < self->n_tokens &&
           lmd_prefix_cache_share(cache, &self->prefix, self->tokens + (int64_t)n * block_len,
                                  &self->blocks[n]))
        n++;
    self->n_blocks = self->n_indexed = n;
    self->history_len = n * block_len;
}

/* Gives back the blocks from the n-th on; they keep their content. */
static void give_back_behind(lmd_sequence *self, lmd_block_pool *pool, int32_t n) {
    while (self->n_blocks > n)
        lmd_block_pool_release(pool, self->blocks[--self->n_blocks].block_id, true);
}

void lmd_sequence_revive_blocks(lmd_sequence *self, lmd_block_pool *pool,
                                lmd_prefix_cache *cache, int32_t block_len) {
    int32_t n = 0, n_known = self->n_blocks;
    while (n < n_known && lmd_block_pool_revive(pool, self->blocks[n])) n++;
    self->n_blocks = n;
    int64_t kept = (int64_t)n * block_len;
    if (self->history_len > kept) self->history_len = (int32_t)kept;
    if (self->history_len > self->n_tokens - 1) self->history_len = self->n_tokens - 1;
    give_back_behind(self, pool, lmd_ceil_div(self->history_len, block_len));
    if (self->n_blocks == 0) self->is_private = false;
    self->n_indexed = 0;
    self->prefix = LMD_PREFIX_ROOT;
    if (!cache || self->is_private) return;
    lmd_sequence_index_blocks(self, cache, self->history_len, block_len);
    if (self->history_len == (int64_t)self->n_blocks * block_len && !self->all_logits)
        share_blocks(self, cache, block_len);
}

bool lmd_sequence_tail_is_shared(const lmd_sequence *self, const lmd_block_pool *pool,
                                 int32_t block_len) {
    const int32_t n_in_tail = self->history_len % block_len;
    if (n_in_tail == 0) return false;
    const int32_t tail = self->blocks[self->history_len / block_len].block_id;
    return lmd_block_pool_n_written(pool, tail) > n_in_tail;
}

lmd_block_copy lmd_sequence_copy_tail(lmd_sequence *self, lmd_block_pool *pool,
                                      int32_t block_len) {
    lmd_block_ref *tail = &self->blocks[self->history_len / block_len];
    const int32_t from = tail->block_id;
    lmd_block_pool_alloc(pool, tail);
    lmd_block_pool_set_written(pool, tail->block_id, self->history_len % block_len);
    lmd_block_pool_release(pool, from, true); /* a plan copies before it writes */
    self->n_kept = lmd_min_i32(self->n_kept, self->history_len / block_len);
    return (lmd_block_copy){from, tail->block_id};
}

void lmd_sequence_drop_tail(lmd_sequence *self, lmd_block_pool *pool, int32_t block_len) {
    self->history_len -= self->history_len % block_len;
    give_back_behind(self, pool, self->history_len / block_len);
}

void lmd_sequence_note_written(const lmd_sequence *self, lmd_block_pool *pool, int32_t begin,
                               int32_t end, int32_t block_len) {
    for (int32_t b = begin / block_len; b * (int64_t)block_len < end; b++)
        lmd_block_pool_set_written(pool, self->blocks[b].block_id,
                                   lmd_min_i32(end - b * block_len, block_len));
}
