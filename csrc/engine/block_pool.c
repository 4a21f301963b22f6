/* The block pool: see block_pool.h. */
#include "engine/block_pool.h"

#include <assert.h>

#include "base/memory.h"

typedef enum block_state { BLOCK_FREE, BLOCK_ACTIVE, BLOCK_CACHED, N_STATES } block_state;

enum { NO_BLOCK = -1 };

typedef struct block {
    block_state state;
    int32_t use_count, n_written;
    uint32_t generation;
    int32_t prev, next; /* in the list of its state; active blocks are in none */
} block;

/* Blocks of one state. alloc pops the head. A cached block goes to the tail, so that the one
 * unused for longest is evicted first; a free one goes to the head, so that memory which was
 * touched serves again before more is touched. */
typedef struct block_list {
    int32_t head, tail, n;
} block_list;

struct lmd_block_pool {
    int32_t n_blocks;
    block *blocks;
    block_list lists[N_STATES]; /* of BLOCK_ACTIVE only n counts */
};

static void list_add(lmd_block_pool *self, block_state state, int32_t id) {
    block_list *list = &self->lists[state];
    block *at = &self->blocks[id];
    at->state = state;
    list->n++;
    if (state == BLOCK_ACTIVE) return;
    at->prev = state == BLOCK_FREE ? NO_BLOCK : list->tail;
    at->next = state == BLOCK_FREE ? list->head : NO_BLOCK;
    if (at->prev == NO_BLOCK)
        list->head = id;
    else
        self->blocks[at->prev].next = id;
    if (at->next == NO_BLOCK)
        list->tail = id;
    else
        self->blocks[at->next].prev = id;
}

static void list_remove(lmd_block_pool *self, int32_t id) {
    block *at = &self->blocks[id];
    block_list *list = &self->lists[at->state];
    list->n--;
    if (at->state == BLOCK_ACTIVE) return;
    if (at->prev == NO_BLOCK)
        list->head = at->next;
    else
        self->blocks[at->prev].next = at->next;
    if (at->next == NO_BLOCK)
        list->tail = at->prev;
    else
        self->blocks[at->next].prev = at->prev;
}

lmd_status lmd_block_pool_new(int32_t n_blocks, lmd_block_pool **out, lmd_err *err) {
    if (n_blocks < 1)
        return lmd_fail(err, LMD_INVALID, "n_blocks must be at least 1, not %d", n_blocks);
    lmd_block_pool *self = lmd_calloc(1, sizeof *self);
    block *blocks = lmd_calloc((size_t)n_blocks, sizeof *blocks);
    if (!self || !blocks) {
        lmd_free(self);
        lmd_free(blocks);
        return lmd_no_memory(err, "%d KV blocks", n_blocks);
    }
    self->n_blocks = n_blocks;
    self->blocks = blocks;
    for (int32_t s = 0; s < N_STATES; s++) self->lists[s] = (block_list){NO_BLOCK, NO_BLOCK, 0};
    for (int32_t i = n_blocks - 1; i >= 0; i--) list_add(self, BLOCK_FREE, i);
    *out = self;
    return LMD_OK;
}

size_t lmd_block_pool_bytes(int32_t n_blocks) {
    return sizeof(lmd_block_pool) + (size_t)n_blocks * sizeof(block);
}

void lmd_block_pool_free(lmd_block_pool *self) {
    if (!self) return;
    lmd_free(self->blocks);
    lmd_free(self);
}

bool lmd_block_pool_alloc(lmd_block_pool *self, lmd_block_ref *out) {
    int32_t id = self->lists[BLOCK_FREE].head;
    if (id == NO_BLOCK) id = self->lists[BLOCK_CACHED].head; /* evict the longest unused */
    if (id == NO_BLOCK) return false;
    list_remove(self, id);
    list_add(self, BLOCK_ACTIVE, id); /* free or cached -> active, use = 1, new content */
    self->blocks[id].use_count = 1;
    self->blocks[id].n_written = 0;
    self->blocks[id].generation++;
    *out = (lmd_block_ref){id, self->blocks[id].generation};
    return true;
}

