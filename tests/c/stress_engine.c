/* The engine under the thread sanitizer: several client threads submit, read, cancel and drop
 * requests against an executor that computes nothing but a fixed function of its input, and
 * look at metrics and traces. Every answer that ends is compared with that function, every look
 * with itself. Exits 1 on a wrong one. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "engine/snapshot_kv.h"

enum { N_CLIENTS = 6, N_REQUESTS = 300, VOCAB = 1000, MAX_ROWS = 64 };

static int32_t next_token(int32_t token_id, int32_t position) {
    return (token_id * 31 + position * 17 + 7) % VOCAB;
}

/* ---- the executor: a device thread that runs one plan after another ---- */

enum { MAX_SEQS = 8, QUEUE_LEN = 8 };

/* What a device has copied of a plan. */
typedef struct device_plan {
    int64_t plan_id;
    int32_t n_rows;
    int32_t slots[MAX_ROWS], tokens[MAX_ROWS], positions[MAX_ROWS]; /* of each logits row */
    const lmd_sample_params *samples; /* the engine's, which keeps them until collect */
    int32_t next[MAX_ROWS];
    lmd_sample_result results[MAX_ROWS];
    bool done, collected;
} device_plan;

typedef struct device_job {
    device_plan *plan;
    bool samples; /* false: the forward pass */
} device_job;

/* How steps of an executor that runs ahead went. n_ahead were submitted before the step before
 * was collected; n_overlapped of these while the device still worked on that. */
typedef struct device_counts {
    long long n_steps, n_ahead, n_overlapped, n_placeholders;
} device_counts;

typedef enum failing_call { FAIL_NEVER, FAIL_SUBMIT, FAIL_SAMPLE, FAIL_COLLECT } failing_call;

enum { FAILING_PLAN = 5 };

typedef struct fake_executor {
    lmd_executor base;
    failing_call failing;     /* at plan FAILING_PLAN */
    device_plan plans[2];     /* plan p is at p % 2 */
    int32_t newest[MAX_SEQS]; /* token of each slot; the device's own */
    device_counts *counts;    /* the caller's */
    pthread_t thread;
    pthread_mutex_t lock; /* what follows, and `done` of the plans */
    pthread_cond_t changed;
    device_job queue[QUEUE_LEN];
    int32_t n_pushed, n_popped;
    bool quit;
} fake_executor;

static void run_forward(fake_executor *self, device_plan *plan) {
    for (int32_t i = 0; i < plan->n_rows; i++) {
        int32_t token = plan->tokens[i];
        if (token < 0) token = self->newest[plan->slots[i]];
        plan->next[i] = next_token(token, plan->positions[i]);
    }
}

/* Reads biases, of zero, so that the sanitizer sees any that are freed too early. */
static void run_sampling(fake_executor *self, device_plan *plan) {
    for (int32_t i = 0; i < plan->n_rows; i++) {
        const lmd_sample_params *row = &plan->samples[i];
        float bias = 0.0f;
        for (int32_t b = 0; b < row->n_biases; b++) bias += row->biases[b].bias;
        const int32_t next = plan->next[i] + (int32_t)bias;
        plan->results[i] = (lmd_sample_result){.token_id = row->wants_token ? next : -1};
        if (row->wants_token) self->newest[plan->slots[i]] = next;
    }
}

