/* The scheduler: see scheduler.h. */
#include "engine/scheduler.h"

#include <string.h>

#include "base/ints.h"
#include "base/memory.h"
#include "engine/limits.h"
#include "engine/scheduler_state.h"

/* ---- lifetime ---- */

/* Of one sequence. */
static int32_t most_blocks(const lmd_scheduler_config *config) {
    return lmd_min_i32(lmd_ceil_div(config->session_len, config->block_len), config->n_blocks);
}

size_t lmd_scheduler_bytes(const lmd_scheduler_config *config) {
    size_t n_bytes = sizeof(lmd_scheduler) + lmd_block_pool_bytes(config->n_blocks) +
                     lmd_seq_queue_bytes(config->max_batch_size) +
                     (size_t)config->max_batch_size * sizeof *((lmd_scheduler *)0)->preempted;
    if (config->prefix_caching)
        n_bytes += lmd_prefix_cache_bytes(config->n_blocks, config->block_len);
    return n_bytes + LMD_SCHEDULER_PLANS * lmd_plan_builder_bytes(config->max_batch_size,
                                                                  config->max_prefill_token_num,
                                                                  most_blocks(config));
}

static lmd_status allocate(lmd_scheduler *self, lmd_err *err) {
    const lmd_scheduler_config *config = &self->config;
    size_t max_seqs = (size_t)config->max_batch_size;
    LMD_TRY(lmd_block_pool_new(config->n_blocks, &self->pool, err));
    if (config->prefix_caching)
        LMD_TRY(lmd_prefix_cache_new(self->pool, config->block_len, &self->cache, err));
    LMD_TRY(lmd_seq_queue_init(&self->queue, config->max_batch_size, err));
    self->preempted = lmd_calloc(max_seqs, sizeof *self->preempted);
    if (!self->preempted) return lmd_no_memory(err, "%zu slots", max_seqs);
    for (int32_t i = 0; i < LMD_SCHEDULER_PLANS; i++)
        LMD_TRY(lmd_plan_builder_init(&self->plans[i], config->max_batch_size,
                                      config->max_prefill_token_num, most_blocks(config), err));
    return LMD_OK;
}

lmd_status lmd_scheduler_new(const lmd_scheduler_config *config, lmd_scheduler **out,
                             lmd_err *err) {
    LMD_TRY(lmd_scheduler_config_check(config, err));
    lmd_scheduler *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a scheduler");
    self->config = *config;
    self->budget = config->max_prefill_token_num;
    self->next_plan_id = self->oldest_plan_id = 1;
    lmd_status status = allocate(self, err);
    if (status != LMD_OK) {
        lmd_scheduler_free(self);
        return status;
    }
    *out = self;
    return LMD_OK;
}

void lmd_scheduler_free(lmd_scheduler *self) {
    if (!self) return;
    for (int32_t b = 0; b < LMD_SCHEDULER_BUCKETS; b++)
        while (self->buckets[b]) {
            lmd_sequence *next = self->buckets[b]->next_in_bucket;
            lmd_sequence_free(self->buckets[b]);
            self->buckets[b] = next;
        }
    for (int32_t i = 0; i < LMD_SCHEDULER_PLANS; i++) lmd_plan_builder_clear(&self->plans[i]);
    lmd_prefix_cache_free(self->cache);
    lmd_block_pool_free(self->pool);
    lmd_seq_queue_clear(&self->queue);
    lmd_free(self->preempted);
    lmd_free(self->reports);
    lmd_free(self);
}

/* Where a sequence's pointer is in the index; it points to NULL when seq_id is unknown. */
static lmd_sequence **find_link(const lmd_scheduler *self, int64_t seq_id) {
    lmd_sequence *const *link = &self->buckets[(uint64_t)seq_id % LMD_SCHEDULER_BUCKETS];
    while (*link && (*link)->seq_id != seq_id) link = &(*link)->next_in_bucket;
    return (lmd_sequence **)(uintptr_t)link;
}

/* A live sequence that has not been finished; NULL: there is none. */
static lmd_sequence *find(const lmd_scheduler *self, int64_t seq_id) {
    lmd_sequence *seq = *find_link(self, seq_id);
    return seq && seq->state != LMD_SEQ_ENDED ? seq : NULL;
}

