/* One step of an engine: see engine_step.h. */
#include "engine/engine_step.h"

#include "base/clock.h"
#include "engine/live_list.h"
#include "engine/step_rows.h"

/* ---- making a plan ---- */

static void end_stuck(lmd_engine *self, lmd_live_request *request) {
    lmd_err err;
    int32_t n_tokens = 0;
    lmd_scheduler_tokens(self->scheduler, request->request_id, &n_tokens);
    lmd_fail(&err, LMD_NO_MEMORY,
             "out of KV memory: %d tokens do not fit in %d blocks of %d; raise "
             "cache_max_entry_count or ask for fewer tokens",
             n_tokens + 1, self->config.n_blocks, self->config.block_len);
    lmd_engine_end(self, request, LMD_FINISH_ERROR, &err);
}

/* Makes the next plan and starts its forward pass; *out is NULL where nothing can run. */
static lmd_status begin_step(lmd_engine *self, lmd_step **out, lmd_err *err) {
    lmd_plan plan;
    lmd_schedule_report report;
    const int64_t now = lmd_now_ns();
    const int32_t n_decodes = lmd_scheduler_n_decoding(self->scheduler);
    lmd_scheduler_set_budget(self->scheduler, lmd_pace_budget(&self->pace, n_decodes));
    *out = NULL;
    if (!lmd_scheduler_schedule(self->scheduler, &plan, &report)) {
        if (report.failed_owner) end_stuck(self, report.failed_owner);
        return LMD_OK;
    }
    lmd_step *step = &self->steps[plan.plan_id % self->n_steps];
    lmd_step_begin(step, &plan, &report, now);
    *out = step;
    return self->executor->ops->submit(self->executor, &step->plan, err);
}

/* Whether the next plan may hold drafts. These can be made only once the tokens of the running
 * step are known, so the engine does not run ahead then. *n_seqs: how many sequences would
 * decode. */
static bool may_draft(const lmd_engine *self, int32_t *n_seqs) {
    if (self->speculation.n_max == 0 || !lmd_scheduler_only_decodes(self->scheduler, n_seqs) ||
        !lmd_speculation_may_draft(&self->speculation, *n_seqs))
        return false;
    const lmd_live_request *request = self->live;
    while (request && !request->ngram) request = request->next;
    return request != NULL;
}

/* Gives the scheduler drafts of what comes next. */
static void draft(lmd_engine *self) {
    int32_t n_seqs, tokens[LMD_MAX_DRAFT_TOKENS];
    if (!may_draft(self, &n_seqs)) return;
    lmd_speculation_begin(&self->speculation, n_seqs);
    for (const lmd_live_request *request = self->live; request; request = request->next) {
        int32_t n = lmd_live_request_draft(request, &self->speculation, tokens);
        if (n > 0) lmd_scheduler_draft(self->scheduler, request->request_id, tokens, n);
    }
}

/* Whether the next plan may start while this step runs. Jobs wait until no plan is in flight.
 */
static bool may_run_ahead(lmd_engine *self) {
    int32_t n_seqs;
    if (!self->executor->runs_ahead || may_draft(self, &n_seqs)) return false;
    pthread_mutex_lock(&self->lock);
    const bool is_free = !self->jobs && !self->closing;
    pthread_mutex_unlock(&self->lock);
    return is_free;
}

/* ---- counting ---- */

/* Counts a step's new tokens, before they are handed out, so that no client knows more than the
 * metrics; returns how many. */
static int32_t count_tokens(lmd_engine *self, const lmd_step *step) {
    int32_t n = 0;
    for (int32_t i = 0; i < step->plan.n_logits_rows; i++) {
        lmd_live_request *request = step->row_requests[i];
        if (step->row_tokens[i] < 0) continue;
        n++;
        if (lmd_metrics_token(&self->metrics, &request->times, self->tokens_at))
            lmd_engine_note(self, request, LMD_TRACE_FIRST_TOKEN, self->tokens_at,
                            request->n_prompt, LMD_FINISH_NONE);
    }
    return n;
}

