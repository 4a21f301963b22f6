/* The table of the row "ref", and how its host functions get their arguments: see ref.h.
 * Must not know: what any of them computes. The queue's thread. */
#include "ref.h"

#include <string.h>

void lmd_ref_enqueue(lmd_cuda_queue *queue, void (*run)(void *args), const void *args,
                     size_t n_bytes, const char *name) {
    const size_t room = (n_bytes + 7) / 8 * 8; /* so that the next copy is aligned too */
    uint8_t *copy = queue->args + queue->args_len;
    if (room > queue->args_room - queue->args_len) {
        lmd_cuda_note(queue, cudaErrorMemoryAllocation, name);
        return;
    }
    memcpy(copy, args, n_bytes);
    queue->args_len += room;
    lmd_cuda_note(queue, cudaLaunchHostFunc(queue->stream, run, copy), name);
}

static bool serves_head_dim(int32_t head_dim) {
    return head_dim > 0 && head_dim % 8 == 0 && head_dim <= 256;
}

static cudaError_t prepare(void) { return cudaSuccess; }

static size_t scratch_bytes(const lmd_cuda_limits *limits) {
    (void)limits;
    return 0;
}

const lmd_cuda_kernels lmd_cuda_ref = {
    .name = "ref",
    .min_arch = 0,
    .on_host = true,
    .serves_head_dim = serves_head_dim,
    .prepare = prepare,
    .scratch_bytes = scratch_bytes,
    .begin = lmd_ref_begin,
    .embed = lmd_ref_embed,
    .norm = lmd_ref_norm,
    .reorder = lmd_ref_reorder,
    .linear = lmd_ref_linear,
    .write_kv = lmd_ref_write_kv,
    .attention = lmd_ref_attention,
    .sample = lmd_ref_sample,
};
