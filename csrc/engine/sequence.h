/* A sequence: the running state of a request in the scheduler.
 * Owns: its tokens, reserved to max_len at the start, and the references to its blocks.
 * Must not know: plans, sampling. The engine's thread alone. */
#ifndef LMD_ENGINE_SEQUENCE_H
#define LMD_ENGINE_SEQUENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/plan.h"
#include "engine/block_pool.h"
#include "engine/prefix_cache.h"
#include "engine/snapshot.h"

typedef enum lmd_sequence_state {
    LMD_SEQ_WAITING, /* waits for a slot; may have references to cached blocks */
    LMD_SEQ_RUNNING, /* has a slot */
    LMD_SEQ_ENDED    /* finished while a plan in flight names it: released when that ends */
} lmd_sequence_state;

typedef struct lmd_sequence {
    int64_t seq_id;
    void *owner;     /* the caller's own */
    int64_t arrival; /* age: smaller is older */
    int64_t rank;    /* the smaller goes first, and the older of equals */
    lmd_sequence_state state;
    int32_t *tokens; /* [max_len] */
    int32_t n_prompt, n_tokens, max_len;
    int32_t n_pending; /* tokens that plans in flight will give: placeholders after n_tokens */
    int32_t history_len; /* tokens in KV once the plans in flight have run */
    int32_t n_computed;  /* tokens in KV now: written by plans that have ended */
    int32_t n_in_flight; /* plans that name it */
    int32_t n_draft;     /* draft tokens after its own that the next plan may compute */
    int32_t slot;        /* -1: none */
    int64_t leader;      /* it waits until this sequence's prompt is in KV; 0: for none */
    bool has_followers;  /* others wait for its prompt */
    bool all_logits;
    int32_t n_logits_done; /* prompt positions whose logits were planned */
    lmd_block_ref *blocks; /* [ceil(max_len / block_len)] */
    int32_t n_blocks;
    int32_t n_indexed; /* leading blocks whose text the prefix cache has */
    int64_t prefix;    /* the number of that text in the prefix cache */
    bool is_private;   /* some of its KV came from outside: nothing of it is indexed */
    int32_t n_kept; /* leading blocks that a snapshot has too: when the sequence ends they stay
                       cached, so that the snapshot can be used until they are evicted */
    int32_t cached_len; /* prompt tokens found in KV when it first got a slot; -1: it never had
                           one */
    struct lmd_sequence *next;           /* in the waiting queue */
    struct lmd_sequence *next_in_bucket; /* in the index by seq_id */
} lmd_sequence;

lmd_sequence *lmd_sequence_new(int64_t seq_id, const int32_t *token_ids, int32_t n_tokens,
                               int32_t max_len, int32_t block_len);
void lmd_sequence_free(lmd_sequence *self);

/* Whether a sequence goes before another: it gets slot, tokens and blocks first. */
bool lmd_sequence_is_before(const lmd_sequence *self, const lmd_sequence *other);

/* How many tokens the next plan could compute: those that are known or will be known by then,
 * and are not in KV. The last token of an answer at max_len is never computed: nothing follows
 * it. 0 while a draft is in flight, since nobody knows yet how many tokens it adds. */
int32_t lmd_sequence_n_todo(const lmd_sequence *self);

/* Gives a sequence that has not run yet the KV that a snapshot has of the same text. */
void lmd_sequence_begin_with(lmd_sequence *self, const lmd_snapshot *snapshot,
                             int32_t block_len);
/* The text and its KV so far as a snapshot; NULL when host memory is out. */
lmd_snapshot *lmd_sequence_snapshot(lmd_sequence *self, int32_t block_len);

/* Makes the blocks cover n_positions, and leaves n_spare blocks in the pool. False, and nothing
 * is evicted, when it has too few. */
bool lmd_sequence_grow(lmd_sequence *self, lmd_block_pool *pool, int32_t n_positions,
                       int32_t block_len, int32_t n_spare);
/* Gives every block back, the deepest first; all are kept and can be revived by their
 * references. */
void lmd_sequence_release_blocks(lmd_sequence *self, lmd_block_pool *pool);
/* Gives every block back for good. Blocks that the prefix cache (NULL: none) has or a snapshot
 * remembers stay cached. */
void lmd_sequence_drop_blocks(lmd_sequence *self, lmd_block_pool *pool,
                              const lmd_prefix_cache *cache);
/* Revives the longest prefix of blocks that still have their content, adds those that the
 * prefix cache (NULL: none) has, and sets history_len. At least one token is left to compute.
 * */
void lmd_sequence_revive_blocks(lmd_sequence *self, lmd_block_pool *pool,
                                lmd_prefix_cache *cache, int32_t block_len);
/* Whether the block of the next token must not be written, because more of it is written
 * already: by another sequence, for a snapshot, or for the prefix cache. */
bool lmd_sequence_tail_is_shared(const lmd_sequence *self, const lmd_block_pool *pool,
                                 int32_t block_len);
/* Replaces that block by a new one, which the pool must have; says what to copy first. */
lmd_block_copy lmd_sequence_copy_tail(lmd_sequence *self, lmd_block_pool *pool,
                                      int32_t block_len);
/* Gives that block back instead: its positions are computed again. */
void lmd_sequence_drop_tail(lmd_sequence *self, lmd_block_pool *pool, int32_t block_len);
/* Notes in the pool that positions [begin, end) are about to be written. */
void lmd_sequence_note_written(const lmd_sequence *self, lmd_block_pool *pool, int32_t begin,
                               int32_t end, int32_t block_len);
/* Puts the full blocks of the first n_computed positions into the prefix cache. */
void lmd_sequence_index_blocks(lmd_sequence *self, lmd_prefix_cache *cache, int32_t n_computed,
                               int32_t block_len);

#endif
