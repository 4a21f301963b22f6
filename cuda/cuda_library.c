/* The one symbol that this shared library exports: see backend/device_library.h. */
#include "backend/device_library.h"
#include "cuda_backend.h"

__attribute__((visibility("default"))) lmd_device_library_fn lmd_device_library_get;

const lmd_device_library *lmd_device_library_get(void) {
    static const lmd_device_library library = {
        .abi = LMD_DEVICE_LIBRARY_ABI,
        .ops_bytes = sizeof(lmd_backend_ops),
        .plan_bytes = sizeof(lmd_plan),
        .workspace_config_bytes = sizeof(lmd_workspace_config),
        .ops = &lmd_cuda_backend_ops,
        .count = lmd_cuda_count,
        .info = lmd_cuda_info,
        .open = lmd_cuda_open,
    };
    return &library;
}
