/* The CUDA backend: the table of operations, and opening a device.
 * Owns: which kernels a device gets. Must not know: model names, engines. */
#ifndef LMD_CUDA_CUDA_BACKEND_H
#define LMD_CUDA_CUDA_BACKEND_H

#include "backend/device_library.h"

extern const lmd_backend_ops lmd_cuda_backend_ops;

/* As lmd_device_library's. */
lmd_status lmd_cuda_count(int32_t *out, lmd_err *err);
lmd_status lmd_cuda_info(int32_t device_idx, lmd_device_info *out, lmd_err *err);
lmd_status lmd_cuda_open(int32_t device_idx, const lmd_backend_config *config,
                         lmd_backend **out, lmd_err *err);

#endif
