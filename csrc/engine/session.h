/* A session: a text and what of it stands in KV, as a value that never changes.
 * Owns: the tokens, and references to blocks that nobody holds for it: one whose generation has
 * changed was evicted, and its positions are computed again. So a session can lose time, never
 * content; a fork is another reference, a rewind a shorter prompt. Counted references, any
 * thread. Must not know: schedulers, files, Python. */
#ifndef LMD_ENGINE_SESSION_H
#define LMD_ENGINE_SESSION_H

#include <stdbool.h>

#include "engine/block_pool.h"

typedef struct lmd_session lmd_session;

typedef struct lmd_session_info {
    const int32_t *tokens; /* [n_tokens] */
    int32_t n_tokens;
    int32_t n_computed;          /* of them had their KV in the blocks */
    const lmd_block_ref *blocks; /* [n_blocks] cover n_computed positions */
    int32_t n_blocks;
    bool is_private; /* KV from outside: only this session and what comes of it may read it */
} lmd_session_info;

/* Copies the arrays. NULL when host memory is out. */
lmd_session *lmd_session_new(const lmd_session_info *info);
void lmd_session_ref(lmd_session *self);
void lmd_session_unref(lmd_session *self);

/* Its arrays live as long as the caller's reference. */
const lmd_session_info *lmd_session_get(const lmd_session *self);

/* How many of a prompt's tokens its KV covers: the common prefix. */
int32_t lmd_session_match(const lmd_session *self, const int32_t *tokens, int32_t n_tokens);

#endif
