/* Devices: from a name to an open backend.
 * Knows every backend; they know nothing of one another, and model and engine none of them. The
 * names: "cpu"; "cuda" and "cuda:1" (the second GPU); "auto" (the first GPU, or the CPU where
 * no GPU can be used). Any thread. */
#ifndef LMD_DEVICES_DEVICES_H
#define LMD_DEVICES_DEVICES_H

#include "backend/backend.h"
#include "backend/device_library.h"

/* Opens the backend of a device. LMD_INVALID: the name is none of the above. LMD_UNSUPPORTED
 * says why it cannot be used. */
lmd_status lmd_backend_open(const char *device, const lmd_backend_config *config,
                            lmd_backend **out, lmd_err *err);

/* A device's operations, for what needs no open backend: name, kv_block_bytes. Likewise. */
lmd_status lmd_backend_ops_of(const char *device, const lmd_backend_ops **out, lmd_err *err);

/* How many GPUs can be used. LMD_UNSUPPORTED says why there is none. */
lmd_status lmd_gpu_count(int32_t *out, lmd_err *err);
/* What GPU number idx is. */
lmd_status lmd_gpu_info(int32_t idx, lmd_device_info *out, lmd_err *err);

#endif