void lmd_block_pool_release(lmd_block_pool *self, int32_t block_id, bool keep_cached) {
    block *at = &self->blocks[block_id];
    assert(at->state == BLOCK_ACTIVE && at->use_count > 0);
    if (--at->use_count > 0) return;
    list_remove(self, block_id);
    list_add(self, keep_cached ? BLOCK_CACHED : BLOCK_FREE,
             block_id); /* active -> cached, free */
    if (!keep_cached) at->generation++;
}

bool lmd_block_pool_has(const lmd_block_pool *self, lmd_block_ref ref) {
    const block *at = &self->blocks[ref.block_id];
    return at->generation == ref.generation && at->state != BLOCK_FREE;
}

bool lmd_block_pool_revive(lmd_block_pool *self, lmd_block_ref ref) {
    block *at = &self->blocks[ref.block_id];
    if (!lmd_block_pool_has(self, ref)) return false;
    if (at->state == BLOCK_CACHED) { /* cached -> active */
        list_remove(self, ref.block_id);
        list_add(self, BLOCK_ACTIVE, ref.block_id);
    }
    at->use_count++;
    return true;
}

void lmd_block_pool_set_written(lmd_block_pool *self, int32_t block_id, int32_t n) {
    block *at = &self->blocks[block_id];
    if (n > at->n_written) at->n_written = n;
}

int32_t lmd_block_pool_n_written(const lmd_block_pool *self, int32_t block_id) {
    return self->blocks[block_id].n_written;
}

int32_t lmd_block_pool_n_blocks(const lmd_block_pool *self) { return self->n_blocks; }

int32_t lmd_block_pool_n_free(const lmd_block_pool *self) { return self->lists[BLOCK_FREE].n; }

int32_t lmd_block_pool_n_cached(const lmd_block_pool *self) {
    return self->lists[BLOCK_CACHED].n;
}

int32_t lmd_block_pool_n_active(const lmd_block_pool *self) {
    return self->lists[BLOCK_ACTIVE].n;
}

int32_t lmd_block_pool_n_available(const lmd_block_pool *self) {
    return self->lists[BLOCK_FREE].n + self->lists[BLOCK_CACHED].n;
}

int32_t lmd_block_pool_use_count(const lmd_block_pool *self, int32_t block_id) {
    return self->blocks[block_id].use_count;
}

int64_t lmd_block_pool_n_uses(const lmd_block_pool *self) {
    int64_t n = 0;
    for (int32_t i = 0; i < self->n_blocks; i++) n += self->blocks[i].use_count;
    return n;
}

/* Walks a list: links agree in both directions, states fit, the length is n. */
static lmd_status check_list(const lmd_block_pool *self, block_state state, lmd_err *err) {
    const block_list *list = &self->lists[state];
    int32_t n = 0, prev = NO_BLOCK;
    for (int32_t id = list->head; id != NO_BLOCK; id = self->blocks[id].next) {
        const block *at = &self->blocks[id];
        if (at->state != state || at->prev != prev || at->use_count != 0 || n >= list->n)
            return lmd_fail(err, LMD_INTERNAL, "block %d is wrong in the list of state %d", id,
                            (int)state);
        prev = id;
        n++;
    }
    if (n != list->n || list->tail != prev)
        return lmd_fail(err, LMD_INTERNAL, "the list of state %d has %d blocks, not %d",
                        (int)state, n, list->n);
    return LMD_OK;
}

lmd_status lmd_block_pool_check(const lmd_block_pool *self, lmd_err *err) {
    int32_t counts[N_STATES] = {0};
    for (int32_t i = 0; i < self->n_blocks; i++) {
        const block *at = &self->blocks[i];
        counts[at->state]++;
        if ((at->use_count > 0) != (at->state == BLOCK_ACTIVE))
            return lmd_fail(err, LMD_INTERNAL, "block %d has %d uses in state %d", i,
                            at->use_count, (int)at->state);
    }
    for (int32_t s = 0; s < N_STATES; s++)
        if (counts[s] != self->lists[s].n)
            return lmd_fail(err, LMD_INTERNAL, "%d blocks are in state %d, %d are counted",
                            counts[s], s, self->lists[s].n);
    LMD_TRY(check_list(self, BLOCK_FREE, err));
    return check_list(self, BLOCK_CACHED, err);
}
