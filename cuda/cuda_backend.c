/* The CUDA backend: see cuda_backend.h. */
#include "cuda_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/threads.h"
#include "cuda_blas.h"
#include "cuda_ops.h"
#include "cuda_stream.h"
#include "cuda_weight.h"
#include "cuda_workspace.h"

typedef struct cuda_backend {
    lmd_backend base;
    lmd_cuda_device device;
    lmd_threads *threads; /* that pack weights */
    lmd_cuda_weights weights;
    lmd_matrices matrices;
    bool looked_for_blas;
} cuda_backend;

static const lmd_cuda_device *device_of(const lmd_backend *self) {
    return &((const cuda_backend *)self)->device;
}

/* ---- devices ---- */

/* Says in one sentence why no device can be used. */
static lmd_status no_device(cudaError_t error, lmd_err *err) {
    int driver = 0, runtime = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (error == cudaErrorInsufficientDriver && driver > 0)
        return lmd_fail(
            err, LMD_UNSUPPORTED,
            "the NVIDIA driver serves CUDA %d.%d, and this build needs %d.%d: update "
            "the driver",
            driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (error == cudaErrorInsufficientDriver)
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "no NVIDIA driver is installed, or it is older than CUDA %d.%d",
                        runtime / 1000, runtime % 1000 / 10);
    if (error == cudaErrorNoDevice)
        return lmd_fail(err, LMD_UNSUPPORTED, "the NVIDIA driver sees no GPU");
    return lmd_cuda_fail(error, "looking for GPUs", err);
}

lmd_status lmd_cuda_count(int32_t *out, lmd_err *err) {
    int n = 0;
    const cudaError_t error = cudaGetDeviceCount(&n);
    (void)cudaGetLastError(); /* it was told, and must not come up later */
    if (error != cudaSuccess) return no_device(error, err);
    if (n == 0) return no_device(cudaErrorNoDevice, err);
    *out = n;
    return LMD_OK;
}

/* The row of kernels: the one that the environment names, or the best for the device. */
static lmd_status choose_kernels(int32_t device_idx, int32_t arch, const lmd_cuda_kernels **out,
                                 lmd_err *err) {
    const lmd_cuda_kernels *const rows[] = {&lmd_cuda_sm80, &lmd_cuda_ref};
    const char *wanted = getenv("LMDEPLOY_C_CUDA_KERNELS");
    if (arch < lmd_cuda_sm80.min_arch && !wanted)
        return lmd_fail(
            err, LMD_UNSUPPORTED,
            "device cuda:%d has compute capability %d.%d; 8.0 (Ampere) is the least "
            "that is served",
            (int)device_idx, (int)arch / 10, (int)arch % 10);
    *out = rows[0];
    for (size_t i = 0; wanted && i < sizeof rows / sizeof *rows; i++) {
        *out = rows[i];
        if (strcmp(wanted, rows[i]->name) == 0) return LMD_OK;
    }
    if (!wanted) return LMD_OK;
    return lmd_fail(err, LMD_INVALID,
                    "LMDEPLOY_C_CUDA_KERNELS must be \"sm80\" or \"ref\", not \"%.40s\"",
                    wanted);
}

static lmd_status read_device(int32_t device_idx, lmd_cuda_device *out, lmd_err *err) {
    int32_t n = 0;
    int major = 0, minor = 0, n_sms = 0;
    LMD_TRY(lmd_cuda_count(&n, err));
    if (device_idx < 0 || device_idx >= n)
        return lmd_fail(err, LMD_INVALID,
                        "there is no device cuda:%d; there are %d, from cuda:0",
                        (int)device_idx, (int)n);
    LMD_CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_idx),
                 "asking the device", err);
    LMD_CUDA_TRY(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_idx),
                 "asking the device", err);
    LMD_CUDA_TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device_idx),
                 "asking the device", err);
    *out = (lmd_cuda_device){
        .idx = device_idx, .arch = major * 10 + minor, .n_sms = n_sms, .pid = getpid()};
    return choose_kernels(device_idx, out->arch, &out->kernels, err);
}

lmd_status lmd_cuda_info(int32_t device_idx, lmd_device_info *out, lmd_err *err) {
    lmd_cuda_device device;
    struct cudaDeviceProp properties;
    int driver = 0;
    lmd_device_info info = {0};
    LMD_TRY(read_device(device_idx, &device, err));
    LMD_CUDA_TRY(cudaGetDeviceProperties(&properties, device_idx), "asking the device", err);
    LMD_CUDA_TRY(cudaDriverGetVersion(&driver), "asking the driver", err);
    LMD_TRY(lmd_cuda_memory(&device, &info.free_bytes, &info.total_bytes, err));
    snprintf(info.name, sizeof info.name, "%s", properties.name);
    snprintf(info.kernels, sizeof info.kernels, "%s", device.kernels->name);
    info.arch = device.arch;
    info.driver_version = driver;
    *out = info;
    return LMD_OK;
}

/* ---- facts ---- */

static lmd_status backend_memory(const lmd_backend *self, size_t *free_bytes,
                                 size_t *total_bytes, lmd_err *err) {
    return lmd_cuda_memory(device_of(self), free_bytes, total_bytes, err);
}

static lmd_status backend_weight_size(const lmd_backend *self, const lmd_weight_source *src,
                                      size_t *out, lmd_err *err) {
    (void)self;
    return lmd_cuda_weight_size(src, out, err);
}

