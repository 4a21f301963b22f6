/* The door of a backend that is a shared library of its own.
 * Owns: the one symbol that such a library exports, and how both sides see that they were built
 * from the same seam. The library has its own copies of base, quant and io. Must not know: any
 * device. C for C++ too. */
#ifndef LMD_BACKEND_DEVICE_LIBRARY_H
#define LMD_BACKEND_DEVICE_LIBRARY_H

#include "backend/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a struct or a function of the seam changes. */
enum { LMD_DEVICE_LIBRARY_ABI = 3 };

enum { LMD_DEVICE_NAME_LEN = 256 };

/* What a device is, for a user to read. */
typedef struct lmd_device_info {
    char name[LMD_DEVICE_NAME_LEN];    /* "NVIDIA H200" */
    char kernels[LMD_DEVICE_NAME_LEN]; /* the family in use: "sm80" */
    int32_t arch;                      /* compute capability, 90 for 9.0 */
    int32_t driver_version;            /* of CUDA, 13000 for 13.0 */
    size_t free_bytes, total_bytes;
} lmd_device_info;

typedef struct lmd_device_library {
    int32_t abi;
    size_t ops_bytes, plan_bytes, workspace_config_bytes; /* of the structs of the seam */
    const lmd_backend_ops *ops;
    /* How many devices can be used. LMD_UNSUPPORTED says why there is none. */
    lmd_status (*count)(int32_t *out, lmd_err *err);
    lmd_status (*info)(int32_t device_idx, lmd_device_info *out, lmd_err *err);
    lmd_status (*open)(int32_t device_idx, const lmd_backend_config *config, lmd_backend **out,
                       lmd_err *err);
} lmd_device_library;

#define LMD_DEVICE_LIBRARY_SYMBOL "lmd_device_library_get"
typedef const lmd_device_library *lmd_device_library_fn(void);

#ifdef __cplusplus
}
#endif

#endif
