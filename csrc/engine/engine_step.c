/* The requests that live in an engine, and the step that they share: see engine_state.h. The
 * engine's thread alone. */

#include "base/clock.h"
#include "base/memory.h"
#include "engine/engine_state.h"

/* ---- the living: a list, and an index by seq_id ---- */

static lmd_live_request **bucket_of(lmd_engine *self, int64_t seq_id) {
    return &self->buckets[(uint64_t)seq_id % LMD_ENGINE_BUCKETS];
}

static lmd_live_request *find_live(lmd_engine *self, int64_t seq_id) {
    lmd_live_request *live = *bucket_of(self, seq_id);
    while (live && live->seq_id != seq_id) live = live->next_in_bucket;
    return live;
}

static void add_live(lmd_engine *self, lmd_live_request *live) {
    lmd_live_request **bucket = bucket_of(self, live->seq_id);
    live->next_in_bucket = *bucket;
    *bucket = live;
    live->prev = NULL;
    live->next = self->living;
    if (self->living) self->living->prev = live;
    self->living = live;
}

static void remove_live(lmd_engine *self, lmd_live_request *live) {
    lmd_live_request **link = bucket_of(self, live->seq_id);
    while (*link != live) link = &(*link)->next_in_bucket;
    *link = live->next_in_bucket;
    if (live->prev)
        live->prev->next = live->next;
    else
        self->living = live->next;
    if (live->next) live->next->prev = live->prev;
}

void lmd_engine_show(lmd_engine *self) {
    lmd_scheduler_get_stats(self->scheduler, &self->stats.scheduler);
    self->shown = self->metrics;
}

static void note(lmd_engine *self, const lmd_live_request *live, lmd_trace_kind kind,
                 int64_t at, int32_t n_tokens, lmd_finish_reason reason) {
    const lmd_trace_event event = {at, kind, live->seq_id, n_tokens, reason};
    lmd_trace_add_event(&self->trace, &event);
}

/* Ends a living request everywhere. */
static void end_live(lmd_engine *self, lmd_live_request *live, lmd_finish_reason reason,
                     const lmd_err *why) {
    if (live->keep_snapshot && reason != LMD_FINISH_ERROR)
        lmd_request_set_snapshot(live->request,
                                 lmd_scheduler_snapshot(self->scheduler, live->seq_id));
    lmd_scheduler_finish(self->scheduler, live->seq_id,
                         NULL); /* unknown when it never was added */
    remove_live(self, live);
    const int64_t now = lmd_now_ns();
    lmd_metrics_ended(&self->metrics, &live->times, now, reason, live->n_prompt,
                      live->n_generated);
    note(self, live, LMD_TRACE_ENDED, now, live->n_generated, reason);
    pthread_mutex_lock(&self->lock);
    self->n_open--;
    lmd_engine_show(self); /* before the client knows of the end */
    pthread_mutex_unlock(&self->lock);
    lmd_live_request_finish(live, reason, why);
    lmd_live_request_free(live);
}

void lmd_engine_end_all(lmd_engine *self, lmd_finish_reason reason, const lmd_err *why) {
    while (self->living) end_live(self, self->living, reason, why);
}

/* ---- a step ---- */

void lmd_engine_admit(lmd_engine *self, lmd_live_request *live) {
    lmd_sequence_params params = {
        .seq_id = live->seq_id,
        .token_ids = live->prompt,
        .n_tokens = live->n_prompt,
        .max_len = live->n_prompt + live->max_new_tokens,
        .all_logits = live->return_ppl || live->output_logits == LMD_LOGITS_ALL,
        .snapshot = live->snapshot,
        .priority = live->priority,
    };
    lmd_err err;
    add_live(self, live);
    note(self, live, LMD_TRACE_SUBMITTED, live->times.submitted, live->n_prompt,
         LMD_FINISH_NONE);
    if (lmd_scheduler_add(self->scheduler, &params, &err) != LMD_OK) {
        end_live(self, live, LMD_FINISH_ERROR, &err);
        return;
    }
    lmd_free(live->prompt);
    live->prompt = NULL;
}

/* Ends who was cancelled, or has no time left. */
static void end_cancelled(lmd_engine *self, int64_t now) {
    for (lmd_live_request *live = self->living, *next; live; live = next) {
        next = live->next;
        if (lmd_request_cancelled(live->request) || live->deadline < now)
            end_live(self, live, LMD_FINISH_ABORT, NULL);
    }
}

