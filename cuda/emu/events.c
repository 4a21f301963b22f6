/* Events of the emulated device: marks in the work of streams, which the host or other streams
 * wait for. Must not know: what the work is. */
#define _GNU_SOURCE
#include "state.h"

#include <stdio.h>
#include <stdlib.h>

static const unsigned known_flags =
    cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess;

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!event || (flags & ~known_flags)) return emu_leave(cudaErrorInvalidValue);
    struct CUevent_st *self = calloc(1, sizeof *self);
    if (!self) return emu_leave(cudaErrorMemoryAllocation);
    self->flags = flags;
    emu_add_handle(&self->handle, EMU_EVENT);
    *event = self;
    return emu_leave(cudaSuccess);
}

void emu_destroy_event(struct CUevent_st *event) {
    emu_release_mark(event->mark);
    emu_remove_handle(&event->handle);
    free(event);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    const cudaError_t error = emu_enter(__func__, EMU_CLEANS);
    if (error != cudaSuccess) return error;
    if (!emu_is_live(event, EMU_EVENT)) return emu_leave(cudaErrorInvalidResourceHandle);
    emu_destroy_event(event);
    return emu_leave(cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!emu_is_live(event, EMU_EVENT)) return emu_leave(cudaErrorInvalidResourceHandle);
    struct CUstream_st *self = emu_find_stream(stream, &error);
    if (!self) return emu_leave(error);
    if (self->capture && self->capture_invalid)
        return emu_leave(cudaErrorStreamCaptureInvalidated);
    emu_mark *mark = NULL;
    if (!self->capture) {
        error = emu_order_with_legacy(self);
        if (error != cudaSuccess) return emu_leave(error);
        mark = emu_new_mark();
        emu_append(self, NULL, NULL, mark);
    }
    emu_release_mark(event->mark);
    event->mark = mark;
    event->capture = self->capture;
    return emu_leave(cudaSuccess);
}

/* In a capture the pieces of work stay in order, so that an event of the same capture has
 * nothing to add; captures that spread over several streams are not emulated. */
static cudaError_t wait_in_capture(struct CUstream_st *stream, const struct CUevent_st *event) {
    if (stream->capture_invalid) return cudaErrorStreamCaptureInvalidated;
    if (event->capture == stream->capture) return cudaSuccess;
    return emu_spoil_capture(stream, cudaErrorStreamCaptureIsolation);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags) {
    cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!emu_is_live(event, EMU_EVENT)) return emu_leave(cudaErrorInvalidResourceHandle);
    if (flags != cudaEventWaitDefault) return emu_leave(cudaErrorInvalidValue);
    struct CUstream_st *self = emu_find_stream(stream, &error);
    if (!self) return emu_leave(error);
    if (self->capture) return emu_leave(wait_in_capture(self, event));
    if (event->capture) {
        fprintf(stderr, "emu: a capture over several streams is not emulated\n");
        return emu_leave(cudaErrorNotSupported);
    }
    error = emu_order_with_legacy(self);
    if (error == cudaSuccess && event->mark && !event->mark->done)
        emu_append(self, event->mark, NULL, NULL);
    return emu_leave(error);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    const cudaError_t error = emu_enter(__func__, EMU_UNSAFE);
    if (error != cudaSuccess) return error;
    if (!emu_is_live(event, EMU_EVENT)) return emu_leave(cudaErrorInvalidResourceHandle);
    if (event->capture) return emu_leave(cudaErrorCapturedEvent);
    const bool done = !event->mark || event->mark->done;
    return emu_leave(done ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    const cudaError_t error = emu_enter(__func__, EMU_UNSAFE);
    if (error != cudaSuccess) return error;
    if (!emu_is_live(event, EMU_EVENT)) return emu_leave(cudaErrorInvalidResourceHandle);
    if (event->capture) return emu_leave(cudaErrorCapturedEvent);
    if (event->mark) emu_wait_for_mark(event->mark);
    return emu_leave(cudaSuccess);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!ms) return emu_leave(cudaErrorInvalidValue);
    if (!emu_is_live(start, EMU_EVENT) || !emu_is_live(end, EMU_EVENT) ||
        ((start->flags | end->flags) & cudaEventDisableTiming) || !start->mark || !end->mark)
        return emu_leave(cudaErrorInvalidResourceHandle);
    if (!start->mark->done || !end->mark->done) return emu_leave(cudaErrorNotReady);
    *ms = (float)((double)(end->mark->done_at - start->mark->done_at) * 1e-6);
    return emu_leave(cudaSuccess);
}
