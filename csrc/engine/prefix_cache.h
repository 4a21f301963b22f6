/* The prefix cache: which blocks hold which text, so that a prompt that begins like an earlier
 * one finds its KV.
 * Owns: for each block of the pool at most one entry: the tokens of a full block, and the
 * prefix before it. An entry is looked for by a hash of both and believed only when
 * both are equal. A prefix is named by a number that is never given twice, from a root on;
 * texts whose KV differs though their tokens agree (adapters) have roots of their own. An entry
 * whose block was evicted is known by its generation, and overwritten when the block is full
 * again. No function allocates but new. Must not know: sequences, plans. The engine's thread
 * alone. */
#ifndef LMD_ENGINE_PREFIX_CACHE_H
#define LMD_ENGINE_PREFIX_CACHE_H

#include "engine/block_pool.h"

typedef struct lmd_prefix_cache lmd_prefix_cache;

enum { LMD_PREFIX_ROOT = -1 };

/* For the blocks of one pool, which must outlive it. LMD_NO_MEMORY. */
lmd_status lmd_prefix_cache_new(lmd_block_pool *pool, int32_t block_len, lmd_prefix_cache **out,
                                lmd_err *err);
void lmd_prefix_cache_free(lmd_prefix_cache *self);
/* The bytes that new allocates. */
size_t lmd_prefix_cache_bytes(int32_t n_blocks, int32_t block_len);

/* Finds the block that holds these tokens [block_len] after *prefix, adds a use to it, and adds
 * the tokens to *prefix; false when there is none. */
bool lmd_prefix_cache_share(lmd_prefix_cache *self, int64_t *prefix, const int32_t *tokens,
                            lmd_block_ref *out);
/* Notes that an active block holds these tokens after *prefix, unless another does, and adds
 * the tokens to *prefix. From here on the block must not be written. */
void lmd_prefix_cache_add(lmd_prefix_cache *self, int64_t *prefix, const int32_t *tokens,
                          lmd_block_ref ref);
/* Whether the index has a block with the content of that generation. */
bool lmd_prefix_cache_has(const lmd_prefix_cache *self, lmd_block_ref ref);

#endif
