/* A device that runs ahead: see fake_device.h. The engine's thread calls a workspace; its
 * device thread alone calls the inner one while a plan is in flight. */
#define _GNU_SOURCE
#include "fake_device.h"

#include <assert.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"

enum { N_PLANS = 2, QUEUE_LEN = 256 };

typedef struct fake_backend {
    lmd_backend base;
    lmd_backend_ops ops; /* the inner backend's, but for what is faked */
    lmd_backend *inner;
} fake_backend;

/* A plan in flight. */
typedef struct fake_plan {
    lmd_plan plan;      /* with token_ids that are all known */
    int32_t *token_ids; /* [max_tokens] */
    const int32_t *given_ids;
    int32_t n_sampled; /* logits rows, so far */
    bool done;
} fake_plan;

typedef enum job_kind {
    JOB_BEGIN,
    JOB_EMBED,
    JOB_ADD_NORM,
    JOB_LINEAR,
    JOB_ATTENTION,
    JOB_OBSERVE,
    JOB_LOGITS,
    JOB_SAMPLE,
    JOB_END
} job_kind;

/* One queued operation; each kind uses its own fields. */
typedef struct job {
    job_kind kind;
    fake_plan *plan;
    const lmd_weight *weight, *norm;
    lmd_buffer *in, *out;
    float eps;
    int32_t first, n;
    lmd_linear_args linear;
    lmd_attention_args attention;
    int32_t layer, place;
    const lmd_observer *observer;
    const lmd_sample_params *params;
    lmd_sample_result *results;
} job;

struct lmd_workspace {
    const lmd_backend_ops *ops; /* of `inner` */
    lmd_workspace *inner;
    fake_plan plans[N_PLANS]; /* plan p is at p % N_PLANS */
    fake_plan *current;       /* the plan begun last */
    int32_t *newest;          /* [max_seqs] the newest token of each slot; the device's own */
    pthread_t thread;
    pthread_mutex_t lock; /* what follows, and `done` of the plans */
    pthread_cond_t changed;
    job queue[QUEUE_LEN];
    int64_t n_pushed, n_popped;
    bool quit, busy; /* busy: the device has a job, or has yet to run what it recorded */
};

/* ---- the device's thread ---- */

static int32_t seq_of_row(const lmd_plan *plan, int32_t row) {
    int32_t s = 0;
    while (row >= plan->token_offsets[s + 1]) s++;
    return s;
}

static void begin_plan(lmd_workspace *self, fake_plan *at) {
    const lmd_plan *plan = &at->plan;
    for (int32_t i = 0; i < plan->n_tokens; i++) {
        const int32_t given = at->given_ids[i];
        at->token_ids[i] = given >= 0 ? given : self->newest[plan->slots[seq_of_row(plan, i)]];
    }
    self->ops->step_begin(self->inner, plan);
}

/* Has the inner backend run what was recorded. */
static void flush(lmd_workspace *self, const fake_plan *at) {
    lmd_err err;
    const lmd_status status = self->ops->step_wait(self->inner, at->plan.plan_id, &err);
    assert(status == LMD_OK);
    (void)status;
}

static void sample_rows(lmd_workspace *self, const job *at) {
    const lmd_plan *plan = &at->plan->plan;
    self->ops->sample(self->inner, at->params, at->n, at->results);
    flush(self, at->plan);
    for (int32_t i = 0; i < at->n; i++) {
        const int32_t row = plan->logits_rows[at->plan->n_sampled + i];
        if (at->results[i].token_id >= 0)
            self->newest[plan->slots[seq_of_row(plan, row)]] = at->results[i].token_id;
    }
    at->plan->n_sampled += at->n;
}

static void end_plan(lmd_workspace *self, fake_plan *at) {
    self->ops->step_end(self->inner);
    flush(self, at);
    if (at->plan.plan_id % 3 == 0) usleep(100);
    pthread_mutex_lock(&self->lock);
    at->done = true;
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->lock);
}

