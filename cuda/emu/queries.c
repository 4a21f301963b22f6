/* What the emulated device says of itself and of its functions: attributes, limits, names of
 * errors. Must not know: streams, memory. */
#define _GNU_SOURCE
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WARP = 32,
    MAX_BLOCK_THREADS = 1024,
    DEFAULT_SMEM = 48 << 10, /* bytes of a block without opting in */
    RESERVED_SMEM = 1 << 10, /* bytes that each block costs beside its own */
    REGISTERS = 65536
};

/* What differs between compute capabilities, of those that matter to launches. */
typedef struct limits {
    int arch;
    int sm_threads, sm_blocks; /* most that are resident on a multiprocessor */
    int max_smem;              /* bytes of a block that opted in */
} limits;

/* Every newer device has room for at least 99 KiB, and kernels must do with that: so the
 * emulated ones have no more. */
static const limits table[] = {{75, 1024, 16, 64 << 10}, {80, 2048, 32, 99 << 10},
                               {86, 1536, 16, 99 << 10}, {89, 1536, 24, 99 << 10},
                               {90, 2048, 32, 99 << 10}, {100, 2048, 32, 99 << 10},
                               {120, 1536, 24, 99 << 10}};

/* What cudaFuncSetAttribute said of one function. */
typedef struct function_attributes {
    const void *address;
    int max_dynamic_smem;
} function_attributes;

static function_attributes *functions;
static int n_functions;

static const limits *device_limits(void) {
    const int n = (int)(sizeof table / sizeof *table);
    int i = 0;
    while (i + 1 < n && table[i + 1].arch <= emu.arch) i++;
    return &table[i];
}

/* ---- the device ---- */

cudaError_t cudaGetDeviceCount(int *count) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (count) *count = error == cudaSuccess ? 1 : 0;
    return error == cudaSuccess ? emu_leave(count ? cudaSuccess : cudaErrorInvalidValue)
                                : error;
}

cudaError_t cudaSetDevice(int device) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    return emu_leave(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int *device) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (device) *device = 0;
    return emu_leave(device ? cudaSuccess : cudaErrorInvalidValue);
}

static cudaError_t attribute(int *value, enum cudaDeviceAttr attr) {
    const limits *l = device_limits();
    switch (attr) {
    case cudaDevAttrComputeCapabilityMajor: *value = emu.arch / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = emu.arch % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = emu.n_sms; break;
    case cudaDevAttrWarpSize: *value = WARP; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = MAX_BLOCK_THREADS; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = l->sm_threads; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = l->sm_blocks; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = DEFAULT_SMEM; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = l->max_smem; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = l->max_smem + RESERVED_SMEM;
        break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = RESERVED_SMEM; break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = REGISTERS; break;
    case cudaDevAttrIntegrated:
    case cudaDevAttrPageableMemoryAccess: *value = 0; break;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels: *value = 1; break;
    case cudaDevAttrAsyncEngineCount: *value = 2; break;
    default:
        fprintf(stderr, "emu: attribute %d of the device is not emulated\n", (int)attr);
        return cudaErrorNotSupported;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (device != 0) return emu_leave(cudaErrorInvalidDevice);
    return emu_leave(value ? attribute(value, attr) : cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (device != 0) return emu_leave(cudaErrorInvalidDevice);
    if (!prop) return emu_leave(cudaErrorInvalidValue);
    const limits *l = device_limits();
    size_t n_free;
    *prop = (struct cudaDeviceProp){
        .name = "Emulated GPU",
        .sharedMemPerBlock = DEFAULT_SMEM,
        .regsPerBlock = REGISTERS,
        .warpSize = WARP,
        .maxThreadsPerBlock = MAX_BLOCK_THREADS,
        .maxThreadsDim = {1024, 1024, 64},
        .maxGridSize = {2147483647, 65535, 65535},
        .major = emu.arch / 10,
        .minor = emu.arch % 10,
        .multiProcessorCount = emu.n_sms,
        .canMapHostMemory = 1,
        .concurrentKernels = 1,
        .asyncEngineCount = 2,
        .unifiedAddressing = 1,
        .maxThreadsPerMultiProcessor = l->sm_threads,
        .sharedMemPerMultiprocessor = (size_t)l->max_smem + RESERVED_SMEM,
        .regsPerMultiprocessor = REGISTERS,
        .sharedMemPerBlockOptin = (size_t)l->max_smem,
        .maxBlocksPerMultiProcessor = l->sm_blocks,
        .reservedSharedMemPerBlock = RESERVED_SMEM,
    };
    emu_memory_info(&n_free, &prop->totalGlobalMem);
    return emu_leave(cudaSuccess);
}

/* Which versions are there can be asked where there is no device. */
cudaError_t cudaDriverGetVersion(int *version) {
    const char *driver = getenv("EMU_DRIVER");
    if (!version) return cudaErrorInvalidValue;
    *version = driver && strcmp(driver, "old") == 0 ? 12040 : CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    if (!version) return cudaErrorInvalidValue;
    *version = CUDART_VERSION;
    return cudaSuccess;
}

/* ---- functions ---- */

static int max_dynamic_smem(const void *address) {
    for (int i = 0; i < n_functions; i++)
        if (functions[i].address == address) return functions[i].max_dynamic_smem;
    return DEFAULT_SMEM;
}

static cudaError_t set_max_dynamic_smem(const void *address, int value) {
    if (value < 0 || value > device_limits()->max_smem) return cudaErrorInvalidValue;
    int i = 0;
    while (i < n_functions && functions[i].address != address) i++;
    if (i == n_functions) {
        function_attributes *more =
            realloc(functions, (size_t)(n_functions + 1) * sizeof *more);
        if (!more) return cudaErrorMemoryAllocation;
        functions = more;
        n_functions++;
    }
    functions[i] = (function_attributes){address, value};
    return cudaSuccess;
}

void emu_forget_functions(void) {
    free(functions);
    functions = NULL;
    n_functions = 0;
}

cudaError_t cudaFuncSetAttribute(const void *func, enum cudaFuncAttribute attr, int value) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!func) return emu_leave(cudaErrorInvalidDeviceFunction);
    if (attr == cudaFuncAttributeMaxDynamicSharedMemorySize)
        return emu_leave(set_max_dynamic_smem(func, value));
    const bool is_hint = attr == cudaFuncAttributePreferredSharedMemoryCarveout;
    return emu_leave(is_hint ? cudaSuccess : cudaErrorInvalidValue);
}

