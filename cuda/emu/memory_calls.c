/* Memory of the emulated device as the program asks for it: allocations, copies and fills, and
 * which of them wait. Must not know: where memory lies, how work runs. */
#define _GNU_SOURCE
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- allocations ---- */

cudaError_t cudaMemGetInfo(size_t *n_free, size_t *n_total) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!n_free || !n_total) return emu_leave(cudaErrorInvalidValue);
    emu_memory_info(n_free, n_total);
    return emu_leave(cudaSuccess);
}

cudaError_t cudaMalloc(void **devPtr, size_t size) {
    const cudaError_t error = emu_enter(__func__, EMU_UNSAFE);
    if (error != cudaSuccess) return error;
    if (!devPtr) return emu_leave(cudaErrorInvalidValue);
    void *memory = NULL;
    if (size > 0) {
        memory = emu_allocate(size);
        if (!memory) return emu_leave(cudaErrorMemoryAllocation);
    }
    *devPtr = memory;
    return emu_leave(cudaSuccess);
}

/* Says what is wrong with freeing [begin, + n_bytes) while work that uses it is enqueued. */
static bool is_in_flight(const char *call, const void *memory, uintptr_t begin,
                         size_t n_bytes) {
    const char *user = emu_find_user(begin, begin + n_bytes);
    if (user) fprintf(stderr, "emu: %s of %p, which %s in flight uses\n", call, memory, user);
    return user != NULL;
}

static cudaError_t free_device(void *memory) {
    const uintptr_t begin = (uintptr_t)memory;
    uintptr_t view;
    size_t n_bytes;
    if (!emu_find_allocation(memory, &view, &n_bytes) ||
        view != begin + (uintptr_t)emu_alias_delta()) {
        fprintf(stderr, "emu: cudaFree of %p, which is not allocated, or was freed\n", memory);
        return cudaErrorInvalidValue;
    }
    if (is_in_flight("cudaFree", memory, begin, n_bytes)) return cudaErrorInvalidValue;
    bool was_overrun = false;
    emu_release(memory, &was_overrun);
    if (was_overrun)
        emu_break(cudaErrorIllegalAddress, "bytes beside an allocation were written");
    return cudaSuccess;
}

cudaError_t cudaFree(void *devPtr) {
    const cudaError_t error = emu_enter(__func__, EMU_UNSAFE | EMU_CLEANS);
    if (error != cudaSuccess) return error;
    return emu_leave(devPtr ? free_device(devPtr) : cudaSuccess);
}

static cudaError_t allocate_host(const char *call, void **out, size_t size, unsigned flags) {
    const cudaError_t error = emu_enter(call, EMU_UNSAFE);
    if (error != cudaSuccess) return error;
    const unsigned known =
        cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
    if (!out || (flags & ~known)) return emu_leave(cudaErrorInvalidValue);
    void *memory = size > 0 ? emu_pin(size) : NULL;
    if (size > 0 && !memory) return emu_leave(cudaErrorMemoryAllocation);
    *out = memory;
    return emu_leave(cudaSuccess);
}

cudaError_t cudaHostAlloc(void **pHost, size_t size, unsigned int flags) {
    return allocate_host(__func__, pHost, size, flags);
}

