/* The scheduler: see scheduler.h. */
#include "engine/scheduler.h"

#include <string.h>

#include "base/ints.h"
#include "base/memory.h"
#include "engine/limits.h"
#include "engine/plan_builder.h"
#include "engine/seq_queue.h"

enum {
    N_PLANS = 2, /* one in flight and the one being made */
    N_BUCKETS = 1024
};

struct lmd_scheduler {
    lmd_scheduler_config config;
    int32_t budget;
    lmd_block_pool *pool;
    lmd_prefix_cache *cache;          /* NULL: no prefix caching */
    lmd_seq_queue queue;              /* who waits and who runs */
    lmd_sequence *buckets[N_BUCKETS]; /* every live sequence, by seq_id */
    int64_t next_plan_id, next_arrival, n_preempted;
    int64_t n_prompt_tokens, n_cached_tokens;
    lmd_plan_builder plans[N_PLANS]; /* plan p is at p % N_PLANS */
    int64_t oldest_plan_id;          /* it is in flight if it is below next_plan_id */

    int64_t *preempted; /* [max_batch_size] of the last schedule */
    int32_t n_now_preempted;
    lmd_waiting *reports; /* [report_capacity] */
    size_t report_capacity;
};

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
    return n_bytes + N_PLANS * lmd_plan_builder_bytes(config->max_batch_size,
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
    for (int32_t i = 0; i < N_PLANS; i++)
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
    for (int32_t b = 0; b < N_BUCKETS; b++)
        while (self->buckets[b]) {
            lmd_sequence *next = self->buckets[b]->next_in_bucket;
            lmd_sequence_free(self->buckets[b]);
            self->buckets[b] = next;
        }
    for (int32_t i = 0; i < N_PLANS; i++) lmd_plan_builder_clear(&self->plans[i]);
    lmd_prefix_cache_free(self->cache);
    lmd_block_pool_free(self->pool);
    lmd_seq_queue_clear(&self->queue);
    lmd_free(self->preempted);
    lmd_free(self->reports);
    lmd_free(self);
}

/* Where a sequence's pointer is in the index; it points to NULL when seq_id is unknown. */
static lmd_sequence **find_link(const lmd_scheduler *self, int64_t seq_id) {
    lmd_sequence *const *link = &self->buckets[(uint64_t)seq_id % N_BUCKETS];
    while (*link && (*link)->seq_id != seq_id) link = &(*link)->next_in_bucket;
    return (lmd_sequence **)(uintptr_t)link;
}

/* A live sequence that has not been finished; NULL: there is none. */
static lmd_sequence *find(const lmd_scheduler *self, int64_t seq_id) {
    lmd_sequence *seq = *find_link(self, seq_id);
    return seq && seq->state != LMD_SEQ_ENDED ? seq : NULL;
}