static void end_stuck(lmd_engine *self, int64_t seq_id) {
    lmd_err err;
    lmd_live_request *live = find_live(self, seq_id);
    int32_t n_tokens = 0;
    lmd_scheduler_tokens(self->scheduler, seq_id, &n_tokens);
    lmd_fail(&err, LMD_NO_MEMORY,
             "out of KV memory: %d tokens do not fit in %d blocks of %d; raise "
             "cache_max_entry_count or ask for fewer tokens",
             n_tokens + 1, self->config.n_blocks, self->config.block_len);
    if (live) end_live(self, live, LMD_FINISH_ERROR, &err);
}

static bool wants_logits(const lmd_live_request *live, const lmd_sample_params *params) {
    return live->output_logits == LMD_LOGITS_ALL ||
           (live->output_logits == LMD_LOGITS_GENERATION && params->wants_token);
}

/* Room for the logits of a request's rows of this step, in n_chunks chunks; false when there is
 * no memory. */
static bool reserve_logits(const lmd_engine *self, lmd_live_request *live, int32_t n_rows,
                           int32_t n_chunks) {
    if (live->output_logits == LMD_LOGITS_NONE || n_rows == 0) return true;
    size_t row_bytes = (size_t)self->config.vocab_size * sizeof(float);
    for (int32_t i = 0; i < n_chunks; i++) {
        lmd_logits_chunk *chunk =
            lmd_calloc(1, sizeof *chunk + (size_t)(n_rows / n_chunks) * row_bytes);
        if (!chunk) return false;
        chunk->next = live->chunk;
        live->chunk = chunk;
    }
    return true;
}

/* Ends a request whose rows stand in the plan: they must not point to what it owned. */
static void end_in_plan(lmd_engine *self, lmd_live_request *live, int32_t first, int32_t n_rows,
                        const lmd_err *why) {
    for (int32_t i = first; i < first + n_rows; i++) {
        self->samples[i] = (lmd_sample_params){.target_id = -1};
        self->row_lives[i] = NULL;
    }
    end_live(self, live, LMD_FINISH_ERROR, why);
}

/* At the request's first step: tells the client how much of its prompt was found in KV. */
static void note_start(lmd_engine *self, lmd_live_request *live) {
    if (live->times.started) return;
    const int32_t cached_len = lmd_scheduler_cached_len(self->scheduler, live->seq_id);
    lmd_request_set_cached_len(live->request, cached_len);
    lmd_metrics_started(&self->metrics, &live->times, self->step_start, live->n_prompt,
                        cached_len);
    note(self, live, LMD_TRACE_STARTED, self->step_start, cached_len, LMD_FINISH_NONE);
}

/* Fills the rows of one sequence of the plan, from logits row `first` on; returns how many. */
static int32_t fill_rows(lmd_engine *self, const lmd_plan *plan, int32_t seq_idx,
                         int32_t first) {
    lmd_live_request *live = find_live(self, plan->seq_ids[seq_idx]);
    int32_t n_tokens, n = 0, end = plan->token_offsets[seq_idx + 1];
    const int32_t *tokens =
        lmd_scheduler_tokens(self->scheduler, plan->seq_ids[seq_idx], &n_tokens);
    note_start(self, live);
    while (first + n < plan->n_logits_rows && plan->logits_rows[first + n] < end) n++;
    /* A row behind the last known token gives one, and so do those behind guesses. */
    const bool guessed = n > 1 && plan->positions[plan->logits_rows[first]] + 1 >= n_tokens;
    const bool has_room = reserve_logits(self, live, n, guessed ? n : 1);
    lmd_logits_chunk *chunk = live->chunk;
    for (int32_t i = first; i < first + n; i++) {
        lmd_sample_params *params = &self->samples[i];
        int32_t position = plan->positions[plan->logits_rows[i]];
        lmd_live_request_fill(live, position,
                              position + 1 < n_tokens ? tokens[position + 1] : -1, params);
        if (has_room && wants_logits(live, params)) {
            params->logits_out =
                chunk->data + (int64_t)chunk->n_rows++ * self->config.vocab_size;
            if (guessed) chunk = chunk->next;
        }
        self->row_lives[i] = live;
    }
    if (!has_room) {
        lmd_err err;
        lmd_no_memory(&err, "logits");
        end_in_plan(self, live, first, n, &err);
    }
    return n;
}

