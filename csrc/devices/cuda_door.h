/* Opening the CUDA library, a shared object of its own.
 * Owns: where it is looked for, and whether it fits this build. The library stays open once it
 * was found. Must not know: CUDA. Any thread. */
#ifndef LMD_DEVICES_CUDA_DOOR_H
#define LMD_DEVICES_CUDA_DOOR_H

#include "backend/device_library.h"

/* Finds the library: the file that LMDEPLOY_C_CUDA_LIBRARY names, or liblmdeploy_cuda.so beside
 * this module. LMD_UNSUPPORTED says what is missing and what to do. */
lmd_status lmd_cuda_door_open(const lmd_device_library **out, lmd_err *err);

#endif
