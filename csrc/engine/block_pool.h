/* The block pool: which KV blocks are free, active or cached.
 * Owns: ids, states, use counts, generations; no bytes. Every operation is O(1).
 *   free    nobody holds it; its content means nothing
 *   active  use_count holders have it
 *   cached  nobody holds it; its content is kept until it is evicted, the longest unused first
 * A holder that gives a block back remembers (block_id, generation); another generation there
 * later means that the content is gone. A block is written from its beginning on, and what was
 * written stays: a holder that would write where another already has writes into a copy. Must
 * not know: sequences, tokens, devices. The engine's thread alone. */
#ifndef LMD_ENGINE_BLOCK_POOL_H
#define LMD_ENGINE_BLOCK_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct lmd_block_pool lmd_block_pool;

typedef struct lmd_block_ref {
    int32_t block_id;
    uint32_t generation;
} lmd_block_ref;

lmd_status lmd_block_pool_new(int32_t n_blocks, lmd_block_pool **out, lmd_err *err);
void lmd_block_pool_free(lmd_block_pool *self);
/* The bytes that new allocates. */
size_t lmd_block_pool_bytes(int32_t n_blocks);

/* Allocates the block that was freed last, or evicts the cached one unused for longest; false
 * when all are active. */
bool lmd_block_pool_alloc(lmd_block_pool *self, lmd_block_ref *out);
/* Gives a use of an active block back. When it was the last one the block becomes cached, or
 * free. To have the deepest blocks of a sequence evicted first, release them first. */
void lmd_block_pool_release(lmd_block_pool *self, int32_t block_id, bool keep_cached);
/* Whether a block still has the content of that generation. */
bool lmd_block_pool_has(const lmd_block_pool *self, lmd_block_ref ref);
/* Adds a use to a block that is active or cached, if it still has that content. */
bool lmd_block_pool_revive(lmd_block_pool *self, lmd_block_ref ref);
/* Notes that the first n positions of an active block are, or are about to be, written. */
void lmd_block_pool_set_written(lmd_block_pool *self, int32_t block_id, int32_t n);
/* The most positions that were written since the block was allocated. */
int32_t lmd_block_pool_n_written(const lmd_block_pool *self, int32_t block_id);

int32_t lmd_block_pool_n_blocks(const lmd_block_pool *self);
int32_t lmd_block_pool_n_free(const lmd_block_pool *self);
int32_t lmd_block_pool_n_cached(const lmd_block_pool *self);
int32_t lmd_block_pool_n_active(const lmd_block_pool *self);
/* The blocks that alloc can give: free or cached. */
int32_t lmd_block_pool_n_available(const lmd_block_pool *self);
int32_t lmd_block_pool_use_count(const lmd_block_pool *self, int32_t block_id);
int64_t lmd_block_pool_n_uses(const lmd_block_pool *self); /* of all blocks together */

/* Asserts every invariant of lists, states and counts. LMD_INTERNAL names the broken one. */
lmd_status lmd_block_pool_check(const lmd_block_pool *self, lmd_err *err);

#endif
