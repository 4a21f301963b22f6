/* Weights on a device: their upload, and the memory that they share.
 * Owns: one allocation for all matrices of a model, chunks for vectors, and the pinned buffers
 * through which tiles travel. Must not know: plans, operations. One thread at a time. */
#ifndef LMD_CUDA_CUDA_WEIGHT_H
#define LMD_CUDA_CUDA_WEIGHT_H

#include "base/threads.h"
#include "cuda_device.h"

typedef struct lmd_cuda_segment {
    lmd_cuda_matrix matrix;
    int32_t first_row; /* of the whole weight */
} lmd_cuda_segment;

struct lmd_weight {
    int32_t n_rows, n_cols, n_segments; /* a vector has none */
    lmd_cuda_segment segments[LMD_MAX_WEIGHT_PARTS];
    const int32_t *order; /* [n_cols] on the device, as lmd_weight_order says; or NULL */
    float *vector;        /* [n_cols] on the device */
};

enum { LMD_CUDA_STAGES = 2 }; /* tiles are packed into one while the other is copied */

typedef struct lmd_cuda_weights {
    const lmd_cuda_device *device;
    lmd_threads *threads; /* that pack; not owned */
    cudaStream_t stream;
    uint8_t *matrices; /* of matrices_room bytes */
    size_t matrices_len, matrices_room;
    size_t float_bytes;             /* of matrices_len, those of halves */
    struct lmd_cuda_chunk *vectors; /* list */
    uint8_t *stages[LMD_CUDA_STAGES];
    size_t stage_bytes; /* of each; grows to the widest tile */
    cudaEvent_t copied[LMD_CUDA_STAGES];
} lmd_cuda_weights;

lmd_status lmd_cuda_weights_init(lmd_cuda_weights *self, const lmd_cuda_device *device,
                                 lmd_threads *threads, lmd_err *err);
void lmd_cuda_weights_clear(lmd_cuda_weights *self);

/* Bytes that upload takes of what reserve made room for. */
lmd_status lmd_cuda_weight_size(const lmd_weight_source *src, size_t *out, lmd_err *err);
lmd_status lmd_cuda_weights_reserve(lmd_cuda_weights *self, size_t n_bytes, lmd_err *err);
/* Uploads a matrix; blank: of made-up values. */
lmd_status lmd_cuda_weights_upload(lmd_cuda_weights *self, const lmd_weight_source *src,
                                   bool blank, lmd_weight **out, lmd_err *err);
lmd_status lmd_cuda_weights_upload_vector(lmd_cuda_weights *self, const float *values,
                                          int32_t n, lmd_weight **out, lmd_err *err);

#endif