static void *device_main(void *arg) {
    fake_executor *self = arg;
    pthread_mutex_lock(&self->lock);
    while (!self->quit) {
        if (self->n_popped == self->n_pushed) {
            pthread_cond_wait(&self->changed, &self->lock);
            continue;
        }
        const device_job job = self->queue[self->n_popped++ % QUEUE_LEN];
        pthread_mutex_unlock(&self->lock);
        if (job.plan->plan_id % 3 == 0) usleep(30); /* now slower than the host, now faster */
        if (job.samples)
            run_sampling(self, job.plan);
        else
            run_forward(self, job.plan);
        pthread_mutex_lock(&self->lock);
        job.plan->done = job.samples;
        pthread_cond_broadcast(&self->changed);
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

static void push(fake_executor *self, device_plan *plan, bool samples) {
    pthread_mutex_lock(&self->lock);
    self->queue[self->n_pushed++ % QUEUE_LEN] = (device_job){plan, samples};
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->lock);
}

static lmd_status fail_if(const fake_executor *self, failing_call call, int64_t plan_id,
                          lmd_err *err) {
    if (self->failing != call || plan_id != FAILING_PLAN) return LMD_OK;
    return lmd_fail(err, LMD_INTERNAL, "the device has failed");
}

static void copy_plan(fake_executor *self, const lmd_plan *plan, device_plan *out) {
    *out = (device_plan){.plan_id = plan->plan_id, .n_rows = plan->n_logits_rows};
    for (int32_t i = 0, s = 0; i < plan->n_logits_rows; i++) {
        const int32_t row = plan->logits_rows[i];
        while (row >= plan->token_offsets[s + 1]) s++;
        out->slots[i] = plan->slots[s];
        out->tokens[i] = plan->token_ids[row];
        out->positions[i] = plan->positions[row];
        self->counts->n_placeholders += plan->token_ids[row] < 0;
    }
}

static lmd_status fake_submit(lmd_executor *executor, const lmd_plan *plan, lmd_err *err) {
    fake_executor *self = (fake_executor *)executor;
    device_plan *at = &self->plans[plan->plan_id % 2];
    LMD_TRY(fail_if(self, FAIL_SUBMIT, plan->plan_id, err));
    const device_plan *before = &self->plans[(plan->plan_id + 1) % 2];
    pthread_mutex_lock(&self->lock);
    self->counts->n_steps++;
    self->counts->n_ahead += !before->collected;
    self->counts->n_overlapped += !before->done;
    pthread_mutex_unlock(&self->lock);
    copy_plan(self, plan, at);
    push(self, at, false);
    return LMD_OK;
}

static lmd_status fake_sample(lmd_executor *executor, const lmd_plan *plan, lmd_err *err) {
    fake_executor *self = (fake_executor *)executor;
    device_plan *at = &self->plans[plan->plan_id % 2];
    LMD_TRY(fail_if(self, FAIL_SAMPLE, plan->plan_id, err));
    at->samples = plan->samples;
    push(self, at, true);
    return LMD_OK;
}

static lmd_status fake_collect(lmd_executor *executor, int64_t plan_id, lmd_plan_result *out,
                               lmd_err *err) {
    fake_executor *self = (fake_executor *)executor;
    device_plan *at = &self->plans[plan_id % 2];
    if (plan_id != at->plan_id) return lmd_fail(err, LMD_INTERNAL, "another plan");
    pthread_mutex_lock(&self->lock);
    while (!at->done) pthread_cond_wait(&self->changed, &self->lock);
    pthread_mutex_unlock(&self->lock);
    at->collected = true;
    LMD_TRY(fail_if(self, FAIL_COLLECT, plan_id, err));
    *out = (lmd_plan_result){plan_id, at->n_rows, at->results};
    return LMD_OK;
}

static void fake_free(lmd_executor *executor) {
    fake_executor *self = (fake_executor *)executor;
    pthread_mutex_lock(&self->lock);
    self->quit = true;
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->lock);
    pthread_join(self->thread, NULL);
    pthread_mutex_destroy(&self->lock);
    pthread_cond_destroy(&self->changed);
    free(self);
}

static bool is_idle(fake_executor *self) {
    pthread_mutex_lock(&self->lock);
    const bool idle = self->plans[0].done && self->plans[1].done;
    pthread_mutex_unlock(&self->lock);
    return idle;
}

static const char *fake_layout(const lmd_executor *executor) {
    (void)executor;
    return "none";
}

static size_t fake_block_bytes(const lmd_executor *executor) {
    (void)executor;
    return 1;
}

static lmd_status fake_export(lmd_executor *executor, const int32_t *block_ids, int32_t n,
                              uint8_t *out, lmd_err *err) {
    if (!is_idle((fake_executor *)executor))
        return lmd_fail(err, LMD_INTERNAL, "a plan is in flight");
    for (int32_t i = 0; i < n; i++) out[i] = (uint8_t)block_ids[i];
    return LMD_OK;
}

static lmd_status fake_import(lmd_executor *executor, const int32_t *block_ids, int32_t n,
                              const uint8_t *data, lmd_err *err) {
    (void)executor, (void)block_ids, (void)n, (void)data, (void)err;
    return LMD_OK;
}

static const lmd_executor_ops fake_ops = {
    .submit = fake_submit,
    .sample = fake_sample,
    .collect = fake_collect,
    .free = fake_free,
    .kv_layout = fake_layout,
    .kv_block_bytes = fake_block_bytes,
    .kv_export = fake_export,
    .kv_import = fake_import,
};