static lmd_status backend_workspace_size(const lmd_backend *self,
                                         const lmd_workspace_config *config, size_t *out,
                                         lmd_err *err) {
    return lmd_cuda_workspace_size(device_of(self), config, out, err);
}

static size_t backend_buffer_bytes(const lmd_backend *self, const lmd_workspace_config *config,
                                   int32_t n_cols, lmd_buffer_role role) {
    (void)self;
    return lmd_cuda_buffer_bytes(config, n_cols, role);
}

static const char *backend_isa(const lmd_backend *self) {
    return device_of(self)->kernels->name;
}

static int32_t backend_n_threads(const lmd_backend *self) {
    return lmd_threads_count(((const cuda_backend *)self)->threads);
}

/* ---- weights ---- */

static lmd_status backend_reserve(lmd_backend *self, size_t n_bytes, lmd_err *err) {
    return lmd_cuda_weights_reserve(&((cuda_backend *)self)->weights, n_bytes, err);
}

static lmd_status backend_upload(lmd_backend *self, const lmd_weight_source *src,
                                 lmd_weight **out, lmd_err *err) {
    cuda_backend *cuda = (cuda_backend *)self;
    return lmd_cuda_weights_upload(&cuda->weights, src, cuda->matrices == LMD_MATRICES_BLANK,
                                   out, err);
}

static lmd_status backend_upload_vector(lmd_backend *self, const float *values, int32_t n,
                                        lmd_weight **out, lmd_err *err) {
    return lmd_cuda_weights_upload_vector(&((cuda_backend *)self)->weights, values, n, out,
                                          err);
}

/* The memory is the backend's, and goes with it. */
static void backend_weight_free(lmd_backend *self, lmd_weight *weight) {
    (void)self;
    lmd_free(weight);
}

static void backend_free(lmd_backend *self) {
    if (!self) return;
    cuda_backend *cuda = (cuda_backend *)self;
    if (cuda->device.blas && lmd_cuda_enter_to_free(&cuda->device))
        lmd_cuda_blas_close(cuda->device.blas);
    lmd_cuda_weights_clear(&cuda->weights);
    lmd_threads_free(cuda->threads);
    lmd_free(cuda);
}

/* ---- workspaces and steps ---- */

/* Opens cuBLAS, which takes a second, for models most of which are float matrices. */
static void look_for_blas(cuda_backend *self) {
    if (self->looked_for_blas || self->device.kernels->on_host) return;
    if (self->weights.float_bytes * 2 < self->weights.matrices_len) return;
    self->looked_for_blas = true;
    self->device.blas = lmd_cuda_blas_open(NULL, 0);
}

static lmd_status backend_workspace_new(lmd_backend *self, const lmd_workspace_config *config,
                                        lmd_workspace **out, lmd_err *err) {
    cuda_backend *cuda = (cuda_backend *)self;
    LMD_TRY(lmd_cuda_enter(&cuda->device, err));
    look_for_blas(cuda);
    return lmd_cuda_workspace_new(&cuda->device, config, out, err);
}

const lmd_backend_ops lmd_cuda_backend_ops = {
    .name = "cuda",
    .kv_layout = "cuda-lines-1",
    .runs_ahead = true,
    .defaults = {.max_batch_size = 256,
                 .max_prefill_token_num = 8192,
                 .step_seconds = 0.1,
                 .kv_fraction = 0.8,
                 .kv_max_bytes = 0},
    .memory = backend_memory,
    .weight_size = backend_weight_size,
    .kv_block_bytes = lmd_cuda_kv_block_bytes,
    .workspace_size = backend_workspace_size,
    .buffer_bytes = backend_buffer_bytes,
    .isa = backend_isa,
    .n_threads = backend_n_threads,
    .reserve = backend_reserve,
    .upload = backend_upload,
    .upload_vector = backend_upload_vector,
    .weight_free = backend_weight_free,
    .free = backend_free,
    .workspace_new = backend_workspace_new,
    .buffer_new = lmd_cuda_buffer_new,
    .workspace_free = lmd_cuda_workspace_free,
    .step_begin = lmd_cuda_stream_begin,
    .embed = lmd_cuda_embed,
    .add_norm = lmd_cuda_add_norm,
    .linear = lmd_cuda_linear,
    .attention = lmd_cuda_attention,
    .logits = lmd_cuda_logits,
    .sample = lmd_cuda_sample,
    .step_end = lmd_cuda_stream_end,
    .step_wait = lmd_cuda_stream_wait,
    .kv_export = lmd_cuda_kv_export,
    .kv_import = lmd_cuda_kv_import,
};

static lmd_status set_up(cuda_backend *self, int32_t device_idx,
                         const lmd_backend_config *config, lmd_err *err) {
    LMD_TRY(read_device(device_idx, &self->device, err));
    LMD_TRY(lmd_cuda_enter(&self->device, err));
    LMD_CUDA_TRY(self->device.kernels->prepare(), "loading the kernels", err);
    LMD_TRY(lmd_threads_new(config->n_threads, &self->threads, err));
    return lmd_cuda_weights_init(&self->weights, &self->device, self->threads, err);
}

lmd_status lmd_cuda_open(int32_t device_idx, const lmd_backend_config *config,
                         lmd_backend **out, lmd_err *err) {
    cuda_backend *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "the CUDA backend");
    self->base.ops = &lmd_cuda_backend_ops;
    self->matrices = config->matrices;
    const lmd_status status = set_up(self, device_idx, config, err);
    if (status != LMD_OK) {
        backend_free(&self->base);
        return status;
    }
    *out = &self->base;
    return LMD_OK;
}
