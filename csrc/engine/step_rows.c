/* The logits rows of a step: see step_rows.h. */
#include "engine/step_rows.h"

#include "base/memory.h"
#include "engine/live_list.h"

/* ---- before sampling ---- */

/* At a request's first step: tells the client how much of its prompt was found in KV. */
static void note_start(lmd_engine *self, lmd_live_request *request, int64_t started) {
    if (request->times.started) return;
    const int32_t cached_len = lmd_scheduler_cached_len(self->scheduler, request->request_id);
    lmd_request_set_cached_len(request->request, cached_len);
    lmd_metrics_started(&self->metrics, &request->times, started, request->n_prompt,
                        cached_len);
    lmd_engine_note(self, request, LMD_TRACE_STARTED, started, cached_len, LMD_FINISH_NONE);
}

static bool wants_logits(const lmd_live_request *request, const lmd_sample_params *params) {
    return request->output_logits == LMD_LOGITS_ALL ||
           (request->output_logits == LMD_LOGITS_GENERATION && params->wants_token);
}

/* Makes room for the logits of a request's rows of this step, in n_chunks chunks; false when
 * host memory is out. */
static bool reserve_logits(const lmd_engine *self, lmd_live_request *request, int32_t n_rows,
                           int32_t n_chunks) {
    if (request->output_logits == LMD_LOGITS_NONE || n_rows == 0) return true;
    const size_t row_bytes = (size_t)self->config.vocab_size * sizeof(float);
    for (int32_t i = 0; i < n_chunks; i++) {
        lmd_logits_chunk *chunk =
            lmd_calloc(1, sizeof *chunk + (size_t)(n_rows / n_chunks) * row_bytes);
        if (!chunk) return false;
        chunk->next = request->chunk;
        request->chunk = chunk;
    }
    return true;
}

/* Fills n rows of a request, from row `first` on. */
static void fill_request_rows(lmd_engine *self, lmd_step *step, lmd_live_request *request,
                              const int32_t *tokens, int32_t n_tokens, int32_t first,
                              int32_t n) {
    const lmd_plan *plan = &step->plan;
    /* The row of the last known token yields a new token; so does the row of each draft token,
     * and each of these has a chunk of its own. */
    const bool has_draft = n > 1 && plan->positions[plan->logits_rows[first]] + 1 >= n_tokens;
    const bool has_room = reserve_logits(self, request, n, has_draft ? n : 1);
    lmd_logits_chunk *chunk = request->chunk;
    for (int32_t i = first; i < first + n; i++) {
        lmd_sample_params *params = &step->samples[i];
        const int32_t next = plan->positions[plan->logits_rows[i]] + 1;
        lmd_live_request_fill(request, next - 1, next < n_tokens ? tokens[next] : -1, params);
        if (has_room && wants_logits(request, params)) {
            params->logits_out =
                chunk->data + (int64_t)chunk->n_rows++ * self->config.vocab_size;
            if (has_draft) chunk = chunk->next;
        }
        step->row_requests[i] = request;
    }
    if (has_room) return;
    lmd_err err;
    lmd_no_memory(&err, "logits");
    lmd_step_drop_rows(step, first, n); /* they point to what the request owns, freed below */
    lmd_engine_end(self, request, LMD_FINISH_ERROR, &err);
}

void lmd_engine_fill_rows(lmd_engine *self, lmd_step *step) {
    int32_t first = 0;
    for (int32_t s = 0; s < step->plan.n_seqs; s++) {
        const int32_t n = lmd_step_count_rows(step, s, first);
        lmd_live_request *request = step->seq_requests[s];
        if (request) {
            int32_t n_tokens;
            const int32_t *tokens =
                lmd_scheduler_plan_tokens(self->scheduler, step->plan.plan_id, s, &n_tokens);
            note_start(self, request, step->started);
            fill_request_rows(self, step, request, tokens, n_tokens, first, n);
        } else {
            lmd_step_drop_rows(step, first, n);
        }
        first += n;
    }
}

/* ---- after sampling ---- */

/* A request that is only scored ends with the last token of its prompt. */
static bool is_scored(const lmd_live_request *request, const lmd_plan *plan, int32_t row) {
    return request->max_new_tokens == 0 &&
           plan->positions[plan->logits_rows[row]] + 1 == request->n_prompt;
}

/* Gives one row's result to its request; says whether and how the request ends. */
static lmd_finish_reason hand_out_row(lmd_step *step, const lmd_plan_result *result, int32_t i,
                                      lmd_err *why) {
    lmd_live_request *request = step->row_requests[i];
    const lmd_sample_params *params = &step->samples[i];
    const lmd_finish_reason reason =
        lmd_live_request_accept(request, params, &result->rows[i], why);
    const bool is_last = i + 1 == result->n_rows || step->row_requests[i + 1] != request;
    if (is_last && params->wants_token)
        lmd_live_request_drop_rows(request);
    else if (is_last)
        lmd_live_request_hand_over(request); /* logits of rows that gave no token */
    const bool complete = reason == LMD_FINISH_NONE && is_scored(request, &step->plan, i);
    return complete ? LMD_FINISH_LENGTH : reason;
}

void lmd_engine_hand_out(lmd_engine *self, lmd_step *step, const lmd_plan_result *result) {
    for (int32_t i = 0; i < result->n_rows; i++) {
        lmd_live_request *request = step->row_requests[i];
        if (!request) continue;
        lmd_err why;
        const lmd_finish_reason reason = hand_out_row(step, result, i, &why);
        if (reason != LMD_FINISH_NONE) lmd_engine_end(self, request, reason, &why);
    }
}
