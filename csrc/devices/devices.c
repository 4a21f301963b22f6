/* Devices: see devices.h. */
#include "devices/devices.h"

#include <string.h>

#include "cpu/cpu_backend.h"

static lmd_status not_in_this_build(const char *device, lmd_err *err) {
    return lmd_fail(err, LMD_UNSUPPORTED,
                    "device \"%.40s\" is not in this build; it holds: cpu", device);
}

lmd_status lmd_backend_open(const char *device, const lmd_backend_config *config,
                            lmd_backend **out, lmd_err *err) {
    if (strcmp(device, "cpu") == 0) return lmd_cpu_backend_open(config, out, err);
    return not_in_this_build(device, err);
}

lmd_status lmd_backend_ops_of(const char *device, const lmd_backend_ops **out, lmd_err *err) {
    if (strcmp(device, "cpu") != 0) return not_in_this_build(device, err);
    *out = &lmd_cpu_backend_ops;
    return LMD_OK;
}
