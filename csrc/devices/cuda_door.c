/* Opening the CUDA library: see cuda_door.h. */
#include "devices/cuda_door.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/own_path.h"

static const char library_name[] = "liblmdeploy_cuda.so";

static lmd_status find_path(char out[LMD_PATH_CAP], lmd_err *err) {
    const char *named = getenv("LMDEPLOY_C_CUDA_LIBRARY");
    if (named && *named) {
        if (strlen(named) >= LMD_PATH_CAP)
            return lmd_fail(err, LMD_UNSUPPORTED, "LMDEPLOY_C_CUDA_LIBRARY is too long a path");
        strcpy(out, named);
        if (access(out, R_OK) == 0) return LMD_OK;
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "LMDEPLOY_C_CUDA_LIBRARY names \"%.300s\", which cannot be read", out);
    }
    if (lmd_path_beside_us(out, library_name) && access(out, R_OK) == 0) return LMD_OK;
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
    char path[LMD_PATH_CAP];
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
