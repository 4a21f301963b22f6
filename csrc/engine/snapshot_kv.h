/* A snapshot's KV as bytes: to a file and back, also after a restart of the process. Owns
 * nothing: the bytes are the executor's own layout, block after block. Any thread; the engine's
 * thread copies, between two steps. Must not know: files, Python. */
#ifndef LMD_ENGINE_SNAPSHOT_KV_H
#define LMD_ENGINE_SNAPSHOT_KV_H

#include "engine/engine.h"

typedef struct lmd_snapshot_kv {
    const char *layout; /* the name of the executor's layout */
    size_t block_bytes;
    int32_t n_blocks, n_computed; /* positions that the blocks cover */
    uint8_t *data;                /* [n_blocks, block_bytes]; freed with lmd_free */
} lmd_snapshot_kv;

/* Copies what is left of a snapshot's KV: all of it, unless blocks were evicted. LMD_NO_MEMORY,
 * LMD_CLOSED. */
lmd_status lmd_snapshot_export(lmd_engine *engine, const lmd_snapshot *snapshot,
                               lmd_snapshot_kv *out, lmd_err *err);

/* Makes a snapshot of a text (its tokens, n_tokens) and of the given KV. KV whose layout
 * or block_bytes are not the engine's is left out, and so are blocks that do not fit. Only
 * requests that begin with the snapshot read it. LMD_NO_MEMORY, LMD_CLOSED. */
lmd_status lmd_snapshot_import(lmd_engine *engine, const lmd_snapshot_info *text,
                               const lmd_snapshot_kv *kv, lmd_snapshot **out, lmd_err *err);

#endif
