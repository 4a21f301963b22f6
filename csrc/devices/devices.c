/* Devices: see devices.h. */
#include "devices/devices.h"

#include <stdlib.h>
#include <string.h>

#include "cpu/cpu_backend.h"
#include "devices/cuda_door.h"
#ifdef LMD_FAKE_DEVICE
#include "fake_device.h"
#endif

typedef enum device_kind { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA } device_kind;

typedef struct device_name {
    device_kind kind;
    int32_t idx; /* of a GPU */
} device_name;

/* Reads "cuda" or "cuda:" and a number. */
static bool read_cuda(const char *name, int32_t *idx) {
    if (strncmp(name, "cuda", 4) != 0) return false;
    const char *rest = name + 4;
    *idx = 0;
    if (*rest == '\0') return true;
    const size_t n_digits = *rest == ':' ? strspn(rest + 1, "0123456789") : 0;
    if (n_digits < 1 || n_digits > 3 || rest[1 + n_digits] != '\0') return false;
    *idx = (int32_t)strtol(rest + 1, NULL, 10);
    return true;
}

static lmd_status read_name(const char *name, device_name *out, lmd_err *err) {
    *out = (device_name){DEVICE_CUDA, 0};
    if (read_cuda(name, &out->idx)) return LMD_OK;
    out->kind = strcmp(name, "cpu") == 0 ? DEVICE_CPU : DEVICE_AUTO;
    if (out->kind == DEVICE_CPU || strcmp(name, "auto") == 0) return LMD_OK;
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

static lmd_status open_cuda(int32_t idx, const lmd_backend_config *config, lmd_backend **out,
                            lmd_err *err) {
    const lmd_device_library *library;
    LMD_TRY(lmd_cuda_door_open(&library, err));
    return library->open(idx, config, out, err);
}

static lmd_status explain(const char *device, lmd_status status, lmd_err *err) {
    return lmd_err_prefix(err, status, "device \"%.40s\" cannot be used", device);
}

lmd_status lmd_backend_open(const char *device, const lmd_backend_config *config,
                            lmd_backend **out, lmd_err *err) {
    device_name name;
    LMD_TRY(read_name(device, &name, err));
    if (name.kind == DEVICE_CPU) return open_cpu(config, out, err);
    const lmd_status status = open_cuda(name.idx, config, out, err);
    if (status == LMD_OK) return LMD_OK;
    return name.kind == DEVICE_AUTO ? open_cpu(config, out, err) : explain(device, status, err);
}

lmd_status lmd_backend_ops_of(const char *device, const lmd_backend_ops **out, lmd_err *err) {
    device_name name;
    const lmd_device_library *library;
    int32_t n;
    LMD_TRY(read_name(device, &name, err));
    *out = &lmd_cpu_backend_ops;
    if (name.kind == DEVICE_CPU) return LMD_OK;
    lmd_status status = lmd_cuda_door_open(&library, err);
    if (status == LMD_OK && name.kind == DEVICE_AUTO) status = library->count(&n, err);
    if (status == LMD_OK) *out = library->ops;
    return status == LMD_OK || name.kind == DEVICE_AUTO ? LMD_OK : explain(device, status, err);
}

lmd_status lmd_gpu_count(int32_t *out, lmd_err *err) {
    const lmd_device_library *library;
    LMD_TRY(lmd_cuda_door_open(&library, err));
    return library->count(out, err);
}

lmd_status lmd_gpu_info(int32_t idx, lmd_device_info *out, lmd_err *err) {
    const lmd_device_library *library;
    LMD_TRY(lmd_cuda_door_open(&library, err));
    return library->info(idx, out, err);
}
