/* The table of the row "sm80": kernels for compute capability 8.0 and later.
 * Must not know: how any of them works. The queue's thread. */
#include "cuda_kernels.h"

static bool serves_head_dim(int32_t head_dim) {
    return head_dim == 64 || head_dim == 128 || head_dim == 256;
}

static cudaError_t prepare(void) {
    cudaError_t error = lmd_sm80_reorder_prepare();
    if (error == cudaSuccess) error = lmd_sm80_linear_prepare();
    if (error == cudaSuccess) error = lmd_sm80_attention_prepare();
    if (error == cudaSuccess) error = lmd_sm80_sample_prepare();
    return error;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* The three follow each other on a stream, so that they share the scratch. */
static size_t scratch_bytes(const lmd_cuda_limits *limits) {
    return larger(lmd_sm80_linear_scratch(limits),
                  larger(lmd_sm80_attention_scratch(limits), lmd_sm80_sample_scratch(limits)));
}

const lmd_cuda_kernels lmd_cuda_sm80 = {
    .name = "sm80",
    .min_arch = 80,
    .on_host = false,
    .serves_head_dim = serves_head_dim,
    .prepare = prepare,
    .scratch_bytes = scratch_bytes,
    .begin = lmd_sm80_begin,
    .embed = lmd_sm80_embed,
    .norm = lmd_sm80_norm,
    .reorder = lmd_sm80_reorder,
    .linear = lmd_sm80_linear,
    .write_kv = lmd_sm80_write_kv,
    .attention = lmd_sm80_attention,
    .sample = lmd_sm80_sample,
};
