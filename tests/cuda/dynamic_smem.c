/* Prints the dynamic shared memory that each kernel may be launched with, as its row's
 * prepare() asks for it: the address of the kernel's host function in this program, and bytes.
 * For cuda/budget.py, which knows the addresses' names. The linker puts the functions with
 * __wrap_ in the place of the runtime's, so that no GPU is needed. One thread. */
#include "cuda_kernels.h"

#include <stdio.h>
#include <string.h>

cudaError_t __wrap_cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute,
                                        int value);
cudaError_t __wrap_cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *kernel);
cudaError_t __wrap_cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *out, const void *kernel,
                                                                 int n_threads, size_t smem);

cudaError_t __wrap_cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute,
                                        int value) {
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize)
        printf("%p %d\n", kernel, value);
    return cudaSuccess;
}

cudaError_t __wrap_cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *kernel) {
    (void)kernel;
    memset(out, 0, sizeof *out);
    return cudaSuccess;
}

cudaError_t __wrap_cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *out, const void *kernel,
                                                                 int n_threads, size_t smem) {
    (void)kernel, (void)n_threads, (void)smem;
    *out = 1;
    return cudaSuccess;
}

int main(void) { return lmd_cuda_sm80.prepare() != cudaSuccess; }
