/* Streams of the emulated device: each has a thread that does its work late and in order. Also
 * what work is, and the marks by which one waits for it. Must not know: what captures hold. */
#define _GNU_SOURCE
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "simt.h"

/* One kernel at a time: taken without emu.lock. */
static pthread_mutex_t kernel_lock = PTHREAD_MUTEX_INITIALIZER;

static void *must(void *memory) {
    if (memory) return memory;
    fprintf(stderr, "emu: the host has no memory left\n");
    abort();
}

/* ---- marks and work ---- */

emu_mark *emu_new_mark(void) {
    emu_mark *mark = must(calloc(1, sizeof *mark));
    mark->n_holders = 1;
    return mark;
}

void emu_release_mark(emu_mark *mark) {
    if (mark && --mark->n_holders == 0) free(mark);
}

static emu_mark *hold_mark(emu_mark *mark) {
    if (mark) mark->n_holders++;
    return mark;
}

emu_op *emu_new_op(emu_op_kind kind) {
    emu_op *op = must(calloc(1, sizeof *op));
    op->kind = kind;
    op->n_holders = 1;
    return op;
}

void emu_release_op(emu_op *op) {
    if (!op || --op->n_holders > 0) return;
    if (op->kind == EMU_LAUNCH && op->job.drop) op->job.drop(op->job.arg);
    free(op->staged);
    free(op);
}

static void copy_bytes(const emu_op *op) {
    uint8_t *to = emu_host_view(op->to);
    memmove(to, emu_host_view(op->from), op->n_bytes);
    if (to != op->to) emu_note_write(to, op->n_bytes);
}

static void fill_bytes(const emu_op *op) {
    uint8_t *to = emu_host_view(op->to);
    memset(to, op->value, op->n_bytes);
    if (to != op->to) emu_note_write(to, op->n_bytes);
}