static void forget_rows(lmd_engine *self, const lmd_live_request *live, int32_t n_rows) {
    for (int32_t i = 0; i < n_rows; i++)
        if (self->row_lives[i] == live) self->row_lives[i] = NULL;
}

/* A request that is only scored ends with the last token of its prompt. */
static bool is_scored(const lmd_live_request *live, const lmd_plan *plan, int32_t row) {
    return live->max_new_tokens == 0 &&
           plan->positions[plan->logits_rows[row]] + 1 == live->n_prompt;
}

static void take_rows(lmd_engine *self, const lmd_plan *plan, const lmd_plan_result *result) {
    for (int32_t i = 0; i < result->n_rows; i++) {
        lmd_live_request *live = self->row_lives[i];
        if (!live) continue;
        lmd_err why;
        lmd_finish_reason reason =
            lmd_live_request_take(live, &self->samples[i], &result->rows[i], &why);
        const bool last_of_live = i + 1 == result->n_rows || self->row_lives[i + 1] != live;
        if (last_of_live && self->samples[i].wants_token)
            lmd_live_request_drop_rows(live);
        else if (last_of_live)
            lmd_live_request_hand_over(live); /* rows that gave no token */
        if (reason == LMD_FINISH_NONE && is_scored(live, plan, i)) reason = LMD_FINISH_LENGTH;
        if (reason == LMD_FINISH_NONE) continue;
        forget_rows(self, live, result->n_rows);
        end_live(self, live, reason, &why);
    }
}

/* Drafts of a step. */
typedef struct draft_counts {
    int32_t n_seqs, n_drafted, n_accepted;
} draft_counts;

/* Drops the rows that stand behind a guess which is not the token that came. */
static draft_counts reject_rows(lmd_engine *self, const lmd_plan *plan) {
    draft_counts counts = {0};
    const lmd_live_request *before = NULL; /* whose the row before is */
    bool guessed_before = false;
    for (int32_t i = 0; i < plan->n_logits_rows; i++) {
        const lmd_live_request *live = self->row_lives[i];
        const bool guessed = live && live == before && self->samples[i - 1].wants_token;
        counts.n_seqs += guessed && !guessed_before;
        counts.n_drafted += guessed;
        if (guessed && self->row_tokens[i - 1] == plan->token_ids[plan->logits_rows[i]]) {
            counts.n_accepted++;
        } else if (guessed) {
            self->row_tokens[i] = -1;
            self->row_lives[i] = NULL;
        }
        before = live;
        guessed_before = guessed;
    }
    return counts;
}

/* Counts a step's new tokens, before they are handed out, so that no client knows more than the
 * metrics; returns how many. */
static int32_t count_tokens(lmd_engine *self, const lmd_plan *plan) {
    int32_t n = 0;
    for (int32_t i = 0; i < plan->n_logits_rows; i++) {
        lmd_live_request *live = self->row_lives[i];
        if (self->row_tokens[i] < 0) continue;
        n++;
        if (lmd_metrics_token(&self->metrics, &live->times, self->tokens_at))
            note(self, live, LMD_TRACE_FIRST_TOKEN, self->tokens_at, live->n_prompt,
                 LMD_FINISH_NONE);
    }
    return n;
}

