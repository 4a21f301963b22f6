/* Devices: see devices.h. */
#include "devices/devices.h"

#include <string.h>

#include "cpu/cpu_backend.h"
#ifdef LMD_FAKE_DEVICE
#include "fake_device.h"
#endif

typedef enum device_kind { DEVICE_CPU, DEVICE_CUDA } device_kind;

/* Whether a name is "cuda" or "cuda:" and a number. */
static bool is_cuda(const char *name) {
    if (strncmp(name, "cuda", 4) != 0) return false;
    const char *rest = name + 4;
    if (*rest == '\0') return true;
    const size_t n_digits = *rest == ':' ? strspn(rest + 1, "0123456789") : 0;
    return n_digits >= 1 && n_digits <= 3 && rest[1 + n_digits] == '\0';
}

static lmd_status find_kind(const char *name, device_kind *out, lmd_err *err) {
    if (strcmp(name, "cpu") == 0 || strcmp(name, "auto") == 0) {
        *out = DEVICE_CPU;
        return LMD_OK;
    }
    if (is_cuda(name)) {
        *out = DEVICE_CUDA;
        return LMD_OK;
    }
    return lmd_fail(err, LMD_INVALID,
                    "device must be \"auto\", \"cpu\", \"cuda\" or \"cuda:N\", not \"%.40s\"",
                    name);
}

static lmd_status open_cpu(const lmd_backend_config *config, lmd_backend **out, lmd_err *err) {
#ifdef LMD_FAKE_DEVICE
    lmd_backend *cpu;
    LMD_TRY(lmd_cpu_backend_open(config, &cpu, err));
    return lmd_fake_device_open(cpu, out, err);
#else
    return lmd_cpu_backend_open(config, out, err);
#endif
}

static lmd_status not_in_this_build(const char *device, lmd_err *err) {
    return lmd_fail(err, LMD_UNSUPPORTED,
                    "device \"%.40s\" is not in this build; it has: cpu. Leave device at "
                    "\"auto\", or say \"cpu\"",
                    device);
}

lmd_status lmd_backend_open(const char *device, const lmd_backend_config *config,
                            lmd_backend **out, lmd_err *err) {
    device_kind kind;
    LMD_TRY(find_kind(device, &kind, err));
    return kind == DEVICE_CPU ? open_cpu(config, out, err) : not_in_this_build(device, err);
}

lmd_status lmd_backend_ops_of(const char *device, const lmd_backend_ops **out, lmd_err *err) {
    device_kind kind;
    LMD_TRY(find_kind(device, &kind, err));
    if (kind != DEVICE_CPU) return not_in_this_build(device, err);
    *out = &lmd_cpu_backend_ops;
    return LMD_OK;
}