/* Tokens of prompts that a plan computes; draft tokens are decoded. */
static int64_t count_prefilled(const lmd_plan *plan, const lmd_draft_counts *drafts) {
    int64_t n = 0;
    for (int32_t i = 0; i < plan->n_seqs; i++)
        if (plan->input_lens[i] > 1 || plan->history_lens[i] == 0) n += plan->input_lens[i];
    return n - drafts->n_seqs - drafts->n_drafted;
}

static void trace_step(lmd_engine *self, const lmd_step *step, int64_t begin,
                       int64_t n_prefilled, const lmd_scheduler_stats *stats) {
    const lmd_trace_step record = {
        .start = begin,
        .end = self->tokens_at,
        .n_seqs = step->plan.n_seqs,
        .n_prefilled = n_prefilled,
        .n_decoded = step->plan.n_tokens - n_prefilled,
        .budget = step->budget,
        .n_free_blocks = stats->n_free_blocks,
        .n_active_blocks = stats->n_active_blocks,
        .n_cached_blocks = stats->n_cached_blocks,
        .n_running = stats->n_running,
        .n_waiting = stats->n_waiting,
        .n_preempted = step->n_preempted,
    };
    lmd_trace_add_step(&self->trace, &record);
}

/* Counts a step whose tokens came at tokens_at. It began when it was planned, or when the step
 * before it ended: two never run at once. */
static void count_step(lmd_engine *self, const lmd_step *step, int64_t last_tokens_at,
                       const lmd_draft_counts *drafts) {
    const int64_t begin = step->started > last_tokens_at ? step->started : last_tokens_at;
    const int64_t duration = self->tokens_at - begin;
    const int64_t n_prefilled = count_prefilled(&step->plan, drafts);
    const int32_t n_generated = count_tokens(self, step);
    lmd_metrics_step(&self->metrics, duration, step->plan.n_tokens);
    if (self->speculation.n_max > 0 && step->plan.n_logits_rows == step->plan.n_tokens)
        lmd_speculation_note(&self->speculation, step->plan.n_tokens, (double)duration * 1e-9);
    lmd_pace_note(&self->pace, step->plan.n_tokens - (int32_t)n_prefilled, (int32_t)n_prefilled,
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
    trace_step(self, step, begin, n_prefilled, &stats);
}

/* ---- a step ---- */

/* Waits for a step's tokens, and gives them to the scheduler and to the requests. */
static lmd_status end_step(lmd_engine *self, lmd_step *step, lmd_err *err) {
    lmd_plan_result result;
    const int64_t plan_id = step->plan.plan_id, last_tokens_at = self->tokens_at;
    LMD_TRY(self->executor->ops->collect(self->executor, plan_id, &result, err));
    lmd_step_read(step, &result);
    const lmd_draft_counts drafts = lmd_step_reject_drafts(step);
    LMD_TRY(lmd_scheduler_update(self->scheduler, plan_id, step->row_tokens, err));
    self->tokens_at = lmd_now_ns();
    count_step(self, step, last_tokens_at, &drafts);
    lmd_engine_hand_out(self, step, &result);
    lmd_step_end(step);
#ifdef LMD_DEBUG
    LMD_TRY(lmd_scheduler_check(self->scheduler, err));
#endif
    return LMD_OK;
}

lmd_status lmd_engine_step(lmd_engine *self, lmd_err *err) {
    lmd_step *step = self->ahead;
    self->ahead = NULL;
    lmd_engine_end_cancelled(self, lmd_now_ns());
    if (!step) {
        draft(self);
        LMD_TRY(begin_step(self, &step, err));
        if (!step) return LMD_OK;
    }
    lmd_engine_fill_rows(self, step);
    LMD_TRY(self->executor->ops->sample(self->executor, &step->plan, err));
    lmd_err ahead_err;
    lmd_status status = LMD_OK;
    if (may_run_ahead(self)) status = begin_step(self, &self->ahead, &ahead_err);
    LMD_TRY(end_step(self, step,
                     err)); /* also after an error: the device still reads its samples */
    if (status != LMD_OK) *err = ahead_err;
    return status;
}
