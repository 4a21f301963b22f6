/* A device and its memory: see cuda_device.h. */
#include "cuda_device.h"

#include <unistd.h>

static lmd_status code_of(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation: return LMD_NO_MEMORY;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
    case cudaErrorNoKernelImageForDevice: return LMD_UNSUPPORTED;
    default: return LMD_IO;
    }
}

lmd_status lmd_cuda_fail(cudaError_t error, const char *doing, lmd_err *err) {
    return lmd_fail(err, code_of(error), "%s: CUDA says \"%s\" (%s)", doing,
                    cudaGetErrorString(error), cudaGetErrorName(error));
}

lmd_status lmd_cuda_enter(const lmd_cuda_device *self, lmd_err *err) {
    if (self->pid != getpid())
        return lmd_fail(
            err, LMD_CLOSED,
            "a CUDA device cannot be used in a forked process; load the model there");
    LMD_CUDA_TRY(cudaSetDevice(self->idx), "selecting the device", err);
    return LMD_OK;
}

bool lmd_cuda_enter_to_free(const lmd_cuda_device *self) {
    return self->pid == getpid() && cudaSetDevice(self->idx) == cudaSuccess;
}

lmd_status lmd_cuda_memory(const lmd_cuda_device *self, size_t *free_bytes, size_t *total_bytes,
                           lmd_err *err) {
    LMD_TRY(lmd_cuda_enter(self, err));
    LMD_CUDA_TRY(cudaMemGetInfo(free_bytes, total_bytes), "asking for the free memory", err);
    return LMD_OK;
}

static lmd_status fail_alloc(const lmd_cuda_device *self, cudaError_t error, size_t n_bytes,
                             const char *what, lmd_err *err) {
    size_t free_bytes, total_bytes;
    if (error != cudaErrorMemoryAllocation ||
        lmd_cuda_memory(self, &free_bytes, &total_bytes, NULL) != LMD_OK)
        return lmd_cuda_fail(error, "allocating memory", err);
    const double mib = 1.0 / (1 << 20);
    return lmd_fail(
        err, LMD_NO_MEMORY,
        "device cuda:%d has %.0f MiB free of %.0f MiB, and %.1f MiB are wanted for %s: "
        "lower cache_max_entry_count or session_len, or free the memory",
        (int)self->idx, (double)free_bytes * mib, (double)total_bytes * mib,
        (double)n_bytes * mib, what);
}

lmd_status lmd_cuda_alloc(const lmd_cuda_device *self, size_t n_bytes, const char *what,
                          void **out, lmd_err *err) {
    void *ptr = NULL;
    LMD_TRY(lmd_cuda_enter(self, err));
    const size_t n = n_bytes ? n_bytes : LMD_CUDA_ALIGN;
    const cudaError_t error = self->kernels->on_host
                                  ? cudaHostAlloc(&ptr, n, cudaHostAllocDefault)
                                  : cudaMalloc(&ptr, n);
    if (error != cudaSuccess) {
        (void)cudaGetLastError(); /* the failure has been told, and must not be told again */
        return fail_alloc(self, error, n_bytes, what, err);
    }
    *out = ptr;
    return LMD_OK;
}

void lmd_cuda_free(const lmd_cuda_device *self, void *ptr) {
    if (!ptr || !lmd_cuda_enter_to_free(self)) return;
    if (self->kernels->on_host)
        (void)cudaFreeHost(ptr);
    else
        (void)cudaFree(ptr);
}

lmd_status lmd_cuda_alloc_pinned(const lmd_cuda_device *self, size_t n_bytes, void **out,
                                 lmd_err *err) {
    void *ptr = NULL;
    LMD_TRY(lmd_cuda_enter(self, err));
    const cudaError_t error =
        cudaHostAlloc(&ptr, n_bytes ? n_bytes : LMD_CUDA_ALIGN, cudaHostAllocDefault);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return lmd_no_memory(err, "%zu bytes that are pinned for copies", n_bytes);
    }
    LMD_CUDA_TRY(error, "pinning host memory", err);
    *out = ptr;
    return LMD_OK;
}

void lmd_cuda_free_pinned(const lmd_cuda_device *self, void *ptr) {
    if (ptr && lmd_cuda_enter_to_free(self)) (void)cudaFreeHost(ptr);
}