static void run_job(lmd_workspace *self, const job *at) {
    const lmd_backend_ops *ops = self->ops;
    switch (at->kind) {
    case JOB_BEGIN: begin_plan(self, at->plan); break;
    case JOB_EMBED: ops->embed(self->inner, at->weight, at->out); break;
    case JOB_ADD_NORM: ops->add_norm(self->inner, at->in, at->norm, at->eps, at->out); break;
    case JOB_LINEAR: ops->linear(self->inner, &at->linear); break;
    case JOB_ATTENTION: ops->attention(self->inner, &at->attention); break;
    case JOB_OBSERVE:
        ops->observe(self->inner, at->in, at->layer, at->place, at->observer);
        break;
    case JOB_LOGITS:
        ops->logits(self->inner, at->in, at->norm, at->eps, at->weight, at->first, at->n);
        break;
    case JOB_SAMPLE: sample_rows(self, at); break;
    case JOB_END: end_plan(self, at->plan); break;
    }
}

/* Pops the next job, or waits for one; false: quit. The lock is held. */
static bool pop(lmd_workspace *self, job *out) {
    self->busy = false;
    pthread_cond_broadcast(&self->changed);
    while (!self->quit && self->n_popped == self->n_pushed)
        pthread_cond_wait(&self->changed, &self->lock);
    if (self->quit) return false;
    self->busy = true;
    *out = self->queue[self->n_popped++ % QUEUE_LEN];
    pthread_cond_broadcast(&self->changed);
    return true;
}