void lmd_scheduler_destroy(lmd_scheduler *self, lmd_sequence *seq) {
    lmd_seq_queue_leave_slot(&self->queue, seq);
    lmd_sequence **link = find_link(self, seq->seq_id);
    *link = seq->next_in_bucket;
    lmd_sequence_free(seq);
}

/* ---- adding and ending ---- */

lmd_status lmd_scheduler_add(lmd_scheduler *self, const lmd_sequence_params *params,
                             lmd_err *err) {
    if (params->n_tokens < 1)
        return lmd_fail(err, LMD_INVALID, "a sequence needs at least one token");
    if (params->max_len < params->n_tokens || params->max_len > self->config.session_len)
        return lmd_fail(
            err, LMD_INVALID,
            "a sequence of %d tokens that may grow to %d does not fit session_len %d",
            params->n_tokens, params->max_len, self->config.session_len);
    if (params->priority < -LMD_MAX_PRIORITY || params->priority > LMD_MAX_PRIORITY)
        return lmd_fail(err, LMD_INVALID, "priority must be %d to %d, not %d",
                        -LMD_MAX_PRIORITY, LMD_MAX_PRIORITY, params->priority);
    if (*find_link(self, params->seq_id))
        return lmd_fail(err, LMD_INVALID, "seq_id %lld is in use", (long long)params->seq_id);
    /* Room for the reports of all that may wait is made here, so that schedule never fails. */
    LMD_TRY(lmd_grow((void **)&self->reports, &self->report_capacity,
                     (size_t)self->queue.n_waiting + (size_t)self->config.max_batch_size + 1,
                     sizeof *self->reports, err));
    lmd_sequence *seq = lmd_sequence_new(params->seq_id, params->token_ids, params->n_tokens,
                                         params->max_len, self->config.block_len);
    if (!seq) return lmd_no_memory(err, "a sequence of up to %d tokens", params->max_len);
    seq->owner = params->owner;
    seq->all_logits = params->all_logits;
    if (params->snapshot)
        lmd_sequence_begin_with(seq, params->snapshot, self->config.block_len);
    lmd_sequence *leader = params->leader > 0 ? find(self, params->leader) : NULL;
    if (leader) {
        seq->leader = leader->seq_id;
        leader->has_followers = true;
    }
    seq->arrival = self->next_arrival++;
    seq->rank = seq->arrival - (int64_t)params->priority * LMD_PRIORITY_STEP;
    *find_link(self, seq->seq_id) = seq;
    lmd_seq_queue_wait(&self->queue, seq);
    return LMD_OK;
}

lmd_status lmd_scheduler_finish(lmd_scheduler *self, int64_t seq_id, lmd_err *err) {
    lmd_sequence *seq = find(self, seq_id);
    if (!seq)
        return lmd_fail(err, LMD_UNKNOWN_ID, "there is no sequence %lld", (long long)seq_id);
    if (seq->has_followers) lmd_seq_queue_pass_on_lead(&self->queue, seq->seq_id);
    if (seq->state == LMD_SEQ_WAITING) {
        lmd_seq_queue_unwait(&self->queue, seq); /* it holds no block */
        lmd_scheduler_destroy(self, seq);
        return LMD_OK;
    }
    lmd_seq_queue_stop(&self->queue, seq);
    seq->state = LMD_SEQ_ENDED; /* running -> ended */
    if (seq->n_in_flight == 0) {
        lmd_sequence_drop_blocks(seq, self->pool, self->cache);
        lmd_scheduler_destroy(self, seq);
    }
    return LMD_OK;
}

lmd_snapshot *lmd_scheduler_snapshot(lmd_scheduler *self, int64_t seq_id) {
    lmd_sequence *seq = find(self, seq_id);
    return seq ? lmd_sequence_snapshot(seq, self->config.block_len) : NULL;
}

