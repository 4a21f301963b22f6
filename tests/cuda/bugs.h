/* Kernels with a bug each, and each with a twin without it, for the emulator's checker: the
 * table. Only for tests. */
#ifndef TESTS_CUDA_BUGS_H
#define TESTS_CUDA_BUGS_H

#include "cuda_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BUGS_FLOATS = 4096 }; /* of the input and of the output */

typedef struct bug {
    const char *name;
    /* What the report must say of the bug: "", anything, for it depends on the order of
     * threads; NULL: the counters must say it. */
    const char *report;
    bool is_fault; /* is found without EMU_CHECK=1, too */
    /* Launches the kernel, or its twin. in and out: on the device, all of in is written. */
    void (*run)(lmd_cuda_queue *queue, bool is_buggy, float *in, float *out);
} bug;

extern const bug bugs[];
extern const int n_bugs;

#ifdef __cplusplus
}
#endif

#endif
