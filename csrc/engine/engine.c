/* The engine: see engine.h. */
#include "engine/engine.h"

#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "engine/engine_state.h"
#include "engine/engine_step.h"
#include "engine/limits.h"
#include "engine/live_list.h"

/* ---- the thread ---- */

/* Runs the jobs that clients wait for, or drops them where no step can come any more. The lock
 * is held, but not while a job runs. */
static void run_jobs(lmd_engine *self) {
    if (!self->jobs) return;
    while (self->jobs) {
        lmd_engine_job *job = self->jobs;
        self->jobs = job->next;
        if (!self->closing && !self->broken) {
            pthread_mutex_unlock(&self->lock);
            job->fn(self->scheduler, self->executor, job->arg);
            pthread_mutex_lock(&self->lock);
            job->ran = true;
        }
        job->ended = true;
        pthread_cond_broadcast(&self->job_ended);
    }
    lmd_engine_show(self);
}

/* Waits for work, does the jobs and empties the inbox; false when the engine is closing. Jobs
 * wait until no plan is in flight. */
static bool wait_for_work(lmd_engine *self, lmd_live_request **inbox) {
    pthread_mutex_lock(&self->lock);
    lmd_engine_show(self);
    if (!self->ahead || self->closing) run_jobs(self);
    while (!self->closing && !self->inbox && !self->live && !self->ahead) {
        pthread_cond_wait(&self->wake, &self->lock);
        run_jobs(self);
    }
    *inbox = self->inbox;
    self->inbox = NULL;
    self->inbox_end = &self->inbox;
    bool open = !self->closing;
    pthread_mutex_unlock(&self->lock);
    return open;
}

static void admit_all(lmd_engine *self, lmd_live_request *inbox) {
    while (inbox) {
        lmd_live_request *next = inbox->next;
        lmd_engine_admit(self, inbox);
        inbox = next;
    }
}

/* The executor has failed: every request ends with its error, and submit refuses. No request is
 * to blame, whatever the error was called where it came up. */
static void break_engine(lmd_engine *self, lmd_err *err) {
    if (err->code != LMD_NO_MEMORY) err->code = LMD_INTERNAL;
    self->ahead = NULL;
    pthread_mutex_lock(&self->lock);
    self->broken = true;
    self->broken_err = *err;
    pthread_mutex_unlock(&self->lock);
    lmd_engine_end_all(self, LMD_FINISH_ERROR, err);
}

static void *engine_main(void *arg) {
    lmd_engine *self = arg;
    lmd_live_request *inbox;
    lmd_err err;
    bool broken = false;
    while (wait_for_work(self, &inbox)) {
        admit_all(self, inbox);
        if (!broken && lmd_engine_step(self, &err) != LMD_OK) {
            broken = true;
            break_engine(self, &err);
        }
        if (broken) lmd_engine_end_all(self, LMD_FINISH_ERROR, &err);
    }
    admit_all(self, inbox);
    lmd_engine_end_all(self, LMD_FINISH_ABORT, NULL);
    if (self->ahead) lmd_engine_step(self, &err); /* nothing stays in flight; nobody reads it */
    return NULL;
}

/* ---- lifetime ---- */

static lmd_scheduler_config scheduler_config(const lmd_engine_config *config) {
    return (lmd_scheduler_config){
        .n_blocks = config->n_blocks,
        .block_len = config->block_len,
        .max_batch_size = config->max_batch_size,
        .max_prefill_token_num = config->max_prefill_token_num,
        .session_len = config->session_len,
        .prefix_caching = config->prefix_caching,
    };
}

static int32_t count_steps(bool runs_ahead) { return runs_ahead ? LMD_MAX_STEPS : 1; }

size_t lmd_engine_bytes(const lmd_engine_config *config, bool runs_ahead) {
    const lmd_scheduler_config scheduler = scheduler_config(config);
    const size_t step_bytes =
        lmd_step_bytes(config->max_batch_size, config->max_prefill_token_num);
    return sizeof(lmd_engine) + lmd_scheduler_bytes(&scheduler) +
           (size_t)count_steps(runs_ahead) * step_bytes;
}

