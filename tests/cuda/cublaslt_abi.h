/* The part of cuBLASLt's binary interface that fake_cublaslt.c has: types, numbers, prototypes,
 * as NVIDIA's documentation and public bindings give them. Written apart from the product's own
 * declarations, so that a slip in one of them shows. */
#ifndef TESTS_CUDA_CUBLASLT_ABI_H
#define TESTS_CUDA_CUBLASLT_ABI_H

#include <cuda_runtime_api.h>
#include <library_types.h>
#include <stdint.h>

typedef int32_t cublas_status;
enum {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_NOT_SUPPORTED = 15
};

enum { CUBLAS_COMPUTE_32F = 68 };                                   /* cublasComputeType_t */
enum { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUBLAS_OP_C = 2 };         /* cublasOperation_t */
enum { CUBLASLT_ORDER_COL = 0, CUBLASLT_ORDER_ROW = 1 };            /* cublasLtOrder_t */
enum { CUBLASLT_POINTER_MODE_HOST = 0 };                            /* cublasLtPointerMode_t */
enum { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 }; /* cublasLtEpilogue_t */

/* cublasLtMatmulDescAttributes_t; all of 4 bytes */
enum {
    CUBLASLT_MATMUL_DESC_COMPUTE_TYPE = 0,
    CUBLASLT_MATMUL_DESC_SCALE_TYPE = 1,
    CUBLASLT_MATMUL_DESC_POINTER_MODE = 2,
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_TRANSC = 5,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7
};

/* cublasLtMatrixLayoutAttribute_t, with the bytes of each */
enum {
    CUBLASLT_MATRIX_LAYOUT_TYPE = 0,                /* 4 */
    CUBLASLT_MATRIX_LAYOUT_ORDER = 1,               /* 4 */
    CUBLASLT_MATRIX_LAYOUT_ROWS = 2,                /* 8 */
    CUBLASLT_MATRIX_LAYOUT_COLS = 3,                /* 8 */
    CUBLASLT_MATRIX_LAYOUT_LD = 4,                  /* 8 */
    CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5,         /* 4 */
    CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6 /* 8 */
};

/* cublasLtMatmulPreferenceAttributes_t, with the bytes of each */
enum {
    CUBLASLT_MATMUL_PREF_SEARCH_MODE = 0,           /* 4 */
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,   /* 8 */
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3, /* 4 */
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5, /* 4 */
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6, /* 4 */
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7, /* 4 */
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8  /* 4 */
};

typedef struct cublaslt_context *cublaslt_handle;
typedef struct cublaslt_matmul_desc *cublaslt_desc;
typedef struct cublaslt_matrix_layout *cublaslt_layout;
typedef struct cublaslt_matmul_preference *cublaslt_preference;

typedef struct cublaslt_algo {
    uint64_t data[8];
} cublaslt_algo;

typedef struct cublaslt_heuristic_result {
    cublaslt_algo algo;
    size_t workspace_bytes;
    cublas_status state;
    float n_waves;
    int reserved[4];
} cublaslt_heuristic_result;

_Static_assert(sizeof(cublaslt_heuristic_result) == 96, "as the real one on 64-bit machines");

size_t cublasLtGetVersion(void);
cublas_status cublasLtCreate(cublaslt_handle *handle);
cublas_status cublasLtDestroy(cublaslt_handle handle);
cublas_status cublasLtMatmulDescCreate(cublaslt_desc *desc, int compute_type, int scale_type);
cublas_status cublasLtMatmulDescDestroy(cublaslt_desc desc);
cublas_status cublasLtMatmulDescSetAttribute(cublaslt_desc desc, int attribute,
                                             const void *value, size_t n_bytes);
cublas_status cublasLtMatrixLayoutCreate(cublaslt_layout *layout, int type, uint64_t n_rows,
                                         uint64_t n_cols, int64_t ld);
cublas_status cublasLtMatrixLayoutDestroy(cublaslt_layout layout);
cublas_status cublasLtMatrixLayoutSetAttribute(cublaslt_layout layout, int attribute,
                                               const void *value, size_t n_bytes);
cublas_status cublasLtMatmulPreferenceCreate(cublaslt_preference *preference);
cublas_status cublasLtMatmulPreferenceDestroy(cublaslt_preference preference);
cublas_status cublasLtMatmulPreferenceSetAttribute(cublaslt_preference preference,
                                                   int attribute, const void *value,
                                                   size_t n_bytes);
cublas_status cublasLtMatmulAlgoGetHeuristic(cublaslt_handle handle, cublaslt_desc desc,
                                             cublaslt_layout a, cublaslt_layout b,
                                             cublaslt_layout c, cublaslt_layout d,
                                             cublaslt_preference preference, int n_wanted,
                                             cublaslt_heuristic_result *results, int *n_found);
cublas_status cublasLtMatmul(cublaslt_handle handle, cublaslt_desc desc, const void *alpha,
                             const void *a, cublaslt_layout a_layout, const void *b,
                             cublaslt_layout b_layout, const void *beta, const void *c,
                             cublaslt_layout c_layout, void *d, cublaslt_layout d_layout,
                             const cublaslt_algo *algo, void *workspace, size_t workspace_bytes,
                             cudaStream_t stream);

#endif