/* Frees a sequence that no plan in flight names. */
static void destroy(lmd_scheduler *self, lmd_sequence *seq) {
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

/* The leader's prompt is in KV: those that wait for it begin with it. Where host memory is out
 * they begin with what the prefix cache has. */
static void lead_on(lmd_scheduler *self, lmd_sequence *leader) {
    lmd_snapshot *snapshot = lmd_sequence_snapshot(leader, self->config.block_len);
    for (lmd_sequence *seq = self->queue.head; seq; seq = seq->next) {
        if (seq->leader != leader->seq_id) continue;
        seq->leader = 0;
        if (snapshot) lmd_sequence_begin_with(seq, snapshot, self->config.block_len);
    }
    leader->has_followers = false;
    lmd_snapshot_unref(snapshot);
}

lmd_status lmd_scheduler_finish(lmd_scheduler *self, int64_t seq_id, lmd_err *err) {
    lmd_sequence *seq = find(self, seq_id);
    if (!seq)
        return lmd_fail(err, LMD_UNKNOWN_ID, "there is no sequence %lld", (long long)seq_id);
    if (seq->has_followers) lmd_seq_queue_pass_on_lead(&self->queue, seq->seq_id);
    if (seq->state == LMD_SEQ_WAITING) {
        lmd_seq_queue_unwait(&self->queue, seq); /* it holds no block */
        destroy(self, seq);
        return LMD_OK;
    }
    lmd_seq_queue_stop(&self->queue, seq);
    seq->state = LMD_SEQ_ENDED; /* running -> ended */
    if (seq->n_in_flight == 0) {
        lmd_sequence_drop_blocks(seq, self->pool, self->cache);
        destroy(self, seq);
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
    const lmd_sequence *seq = self->plans[plan_id % N_PLANS].entries[seq_idx].seq;
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

/* ---- a step ---- */

/* Running -> waiting: the sequence loses its slot and keeps its tokens; its written blocks stay
 * cached until they are evicted. */
static void preempt(lmd_scheduler *self, lmd_sequence *seq) {
    seq->n_draft = 0;
    lmd_sequence_release_blocks(seq, self->pool);
    lmd_seq_queue_stop(&self->queue, seq);
    lmd_seq_queue_leave_slot(&self->queue, seq);
    lmd_seq_queue_wait(&self->queue, seq);
    self->preempted[self->n_now_preempted++] = seq->seq_id;
    self->n_preempted++;
}

static bool grow(lmd_scheduler *self, lmd_sequence *seq, int32_t n, int32_t n_spare) {
    return lmd_sequence_grow(seq, self->pool, seq->history_len + n, self->config.block_len,
                             n_spare);
}

static void add_to_plan(lmd_scheduler *self, lmd_plan_builder *plan, lmd_sequence *seq,
                        int32_t n) {
    lmd_sequence_note_written(seq, self->pool, seq->history_len, seq->history_len + n,
                              self->config.block_len);
    lmd_plan_builder_add(plan, seq, n);
}

/* The last running sequence after number i that no plan in flight names; NULL: there is none.
 */
static lmd_sequence *find_victim(const lmd_scheduler *self, int32_t i) {
    for (int32_t v = self->queue.n_running - 1; v > i; v--)
        if (self->queue.running[v]->n_in_flight == 0) return self->queue.running[v];
    return NULL;
}

/* Gives running sequence number i blocks for n more tokens. Where the pool has too few,
 * preempts sequences that run after it in rank, the last one first. */
static bool grow_or_preempt(lmd_scheduler *self, int32_t i, int32_t n) {
    lmd_sequence *seq = self->queue.running[i], *victim;
    bool grown;
    while (!(grown = grow(self, seq, n, 0)) && (victim = find_victim(self, i)))
        preempt(self, victim);
    return grown;
}

/* Gives the running sequences their tokens, in order of rank, up to the first one for which
 * there are no blocks: returns whether there were for all. Those after it get none, so that a
 * plan in flight, whose sequences cannot be preempted, keeps it waiting for one plan at most.
 */
static bool plan_running(lmd_scheduler *self, lmd_plan_builder *plan, int32_t *budget) {
    for (int32_t i = 0; *budget > 0 && i < self->queue.n_running; i++) {
        lmd_sequence *seq = self->queue.running[i];
        const int32_t n = lmd_min_i32(lmd_sequence_n_todo(seq), *budget);
        if (n == 0) continue;
        if (!grow_or_preempt(self, i, n)) return false;
        add_to_plan(self, plan, seq, n);
        *budget -= n;
    }
    return true;
}

/* Counts the tokens that a sequence found in KV when it first got a slot. */
static void count_cached(lmd_scheduler *self, lmd_sequence *seq) {
    if (seq->cached_len >= 0) return;
    seq->cached_len = seq->history_len;
    self->n_cached_tokens += seq->cached_len;
    self->n_prompt_tokens += seq->n_prompt;
}

/* Gives a waiting sequence the KV that exists of its text, and blocks for the tokens of this
 * step. Returns how many tokens those are; 0: the pool has too few blocks. */
static int32_t find_blocks(lmd_scheduler *self, lmd_plan_builder *plan, lmd_sequence *seq,
                           int32_t budget) {
    const int32_t block_len = self->config.block_len;
    lmd_sequence_revive_blocks(seq, self->pool, self->cache, block_len);
    bool shared = lmd_sequence_tail_is_shared(seq, self->pool, block_len);
    int32_t n = lmd_min_i32(lmd_sequence_n_todo(seq), budget);
    if (shared && !grow(self, seq, n, 1)) {
        lmd_sequence_drop_tail(seq, self->pool, block_len);
        shared = false;
        n = lmd_min_i32(lmd_sequence_n_todo(seq), budget);
    }
    if (!grow(self, seq, n, shared)) {
        lmd_sequence_release_blocks(seq, self->pool);
        return 0;
    }
    if (shared) lmd_plan_builder_copy(plan, lmd_sequence_copy_tail(seq, self->pool, block_len));
    return n;
}

/* Gives slots to waiting sequences while there are slots, tokens and blocks; says why the next
 * one waits. One that waits for its leader's prompt lets the others pass. */
static lmd_wait_reason plan_waiting(lmd_scheduler *self, lmd_plan_builder *plan,
                                    int32_t *budget) {
    for (lmd_sequence *seq = self->queue.head, *next; seq; seq = next) {
        next = seq->next;
        if (seq->leader) continue;
        if (*budget == 0) return LMD_WAIT_BUDGET;
        if (!lmd_seq_queue_has_slot(&self->queue)) return LMD_WAIT_SLOT;
        const int32_t n = find_blocks(self, plan, seq, *budget);
        if (n == 0) return LMD_WAIT_BLOCKS;
        lmd_seq_queue_seat(&self->queue, seq);
        seq->n_computed = seq->history_len;
        count_cached(self, seq);
        add_to_plan(self, plan, seq, n);
        *budget -= n;
    }
    return LMD_WAIT_TURN;
}

/* Adds the drafts, as far as budget and blocks go without a preemption. */
static void plan_drafts(lmd_scheduler *self, lmd_plan_builder *plan, int32_t *budget) {
    for (int32_t i = 0; i < plan->n_entries && self->n_now_preempted == 0; i++) {
        lmd_plan_entry *entry = &plan->entries[i];
        lmd_sequence *seq = entry->seq;
        int32_t n = lmd_min_i32(seq->n_draft, *budget);
        if (n == 0 || entry->history_len + 1 != seq->n_tokens) continue;
        if (!grow(self, seq, 1 + n, 0)) {
            int64_t covered = (int64_t)seq->n_blocks * self->config.block_len;
            n = lmd_min_i32(n, (int32_t)(covered - seq->history_len - 1));
        }
        const int32_t begin = entry->history_len + entry->input_len;
        lmd_sequence_note_written(seq, self->pool, begin, begin + n, self->config.block_len);
        lmd_plan_builder_draft(entry, n);
        *budget -= n;
    }
    for (int32_t i = 0; i < self->queue.n_running; i++) self->queue.running[i]->n_draft = 0;
}

/* The sequence that can never be scheduled, given that nothing ran and no plan is in flight;
 * NULL: there is none. */
static const lmd_sequence *find_stuck(const lmd_scheduler *self) {
    const lmd_seq_queue *queue = &self->queue;
    for (int32_t i = 0; i < queue->n_running; i++)
        if (lmd_sequence_n_todo(queue->running[i]) > 0) return queue->running[i];
    /* Where every running sequence has all its tokens, the caller will finish them, and the
     * queue moves on then. */
    const lmd_sequence *seq = queue->n_running == 0 ? queue->head : NULL;
    while (seq && seq->leader) seq = seq->next; /* its leader is the one */
    return seq;
}

static void write_report(lmd_scheduler *self, lmd_wait_reason head_reason,
                         lmd_schedule_report *report) {
    int32_t n = 0;
    for (const lmd_sequence *seq = self->queue.head; seq; seq = seq->next, n++)
        self->reports[n] = (lmd_waiting){seq->seq_id, n == 0 ? head_reason : LMD_WAIT_TURN};
    *report = (lmd_schedule_report){.budget = self->budget,
                                    .n_preempted = self->n_now_preempted,
                                    .n_waiting = n,
                                    .preempted = self->preempted,
                                    .waiting = self->reports,
                                    .failed = -1};
}

static void report_stuck(const lmd_scheduler *self, lmd_schedule_report *report) {
    const lmd_sequence *seq = find_stuck(self);
    if (!seq) return;
    report->failed = seq->seq_id;
    report->failed_owner = seq->owner;
}

bool lmd_scheduler_schedule(lmd_scheduler *self, lmd_plan *plan, lmd_schedule_report *report) {
    int64_t n_in_flight = self->next_plan_id - self->oldest_plan_id;
    lmd_plan_builder *builder = &self->plans[self->next_plan_id % N_PLANS];
    lmd_wait_reason reason = LMD_WAIT_TURN;
    self->n_now_preempted = 0;
    if (n_in_flight == N_PLANS) {
        write_report(self, reason, report);
        return false;
    }
    int32_t budget = self->budget;
    lmd_plan_builder_begin(builder);
    if (plan_running(self, builder, &budget) && self->n_now_preempted == 0)
        reason = plan_waiting(self, builder, &budget);
    else
        reason = LMD_WAIT_BLOCKS;
    plan_drafts(self, builder, &budget);
    write_report(self, reason, report);
    if (builder->n_entries == 0) {
        if (n_in_flight == 0) report_stuck(self, report);
        return false;
    }
    lmd_plan_builder_finish(builder, self->next_plan_id++, self->config.block_len, plan);
    report->owners = builder->owners;
    return true;
}

/* ---- a step's end ---- */

/* Appends the token that a plan's row gave; -1: it gave none. */
static void append_token(lmd_sequence *seq, int32_t token_id) {
    seq->n_pending--;
    if (token_id >= 0)
        seq->tokens[seq->n_tokens++] = token_id;
    else if (seq->history_len > seq->n_tokens + seq->n_pending)
        seq->history_len =
            seq->n_tokens + seq->n_pending; /* what was computed there is no token's KV */
}

/* Appends the tokens that a step with a draft gave, up to the first -1. KV holds the draft
 * tokens that were accepted; positions after those are written again. */
static void append_accepted(lmd_sequence *seq, const int32_t *token_ids, int32_t n_draft) {
    int32_t n = 0;
    while (n <= n_draft && token_ids[n] >= 0) seq->tokens[seq->n_tokens++] = token_ids[n++];
    seq->n_pending -= 1 + n_draft;
    seq->history_len = n > 0 ? seq->n_tokens - 1 : seq->n_tokens;
}

static void end_entry(lmd_scheduler *self, const lmd_plan_entry *entry,
                      const int32_t *token_ids) {
    lmd_sequence *seq = entry->seq;
    seq->n_in_flight--;
    if (seq->state == LMD_SEQ_ENDED) {
        if (seq->n_in_flight > 0) return;
        lmd_sequence_drop_blocks(seq, self->pool, self->cache);
        destroy(self, seq);
        return;
    }
    if (entry->n_draft > 0)
        append_accepted(seq, token_ids + entry->logits_row_idx, entry->n_draft);
    else if (entry->logits_row_idx >= 0)
        append_token(seq, token_ids[entry->logits_row_idx]);
    seq->n_computed = lmd_min_i32(entry->history_len + entry->input_len,
                                  lmd_min_i32(seq->history_len, seq->n_tokens));
    if (self->cache)
        lmd_sequence_index_blocks(seq, self->cache, seq->n_computed, self->config.block_len);
    if (seq->has_followers && seq->n_computed >= seq->n_prompt) lead_on(self, seq);
}

lmd_status lmd_scheduler_update(lmd_scheduler *self, int64_t plan_id, const int32_t *token_ids,
                                lmd_err *err) {
    if (plan_id != self->oldest_plan_id || plan_id >= self->next_plan_id)
        return lmd_fail(err, LMD_INVALID, "plan %lld is not the oldest in flight",
                        (long long)plan_id);
    const lmd_plan_builder *builder = &self->plans[plan_id % N_PLANS];
    for (int32_t i = 0; i < builder->n_entries; i++)
        end_entry(self, &builder->entries[i], token_ids);
    self->oldest_plan_id++;
    return LMD_OK;
}

/* ---- looking ---- */

static int64_t count_held_blocks(const lmd_scheduler *self) {
    int64_t n = 0;
    for (int32_t b = 0; b < N_BUCKETS; b++)
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
