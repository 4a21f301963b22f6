/* The engine: see engine.h. */
#include "engine/engine.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/memory.h"
#include "engine/live_request.h"

enum { N_BUCKETS = 1024 };

struct lmd_engine {
    lmd_engine_config config;
    pid_t pid; /* the process that has the thread */
    pthread_t thread;

    pthread_mutex_t lock; /* clients and the thread: what follows */
    pthread_cond_t wake;
    lmd_live_request *inbox, **inbox_end;
    int32_t n_inbox;
    int64_t next_request_id;
    bool closing, joined;
    bool broken; /* the executor failed: why stands in broken_err */
    lmd_err broken_err;
    lmd_engine_stats stats;

    /* The thread's own. */
    lmd_executor *executor;
    lmd_scheduler *scheduler;
    lmd_live_request *living; /* list */
    lmd_live_request *buckets[N_BUCKETS];
    lmd_sample_params *samples;   /* [max_prefill_token_num] of the plan's logits rows */
    lmd_live_request **row_lives; /* [max_prefill_token_num]; NULL once it has ended */
    int32_t *row_tokens;          /* [max_prefill_token_num] for the scheduler */
    lmd_speculation speculation;
};

/* ---- the living: a list, and an index by seq_id ---- */

static lmd_live_request **bucket_of(lmd_engine *self, int64_t seq_id) {
    return &self->buckets[(uint64_t)seq_id % N_BUCKETS];
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

static void publish_stats(lmd_engine *self) {
    pthread_mutex_lock(&self->lock);
    lmd_scheduler_get_stats(self->scheduler, &self->stats.scheduler);
    pthread_mutex_unlock(&self->lock);
}

/* Ends a living request everywhere. */
static void end_live(lmd_engine *self, lmd_live_request *live, lmd_finish_reason reason,
                     const char *message) {
    lmd_scheduler_finish(self->scheduler, live->seq_id,
                         NULL); /* unknown when it never was added */
    remove_live(self, live);
    publish_stats(self); /* before the client knows of the end */
    lmd_live_request_finish(live, reason, message);
    lmd_live_request_free(live);
}

static void end_all(lmd_engine *self, lmd_finish_reason reason, const char *message) {
    while (self->living) end_live(self, self->living, reason, message);
}

/* ---- a step ---- */

/* Hands a new request to the scheduler; the prompt lives on there. */
static void admit(lmd_engine *self, lmd_live_request *live) {
    lmd_sequence_params params = {
        .seq_id = live->seq_id,
        .token_ids = live->prompt,
        .n_tokens = live->n_prompt,
        .max_len = live->n_prompt + live->max_new_tokens,
        .all_logits = live->return_ppl || live->output_logits == LMD_LOGITS_ALL,
    };
    lmd_err err;
    add_live(self, live);
    if (lmd_scheduler_add(self->scheduler, &params, &err) != LMD_OK) {
        end_live(self, live, LMD_FINISH_ERROR, err.message);
        return;
    }
    lmd_free(live->prompt);
    live->prompt = NULL;
}

static void end_cancelled(lmd_engine *self) {
    for (lmd_live_request *live = self->living, *next; live; live = next) {
        next = live->next;
        if (lmd_request_cancelled(live->request)) end_live(self, live, LMD_FINISH_ABORT, NULL);
    }
}

static void end_stuck(lmd_engine *self, int64_t seq_id) {
    char message[LMD_ERR_LEN];
    lmd_live_request *live = find_live(self, seq_id);
    int32_t n_tokens = 0;
    lmd_scheduler_tokens(self->scheduler, seq_id, &n_tokens);
    snprintf(message, sizeof message,
             "out of KV memory: %d tokens do not fit in %d blocks of %d; raise "
             "cache_max_entry_count or "
             "ask for fewer tokens",
             n_tokens + 1, self->config.n_blocks, self->config.block_len);
    if (live) end_live(self, live, LMD_FINISH_ERROR, message);
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
                        const char *message) {
    for (int32_t i = first; i < first + n_rows; i++) {
        self->samples[i] = (lmd_sample_params){.target_id = -1};
        self->row_lives[i] = NULL;
    }
    end_live(self, live, LMD_FINISH_ERROR, message);
}

/* Tells the client, at the request's first step, how much of its prompt was found in KV. */
static void note_cached(const lmd_engine *self, lmd_live_request *live) {
    if (live->has_run) return;
    live->has_run = true;
    lmd_request_set_cached_len(live->request,
                               lmd_scheduler_cached_len(self->scheduler, live->seq_id));
}

/* Fills the rows of one sequence of the plan, from logits row `first` on; returns how many. */
static int32_t fill_rows(lmd_engine *self, const lmd_plan *plan, int32_t seq_idx,
                         int32_t first) {
    lmd_live_request *live = find_live(self, plan->seq_ids[seq_idx]);
    int32_t n_tokens, n = 0, end = plan->token_offsets[seq_idx + 1];
    const int32_t *tokens =
        lmd_scheduler_tokens(self->scheduler, plan->seq_ids[seq_idx], &n_tokens);
    note_cached(self, live);
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
    if (!has_room) end_in_plan(self, live, first, n, "out of host memory for logits");
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
        const char *message = NULL;
        lmd_finish_reason reason =
            lmd_live_request_take(live, &self->samples[i], &result->rows[i], &message);
        const bool last_of_live = i + 1 == result->n_rows || self->row_lives[i + 1] != live;
        if (last_of_live && self->samples[i].wants_token)
            lmd_live_request_drop_rows(live);
        else if (last_of_live)
            lmd_live_request_hand_over(live); /* rows that gave no token */
        if (reason == LMD_FINISH_NONE && is_scored(live, plan, i)) reason = LMD_FINISH_LENGTH;
        if (reason == LMD_FINISH_NONE) continue;
        forget_rows(self, live, result->n_rows);
        end_live(self, live, reason, message);
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

static void count_step(lmd_engine *self, const lmd_plan *plan, const draft_counts *drafts) {
    int64_t n_generated = 0, n_prefilled = 0;
    for (int32_t i = 0; i < plan->n_logits_rows; i++) n_generated += self->row_tokens[i] >= 0;
    for (int32_t i = 0; i < plan->n_seqs; i++)
        if (plan->input_lens[i] > 1 || plan->history_lens[i] == 0)
            n_prefilled += plan->input_lens[i];
    n_prefilled -= drafts->n_seqs + drafts->n_drafted; /* they decode */
    pthread_mutex_lock(&self->lock);
    self->stats.n_steps++;
    self->stats.n_tokens_prefilled += n_prefilled;
    self->stats.n_tokens_generated += n_generated;
    self->stats.n_draft_tokens += drafts->n_drafted;
    self->stats.n_accepted_tokens += drafts->n_accepted;
    pthread_mutex_unlock(&self->lock);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

/* Offers the scheduler guesses at what comes next, in a step that only decodes. */
static void offer_drafts(lmd_engine *self) {
    int32_t n_seqs, guesses[LMD_MAX_DRAFT_TOKENS];
    if (self->speculation.n_max == 0 ||
        !lmd_scheduler_only_decodes(self->scheduler, &n_seqs))
        return;
    lmd_speculation_begin(&self->speculation, n_seqs);
    for (const lmd_live_request *live = self->living; live; live = live->next) {
        int32_t n = lmd_live_request_draft(live, &self->speculation, guesses);
        if (n > 0) lmd_scheduler_offer(self->scheduler, live->seq_id, guesses, n);
    }
}

/* Runs a plan from its rows' parameters to its requests' outputs. */
static lmd_status run_plan(lmd_engine *self, lmd_plan *plan, lmd_err *err) {
    lmd_plan_result result;
    int32_t n_rows = 0;
    for (int32_t s = 0; s < plan->n_seqs; s++) n_rows += fill_rows(self, plan, s, n_rows);
    plan->samples = self->samples;
    double started = now();
    LMD_TRY(self->executor->ops->submit(self->executor, plan, err));
    LMD_TRY(self->executor->ops->collect(self->executor, plan->plan_id, &result, err));
    if (plan->n_logits_rows == plan->n_tokens)
        lmd_speculation_note(&self->speculation, plan->n_tokens, now() - started);
    for (int32_t i = 0; i < result.n_rows; i++) {
        bool wanted = self->row_lives[i] && self->samples[i].wants_token;
        self->row_tokens[i] =
            wanted && !result.rows[i].not_finite ? result.rows[i].token_id : -1;
    }
    draft_counts drafts = reject_rows(self, plan);
    LMD_TRY(lmd_scheduler_update(self->scheduler, plan->plan_id, self->row_tokens, err));
    count_step(self, plan, &drafts);
    take_rows(self, plan, &result);
#ifdef LMD_DEBUG
    LMD_TRY(lmd_scheduler_check(self->scheduler, err));
#endif
    return LMD_OK;
}

static lmd_status step(lmd_engine *self, lmd_err *err) {
    lmd_plan plan;
    lmd_schedule_report report;
    end_cancelled(self);
    offer_drafts(self);
    bool has_plan = lmd_scheduler_schedule(self->scheduler, &plan, &report);
    if (!has_plan && report.failed >= 0) end_stuck(self, report.failed);
    return has_plan ? run_plan(self, &plan, err) : LMD_OK;
}

/* ---- the thread ---- */

/* Waits for work and takes the inbox; false when the engine is closing. */
static bool take_inbox(lmd_engine *self, lmd_live_request **inbox) {
    pthread_mutex_lock(&self->lock);
    lmd_scheduler_get_stats(self->scheduler, &self->stats.scheduler);
    while (!self->closing && !self->inbox && !self->living)
        pthread_cond_wait(&self->wake, &self->lock);
    *inbox = self->inbox;
    self->inbox = NULL;
    self->inbox_end = &self->inbox;
    self->n_inbox = 0;
    bool open = !self->closing;
    pthread_mutex_unlock(&self->lock);
    return open;
}

static void admit_all(lmd_engine *self, lmd_live_request *inbox) {
    while (inbox) {
        lmd_live_request *next = inbox->next;
        admit(self, inbox);
        inbox = next;
    }
}

/* The executor is of no use any more: everyone is told, and submit refuses. */
static void break_engine(lmd_engine *self, const lmd_err *err) {
    pthread_mutex_lock(&self->lock);
    self->broken = true;
    self->broken_err = *err;
    pthread_mutex_unlock(&self->lock);
    end_all(self, LMD_FINISH_ERROR, err->message);
}

static void *engine_main(void *arg) {
    lmd_engine *self = arg;
    lmd_live_request *inbox;
    lmd_err err;
    bool broken = false;
    while (take_inbox(self, &inbox)) {
        admit_all(self, inbox);
        if (!broken && step(self, &err) != LMD_OK) {
            broken = true;
            break_engine(self, &err);
        }
        if (broken) end_all(self, LMD_FINISH_ERROR, err.message);
    }
    admit_all(self, inbox);
    end_all(self, LMD_FINISH_ABORT, NULL);
    return NULL;
}

/* ---- lifetime ---- */

static lmd_status setup(lmd_engine *self, lmd_err *err) {
    const lmd_engine_config *config = &self->config;
    const lmd_scheduler_config scheduler = {
        .n_blocks = config->n_blocks,
        .block_len = config->block_len,
        .max_batch_size = config->max_batch_size,
        .max_prefill_token_num = config->max_prefill_token_num,
        .session_len = config->session_len,
        .prefix_caching = config->prefix_caching,
    };
    LMD_TRY(lmd_scheduler_new(&scheduler, &self->scheduler, err));
    lmd_speculation_init(&self->speculation, config->num_speculative_tokens,
                         config->adaptive_speculation);
    size_t n_rows = (size_t)config->max_prefill_token_num;
    self->samples = lmd_calloc(n_rows, sizeof *self->samples);
    self->row_lives = lmd_calloc(n_rows, sizeof(lmd_live_request *));
    self->row_tokens = lmd_calloc(n_rows, sizeof *self->row_tokens);
    if (!self->samples || !self->row_lives || !self->row_tokens)
        return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for an engine");
    lmd_scheduler_get_stats(self->scheduler, &self->stats.scheduler);
    if (pthread_create(&self->thread, NULL, engine_main, self) != 0)
        return lmd_fail(err, LMD_NO_MEMORY, "the engine's thread cannot start");
    return LMD_OK;
}

static void release(lmd_engine *self) {
    self->executor->ops->free(self->executor);
    lmd_scheduler_free(self->scheduler);
    lmd_free(self->samples);
    lmd_free(self->row_lives);
    lmd_free(self->row_tokens);
    self->executor = NULL;
    self->scheduler = NULL;
    self->samples = NULL;
    self->row_lives = NULL;
    self->row_tokens = NULL;
}

lmd_status lmd_engine_new(const lmd_engine_config *config, lmd_executor *executor,
                          lmd_engine **out, lmd_err *err) {
    lmd_engine *self = lmd_calloc(1, sizeof *self);
    if (!self) {
        executor->ops->free(executor);
        return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for an engine");
    }
    self->config = *config;
    self->executor = executor;
    self->pid = getpid();
    self->inbox_end = &self->inbox;
    self->next_request_id = 1;
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->wake, NULL);
    lmd_status status = setup(self, err);
    if (status != LMD_OK) {
        release(self);
        pthread_mutex_destroy(&self->lock);
        pthread_cond_destroy(&self->wake);
        lmd_free(self);
        return status;
    }
    *out = self;
    return LMD_OK;
}

void lmd_engine_close(lmd_engine *self) {
    if (self->pid != getpid()) return;
    pthread_mutex_lock(&self->lock);
    bool first = !self->closing;
    self->closing = true;
    pthread_cond_broadcast(&self->wake);
    while (!first && !self->joined) pthread_cond_wait(&self->wake, &self->lock);
    pthread_mutex_unlock(&self->lock);
    if (!first) return;
    pthread_join(self->thread, NULL);
    pthread_mutex_lock(&self->lock);
    release(self);
    self->joined = true;
    pthread_cond_broadcast(&self->wake);
    pthread_mutex_unlock(&self->lock);
}

void lmd_engine_free(lmd_engine *self) {
    if (!self || self->pid != getpid()) return;
    lmd_engine_close(self);
    pthread_mutex_destroy(&self->lock);
    pthread_cond_destroy(&self->wake);
    lmd_free(self);
}

/* ---- clients ---- */

/* A request for the client; the engine may take a reference of its own. */
static lmd_status new_request(lmd_engine *self, const lmd_request_params *params,
                              lmd_request **out, lmd_err *err) {
    lmd_request_info info = {.max_new_tokens = 0};
    if (params) {
        int64_t room = self->config.session_len - params->n_tokens;
        int64_t max_new = params->max_new_tokens < room ? params->max_new_tokens : room;
        int64_t n_logprobs = params->sampler.n_logprobs;
        info.seed = params->sampler.seed;
        info.n_prompt = (int32_t)params->n_tokens;
        info.max_new_tokens = (int32_t)max_new;
        info.n_logprobs = n_logprobs > 0 ? (int32_t)n_logprobs + 1 : 0;
    }
    pthread_mutex_lock(&self->lock);
    info.request_id = self->next_request_id++;
    pthread_mutex_unlock(&self->lock);
    return lmd_request_new(&info, out, err);
}

/* LMD_CLOSED once the engine is closed or broken; the lock is held. */
static lmd_status check_open(const lmd_engine *self, lmd_err *err) {
    if (self->closing) return lmd_fail(err, LMD_CLOSED, "the engine is closed");
    if (self->broken)
        return lmd_fail(err, LMD_CLOSED, "the engine has stopped: %.400s",
                        self->broken_err.message);
    return LMD_OK;
}

lmd_status lmd_engine_reject(lmd_engine *self, const char *why, lmd_request **out,
                             lmd_err *err) {
    pthread_mutex_lock(&self->lock);
    lmd_status status = check_open(self, err);
    pthread_mutex_unlock(&self->lock);
    if (status != LMD_OK) return status;
    LMD_TRY(new_request(self, NULL, out, err));
    lmd_request_finish(*out, LMD_FINISH_ERROR, why, NULL);
    return LMD_OK;
}

/* Puts a request into the inbox; LMD_CLOSED when nobody would read it. */
static lmd_status post(lmd_engine *self, lmd_live_request *live, lmd_err *err) {
    pthread_mutex_lock(&self->lock);
    lmd_status status = check_open(self, err);
    if (status == LMD_OK) {
        *self->inbox_end = live;
        self->inbox_end = &live->next;
        self->n_inbox++;
        pthread_cond_signal(&self->wake);
    }
    pthread_mutex_unlock(&self->lock);
    return status;
}

lmd_status lmd_engine_submit(lmd_engine *self, const lmd_request_params *params,
                             lmd_request **out, lmd_err *err) {
    lmd_err why;
    lmd_live_request *live;
    lmd_request *request;
    if (lmd_live_request_check(params, &self->config, &why) != LMD_OK)
        return lmd_engine_reject(self, why.message, out, err);
    LMD_TRY(new_request(self, params, &request, err));
    lmd_status status = lmd_live_request_new(params, &self->config, request, &live, err);
    if (status == LMD_OK) {
        live->seq_id = lmd_request_get_info(request)->request_id;
        status = post(self, live, err);
        if (status != LMD_OK) lmd_live_request_free(live);
    }
    if (status != LMD_OK) {
        lmd_request_unref(request);
        return status;
    }
    *out = request;
    return LMD_OK;
}

void lmd_engine_get_stats(lmd_engine *self, lmd_engine_stats *out) {
    pthread_mutex_lock(&self->lock);
    *out = self->stats;
    out->scheduler.n_waiting += self->n_inbox;
    pthread_mutex_unlock(&self->lock);
}
