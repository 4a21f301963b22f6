/* A step of the scheduler: its plan, from who runs and who waits, and what follows from its
 * tokens. See scheduler.h. */
#include "base/ints.h"
#include "engine/scheduler_state.h"

/* ---- its plan ---- */

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
    lmd_plan_builder *builder = &self->plans[self->next_plan_id % LMD_SCHEDULER_PLANS];
    lmd_wait_reason reason = LMD_WAIT_TURN;
    self->n_now_preempted = 0;
    if (n_in_flight == LMD_SCHEDULER_PLANS) {
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

/* ---- its end ---- */

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

static void end_entry(lmd_scheduler *self, const lmd_plan_entry *entry,
                      const int32_t *token_ids) {
    lmd_sequence *seq = entry->seq;
    seq->n_in_flight--;
    if (seq->state == LMD_SEQ_ENDED) {
        if (seq->n_in_flight > 0) return;
        lmd_sequence_drop_blocks(seq, self->pool, self->cache);
        lmd_scheduler_destroy(self, seq);
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
    const lmd_plan_builder *builder = &self->plans[plan_id % LMD_SCHEDULER_PLANS];
    for (int32_t i = 0; i < builder->n_entries; i++)
        end_entry(self, &builder->entries[i], token_ids);
    self->oldest_plan_id++;
    return LMD_OK;
}
