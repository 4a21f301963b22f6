/* The prefix cache: see prefix_cache.h. */
#include "engine/prefix_cache.h"

#include <string.h>

#include "base/hash.h"
#include "base/memory.h"

enum { NO_ENTRY = -1 };

/* What the block of the same index holds; generation 0: nothing, for the pool's first one is 1.
 */
typedef struct prefix_entry {
    uint64_t hash;
    int64_t before, prefix; /* the text before the block, and with it */
    uint32_t generation;
    int32_t next; /* in its bucket */
} prefix_entry;

struct lmd_prefix_cache {
    lmd_block_pool *pool;
    int32_t block_len;
    prefix_entry *entries; /* [n_blocks] */
    int32_t *tokens;       /* [n_blocks, block_len] */
    int32_t *buckets;      /* [mask + 1] the first entry of each */
    uint64_t mask;
    int64_t next_prefix;
};

/* A power of two. */
static size_t count_buckets(size_t n_blocks) {
    size_t n = 1;
    while (n < n_blocks) n *= 2;
    return n;
}

size_t lmd_prefix_cache_bytes(int32_t n_blocks, int32_t block_len) {
    const lmd_prefix_cache *self = NULL;
    const size_t block_bytes = sizeof *self->entries + (size_t)block_len * sizeof *self->tokens;
    return sizeof *self + (size_t)n_blocks * block_bytes +
           count_buckets((size_t)n_blocks) * sizeof *self->buckets;
}

lmd_status lmd_prefix_cache_new(lmd_block_pool *pool, int32_t block_len, lmd_prefix_cache **out,
                                lmd_err *err) {
    const size_t n_blocks = (size_t)lmd_block_pool_n_blocks(pool);
    const size_t n_buckets = count_buckets(n_blocks);
    lmd_prefix_cache *self = lmd_calloc(1, sizeof *self);
    if (self) {
        *self = (lmd_prefix_cache){
            .pool = pool,
            .block_len = block_len,
            .entries = lmd_calloc(n_blocks, sizeof *self->entries),
            .tokens = lmd_calloc(n_blocks, (size_t)block_len * sizeof *self->tokens),
            .buckets = lmd_calloc(n_buckets, sizeof *self->buckets),
            .mask = n_buckets - 1,
        };
    }
    if (!self || !self->entries || !self->tokens || !self->buckets) {
        lmd_prefix_cache_free(self);
        return lmd_no_memory(err, "the tokens of %zu blocks", n_blocks);
    }
    for (size_t i = 0; i < n_buckets; i++) self->buckets[i] = NO_ENTRY;
    *out = self;
    return LMD_OK;
}

void lmd_prefix_cache_free(lmd_prefix_cache *self) {
    if (!self) return;
    lmd_free(self->entries);
    lmd_free(self->tokens);
    lmd_free(self->buckets);
    lmd_free(self);
}

static uint64_t hash_of(const lmd_prefix_cache *self, int64_t before, const int32_t *tokens) {
    return lmd_hash_tokens(lmd_hash_mix((uint64_t)before), tokens, self->block_len);
}

static int32_t *tokens_of(const lmd_prefix_cache *self, int32_t block_id) {
    return self->tokens + (int64_t)block_id * self->block_len;
}

static lmd_block_ref ref_of(const lmd_prefix_cache *self, int32_t block_id) {
    return (lmd_block_ref){block_id, self->entries[block_id].generation};
}

/* The block that has this text, and still has its content; NO_ENTRY: there is none. */
static int32_t find(const lmd_prefix_cache *self, uint64_t hash, int64_t before,
                    const int32_t *tokens) {
    const size_t n_bytes = (size_t)self->block_len * sizeof *tokens;
    int32_t id = self->buckets[hash & self->mask];
    for (; id != NO_ENTRY; id = self->entries[id].next) {
        const prefix_entry *entry = &self->entries[id];
        if (entry->hash == hash && entry->before == before &&
            lmd_block_pool_has(self->pool, ref_of(self, id)) &&
            memcmp(tokens_of(self, id), tokens, n_bytes) == 0)
            break;
    }
    return id;
}

bool lmd_prefix_cache_share(lmd_prefix_cache *self, int64_t *prefix, const int32_t *tokens,
                            lmd_block_ref *out) {
    int32_t id = find(self, hash_of(self, *prefix, tokens), *prefix, tokens);
    if (id == NO_ENTRY) return false;
    *out = ref_of(self, id);
    *prefix = self->entries[id].prefix;
    return lmd_block_pool_revive(self->pool, *out);
}

/* Removes the entry of a block's earlier content. */
static void forget(lmd_prefix_cache *self, int32_t block_id) {
    prefix_entry *entry = &self->entries[block_id];
    if (entry->generation == 0) return;
    int32_t *link = &self->buckets[entry->hash & self->mask];
    while (*link != block_id) link = &self->entries[*link].next;
    *link = entry->next;
}

void lmd_prefix_cache_add(lmd_prefix_cache *self, int64_t *prefix, const int32_t *tokens,
                          lmd_block_ref ref) {
    uint64_t hash = hash_of(self, *prefix, tokens);
    int32_t id = find(self, hash, *prefix, tokens);
    if (id == NO_ENTRY) {
        id = ref.block_id;
        forget(self, id);
        int32_t *bucket = &self->buckets[hash & self->mask];
        self->entries[id] =
            (prefix_entry){hash, *prefix, self->next_prefix++, ref.generation, *bucket};
        *bucket = id;
        memcpy(tokens_of(self, id), tokens, (size_t)self->block_len * sizeof *tokens);
    }
    *prefix = self->entries[id].prefix;
}

bool lmd_prefix_cache_has(const lmd_prefix_cache *self, lmd_block_ref ref) {
    return self->entries[ref.block_id].generation == ref.generation;
}