/* ---- clients ---- */

typedef struct client {
    lmd_engine *engine;
    int32_t idx;
    atomic_int *n_wrong;
} client;

static bool check_tokens(const int32_t *prompt, int32_t n_prompt, const int32_t *answer,
                         int32_t n) {
    int32_t token = prompt[n_prompt - 1];
    for (int32_t i = 0; i < n; i++) {
        token = next_token(token, n_prompt - 1 + i);
        if (answer[i] != token) return false;
    }
    return true;
}

/* Waits for output, where there is a poller in that. */
static bool wait_for_output(lmd_request *request, lmd_poller *poller) {
    int64_t key;
    if (!poller) return lmd_request_wait(request, 10000);
    if (!lmd_poller_wait(poller, 10000) || lmd_poller_look(poller, &key, 1) != 1) return false;
    lmd_poller_take(poller, 1);
    return key == 7;
}

/* Reads to the end, or cancels after a while; false for a wrong answer. */
static bool read_request(lmd_request *request, lmd_poller *poller, const int32_t *prompt,
                         int32_t n_prompt, int32_t cancel_after) {
    int32_t answer[64], n = 0;
    for (;;) {
        lmd_output output;
        if (!wait_for_output(request, poller) || !lmd_request_read(request, &output))
            return false;
        memcpy(answer + n, output.token_ids, (size_t)output.n_tokens * sizeof *answer);
        n += output.n_tokens;
        lmd_logits_free(output.logits);
        if (output.finish_reason != LMD_FINISH_NONE)
            return output.finish_reason != LMD_FINISH_ERROR &&
                   check_tokens(prompt, n_prompt, answer, n);
        if (cancel_after >= 0 && n >= cancel_after) lmd_request_cancel(request);
    }
}

/* A prompt that goes on from the snapshot's text now and then; its length. */
static int32_t make_prompt(int32_t *prompt, const lmd_snapshot *snapshot, unsigned *seed) {
    int32_t n = 0, n_new = 1 + rand_r(seed) % 40;
    if (snapshot && rand_r(seed) % 3) {
        const lmd_snapshot_info *info = lmd_snapshot_get(snapshot);
        n = info->n_tokens < 40 ? info->n_tokens : rand_r(seed) % 40;
        memcpy(prompt, info->tokens, (size_t)n * sizeof *prompt);
    }
    while (n_new-- > 0) prompt[n++] = rand_r(seed) % VOCAB;
    return n;
}

/* Takes a snapshot's KV out and brings it in again. */
static bool move_snapshot(lmd_engine *engine, lmd_snapshot **snapshot) {
    lmd_snapshot_kv kv;
    lmd_snapshot *moved;
    lmd_err err;
    if (lmd_snapshot_export(engine, *snapshot, &kv, &err) != LMD_OK) return false;
    lmd_status status =
        lmd_snapshot_import(engine, lmd_snapshot_get(*snapshot), &kv, &moved, &err);
    lmd_free(kv.data);
    if (status != LMD_OK) return false;
    lmd_snapshot_unref(*snapshot);
    *snapshot = moved;
    return true;
}

/* Looks at the metrics, and at a trace if nobody else has one; false when they contradict
 * themselves. */
static bool look(lmd_engine *engine) {
    lmd_engine_metrics seen;
    lmd_engine_get_metrics(engine, &seen);
    const lmd_histogram *all = seen.metrics.histograms;
    int64_t n_ended = 0;
    for (int32_t i = 0; i < LMD_FINISH_COUNT; i++) n_ended += seen.metrics.n_ended[i];
    bool right = seen.stats.scheduler.n_waiting >= 0 &&
                 all[LMD_STEP_SECONDS].count == seen.stats.n_steps &&
                 all[LMD_REQUEST_SECONDS].count == n_ended &&
                 all[LMD_TTFT_SECONDS].count + all[LMD_INTER_TOKEN_SECONDS].count ==
                     seen.stats.n_tokens_generated;
    for (int32_t h = 0; h < LMD_HISTOGRAM_COUNT; h++) {
        int64_t count = 0;
        for (int32_t i = 0; i <= LMD_MAX_BOUNDS; i++) count += all[h].counts[i];
        right = right && count == all[h].count;
    }
    lmd_trace_log log;
    lmd_err err;
    lmd_trace *trace = lmd_engine_trace(engine);
    if (lmd_trace_start(trace, 5, &err) != LMD_OK) return right;
    usleep(200);
    if (lmd_trace_stop(trace, &log, &err) != LMD_OK) return false;
    int64_t last = 0;
    for (int64_t i = log.steps.n_added > 5 ? log.steps.n_added - 5 : 0; i < log.steps.n_added;
         i++) {
        const int64_t *step = log.steps.values + i % 5 * log.steps.width;
        right = right && step[0] >= last && step[1] >= step[0];
        last = step[1];
    }
    lmd_trace_log_clear(&log);
    return right;
}