static void *device_main(void *arg) {
    lmd_workspace *self = arg;
    job at;
    pthread_mutex_lock(&self->lock);
    while (pop(self, &at)) {
        pthread_mutex_unlock(&self->lock);
        run_job(self, &at);
        pthread_mutex_lock(&self->lock);
        /* An idle device runs the forward pass, before its sampling is known. */
        if (self->n_popped == self->n_pushed && at.kind != JOB_END) {
            pthread_mutex_unlock(&self->lock);
            flush(self, at.plan);
            pthread_mutex_lock(&self->lock);
        }
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

/* ---- a step, as the engine's thread sees it ---- */

static void push(lmd_workspace *self, job at) {
    at.plan = self->current;
    pthread_mutex_lock(&self->lock);
    while (self->n_pushed - self->n_popped == QUEUE_LEN)
        pthread_cond_wait(&self->changed, &self->lock);
    self->queue[self->n_pushed++ % QUEUE_LEN] = at;
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->lock);
}

static void fake_step_begin(lmd_workspace *self, const lmd_plan *plan) {
    fake_plan *at = &self->plans[plan->plan_id % N_PLANS];
    at->plan = *plan;
    at->given_ids = plan->token_ids;
    at->plan.token_ids = at->token_ids;
    at->n_sampled = 0;
    pthread_mutex_lock(&self->lock);
    at->done = false;
    pthread_mutex_unlock(&self->lock);
    self->current = at;
    push(self, (job){.kind = JOB_BEGIN});
}

static void fake_embed(lmd_workspace *self, const lmd_weight *table, lmd_buffer *out) {
    push(self, (job){.kind = JOB_EMBED, .weight = table, .out = out});
}

static void fake_add_norm(lmd_workspace *self, lmd_buffer *residual, const lmd_weight *weight,
                          float eps, lmd_buffer *out) {
    push(self,
         (job){.kind = JOB_ADD_NORM, .in = residual, .norm = weight, .eps = eps, .out = out});
}

static void fake_linear(lmd_workspace *self, const lmd_linear_args *args) {
    push(self, (job){.kind = JOB_LINEAR, .linear = *args});
}

static void fake_attention(lmd_workspace *self, const lmd_attention_args *args) {
    push(self, (job){.kind = JOB_ATTENTION, .attention = *args});
}

static void fake_observe(lmd_workspace *self, lmd_buffer *buffer, int32_t layer, int32_t place,
                         const lmd_observer *observer) {
    push(self, (job){.kind = JOB_OBSERVE,
                     .in = buffer,
                     .layer = layer,
                     .place = place,
                     .observer = observer});
}

static void fake_logits(lmd_workspace *self, lmd_buffer *residual, const lmd_weight *norm,
                        float eps, const lmd_weight *lm_head, int32_t first, int32_t n) {
    push(self, (job){.kind = JOB_LOGITS,
                     .in = residual,
                     .norm = norm,
                     .eps = eps,
                     .weight = lm_head,
                     .first = first,
                     .n = n});
}

static void fake_sample(lmd_workspace *self, const lmd_sample_params *params, int32_t n,
                        lmd_sample_result *results) {
    push(self, (job){.kind = JOB_SAMPLE, .params = params, .n = n, .results = results});
}

static void fake_step_end(lmd_workspace *self) { push(self, (job){.kind = JOB_END}); }

static lmd_status fake_step_wait(lmd_workspace *self, int64_t plan_id, lmd_err *err) {
    (void)err;
    const fake_plan *at = &self->plans[plan_id % N_PLANS];
    assert(at->plan.plan_id == plan_id);
    pthread_mutex_lock(&self->lock);
    while (!at->done) pthread_cond_wait(&self->changed, &self->lock);
    pthread_mutex_unlock(&self->lock);
    return LMD_OK;
}

/* Waits until the device has nothing to do. */
static void drain(lmd_workspace *self) {
    pthread_mutex_lock(&self->lock);
    while (self->busy || self->n_popped != self->n_pushed)
        pthread_cond_wait(&self->changed, &self->lock);
    pthread_mutex_unlock(&self->lock);
}

static lmd_status fake_kv_export(lmd_workspace *self, const int32_t *block_ids, int32_t n,
                                 uint8_t *out, lmd_err *err) {
    for (int32_t i = 0; i < N_PLANS; i++) assert(self->plans[i].done);
    drain(self);
    return self->ops->kv_export(self->inner, block_ids, n, out, err);
}

static lmd_status fake_kv_import(lmd_workspace *self, const int32_t *block_ids, int32_t n,
                                 const uint8_t *data, lmd_err *err) {
    for (int32_t i = 0; i < N_PLANS; i++) assert(self->plans[i].done);
    drain(self);
    return self->ops->kv_import(self->inner, block_ids, n, data, err);
}

/* ---- lifetime ---- */

static void fake_workspace_free(lmd_workspace *self) {
    if (!self) return;
    if (self->thread) {
        drain(self);
        pthread_mutex_lock(&self->lock);
        self->quit = true;
        pthread_cond_broadcast(&self->changed);
        pthread_mutex_unlock(&self->lock);
        pthread_join(self->thread, NULL);
    }
    if (self->inner) self->ops->workspace_free(self->inner);
    pthread_mutex_destroy(&self->lock);
    pthread_cond_destroy(&self->changed);
    for (int32_t i = 0; i < N_PLANS; i++) lmd_free(self->plans[i].token_ids);
    lmd_free(self->newest);
    lmd_free(self);
}

static lmd_status set_up(lmd_workspace *self, fake_backend *backend,
                         const lmd_workspace_config *config, lmd_err *err) {
    self->newest = lmd_calloc((size_t)config->max_seqs, sizeof *self->newest);
    bool complete = self->newest != NULL;
    for (int32_t i = 0; i < N_PLANS; i++) {
        self->plans[i].token_ids =
            lmd_calloc((size_t)config->max_tokens, sizeof *self->plans[i].token_ids);
        self->plans[i].done = true;
        complete = complete && self->plans[i].token_ids;
    }
    if (!complete) return lmd_no_memory(err, "a fake device");
    LMD_TRY(self->ops->workspace_new(backend->inner, config, &self->inner, err));
    if (pthread_create(&self->thread, NULL, device_main, self) != 0)
        return lmd_fail(err, LMD_NO_MEMORY, "the fake device's thread cannot start");
    return LMD_OK;
}

static lmd_status fake_workspace_new(lmd_backend *backend, const lmd_workspace_config *config,
                                     lmd_workspace **out, lmd_err *err) {
    fake_backend *fake = (fake_backend *)backend;
    lmd_workspace *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a fake device");
    self->ops = fake->inner->ops;
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->changed, NULL);
    lmd_status status = set_up(self, fake, config, err);
    if (status != LMD_OK) {
        fake_workspace_free(self);
        return status;
    }
    *out = self;
    return LMD_OK;
}

static lmd_status fake_buffer_new(lmd_workspace *self, int32_t n_cols, lmd_buffer_role role,
                                  lmd_buffer **out, lmd_err *err) {
    return self->ops->buffer_new(self->inner, n_cols, role, out, err);
}

static lmd_backend *inner_of(const lmd_backend *backend) {
    return ((const fake_backend *)backend)->inner;
}