/* Registers and static shared memory of an emulated function are not known, and stay 0. */
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attr, const void *func) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!attr) return emu_leave(cudaErrorInvalidValue);
    if (!func) return emu_leave(cudaErrorInvalidDeviceFunction);
    *attr = (struct cudaFuncAttributes){.maxThreadsPerBlock = MAX_BLOCK_THREADS,
                                        .ptxVersion = emu.arch,
                                        .binaryVersion = emu.arch,
                                        .maxDynamicSharedSizeBytes = max_dynamic_smem(func)};
    return emu_leave(cudaSuccess);
}

static int least(int a, int b) { return a < b ? a : b; }

/* Counts what threads, blocks and dynamic shared memory allow; registers are not known. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *numBlocks, const void *func,
                                                          int blockSize,
                                                          size_t dynamicSMemSize) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!numBlocks || blockSize <= 0) return emu_leave(cudaErrorInvalidValue);
    if (!func) return emu_leave(cudaErrorInvalidDeviceFunction);
    const limits *l = device_limits();
    const int n_threads = (blockSize + WARP - 1) / WARP * WARP;
    int n = 0;
    if (blockSize <= MAX_BLOCK_THREADS && dynamicSMemSize <= (size_t)max_dynamic_smem(func)) {
        n = least(l->sm_blocks, l->sm_threads / n_threads);
        n = least(n, (l->max_smem + RESERVED_SMEM) / ((int)dynamicSMemSize + RESERVED_SMEM));
    }
    *numBlocks = n;
    return emu_leave(cudaSuccess);
}

cudaError_t emu_check_launch(const void *function, int64_t n_threads, size_t smem_bytes) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (n_threads < 1 || n_threads > MAX_BLOCK_THREADS)
        return emu_leave(cudaErrorInvalidConfiguration);
    const bool fits = smem_bytes <= (size_t)max_dynamic_smem(function);
    return emu_leave(fits ? cudaSuccess : cudaErrorInvalidValue);
}

/* ---- errors ---- */

typedef struct error_text {
    cudaError_t error;
    const char *name, *text;
} error_text;

/* The errors that the emulator gives, and those that faults on demand like to be. */
static const error_text error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
     "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction",
     "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle",
     "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotPermitted, "cudaErrorNotPermitted", "operation not permitted"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

static const error_text *find_text(cudaError_t error) {
    for (size_t i = 0; i < sizeof error_texts / sizeof *error_texts; i++)
        if (error_texts[i].error == error) return &error_texts[i];
    return NULL;
}

const char *cudaGetErrorName(cudaError_t error) {
    const error_text *text = find_text(error);
    return text ? text->name : "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error) {
    const error_text *text = find_text(error);
    return text ? text->text : "unrecognized error code";
}