static const lmd_token_bias no_bias[] = {{1, 0.0f}, {2, 0.0f}};

static void *client_main(void *arg) {
    const client *self = arg;
    unsigned seed = (unsigned)self->idx;
    lmd_snapshot *snapshot = NULL;
    for (int32_t r = 0; r < N_REQUESTS; r++) {
        int32_t prompt[80], n_prompt = make_prompt(prompt, snapshot, &seed);
        lmd_request_params params = {.token_ids = prompt,
                                     .n_tokens = n_prompt,
                                     .max_new_tokens = 1 + rand_r(&seed) % 40,
                                     .snapshot = snapshot,
                                     .keep_snapshot = r % 2};
        lmd_sampler_params_init(&params.sampler);
        params.sampler.biases = no_bias;
        params.sampler.n_biases = r % 3;
        lmd_request *request;
        lmd_err err;
        if (lmd_engine_submit(self->engine, &params, &request, &err) != LMD_OK) {
            atomic_fetch_add(self->n_wrong, 1);
            continue;
        }
        int32_t action = rand_r(&seed) % 10; /* 0: drop at once; 1, 2: cancel on the way */
        int fd;
        lmd_poller *poller = NULL;
        if (action == 3) lmd_request_fileno(request, &fd, &err);
        if (action % 5 == 0 && (lmd_poller_new(&poller, &err) != LMD_OK ||
                                lmd_request_poll(request, poller, 7, &err) != LMD_OK))
            atomic_fetch_add(self->n_wrong, 1);
        if (action == 0)
            lmd_request_cancel(request);
        else if (!read_request(request, poller, prompt, n_prompt, action <= 2 ? 3 : -1))
            atomic_fetch_add(self->n_wrong, 1);
        lmd_poller_unref(poller);
        lmd_snapshot *kept = lmd_request_snapshot(request);
        if (kept) {
            lmd_snapshot_unref(snapshot);
            snapshot = kept;
        }
        if (snapshot && action == 4 && !move_snapshot(self->engine, &snapshot))
            atomic_fetch_add(self->n_wrong, 1);
        lmd_request_unref(request);
        lmd_engine_stats stats;
        if (r % 50 == 0) lmd_engine_get_stats(self->engine, &stats);
        if (r % 7 == 0 && !look(self->engine)) atomic_fetch_add(self->n_wrong, 1);
    }
    lmd_snapshot_unref(snapshot);
    return NULL;
}

static fake_executor *new_executor(bool runs_ahead, device_counts *counts) {
    fake_executor *self = calloc(1, sizeof *self);
    self->base = (lmd_executor){.ops = &fake_ops, .runs_ahead = runs_ahead};
    self->counts = counts;
    for (int32_t i = 0; i < 2; i++) self->plans[i].done = self->plans[i].collected = true;
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->changed, NULL);
    pthread_create(&self->thread, NULL, device_main, self);
    return self;
}

static const lmd_engine_config config = {.session_len = 128,
                                         .max_batch_size = MAX_SEQS,
                                         .max_prefill_token_num = MAX_ROWS,
                                         .n_blocks = 20, /* few: sequences are preempted */
                                         .block_len = 16,
                                         .vocab_size = VOCAB,
                                         .prefix_caching = true};

/* Runs all clients on an engine; returns what was wrong. */
static int run(bool runs_ahead, device_counts *counts, lmd_engine_stats *stats) {
    lmd_engine *engine;
    lmd_err err;
    if (lmd_engine_new(&config, &new_executor(runs_ahead, counts)->base, &engine, &err) !=
        LMD_OK)
        return 1;
    atomic_int n_wrong = 0;
    pthread_t threads[N_CLIENTS];
    client clients[N_CLIENTS];
    for (int32_t i = 0; i < N_CLIENTS; i++) {
        clients[i] = (client){engine, i, &n_wrong};
        pthread_create(&threads[i], NULL, client_main, &clients[i]);
    }
    for (int32_t i = 0; i < N_CLIENTS; i++) pthread_join(threads[i], NULL);
    lmd_engine_get_stats(engine, stats);
    lmd_engine_close(engine);
    lmd_engine_free(engine);
    return atomic_load(&n_wrong);
}