lmd_status lmd_engine_config_check(const lmd_engine_config *config, lmd_err *err) {
    const lmd_scheduler_config scheduler = scheduler_config(config);
    LMD_TRY(lmd_scheduler_config_check(&scheduler, err));
    const int32_t n_drafts = config->num_speculative_tokens;
    if (n_drafts < 0 || n_drafts > LMD_MAX_DRAFT_TOKENS)
        return lmd_fail(err, LMD_INVALID, "num_speculative_tokens must be 0 to %d, not %d",
                        LMD_MAX_DRAFT_TOKENS, n_drafts);
    if (!(config->step_seconds >= 0.0))
        return lmd_fail(err, LMD_INVALID,
                        "target_step_ms must not be negative, but is %g; 0: no bound",
                        config->step_seconds * 1e3);
    if (config->max_waiting < 0)
        return lmd_fail(err, LMD_INVALID,
                        "max_waiting_requests must not be negative, but is %d; 0: no bound",
                        config->max_waiting);
    return LMD_OK;
}

static lmd_status setup(lmd_engine *self, lmd_err *err) {
    const lmd_engine_config *config = &self->config;
    const lmd_scheduler_config scheduler = scheduler_config(config);
    LMD_TRY(lmd_scheduler_new(&scheduler, &self->scheduler, err));
    lmd_speculation_init(&self->speculation, config->num_speculative_tokens,
                         config->adaptive_speculation);
    lmd_pace_init(&self->pace, config->step_seconds, config->max_prefill_token_num);
    self->n_steps = count_steps(self->executor->runs_ahead);
    for (int32_t i = 0; i < self->n_steps; i++)
        LMD_TRY(lmd_step_init(&self->steps[i], config->max_batch_size,
                              config->max_prefill_token_num, err));
    lmd_scheduler_get_stats(self->scheduler, &self->stats.scheduler);
    if (pthread_create(&self->thread, NULL, engine_main, self) != 0)
        return lmd_fail(err, LMD_NO_MEMORY, "the engine's thread cannot start");
    return LMD_OK;
}

/* Frees what the thread used. */
static void release(lmd_engine *self) {
    self->executor->ops->free(self->executor);
    lmd_scheduler_free(self->scheduler);
    for (int32_t i = 0; i < self->n_steps; i++) lmd_step_clear(&self->steps[i]);
    self->executor = NULL;
    self->scheduler = NULL;
}

/* Frees what clients use. */
static void destroy(lmd_engine *self) {
    lmd_trace_clear(&self->trace);
    pthread_mutex_destroy(&self->lock);
    pthread_cond_destroy(&self->wake);
    pthread_cond_destroy(&self->job_ended);
    lmd_free(self);
}

lmd_status lmd_engine_new(const lmd_engine_config *config, lmd_executor *executor,
                          lmd_engine **out, lmd_err *err) {
    lmd_engine *self = lmd_calloc(1, sizeof *self);
    if (!self) {
        executor->ops->free(executor);
        return lmd_no_memory(err, "an engine");
    }
    self->config = *config;
    self->executor = executor;
    self->pid = getpid();
    self->inbox_end = &self->inbox;
    self->next_request_id = 1;
    self->metrics.off = config->metrics_off;
    lmd_trace_init(&self->trace);
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->wake, NULL);
    pthread_cond_init(&self->job_ended, NULL);
    lmd_status status = setup(self, err);
    if (status != LMD_OK) {
        release(self);
        destroy(self);
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
    destroy(self);
}

/* ---- clients ---- */

/* Makes a request, of which the client gets the reference. */
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
        info.n_scores = params->prompt_logprobs ? info.n_prompt - 1 : 0;
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

