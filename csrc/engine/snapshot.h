/* A snapshot: a text and what of it is in KV, as a value that never changes.
 * Owns: the tokens, and references to blocks that nobody holds for it: one whose generation has
 * changed was evicted, and its positions are computed again. So a snapshot can lose time, never
 * content; a fork is another reference, a rewind a shorter prompt. Counted references, any
 * thread. Must not know: schedulers, files, Python. */
#ifndef LMD_ENGINE_SNAPSHOT_H
#define LMD_ENGINE_SNAPSHOT_H

#include <stdbool.h>

#include "engine/block_pool.h"

typedef struct lmd_snapshot lmd_snapshot;

typedef struct lmd_snapshot_info {
    const int32_t *tokens; /* [n_tokens] */
    int32_t n_tokens;
    int32_t n_computed;          /* leading tokens whose KV is in the blocks */
    const lmd_block_ref *blocks; /* [n_blocks] cover n_computed positions */
    int32_t n_blocks;
    bool
        is_private; /* its KV came from outside: only requests that begin with it may read it */
} lmd_snapshot_info;

/* Copies the arrays. NULL when host memory is out. */
lmd_snapshot *lmd_snapshot_new(const lmd_snapshot_info *info);
void lmd_snapshot_ref(lmd_snapshot *self);
void lmd_snapshot_unref(lmd_snapshot *self);

/* Its arrays live as long as the caller's reference. */
const lmd_snapshot_info *lmd_snapshot_get(const lmd_snapshot *self);

/* How many of a prompt's tokens its KV covers: the common prefix. */
int32_t lmd_snapshot_match(const lmd_snapshot *self, const int32_t *tokens, int32_t n_tokens);

#endif