static lmd_status fake_memory(const lmd_backend *backend, size_t *free_bytes,
                              size_t *total_bytes, lmd_err *err) {
    return inner_of(backend)->ops->memory(inner_of(backend), free_bytes, total_bytes, err);
}

static lmd_status fake_weight_size(const lmd_backend *backend, const lmd_weight_source *src,
                                   size_t *out, lmd_err *err) {
    return inner_of(backend)->ops->weight_size(inner_of(backend), src, out, err);
}

static lmd_status fake_workspace_size(const lmd_backend *backend,
                                      const lmd_workspace_config *config, size_t *out,
                                      lmd_err *err) {
    const size_t own_bytes = sizeof(lmd_workspace) +
                             (size_t)config->max_seqs * sizeof(int32_t) +
                             N_PLANS * (size_t)config->max_tokens * sizeof(int32_t);
    size_t inner_bytes;
    LMD_TRY(
        inner_of(backend)->ops->workspace_size(inner_of(backend), config, &inner_bytes, err));
    *out = own_bytes + inner_bytes;
    return LMD_OK;
}

static size_t fake_buffer_bytes(const lmd_backend *backend, const lmd_workspace_config *config,
                                int32_t n_cols, lmd_buffer_role role) {
    return inner_of(backend)->ops->buffer_bytes(inner_of(backend), config, n_cols, role);
}

static const char *fake_isa(const lmd_backend *backend) {
    return inner_of(backend)->ops->isa(inner_of(backend));
}

static int32_t fake_n_threads(const lmd_backend *backend) {
    return inner_of(backend)->ops->n_threads(inner_of(backend));
}

static lmd_status fake_reserve(lmd_backend *backend, size_t n_bytes, lmd_err *err) {
    return inner_of(backend)->ops->reserve(inner_of(backend), n_bytes, err);
}

static lmd_status fake_upload(lmd_backend *backend, const lmd_weight_source *src,
                              lmd_weight **out, lmd_err *err) {
    return inner_of(backend)->ops->upload(inner_of(backend), src, out, err);
}

static lmd_status fake_upload_vector(lmd_backend *backend, const float *values, int32_t n,
                                     lmd_weight **out, lmd_err *err) {
    return inner_of(backend)->ops->upload_vector(inner_of(backend), values, n, out, err);
}

static void fake_weight_free(lmd_backend *backend, lmd_weight *weight) {
    inner_of(backend)->ops->weight_free(inner_of(backend), weight);
}

static void fake_free(lmd_backend *backend) {
    if (!backend) return;
    inner_of(backend)->ops->free(inner_of(backend));
    lmd_free(backend);
}

lmd_status lmd_fake_device_open(lmd_backend *inner, lmd_backend **out, lmd_err *err) {
    fake_backend *self = lmd_calloc(1, sizeof *self);
    if (!self) {
        inner->ops->free(inner);
        return lmd_no_memory(err, "a fake device");
    }
    self->inner = inner;
    self->base.ops = &self->ops;
    self->ops = (lmd_backend_ops){
        .name = inner->ops->name,
        .kv_layout = inner->ops->kv_layout,
        .runs_ahead = true,
        .defaults = inner->ops->defaults,
        .memory = fake_memory,
        .weight_size = fake_weight_size,
        .kv_block_bytes = inner->ops->kv_block_bytes,
        .workspace_size = fake_workspace_size,
        .buffer_bytes = fake_buffer_bytes,
        .isa = fake_isa,
        .n_threads = fake_n_threads,
        .reserve = fake_reserve,
        .upload = fake_upload,
        .upload_vector = fake_upload_vector,
        .weight_free = fake_weight_free,
        .free = fake_free,
        .workspace_new = fake_workspace_new,
        .buffer_new = fake_buffer_new,
        .workspace_free = fake_workspace_free,
        .step_begin = fake_step_begin,
        .embed = fake_embed,
        .add_norm = fake_add_norm,
        .linear = fake_linear,
        .attention = fake_attention,
        .observe = fake_observe,
        .logits = fake_logits,
        .sample = fake_sample,
        .step_end = fake_step_end,
        .step_wait = fake_step_wait,
        .kv_export = fake_kv_export,
        .kv_import = fake_kv_import,
    };
    *out = &self->base;
    return LMD_OK;
}
