/* Opening the CUDA library: see cuda_door.h. */
#define _GNU_SOURCE
#include "devices/cuda_door.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_LEN = 4096 };

static const char library_name[] = "liblmdeploy_cuda.so";

/* The library's path beside this module; false where that is not known. */
static bool path_beside_us(char out[PATH_LEN]) {
    Dl_info info;
    if (!dladdr(library_name, &info) || !info.dli_fname) return false;
    const char *slash = strrchr(info.dli_fname, '/');
    const int dir_len = slash ? (int)(slash - info.dli_fname) : 1;
    const int n =
        snprintf(out, PATH_LEN, "%.*s/%s", dir_len, slash ? info.dli_fname : ".", library_name);
    return n > 0 && n < PATH_LEN;
}

static lmd_status find_path(char out[PATH_LEN], lmd_err *err) {
    const char *named = getenv("LMDEPLOY_C_CUDA_LIBRARY");
    if (named && *named) {
        if (strlen(named) >= PATH_LEN)
            return lmd_fail(err, LMD_UNSUPPORTED, "LMDEPLOY_C_CUDA_LIBRARY is too long a path");
        strcpy(out, named);
        if (access(out, R_OK) == 0) return LMD_OK;
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "LMDEPLOY_C_CUDA_LIBRARY names \"%.300s\", which cannot be read", out);
    }
    if (path_beside_us(out) && access(out, R_OK) == 0) return LMD_OK;
    return lmd_fail(
        err, LMD_UNSUPPORTED,
        "this installation has no CUDA library (%s): install with LMDEPLOY_C_CUDA=1, "
        "or run `make cuda`",
        library_name);
}

static bool fits(const lmd_device_library *library) {
    return library->abi == LMD_DEVICE_LIBRARY_ABI &&
           library->ops_bytes == sizeof(lmd_backend_ops) &&
           library->plan_bytes == sizeof(lmd_plan) &&
           library->workspace_config_bytes == sizeof(lmd_workspace_config);
}

lmd_status lmd_cuda_door_open(const lmd_device_library **out, lmd_err *err) {
    char path[PATH_LEN];
    LMD_TRY(find_path(path, err));
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* the same one each time */
    if (!handle)
        return lmd_fail(err, LMD_UNSUPPORTED, "the CUDA library cannot be opened: %.400s",
                        dlerror());
    lmd_device_library_fn *get;
    void *symbol = dlsym(handle, LMD_DEVICE_LIBRARY_SYMBOL);
    memcpy(&get, &symbol, sizeof get); /* ISO C has no cast from an object to a function */
    if (!get)
        return lmd_fail(err, LMD_UNSUPPORTED, "\"%.300s\" is no library of lmdeploy_c", path);
    const lmd_device_library *library = get();
    if (!fits(library))
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "the CUDA library has ABI %d, and this build wants %d: build both from "
                        "the same version (`make cuda`)",
                        (int)library->abi, LMD_DEVICE_LIBRARY_ABI);
    *out = library;
    return LMD_OK;
}
