/* The emulator's CUDA runtime, seen from the part that runs kernels and from tests: the
 * functions of <cuda_runtime_api.h> have bodies here that need no GPU. Streams are threads, so
 * that work really is late; device memory is memory that the host cannot touch. Must not know:
 * kernels, fibers, the engine. Any thread, except where said. C11, and C++.
 *
 * Environment, read at the first call:
 *   EMU_MEMORY_MB=n   size of the device's memory; default 8192
 *   EMU_SMS=n         number of multiprocessors; default 8
 *   EMU_ARCH=75       compute capability 7.5; default 80
 *   EMU_DEVICES=0     there is no device
 *   EMU_DRIVER=old    there is a device, but its driver is too old for the runtime
 *   EMU_LATE=1        whatever is enqueued waits a little, at random, before it runs, and the
 *                     destination of a copy to the host is 0xff in the meantime
 *   EMU_FAIL=list     see emu_set_faults
 * Under valgrind EMU_MEMORY_MB must be small: eight times as many addresses are reserved,
 * twice. What is stricter than CUDA: memory that enqueued work uses cannot be freed, and the
 * state of any stream cannot be asked for while this thread captures. Not emulated: captures
 * over several streams, graphs within graphs, several devices. */
#ifndef CUDA_EMU_RUNTIME_H
#define CUDA_EMU_RUNTIME_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A library that stands for one of NVIDIA's finds these functions at run time. */
#pragma GCC visibility push(default)

/* ---- work ---- */

/* Something to run in a stream: a kernel. */
typedef struct emu_job {
    void (*run)(void *arg);  /* on a thread of the stream, once for each replay of a graph */
    void (*drop)(void *arg); /* once, after the last run; must not call the runtime; or NULL */
    void *arg;
    const char *name; /* a constant, for messages */
    /* The bytes of the parameters, which are searched for device pointers, so that cudaFree of
     * memory in use is found; they live as long as arg. NULL: unknown. */
    const void *params;
    size_t params_len;
} emu_job;

/* Enqueues a job, or captures it. It takes the job in any case, and an error is
 * cudaGetLastError's too. Of all jobs of all streams one runs at a time, as kernels may share
 * state; copies and host functions run beside it. */
cudaError_t emu_enqueue(cudaStream_t stream, emu_job job);

/* Says whether a block of so many threads, with so much shared memory asked for at the launch,
 * could be launched; if not, the error is cudaGetLastError's too. */
cudaError_t emu_check_launch(const void *function, int64_t n_threads, size_t smem_bytes);

/* Tells the checker of kernels that a job which is no kernel wrote memory, at its alias. */
void emu_job_wrote(const void *alias, size_t n_bytes);

/* Breaks the device, as an illegal address does: work that is enqueued is dropped, and every
 * later call returns the error. Prints what happened. From a job or from anywhere. */
void emu_raise(cudaError_t error, const char *what);

/* ---- memory ---- */

/* The addresses that cudaMalloc gives lie in [begin, end): the host cannot touch them. The same
 * memory can be read and written at address + emu_alias_delta(). False: there is no device. */
bool emu_device_range(uintptr_t *begin, uintptr_t *end);
ptrdiff_t emu_alias_delta(void);

/* Finds the allocation that an address, of the device or its alias, lies in. */
bool emu_find_allocation(const void *device_or_alias, uintptr_t *alias_begin, size_t *n_bytes);

/* Finds the pinned memory (cudaHostAlloc) that an address lies in: a kernel may touch it too.
 */
bool emu_find_pinned(const void *host, uintptr_t *begin, size_t *n_bytes);

/* ---- faults on demand ---- */

/* Makes calls fail: "N:CALL,..": the N-th call (from 1, counted from now on) of CALL returns an
 * error. CALL is a function of the API, or "launch" (emu_enqueue), or "run": the N-th piece of
 * work that a stream runs breaks the device instead. "N:CALL=700" chooses the error. Each fault
 * happens once. NULL or "": no faults. False: the text is not of this form. */
bool emu_set_faults(const char *text);
/* How many of the faults have not happened yet. */
int emu_faults_left(void);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