lmd_status lmd_engine_reject(lmd_engine *self, const lmd_err *why, lmd_request **out,
                             lmd_err *err) {
    pthread_mutex_lock(&self->lock);
    lmd_status status = check_open(self, err);
    pthread_mutex_unlock(&self->lock);
    if (status != LMD_OK) return status;
    LMD_TRY(new_request(self, NULL, out, err));
    pthread_mutex_lock(&self->lock);
    self->n_submitted++;
    self->n_rejected++;
    pthread_mutex_unlock(&self->lock);
    lmd_request_finish(*out, LMD_FINISH_ERROR, why, NULL);
    return LMD_OK;
}

/* Puts a request into the inbox; LMD_CLOSED when the engine does not read it any more. */
static lmd_status post(lmd_engine *self, lmd_live_request *live, lmd_err *err) {
    pthread_mutex_lock(&self->lock);
    lmd_status status = check_open(self, err);
    if (status == LMD_OK) {
        *self->inbox_end = live;
        self->inbox_end = &live->next;
        self->n_open++;
        self->n_submitted++;
        pthread_cond_signal(&self->wake);
    }
    pthread_mutex_unlock(&self->lock);
    return status;
}

/* The requests that were submitted, have not ended and do not run; the lock is held. */
static int32_t count_waiting(const lmd_engine *self) {
    return self->n_open - self->stats.scheduler.n_running;
}

/* LMD_BUSY where too many requests wait already. */
static lmd_status check_queue(lmd_engine *self, lmd_err *err) {
    pthread_mutex_lock(&self->lock);
    const int32_t n = count_waiting(self);
    const int32_t max = self->config.max_waiting;
    pthread_mutex_unlock(&self->lock);
    if (max == 0 || n < max) return LMD_OK;
    return lmd_fail(err, LMD_BUSY,
                    "the queue is full: %d requests wait, and max_waiting_requests is %d; ask "
                    "again later",
                    n, max);
}

lmd_status lmd_engine_submit(lmd_engine *self, const lmd_request_params *params,
                             lmd_request **out, lmd_err *err) {
    lmd_err why;
    lmd_live_request *live;
    lmd_request *request;
    if (lmd_live_request_check(params, &self->config, &why) != LMD_OK ||
        check_queue(self, &why) != LMD_OK)
        return lmd_engine_reject(self, &why, out, err);
    LMD_TRY(new_request(self, params, &request, err));
    lmd_status status = lmd_live_request_new(params, &self->config, request, &live, err);
    if (status == LMD_OK) {
        live->request_id = lmd_request_get_info(request)->request_id;
        live->times.submitted = lmd_now_ns();
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
    out->scheduler.n_waiting = count_waiting(self);
    pthread_mutex_unlock(&self->lock);
}

lmd_status lmd_engine_run_between_steps(lmd_engine *self, lmd_between_steps_fn fn, void *arg,
                                        lmd_err *err) {
    lmd_engine_job job = {.fn = fn, .arg = arg};
    pthread_mutex_lock(&self->lock);
    lmd_status status = check_open(self, err);
    if (status == LMD_OK) {
        job.next = self->jobs;
        self->jobs = &job;
        pthread_cond_signal(&self->wake);
        while (!job.ended) pthread_cond_wait(&self->job_ended, &self->lock);
        if (!job.ran) status = check_open(self, err);
    }
    pthread_mutex_unlock(&self->lock);
    return status;
}

void lmd_engine_get_metrics(lmd_engine *self, lmd_engine_metrics *out) {
    pthread_mutex_lock(&self->lock);
    out->stats = self->stats;
    out->stats.scheduler.n_waiting = count_waiting(self);
    out->metrics = self->shown;
    out->metrics.n_ended[LMD_FINISH_ERROR] += self->n_rejected;
    out->n_submitted = self->n_submitted;
    pthread_mutex_unlock(&self->lock);
}

lmd_trace *lmd_engine_trace(lmd_engine *self) { return &self->trace; }