/* Allocates blocks for a snapshot's computed positions. */
static void alloc_blocks(lmd_scheduler *self, const lmd_snapshot_info *info,
                         lmd_block_ref *blocks, int32_t *block_ids) {
    const int32_t block_len = self->config.block_len;
    for (int32_t i = 0; i < info->n_blocks; i++) {
        lmd_block_pool_alloc(self->pool, &blocks[i]);
        lmd_block_pool_set_written(self->pool, blocks[i].block_id,
                                   lmd_min_i32(info->n_computed - i * block_len, block_len));
        block_ids[i] = blocks[i].block_id;
    }
}

lmd_status lmd_scheduler_import(lmd_scheduler *self, const lmd_snapshot_info *text,
                                lmd_block_fill fill, void *arg, lmd_snapshot **out,
                                lmd_err *err) {
    const int32_t block_len = self->config.block_len;
    lmd_snapshot_info info = *text;
    info.n_blocks = lmd_min_i32(lmd_ceil_div(text->n_computed, block_len),
                                lmd_block_pool_n_available(self->pool));
    info.n_computed = lmd_min_i32(text->n_computed, info.n_blocks * block_len);
    info.is_private = true;
    lmd_snapshot *made = NULL;
    lmd_status status = LMD_OK;
    lmd_block_ref *blocks = lmd_calloc((size_t)info.n_blocks, sizeof *blocks);
    int32_t *block_ids = lmd_calloc((size_t)info.n_blocks, sizeof *block_ids);
    if (!blocks || !block_ids) {
        status = lmd_no_memory(err, "a snapshot of %d blocks", info.n_blocks);
        goto out;
    }
    info.blocks = blocks;
    alloc_blocks(self, &info, blocks, block_ids);
    status = fill(arg, block_ids, info.n_blocks);
    if (status == LMD_OK) made = lmd_snapshot_new(&info);
    if (status == LMD_OK && !made) status = lmd_no_memory(err, "a snapshot");
    for (int32_t i = info.n_blocks - 1; i >= 0; i--)
        lmd_block_pool_release(self->pool, block_ids[i], made != NULL);
    if (made) *out = made;
out:
    lmd_free(blocks);
    lmd_free(block_ids);
    return status;
}

bool lmd_scheduler_has_block(const lmd_scheduler *self, lmd_block_ref ref) {
    return lmd_block_pool_has(self->pool, ref);
}

int32_t lmd_scheduler_block_len(const lmd_scheduler *self) { return self->config.block_len; }

void lmd_scheduler_set_budget(lmd_scheduler *self, int32_t n_tokens) {
    int32_t max = self->config.max_prefill_token_num;
    self->budget = n_tokens < 1 ? 1 : n_tokens > max ? max : n_tokens;
}

const int32_t *lmd_scheduler_tokens(const lmd_scheduler *self, int64_t seq_id,
                                    int32_t *n_tokens) {
    const lmd_sequence *seq = find(self, seq_id);
    if (!seq) return NULL;
    *n_tokens = seq->n_tokens;
    return seq->tokens;
}

const int32_t *lmd_scheduler_plan_tokens(const lmd_scheduler *self, int64_t plan_id,
                                         int32_t seq_idx, int32_t *n_tokens) {
    const lmd_sequence *seq = self->plans[plan_id % LMD_SCHEDULER_PLANS].entries[seq_idx].seq;
    *n_tokens = seq->n_tokens;
    return seq->tokens;
}

int32_t lmd_scheduler_n_decoding(const lmd_scheduler *self) {
    int32_t n = 0;
    for (int32_t i = 0; i < self->queue.n_running; i++) {
        const lmd_sequence *seq = self->queue.running[i];
        n += seq->history_len > 0 && lmd_sequence_n_todo(seq) == 1;
    }
    return n;
}

bool lmd_scheduler_only_decodes(const lmd_scheduler *self, int32_t *n_seqs) {
    *n_seqs = self->queue.n_running;
    for (int32_t i = 0; i < self->queue.n_running; i++)
        if (lmd_sequence_n_todo(self->queue.running[i]) > 1) return false;
    return self->queue.n_waiting == 0;
}

