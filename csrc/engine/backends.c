/* The registry of backends: see backends.h. */
#include "engine/backends.h"

#include <string.h>

#include "cpu/cpu_backend.h"

lmd_status lmd_backend_open(const char *device, const lmd_backend_config *config,
                            lmd_backend **out, lmd_err *err) {
    if (strcmp(device, "cpu") == 0) return lmd_cpu_backend_open(config, out, err);
    return lmd_fail(err, LMD_UNSUPPORTED,
                    "device \"%.40s\" is not in this build; it holds: cpu", device);
}