cudaError_t cudaMallocHost(void **ptr, size_t size) {
    return allocate_host(__func__, ptr, size, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *ptr) {
    const cudaError_t error = emu_enter(__func__, EMU_UNSAFE | EMU_CLEANS);
    if (error != cudaSuccess) return error;
    if (!ptr) return emu_leave(cudaSuccess);
    uintptr_t begin;
    size_t n_bytes;
    if (!emu_find_pinned(ptr, &begin, &n_bytes) || begin != (uintptr_t)ptr) {
        fprintf(stderr, "emu: cudaFreeHost of %p, which is not pinned, or was freed\n", ptr);
        return emu_leave(cudaErrorInvalidValue);
    }
    if (is_in_flight("cudaFreeHost", ptr, begin, n_bytes))
        return emu_leave(cudaErrorInvalidValue);
    emu_unpin(ptr);
    return emu_leave(cudaSuccess);
}

/* ---- copies ---- */

/* Says whether the two places are what the direction of a copy promises. */
static bool direction_is_right(enum cudaMemcpyKind kind, emu_place to, emu_place from) {
    const bool to_device = to == EMU_ON_DEVICE, from_device = from == EMU_ON_DEVICE;
    switch (kind) {
    case cudaMemcpyHostToHost: return !to_device && !from_device;
    case cudaMemcpyHostToDevice: return to_device && !from_device;
    case cudaMemcpyDeviceToHost: return !to_device && from_device;
    case cudaMemcpyDeviceToDevice: return to_device && from_device;
    case cudaMemcpyDefault: return true;
    }
    return false;
}

/* A copy as it was asked for. */
typedef struct request {
    void *to;
    const void *from;
    size_t n_bytes;
    enum cudaMemcpyKind kind;
    bool is_async; /* cudaMemcpyAsync */
} request;

/* Says whether the host waits for a copy: those within the device are asynchronous even without
 * a stream; of cudaMemcpyAsync those to pageable memory and within the host are not. */
static bool must_wait(const request *r, emu_place to, emu_place from) {
    const bool to_device = to == EMU_ON_DEVICE, from_device = from == EMU_ON_DEVICE;
    if (to_device && from_device) return false;
    if (!r->is_async) return true;
    return to == EMU_PAGEABLE || (!to_device && !from_device);
}

/* Enqueues a copy, and waits for it where CUDA does. */
static cudaError_t copy(struct CUstream_st *stream, const request *r) {
    if ((unsigned)r->kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
    if (r->n_bytes == 0) return cudaSuccess;
    const emu_place to = emu_place_of(r->to, r->n_bytes),
                    from = emu_place_of(r->from, r->n_bytes);
    if (to == EMU_NOWHERE || from == EMU_NOWHERE || !direction_is_right(r->kind, to, from))
        return cudaErrorInvalidValue;
    if (stream->capture && (to == EMU_PAGEABLE || from == EMU_PAGEABLE))
        return emu_spoil_capture(stream, cudaErrorStreamCaptureUnsupported);
    /* An asynchronous copy has read pageable memory when it returns. */
    const bool stages = r->is_async && from == EMU_PAGEABLE && to == EMU_ON_DEVICE;
    uint8_t *staged = stages ? malloc(r->n_bytes) : NULL;
    if (stages && !staged) return cudaErrorMemoryAllocation;
    if (stages) memcpy(staged, r->from, r->n_bytes);
    emu_op *op = emu_new_op(EMU_COPY);
    op->to = r->to;
    op->from = stages ? staged : r->from;
    op->n_bytes = r->n_bytes;
    op->staged = staged;
    op->to_place = to;
    op->from_place = from;
    const bool waits = !stream->capture && must_wait(r, to, from);
    const cudaError_t error = emu_submit(stream, op);
    if (error == cudaSuccess && waits) emu_drain(stream);
    return error;
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t count, enum cudaMemcpyKind kind) {
    cudaError_t error = emu_enter(__func__, EMU_UNSAFE);
    if (error != cudaSuccess) return error;
    struct CUstream_st *stream = emu_find_stream(NULL, &error);
    if (!stream) return emu_leave(error);
    return emu_leave(copy(stream, &(request){dst, src, count, kind, false}));
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t count, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    struct CUstream_st *self = emu_find_stream(stream, &error);
    if (!self) return emu_leave(error);
    return emu_leave(copy(self, &(request){dst, src, count, kind, true}));
}

/* ---- fills ---- */

/* Enqueues a fill; one of the host's memory is waited for where the call has no stream. */
static cudaError_t fill(struct CUstream_st *stream, void *to, int value, size_t n_bytes,
                        bool is_async) {
    if (n_bytes == 0) return cudaSuccess;
    const emu_place place = emu_place_of(to, n_bytes);
    if (place != EMU_ON_DEVICE && place != EMU_PINNED) return cudaErrorInvalidValue;
    emu_op *op = emu_new_op(EMU_FILL);
    op->to = to;
    op->to_place = place;
    op->value = value;
    op->n_bytes = n_bytes;
    const cudaError_t error = emu_submit(stream, op);
    if (error == cudaSuccess && !is_async && place == EMU_PINNED) emu_drain(stream);
    return error;
}

cudaError_t cudaMemset(void *devPtr, int value, size_t count) {
    cudaError_t error = emu_enter(__func__, EMU_UNSAFE);
    if (error != cudaSuccess) return error;
    struct CUstream_st *stream = emu_find_stream(NULL, &error);
    if (!stream) return emu_leave(error);
    return emu_leave(fill(stream, devPtr, value, count, false));
}

cudaError_t cudaMemsetAsync(void *devPtr, int value, size_t count, cudaStream_t stream) {
    cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    struct CUstream_st *self = emu_find_stream(stream, &error);
    if (!self) return emu_leave(error);
    return emu_leave(fill(self, devPtr, value, count, true));
}