void lmd_scheduler_draft(lmd_scheduler *self, int64_t seq_id, const int32_t *draft, int32_t n) {
    lmd_sequence *seq = find(self, seq_id);
    if (!seq || seq->state != LMD_SEQ_RUNNING || seq->n_in_flight > 0) return;
    n = lmd_min_i32(n, seq->max_len - seq->n_tokens - 1); /* one more token follows the last */
    if (n <= 0) return;
    memcpy(seq->tokens + seq->n_tokens, draft, (size_t)n * sizeof *draft);
    seq->n_draft = n;
}

int32_t lmd_scheduler_cached_len(const lmd_scheduler *self, int64_t seq_id) {
    const lmd_sequence *seq = *find_link(self, seq_id);
    return seq ? seq->cached_len : -1;
}

/* ---- looking ---- */

static int64_t count_held_blocks(const lmd_scheduler *self) {
    int64_t n = 0;
    for (int32_t b = 0; b < LMD_SCHEDULER_BUCKETS; b++)
        for (const lmd_sequence *seq = self->buckets[b]; seq; seq = seq->next_in_bucket)
            if (seq->state != LMD_SEQ_WAITING) n += seq->n_blocks;
    return n;
}

/* A running sequence's lengths agree, and nobody else holds the blocks it has yet to write. */
static lmd_status check_running(const lmd_scheduler *self, const lmd_sequence *seq,
                                lmd_err *err) {
    const int32_t block_len = self->config.block_len;
    if ((int64_t)seq->n_blocks * block_len < seq->history_len ||
        seq->history_len > seq->n_tokens + seq->n_pending || seq->n_tokens > seq->max_len)
        return lmd_fail(err, LMD_INTERNAL, "the lengths of sequence %lld contradict each other",
                        (long long)seq->seq_id);
    for (int32_t b = seq->history_len / block_len; b < seq->n_blocks; b++)
        if (lmd_block_pool_use_count(self->pool, seq->blocks[b].block_id) != 1)
            return lmd_fail(err, LMD_INTERNAL, "block %d of sequence %lld has another holder",
                            seq->blocks[b].block_id, (long long)seq->seq_id);
    return LMD_OK;
}

/* Who waits for another one's prompt would wait for ever if that one did not know. */
static lmd_status check_leaders(const lmd_scheduler *self, lmd_err *err) {
    for (const lmd_sequence *seq = self->queue.head; seq; seq = seq->next) {
        const lmd_sequence *leader = seq->leader ? find(self, seq->leader) : NULL;
        if (seq->leader && !(leader && leader->has_followers))
            return lmd_fail(err, LMD_INTERNAL, "sequence %lld waits for %lld, which is %s",
                            (long long)seq->seq_id, (long long)seq->leader,
                            leader ? "not told" : "gone");
    }
    return LMD_OK;
}

lmd_status lmd_scheduler_check(const lmd_scheduler *self, lmd_err *err) {
    LMD_TRY(lmd_block_pool_check(self->pool, err));
    LMD_TRY(lmd_seq_queue_check(&self->queue, err));
    LMD_TRY(check_leaders(self, err));
    for (int32_t i = 0; i < self->queue.n_running; i++)
        LMD_TRY(check_running(self, self->queue.running[i], err));
    const int64_t n_held = count_held_blocks(self);
    const int64_t n_uses = lmd_block_pool_n_uses(self->pool);
    if (n_held == n_uses) return LMD_OK;
    return lmd_fail(err, LMD_INTERNAL, "blocks are held %lld times, and used %lld times",
                    (long long)n_held, (long long)n_uses);
}

void lmd_scheduler_get_stats(const lmd_scheduler *self, lmd_scheduler_stats *out) {
    *out = (lmd_scheduler_stats){
        .n_running = self->queue.n_running,
        .n_waiting = self->queue.n_waiting,
        .n_free_blocks = lmd_block_pool_n_free(self->pool),
        .n_active_blocks = lmd_block_pool_n_active(self->pool),
        .n_cached_blocks = lmd_block_pool_n_cached(self->pool),
        .budget = self->budget,
        .n_preempted = self->n_preempted,
        .n_prompt_tokens = self->n_prompt_tokens,
        .n_cached_tokens = self->n_cached_tokens,
    };
}
