/* The trace: see trace.h. */
#include "engine/trace.h"

#include <assert.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

enum {
    STEP_WIDTH = sizeof(lmd_trace_step) / sizeof(int64_t),
    EVENT_WIDTH = sizeof(lmd_trace_event) / sizeof(int64_t)
};
static_assert(sizeof(lmd_trace_step) == 12 * sizeof(int64_t), "a row of int64_t");
static_assert(sizeof(lmd_trace_event) == 5 * sizeof(int64_t), "a row of int64_t");

void lmd_trace_init(lmd_trace *self) {
    *self = (lmd_trace){.running = false};
    pthread_mutex_init(&self->lock, NULL);
}

void lmd_trace_clear(lmd_trace *self) {
    lmd_trace_log_clear(&self->log);
    pthread_mutex_destroy(&self->lock);
}

static lmd_status ring_init(lmd_trace_ring *self, int64_t capacity, int32_t width,
                            lmd_err *err) {
    *self = (lmd_trace_ring){.capacity = capacity, .width = width};
    self->values = lmd_calloc((size_t)capacity * (size_t)width, sizeof *self->values);
    if (self->values) return LMD_OK;
    return lmd_no_memory(err, "a trace of %lld records", (long long)capacity);
}

static void ring_add(lmd_trace_ring *self, const void *record) {
    memcpy(self->values + self->n_added++ % self->capacity * self->width, record,
           (size_t)self->width * sizeof *self->values);
}

static lmd_status start(lmd_trace_log *log, int64_t max_steps, lmd_err *err) {
    LMD_TRY(ring_init(&log->steps, max_steps, STEP_WIDTH, err));
    LMD_TRY(ring_init(&log->events, max_steps * LMD_TRACE_EVENTS_PER_STEP, EVENT_WIDTH, err));
    log->start = lmd_now_ns();
    return LMD_OK;
}

lmd_status lmd_trace_start(lmd_trace *self, int64_t max_steps, lmd_err *err) {
    lmd_trace_log log = {0};
    if (max_steps < 1 || max_steps > LMD_TRACE_MAX_STEPS)
        return lmd_fail(err, LMD_INVALID, "max_steps must be 1 to %d, not %lld",
                        LMD_TRACE_MAX_STEPS, (long long)max_steps);
    lmd_status status = start(&log, max_steps, err);
    if (status == LMD_OK) {
        pthread_mutex_lock(&self->lock);
        if (atomic_load(&self->running)) {
            status = lmd_fail(err, LMD_INVALID, "a trace runs already: end it first");
        } else {
            self->log = log;
            log = (lmd_trace_log){0};
            atomic_store(&self->running, true);
        }
        pthread_mutex_unlock(&self->lock);
    }
    lmd_trace_log_clear(&log);
    return status;
}

lmd_status lmd_trace_stop(lmd_trace *self, lmd_trace_log *out, lmd_err *err) {
    pthread_mutex_lock(&self->lock);
    const bool running = atomic_exchange(&self->running, false);
    if (running) {
        *out = self->log;
        out->end = lmd_now_ns();
        self->log = (lmd_trace_log){0};
    }
    pthread_mutex_unlock(&self->lock);
    return running ? LMD_OK : lmd_fail(err, LMD_INVALID, "no trace runs");
}

void lmd_trace_resume(lmd_trace *self, lmd_trace_log *log) {
    pthread_mutex_lock(&self->lock);
    if (!atomic_load(&self->running)) {
        self->log = *log;
        *log = (lmd_trace_log){0};
        atomic_store(&self->running, true);
    }
    pthread_mutex_unlock(&self->lock);
    lmd_trace_log_clear(log);
}

void lmd_trace_log_clear(lmd_trace_log *self) {
    lmd_free(self->steps.values);
    lmd_free(self->events.values);
    *self = (lmd_trace_log){0};
}

static void add(lmd_trace *self, lmd_trace_ring *ring, const void *record) {
    if (!atomic_load_explicit(&self->running, memory_order_relaxed)) return;
    pthread_mutex_lock(&self->lock);
    if (atomic_load(&self->running)) ring_add(ring, record);
    pthread_mutex_unlock(&self->lock);
}

void lmd_trace_add_step(lmd_trace *self, const lmd_trace_step *record) {
    add(self, &self->log.steps, record);
}

void lmd_trace_add_event(lmd_trace *self, const lmd_trace_event *record) {
    add(self, &self->log.events, record);
}
