/* Files beside this shared object: see own_path.h. */
#define _GNU_SOURCE
#include "base/own_path.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

bool lmd_path_beside_us(char out[LMD_PATH_CAP], const char *relative) {
    static const char here = 0;
    Dl_info info;
    if (!dladdr(&here, &info) || !info.dli_fname) return false;
    const char *slash = strrchr(info.dli_fname, '/');
    const char *folder = slash ? info.dli_fname : ".";
    const int folder_len = slash ? (int)(slash - folder) : 1;
    const int n = snprintf(out, LMD_PATH_CAP, "%.*s/%s", folder_len, folder, relative);
    return n > 0 && n < LMD_PATH_CAP;
}