/* Counts a step whose tokens have come. */
static void count_step(lmd_engine *self, const lmd_plan *plan, const draft_counts *drafts,
                       int32_t n_preempted) {
    const int32_t n_generated = count_tokens(self, plan);
    int64_t n_prefilled = 0;
    for (int32_t i = 0; i < plan->n_seqs; i++)
        if (plan->input_lens[i] > 1 || plan->history_lens[i] == 0)
            n_prefilled += plan->input_lens[i];
    n_prefilled -= drafts->n_seqs + drafts->n_drafted; /* they decode */
    const int64_t duration = self->tokens_at - self->step_start;
    lmd_metrics_step(&self->metrics, duration, plan->n_tokens);
    lmd_pace_note(&self->pace, plan->n_tokens - (int32_t)n_prefilled, (int32_t)n_prefilled,
                  (double)duration * 1e-9);
    pthread_mutex_lock(&self->lock);
    self->stats.n_steps++;
    self->stats.n_tokens_prefilled += n_prefilled;
    self->stats.n_tokens_generated += n_generated;
    self->stats.n_draft_tokens += drafts->n_drafted;
    self->stats.n_accepted_tokens += drafts->n_accepted;
    lmd_engine_show(self);
    const lmd_scheduler_stats stats = self->stats.scheduler;
    pthread_mutex_unlock(&self->lock);
    const lmd_trace_step record = {
        .start = self->step_start,
        .end = self->tokens_at,
        .n_seqs = plan->n_seqs,
        .n_prefilled = n_prefilled,
        .n_decoded = plan->n_tokens - n_prefilled,
        .budget = stats.budget,
        .n_free_blocks = stats.n_free_blocks,
        .n_active_blocks = stats.n_active_blocks,
        .n_cached_blocks = stats.n_cached_blocks,
        .n_running = stats.n_running,
        .n_waiting = stats.n_waiting,
        .n_preempted = n_preempted,
    };
    lmd_trace_add_step(&self->trace, &record);
}

/* Offers the scheduler guesses at what comes next, in a step that only decodes. */
static void offer_drafts(lmd_engine *self) {
    int32_t n_seqs, guesses[LMD_MAX_DRAFT_TOKENS];
    if (self->speculation.n_max == 0 || !lmd_scheduler_only_decodes(self->scheduler, &n_seqs))
        return;
    lmd_speculation_begin(&self->speculation, n_seqs);
    for (const lmd_live_request *live = self->living; live; live = live->next) {
        int32_t n = lmd_live_request_draft(live, &self->speculation, guesses);
        if (n > 0) lmd_scheduler_offer(self->scheduler, live->seq_id, guesses, n);
    }
}

/* Runs a plan from its rows' parameters to its requests' outputs. */
static lmd_status run_plan(lmd_engine *self, lmd_plan *plan, int32_t n_preempted,
                           lmd_err *err) {
    lmd_plan_result result;
    int32_t n_rows = 0;
    for (int32_t s = 0; s < plan->n_seqs; s++) n_rows += fill_rows(self, plan, s, n_rows);
    plan->samples = self->samples;
    const int64_t started = lmd_now_ns();
    LMD_TRY(self->executor->ops->submit(self->executor, plan, err));
    LMD_TRY(self->executor->ops->sample(self->executor, plan, err));
    LMD_TRY(self->executor->ops->collect(self->executor, plan->plan_id, &result, err));
    if (self->speculation.n_max > 0 && plan->n_logits_rows == plan->n_tokens)
        lmd_speculation_note(&self->speculation, plan->n_tokens,
                             (double)(lmd_now_ns() - started) * 1e-9);
    for (int32_t i = 0; i < result.n_rows; i++) {
        bool wanted = self->row_lives[i] && self->samples[i].wants_token;
        self->row_tokens[i] =
            wanted && !result.rows[i].not_finite ? result.rows[i].token_id : -1;
    }
    draft_counts drafts = reject_rows(self, plan);
    LMD_TRY(lmd_scheduler_update(self->scheduler, plan->plan_id, self->row_tokens, err));
    self->tokens_at = lmd_now_ns();
    count_step(self, plan, &drafts, n_preempted);
    take_rows(self, plan, &result);
#ifdef LMD_DEBUG
    LMD_TRY(lmd_scheduler_check(self->scheduler, err));
#endif
    return LMD_OK;
}

lmd_status lmd_engine_step(lmd_engine *self, lmd_err *err) {
    lmd_plan plan;
    lmd_schedule_report report;
    self->step_start = lmd_now_ns();
    end_cancelled(self, self->step_start);
    offer_drafts(self);
    const int32_t n_decodes = lmd_scheduler_n_decoding(self->scheduler);
    lmd_scheduler_set_budget(self->scheduler, lmd_pace_budget(&self->pace, n_decodes));
    bool has_plan = lmd_scheduler_schedule(self->scheduler, &plan, &report);
    if (!has_plan && report.failed >= 0) end_stuck(self, report.failed);
    return has_plan ? run_plan(self, &plan, report.n_preempted, err) : LMD_OK;
}
