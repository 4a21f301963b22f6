/* Devices: from a name to an open backend.
 * Knows every backend; they know nothing of one another, and model and engine none of them. The
 * names: "cpu", "auto" (the best device there is), "cuda" and "cuda:1" (the second GPU). Any
 * thread. */
#ifndef LMD_DEVICES_DEVICES_H
#define LMD_DEVICES_DEVICES_H

#include "backend/backend.h"

/* Opens the backend of a device. LMD_UNSUPPORTED names what this build holds. */
lmd_status lmd_backend_open(const char *device, const lmd_backend_config *config,
                            lmd_backend **out, lmd_err *err);

/* A device's operations, for what needs no open backend: kv_block_bytes. Likewise. */
lmd_status lmd_backend_ops_of(const char *device, const lmd_backend_ops **out, lmd_err *err);

#endif