/* Reads a request to its end; whether that is an error. */
static bool ends_as_error(lmd_request *request) {
    lmd_output output = {0};
    while (output.finish_reason == LMD_FINISH_NONE) {
        if (!lmd_request_wait(request, 10000) || !lmd_request_read(request, &output))
            return false;
        lmd_logits_free(output.logits);
    }
    return output.finish_reason == LMD_FINISH_ERROR;
}

static void check_idle(lmd_scheduler *scheduler, lmd_executor *executor, void *n_wrong) {
    (void)scheduler;
    if (!is_idle((fake_executor *)executor)) atomic_fetch_add((atomic_int *)n_wrong, 1);
}

/* Has the engine work between its steps until it refuses to. */
static void *worker_main(void *arg) {
    const client *self = arg;
    lmd_err err;
    while (lmd_engine_run_between_steps(self->engine, check_idle, self->n_wrong, &err) ==
           LMD_OK)
        usleep(20);
    return NULL;
}

/* An executor fails while requests run: each of them ends with its error, later ones are
 * refused, no work between steps meets a plan in flight, and the engine closes. Returns what
 * was wrong. */
static int run_failing(bool runs_ahead, failing_call failing) {
    enum { N = 6 };
    device_counts counts = {0};
    lmd_engine *engine;
    lmd_err err;
    lmd_request *requests[N], *late;
    atomic_int n_wrong = 0;
    pthread_t thread;
    fake_executor *executor = new_executor(runs_ahead, &counts);
    executor->failing = failing;
    if (lmd_engine_new(&config, &executor->base, &engine, &err) != LMD_OK) return 1;
    client worker = {engine, 0, &n_wrong};
    pthread_create(&thread, NULL, worker_main, &worker);
    const int32_t prompt[] = {1, 2, 3};
    lmd_request_params params = {.token_ids = prompt, .n_tokens = 3, .max_new_tokens = 50};
    lmd_sampler_params_init(&params.sampler);
    params.sampler.biases = no_bias;
    params.sampler.n_biases = 2;
    for (int32_t i = 0; i < N; i++)
        if (lmd_engine_submit(engine, &params, &requests[i], &err) != LMD_OK)
            requests[i] = NULL; /* the executor failed already */
    for (int32_t i = 0; i < N; i++) {
        if (!requests[i]) continue;
        n_wrong += !ends_as_error(requests[i]);
        lmd_request_unref(requests[i]);
    }
    n_wrong += lmd_engine_submit(engine, &params, &late, &err) != LMD_CLOSED;
    pthread_join(thread, NULL);
    lmd_engine_close(engine);
    lmd_engine_free(engine);
    return n_wrong;
}

int main(void) {
    enum { LEAST_AHEAD = 70 }; /* percent of the steps of an executor that runs ahead */
    int n_all_wrong = 0;
    for (int32_t runs_ahead = 0; runs_ahead < 2; runs_ahead++) {
        device_counts counts = {0};
        lmd_engine_stats stats = {0};
        const int n_wrong = run(runs_ahead, &counts, &stats);
        const long long percent = counts.n_ahead * 100 / (counts.n_steps + !counts.n_steps);
        printf(
            "%d clients, %d requests: %lld steps, %lld of them (%lld %%) submitted before the "
            "one before was collected, %lld of these while the device worked on it, %lld "
            "placeholders, %lld preempted, %d wrong\n",
            N_CLIENTS, N_CLIENTS * N_REQUESTS, counts.n_steps, counts.n_ahead, percent,
            counts.n_overlapped, counts.n_placeholders, (long long)stats.scheduler.n_preempted,
            n_wrong);
        n_all_wrong += n_wrong + (runs_ahead && percent < LEAST_AHEAD);
        for (failing_call failing = FAIL_SUBMIT; failing <= FAIL_COLLECT; failing++)
            n_all_wrong += run_failing(runs_ahead, failing);
    }
    printf("%d wrong, devices that fail included\n", n_all_wrong);
    return n_all_wrong != 0;
}
