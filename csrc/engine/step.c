/* A step as a value: see step.h. */
#include "engine/step.h"

#include "base/memory.h"

lmd_status lmd_step_init(lmd_step *self, int32_t max_seqs, int32_t max_rows, lmd_err *err) {
    const size_t n_rows = (size_t)max_rows;
    *self = (lmd_step){
        .seq_requests = lmd_calloc((size_t)max_seqs, sizeof(lmd_live_request *)),
        .samples = lmd_calloc(n_rows, sizeof *self->samples),
        .row_requests = lmd_calloc(n_rows, sizeof(lmd_live_request *)),
        .row_tokens = lmd_calloc(n_rows, sizeof *self->row_tokens),
    };
    if (self->seq_requests && self->samples && self->row_requests && self->row_tokens)
        return LMD_OK;
    lmd_step_clear(self);
    return lmd_no_memory(err, "a step of %d rows", max_rows);
}

void lmd_step_clear(lmd_step *self) {
    lmd_free(self->seq_requests);
    lmd_free(self->samples);
    lmd_free(self->row_requests);
    lmd_free(self->row_tokens);
    *self = (lmd_step){0};
}

size_t lmd_step_bytes(int32_t max_seqs, int32_t max_rows) {
    const lmd_step *self = NULL;
    const size_t row_bytes =
        sizeof *self->samples + sizeof *self->row_requests + sizeof *self->row_tokens;
    return (size_t)max_seqs * sizeof *self->seq_requests + (size_t)max_rows * row_bytes;
}

void lmd_step_begin(lmd_step *self, const lmd_plan *plan, const lmd_schedule_report *report,
                    int64_t now) {
    self->plan = *plan;
    self->plan.samples = self->samples;
    self->started = now;
    self->budget = report->budget;
    self->n_preempted = report->n_preempted;
    for (int32_t i = 0; i < plan->n_seqs; i++) self->seq_requests[i] = report->owners[i];
    for (int32_t i = 0; i < plan->n_logits_rows; i++) self->row_requests[i] = NULL;
}

void lmd_step_end(lmd_step *self) { self->plan.n_seqs = self->plan.n_logits_rows = 0; }

int32_t lmd_step_count_rows(const lmd_step *self, int32_t seq_idx, int32_t first) {
    const lmd_plan *plan = &self->plan;
    const int32_t end = plan->token_offsets[seq_idx + 1];
    int32_t n = 0;
    while (first + n < plan->n_logits_rows && plan->logits_rows[first + n] < end) n++;
    return n;
}

void lmd_step_drop_rows(lmd_step *self, int32_t first, int32_t n) {
    for (int32_t i = first; i < first + n; i++) {
        self->samples[i] = (lmd_sample_params){.target_id = -1};
        self->row_requests[i] = NULL;
    }
}

void lmd_step_forget(lmd_step *self, const lmd_live_request *request) {
    for (int32_t i = 0; i < self->plan.n_seqs; i++)
        if (self->seq_requests[i] == request) self->seq_requests[i] = NULL;
    for (int32_t i = 0; i < self->plan.n_logits_rows; i++)
        if (self->row_requests[i] == request) self->row_requests[i] = NULL;
}

void lmd_step_read(lmd_step *self, const lmd_plan_result *result) {
    for (int32_t i = 0; i < result->n_rows; i++) {
        const bool wanted = self->row_requests[i] && self->samples[i].wants_token;
        const lmd_sample_result *row = &result->rows[i];
        self->row_tokens[i] = wanted && !row->not_finite ? row->token_id : -1;
    }
}

lmd_draft_counts lmd_step_reject_drafts(lmd_step *self) {
    const lmd_plan *plan = &self->plan;
    lmd_draft_counts counts = {0};
    const lmd_live_request *before = NULL; /* the request of the row before */
    bool before_is_draft = false;
    for (int32_t i = 0; i < plan->n_logits_rows; i++) {
        const lmd_live_request *request = self->row_requests[i];
        /* The rows after a row that gives a token are those of its draft. */
        const bool is_draft = request && request == before && self->samples[i - 1].wants_token;
        counts.n_seqs += is_draft && !before_is_draft;
        counts.n_drafted += is_draft;
        if (is_draft && self->row_tokens[i - 1] == plan->token_ids[plan->logits_rows[i]]) {
            counts.n_accepted++;
        } else if (is_draft) {
            self->row_tokens[i] = -1;
            self->row_requests[i] = NULL;
        }
        before = request;
        before_is_draft = is_draft;
    }
    return counts;
}
