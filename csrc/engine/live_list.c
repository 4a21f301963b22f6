/* Live requests: see live_list.h. */
#include "engine/live_list.h"

#include "base/clock.h"
#include "base/memory.h"

static void add(lmd_engine *self, lmd_live_request *request) {
    request->prev = NULL;
    request->next = self->live;
    if (self->live) self->live->prev = request;
    self->live = request;
}

static void remove_request(lmd_engine *self, lmd_live_request *request) {
    if (request->prev)
        request->prev->next = request->next;
    else
        self->live = request->next;
    if (request->next) request->next->prev = request->prev;
    for (int32_t i = 0; i < self->n_steps; i++) lmd_step_forget(&self->steps[i], request);
}

void lmd_engine_show(lmd_engine *self) {
    lmd_scheduler_get_stats(self->scheduler, &self->stats.scheduler);
    self->shown = self->metrics;
}

void lmd_engine_note(lmd_engine *self, const lmd_live_request *request, lmd_trace_kind kind,
                     int64_t at, int32_t n_tokens, lmd_finish_reason reason) {
    const lmd_trace_event event = {at, kind, request->request_id, n_tokens, reason};
    lmd_trace_add_event(&self->trace, &event);
}

void lmd_engine_end(lmd_engine *self, lmd_live_request *request, lmd_finish_reason reason,
                    const lmd_err *why) {
    if (request->keep_snapshot && reason != LMD_FINISH_ERROR)
        lmd_request_set_snapshot(request->request,
                                 lmd_scheduler_snapshot(self->scheduler, request->request_id));
    /* The scheduler does not know a request that it refused. */
    lmd_scheduler_finish(self->scheduler, request->request_id, NULL);
    remove_request(self, request);
    const int64_t now = lmd_now_ns();
    lmd_metrics_ended(&self->metrics, &request->times, now, reason, request->n_prompt,
                      request->n_generated);
    lmd_engine_note(self, request, LMD_TRACE_ENDED, now, request->n_generated, reason);
    pthread_mutex_lock(&self->lock);
    self->n_open--;
    lmd_engine_show(self); /* before the client knows of the end */
    pthread_mutex_unlock(&self->lock);
    lmd_live_request_finish(request, reason, why);
    lmd_live_request_free(request);
}

void lmd_engine_end_all(lmd_engine *self, lmd_finish_reason reason, const lmd_err *why) {
    while (self->live) lmd_engine_end(self, self->live, reason, why);
}

void lmd_engine_end_cancelled(lmd_engine *self, int64_t now) {
    for (lmd_live_request *request = self->live, *next; request; request = next) {
        next = request->next;
        if (lmd_request_cancelled(request->request) || request->deadline < now)
            lmd_engine_end(self, request, LMD_FINISH_ABORT, NULL);
    }
}

/* A leader that has ended leads nobody: its snapshot takes the place of the request's own.
 * Returns the leader's request_id. */
static int64_t settle_leader(lmd_live_request *request) {
    if (!request->leader) return 0;
    const int64_t request_id = lmd_request_get_info(request->leader)->request_id;
    lmd_snapshot *left = lmd_request_snapshot(request->leader);
    if (left) {
        lmd_snapshot_unref(request->snapshot);
        request->snapshot = left;
    }
    lmd_request_unref(request->leader);
    request->leader = NULL;
    return request_id;
}

void lmd_engine_admit(lmd_engine *self, lmd_live_request *request) {
    const int64_t leader = settle_leader(request);
    const lmd_sequence_params params = {
        .seq_id = request->request_id,
        .owner = request,
        .token_ids = request->prompt,
        .n_tokens = request->n_prompt,
        .max_len = request->n_prompt + request->max_new_tokens,
        .all_logits = request->return_ppl || request->prompt_logprobs ||
                      request->output_logits == LMD_LOGITS_ALL,
        .snapshot = request->snapshot,
        .leader = leader,
        .priority = request->priority,
    };
    lmd_err err;
    add(self, request);
    lmd_engine_note(self, request, LMD_TRACE_SUBMITTED, request->times.submitted,
                    request->n_prompt, LMD_FINISH_NONE);
    if (lmd_scheduler_add(self->scheduler, &params, &err) != LMD_OK) {
        lmd_engine_end(self, request, LMD_FINISH_ERROR, &err);
        return;
    }
    lmd_free(request->prompt);
    request->prompt = NULL;
}
