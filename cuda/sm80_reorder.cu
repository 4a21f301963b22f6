/* reorder of the row "sm80".
 * Owns: this kernel, and its launcher at the end. Must not know: layers. Launchers: the queue's
 * thread. */
#include "cuda_kernels.h"
#include "dev.h"

enum { THREADS = 256 };

/* Blocks: [rows]. A row lies in shared memory while its columns change places. */
LMD_KERNEL(THREADS) reorder(const lmd_cuda_reorder_args args) {
    LMD_DYNAMIC_SMEM(smem);
    const uint16_t *row = (const uint16_t *)smem;
    uint16_t *x = args.x + (int64_t)blockIdx.x * args.x_stride;
    const int32_t thread = (int32_t)threadIdx.x;
    for (int32_t c = thread * 8; c < args.n_cols; c += THREADS * 8)
        store_smem16(smem + c * 2, *(const uint4 *)(x + c));
    __syncthreads(); /* the whole row is there */
    for (int32_t c = thread * 2; c < args.n_cols; c += THREADS * 2) {
        const int2 from = *(const int2 *)(args.order + c);
        *(uint32_t *)(x + c) = row[from.x] | (uint32_t)row[from.y] << 16;
    }
}

/* ---- launchers ---- */

cudaError_t lmd_sm80_reorder_prepare(void) {
    return cudaFuncSetAttribute((const void *)reorder,
                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                LMD_REORDER_COLS * (int)sizeof(uint16_t));
}

void lmd_sm80_reorder(const lmd_cuda_reorder_args *args, lmd_cuda_queue *queue) {
    if (args->n_rows == 0) return;
    LMD_LAUNCH(queue, reorder, dim3((unsigned)args->n_rows), THREADS,
               (size_t)args->n_cols * sizeof *args->x, *args);
}