/* Waits up to 0.2 ms, now and then 2 ms, as a busy device does. */
static void be_late(const emu_op *op, uint32_t random) {
    if (op->kind == EMU_COPY && op->from_place == EMU_ON_DEVICE &&
        op->to_place != EMU_ON_DEVICE)
        memset(op->to, 0xff, op->n_bytes);
    const long us = random % 16 == 0 ? 2000 : (long)(random >> 8) % 200;
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

/* Says whether the memory of a copy or a fill is still there. */
static bool memory_is_there(const emu_op *op) {
    if (op->kind != EMU_COPY && op->kind != EMU_FILL) return true;
    if (emu_place_of(op->to, op->n_bytes) != op->to_place) return false;
    return op->kind == EMU_FILL || emu_place_of(op->from, op->n_bytes) == op->from_place;
}

/* Does a piece of work; lets go of the lock meanwhile. */
static void run_op(const emu_op *op) {
    if (emu.sticky != cudaSuccess) return;
    const cudaError_t error = emu_fault("run");
    if (error != cudaSuccess) {
        emu_break(error, "a fault on demand");
        return;
    }
    if (!memory_is_there(op)) {
        emu_break(cudaErrorIllegalAddress, "a copy or a fill of memory that was freed");
        return;
    }
    emu.random = emu.random * 1664525u + 1013904223u;
    const uint32_t random = emu.random >> 8;
    const bool late = emu.late;
    pthread_mutex_unlock(&emu.lock);
    if (late) be_late(op, random);
    switch (op->kind) {
    case EMU_COPY: copy_bytes(op); break;
    case EMU_FILL: fill_bytes(op); break;
    case EMU_CALL: op->call(op->call_arg); break;
    case EMU_LAUNCH:
        pthread_mutex_lock(&kernel_lock);
        op->job.run(op->job.arg);
        pthread_mutex_unlock(&kernel_lock);
        break;
    }
    pthread_mutex_lock(&emu.lock);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

/* The thread of a stream. */
static void *work(void *arg) {
    struct CUstream_st *self = arg;
    emu_on_worker = true;
    pthread_mutex_lock(&emu.lock);
    while (self->first || !self->quit) {
        emu_item *item = self->first;
        if (!item || (item->wait && !item->wait->done)) {
            pthread_cond_wait(&emu.changed, &emu.lock);
            continue;
        }
        if (item->op) run_op(item->op);
        if (item->mark) {
            item->mark->done_at = now_ns();
            item->mark->done = true;
        }
        self->first = item->next;
        if (!self->first) self->last = NULL;
        emu_release_mark(item->wait);
        emu_release_op(item->op);
        emu_release_mark(item->mark);
        free(item);
        pthread_cond_broadcast(&emu.changed);
    }
    pthread_mutex_unlock(&emu.lock);
    return NULL;
}

void emu_append(struct CUstream_st *stream, emu_mark *wait, emu_op *op, emu_mark *mark) {
    emu_item *item = must(calloc(1, sizeof *item));
    *item = (emu_item){.wait = hold_mark(wait), .op = op, .mark = hold_mark(mark)};
    if (op) op->n_holders++;
    if (stream->last)
        stream->last->next = item;
    else
        stream->first = item;
    stream->last = item;
    pthread_cond_broadcast(&emu.changed);
}

void emu_wait_for_mark(const emu_mark *mark) {
    while (!mark->done) pthread_cond_wait(&emu.changed, &emu.lock);
}

void emu_drain(struct CUstream_st *stream) {
    if (!stream->first) return;
    emu_mark *mark = emu_new_mark();
    emu_append(stream, NULL, NULL, mark);
    emu_wait_for_mark(mark);
    emu_release_mark(mark);
}

/* Lets all that is enqueued in `later` from now on wait for all that is in `earlier`. */
static void order(struct CUstream_st *earlier, struct CUstream_st *later) {
    if (!earlier->first) return;
    emu_mark *mark = emu_new_mark();
    emu_append(earlier, NULL, NULL, mark);
    emu_append(later, mark, NULL, NULL);
    emu_release_mark(mark);
}

cudaError_t emu_order_with_legacy(struct CUstream_st *stream) {
    if (stream != emu.legacy) {
        if (stream->blocking && emu.legacy) order(emu.legacy, stream);
        return cudaSuccess;
    }
    for (emu_handle *at = emu.handles; at; at = at->next) {
        struct CUstream_st *other = (struct CUstream_st *)at;
        if (at->kind != EMU_STREAM || other == stream || !other->blocking) continue;
        if (other->capture) return emu_spoil_capture(other, cudaErrorStreamCaptureImplicit);
        order(other, stream);
    }
    return cudaSuccess;
}

cudaError_t emu_submit(struct CUstream_st *stream, emu_op *op) {
    cudaError_t error = emu.sticky;
    if (stream->capture)
        error = emu_capture(stream, op);
    else if (error == cudaSuccess) {
        error = emu_order_with_legacy(stream);
        if (error == cudaSuccess) emu_append(stream, NULL, op, NULL);
    }
    emu_release_op(op);
    return error;
}

cudaError_t emu_enqueue(cudaStream_t stream, emu_job job) {
    cudaError_t error = emu_enter("launch", 0);
    if (error != cudaSuccess) {
        if (job.drop) job.drop(job.arg);
        return error;
    }
    struct CUstream_st *self = emu_find_stream(stream, &error);
    if (self) {
        emu_op *op = emu_new_op(EMU_LAUNCH);
        op->job = job;
        error = emu_submit(self, op);
    } else if (job.drop)
        job.drop(job.arg);
    return emu_leave(error);
}

void emu_job_wrote(const void *alias, size_t n_bytes) { emu_note_write(alias, n_bytes); }

/* Says whether the parameters of a launch have a pointer to memory of [begin, end), or to its
 * alias. */
static bool job_uses(const emu_job *job, uintptr_t begin, uintptr_t end) {
    const uintptr_t n_bytes = end - begin;
    const uintptr_t alias = (uintptr_t)emu_host_view((const void *)begin);
    for (size_t at = 0; job->params && at + sizeof(uintptr_t) <= job->params_len;
         at += sizeof(uint32_t)) {
        uintptr_t value;
        memcpy(&value, (const uint8_t *)job->params + at, sizeof value);
        if (value - begin < n_bytes || value - alias < n_bytes) return true;
    }
    return false;
}

static bool overlaps(const uint8_t *a, size_t n_bytes, uintptr_t begin, uintptr_t end) {
    return a && (uintptr_t)a < end && (uintptr_t)a + n_bytes > begin;
}

static const char *op_uses(const emu_op *op, uintptr_t begin, uintptr_t end) {
    switch (op->kind) {
    case EMU_LAUNCH: return job_uses(&op->job, begin, end) ? op->job.name : NULL;
    case EMU_FILL: return overlaps(op->to, op->n_bytes, begin, end) ? "a fill" : NULL;
    case EMU_COPY:
        return overlaps(op->to, op->n_bytes, begin, end) ||
                       overlaps(op->from, op->n_bytes, begin, end)
                   ? "a copy"
                   : NULL;
    case EMU_CALL: break;
    }
    return NULL;
}

const char *emu_find_user(uintptr_t begin, uintptr_t end) {
    for (const emu_handle *at = emu.handles; at; at = at->next) {
        if (at->kind != EMU_STREAM) continue;
        const struct CUstream_st *stream = (const struct CUstream_st *)at;
        for (const emu_item *item = stream->first; item; item = item->next) {
            const char *user = item->op ? op_uses(item->op, begin, end) : NULL;
            if (user) return user;
        }
    }
    return NULL;
}

/* ---- streams ---- */

static struct CUstream_st *new_stream(bool blocking) {
    struct CUstream_st *self = must(calloc(1, sizeof *self));
    self->blocking = blocking;
    if (pthread_create(&self->worker, NULL, work, self) != 0) {
        free(self);
        return NULL;
    }
    emu_add_handle(&self->handle, EMU_STREAM);
    return self;
}

struct CUstream_st *emu_find_stream(cudaStream_t stream, cudaError_t *error) {
    if (stream == NULL || stream == cudaStreamLegacy) {
        if (!emu.legacy) emu.legacy = new_stream(true);
        if (!emu.legacy) *error = cudaErrorMemoryAllocation;
        return emu.legacy;
    }
    if (emu_is_live(stream, EMU_STREAM) && !stream->quit) return stream;
    *error = cudaErrorInvalidResourceHandle;
    return NULL;
}

void emu_destroy_stream(struct CUstream_st *stream) {
    emu_destroy_graph(stream->capture);
    stream->capture = NULL;
    if (stream == emu.legacy) emu.legacy = NULL;
    stream->quit = true;
    pthread_cond_broadcast(&emu.changed);
    pthread_mutex_unlock(&emu.lock);
    pthread_join(stream->worker, NULL);
    pthread_mutex_lock(&emu.lock);
    emu_remove_handle(&stream->handle);
    free(stream);
}

/* The legacy stream is nobody's to destroy; its thread ends with the program. */
__attribute__((destructor)) static void stop_legacy_stream(void) {
    if (emu.pid != getpid() || emu_on_worker) return;
    pthread_mutex_lock(&emu.lock);
    if (emu.legacy) emu_destroy_stream(emu.legacy);
    pthread_mutex_unlock(&emu.lock);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *pStream, unsigned int flags) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!pStream || (flags & ~(unsigned)cudaStreamNonBlocking))
        return emu_leave(cudaErrorInvalidValue);
    struct CUstream_st *self = new_stream(!(flags & cudaStreamNonBlocking));
    if (self) *pStream = self;
    return emu_leave(self ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    const cudaError_t error = emu_enter(__func__, EMU_CLEANS);
    if (error != cudaSuccess) return error;
    if (!emu_is_live(stream, EMU_STREAM) || stream == emu.legacy || stream->quit)
        return emu_leave(cudaErrorInvalidResourceHandle);
    emu_destroy_stream(stream);
    return emu_leave(cudaSuccess);
}

/* Opens a call that asks how far a stream is. */
static struct CUstream_st *enter_to_wait(const char *call, cudaStream_t stream,
                                         cudaError_t *error) {
    *error = emu_enter(call, EMU_UNSAFE);
    if (*error != cudaSuccess) return NULL;
    struct CUstream_st *self = emu_find_stream(stream, error);
    /* A capture in relaxed mode is not found by emu_enter. */
    if (self && self->capture)
        *error = emu_spoil_capture(self, cudaErrorStreamCaptureUnsupported);
    if (*error == cudaSuccess) return self;
    emu_leave(*error);
    return NULL;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    cudaError_t error;
    struct CUstream_st *self = enter_to_wait(__func__, stream, &error);
    if (!self) return error;
    emu_drain(self);
    return emu_leave(cudaSuccess);
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    cudaError_t error;
    struct CUstream_st *self = enter_to_wait(__func__, stream, &error);
    if (!self) return error;
    return emu_leave(self->first ? cudaErrorNotReady : cudaSuccess);
}

cudaError_t cudaDeviceSynchronize(void) {
    const cudaError_t error = emu_enter(__func__, EMU_UNSAFE);
    if (error != cudaSuccess) return error;
    /* Marks first, then waits: while one waits, streams may go. */
    int n = 0, room = 0;
    emu_mark **marks = NULL;
    for (emu_handle *at = emu.handles; at; at = at->next) {
        struct CUstream_st *stream = (struct CUstream_st *)at;
        if (at->kind != EMU_STREAM || !stream->first) continue;
        if (n == room) marks = must(realloc(marks, (size_t)(room += 16) * sizeof *marks));
        marks[n] = emu_new_mark();
        emu_append(stream, NULL, NULL, marks[n++]);
    }
    for (int i = 0; i < n; i++) {
        emu_wait_for_mark(marks[i]);
        emu_release_mark(marks[i]);
    }
    free(marks);
    return emu_leave(cudaSuccess);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *userData) {
    cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!fn) return emu_leave(cudaErrorInvalidValue);
    struct CUstream_st *self = emu_find_stream(stream, &error);
    if (!self) return emu_leave(error);
    emu_op *op = emu_new_op(EMU_CALL);
    op->call = fn;
    op->call_arg = userData;
    return emu_leave(emu_submit(self, op));
}
