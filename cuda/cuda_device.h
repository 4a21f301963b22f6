/* A device and its memory, for the files of the host's side.
 * Owns: the number of the device, its facts, and how CUDA's errors become ours. Must not know:
 * weights, plans. Any thread: each function makes the device current for its caller. */
#ifndef LMD_CUDA_CUDA_DEVICE_H
#define LMD_CUDA_CUDA_DEVICE_H

#include <sys/types.h>

#include "backend/backend.h"
#include "cuda_kernels.h"

typedef struct lmd_cuda_device {
    int32_t idx, arch, n_sms;
    const lmd_cuda_kernels *kernels;
    struct lmd_cuda_blas *blas; /* NULL: not there, or not wanted */
    pid_t pid;                  /* who opened it: a forked child must not touch it */
} lmd_cuda_device;

enum { LMD_CUDA_ALIGN = 256 }; /* bytes; of everything that shares an allocation */

static inline size_t lmd_cuda_aligned(size_t n_bytes) {
    return (n_bytes + LMD_CUDA_ALIGN - 1) / LMD_CUDA_ALIGN * LMD_CUDA_ALIGN;
}

/* Fails with what was being done and CUDA's own words. LMD_NO_MEMORY, LMD_UNSUPPORTED (no
 * device, no driver), LMD_IO for everything else. */
lmd_status lmd_cuda_fail(cudaError_t error, const char *doing, lmd_err *err);

/* The same as an expression's statement. */
#define LMD_CUDA_TRY(call, doing, err)                                                         \
    do {                                                                                       \
        const cudaError_t lmd_cuda_error_ = (call);                                            \
        if (lmd_cuda_error_ != cudaSuccess) return lmd_cuda_fail(lmd_cuda_error_, doing, err); \
    } while (0)

/* Makes the device current for this thread. */
lmd_status lmd_cuda_enter(const lmd_cuda_device *self, lmd_err *err);
/* The same where there is nobody to tell; false in a forked child, which must not go on. */
bool lmd_cuda_enter_to_free(const lmd_cuda_device *self);

/* Memory that kernels work on: the device's; the host's, pinned, for kernels that are host
 * functions. `what` is for the message: "the KV cache". The caller frees it. */
lmd_status lmd_cuda_alloc(const lmd_cuda_device *self, size_t n_bytes, const char *what,
                          void **out, lmd_err *err);
void lmd_cuda_free(const lmd_cuda_device *self, void *ptr);

/* Pinned host memory, for copies. */
lmd_status lmd_cuda_alloc_pinned(const lmd_cuda_device *self, size_t n_bytes, void **out,
                                 lmd_err *err);
void lmd_cuda_free_pinned(const lmd_cuda_device *self, void *ptr);

/* Bytes of the device that are free, and all. */
lmd_status lmd_cuda_memory(const lmd_cuda_device *self, size_t *free_bytes, size_t *total_bytes,
                           lmd_err *err);

#endif
