/* cuBLAS, for float weights that meet many rows: opened at run time, and never needed.
 * Owns: the library's handle and its choice of algorithm for each shape. Must not know: models,
 * epilogues that are not a sum. Multiplying is for one thread, the engine's. */
#ifndef LMD_CUDA_CUDA_BLAS_H
#define LMD_CUDA_CUDA_BLAS_H

#include "cuda_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lmd_cuda_blas lmd_cuda_blas;

/* Opens cublasLt: the file that LMDEPLOY_C_CUBLASLT names, the wheel beside this library, or
 * the system's. NULL where there is none, with the reason in `why` (of n bytes). */
lmd_cuda_blas *lmd_cuda_blas_open(char *why, size_t n);
void lmd_cuda_blas_close(lmd_cuda_blas *self);

/* out[r, i] = scale * sum over k of x[r, k] * weight[i, k] (+ out[r, i] where `adds`). Halves
 * in; halves or floats out. */
typedef struct lmd_cuda_blas_args {
    const uint16_t *weight; /* [n_out, n_in] halves */
    const uint16_t *x;      /* [n_rows, x_stride] halves */
    void *out;              /* [n_rows, out_stride] */
    int32_t n_out, n_in, n_rows, x_stride, out_stride;
    bool out_is_float, adds;
    float scale;
    void *workspace; /* of workspace_bytes */
    size_t workspace_bytes;
} lmd_cuda_blas_args;

/* Enqueues a product. False: cuBLAS does not serve it (alignment, no algorithm), and nothing
 * was enqueued. */
bool lmd_cuda_blas_multiply(lmd_cuda_blas *self, const lmd_cuda_blas_args *args,
                            lmd_cuda_queue *queue);

#ifdef __cplusplus
}
#endif

#endif
