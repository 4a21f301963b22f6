/* The registry of backends: from a device's name to an open backend.
 * It stands above the backends, because it knows them; they know nothing of each other. */
#ifndef LMD_ENGINE_BACKENDS_H
#define LMD_ENGINE_BACKENDS_H

#include "backend/backend.h"

/* Opens the backend of a device. LMD_UNSUPPORTED names what this build holds. */
lmd_status lmd_backend_open(const char *device, const lmd_backend_config *config,
                            lmd_backend **out, lmd_err *err);

/* A device's operations, for what needs no open backend: kv_block_bytes. Likewise. */
lmd_status lmd_backend_ops_of(const char *device, const lmd_backend_ops **out, lmd_err *err);

#endif
