/* The table of bugs.h, and how each kernel of bugs_kernels.h is launched. */
#include "bugs_kernels.h"

/* Kernel, blocks, threads, bytes of dynamic shared memory, the report, is_fault. */
#define BUGS(X)                                                                                \
    X(no_barrier, 1, 64, 0, "race: read after write", false)                                   \
    X(no_barrier_before_reuse, 1, 64, 0, "race: ", false)                                      \
    X(no_barrier_in_tree, 1, 128, 0, "race: ", false)                                          \
    X(no_barrier_after_one, 1, 64, 0, "race: ", false)                                         \
    X(no_atomic, 1, 64, 0, "race: ", false)                                                    \
    X(read_beside_atomic, 1, 64, 0, "race: ", false)                                           \
    X(no_syncwarp, 1, 32, 0, "race: ", false)                                                  \
    X(shuffle_for_syncwarp, 1, 32, 0, "race: read after write", false)                         \
    X(syncwarp_of_halves, 1, 32, 0, "race: read after write", false)                           \
    X(syncwarp_for_syncthreads, 1, 64, 0, "race: read after write", false)                     \
    X(divergent_barrier, 1, 64, 0, "divergent barrier", true)                                  \
    X(barrier_against_shuffle, 1, 64, 0, "divergent barrier", true)                            \
    X(divergent_shuffle, 1, 32, 0, "divergent warp", true)                                     \
    X(exited_lane, 1, 32, 0, "exited lane in a mask", true)                                    \
    X(half_a_warp, 1, 48, 0, "exited lane in a mask", true)                                    \
    X(mask_without_lane, 1, 32, 0, "mask without its lane", true)                              \
    X(shuffle_from_outside, 1, 32, 0, "shuffle from outside its mask", true)                   \
    X(read_behind_array, 1, 64, 0, "out of bounds", false)                                     \
    X(write_behind_array, 1, 64, 0, "out of bounds", false)                                    \
    X(write_before_array, 1, 64, 0, "out of bounds", false)                                    \
    X(load16_behind_array, 1, 64, 0, "out of bounds", false)                                   \
    X(write_behind_dynamic_smem, 1, 64, 256, "out of bounds", false)                           \
    X(read_behind_dynamic_smem, 1, 64, 256, "out of bounds", false)                            \
    X(write_before_static_smem, 1, 64, 0, "not all of one __shared__ variable", false)         \
    X(misaligned_load16, 1, 32, 0, "misaligned address", true)                                 \
    X(misaligned_store_smem16, 1, 32, 1024, "misaligned address", true)                        \
    X(misaligned_cp_async, 1, 32, 512, "misaligned address", true)                             \
    X(misaligned_ldmatrix, 1, 32, 4096, "misaligned address", true)                            \
    X(misaligned_pointer, 1, 32, 0, "misaligned address", true)                                \
    X(shared_as_global, 1, 32, 512, "wrong memory", false)                                     \
    X(unwritten_global, 1, 32, 0, "uninitialised read", false)                                 \
    X(unwritten_shared, 1, 64, 0, "uninitialised read", false)                                 \
    X(left_in_shared, 2, 32, 0, "uninitialised read", false)                                   \
    X(blocks_write_same, 2, 32, 0, "race: write after write", false)                           \
    X(block_reads_other, 2, 32, 0, "race: ", false)                                            \
    X(block_overwrites_input, 2, 32, 0, "race: ", false)                                       \
    X(wait_group_off_by_one, 1, 32, 0, "read of a copy that nobody waited for", false)         \
    X(stage_reused_too_early, 1, 64, 0, "", false)                                             \
    X(copies_of_others, 1, 64, 0, "", false)                                                   \
    X(copy_never_committed, 1, 32, 0, "read of a copy that nobody waited for", false)          \
    X(store_under_copy, 1, 32, 0, "write to the destination of a copy", false)                 \
    X(expects_too_few, 1, 64, 0, "read of a copy that nobody waited for", false)               \
    X(expects_too_many, 1, 64, 0, "deadlock", true)                                            \
    X(wrong_phase, 1, 64, 0, "", false)                                                        \
    X(bulk_not_waited_for, 1, 64, 0, "read of a copy that nobody waited for", false)           \
    X(mbarrier_not_fenced, 1, 64, 0, "no fence_proxy_async", true)                             \
    X(bulk_stage_reused, 1, 64, 0, "", false)                                                  \
    X(phase_without_end, 1, 32, 0, "deadlock", true)                                           \
    X(mbarrier_overwritten, 1, 32, 0, "overwritten mbarrier", true)                            \
    X(mbarrier_without_init, 1, 32, 0, "mbarrier without init", true)                          \
    X(arrives_too_often, 1, 32, 0, "too many arrivals", true)                                  \
    X(full_and_empty, 1, 64, 0, "", false)                                                     \
    X(ldmatrix_conflict, 1, 32, 4096, NULL, false)                                             \
    X(column_of_floats, 1, 32, 0, NULL, false)                                                 \
    X(column_of_16_bytes, 1, 32, 8192, NULL, false)                                            \
    X(strided_loads, 1, 32, 0, NULL, false)                                                    \
    X(strided_stores, 1, 32, 0, NULL, false)

/* Launches kernel<true> or kernel<false>. */
#define LAUNCH_EITHER(kernel, n_blocks, n_threads, smem_bytes, ...)                            \
    do {                                                                                       \
        if (is_buggy)                                                                          \
            LMD_LAUNCH(queue, (kernel<true>), dim3(n_blocks), n_threads, smem_bytes,           \
                       __VA_ARGS__);                                                           \
        else                                                                                   \
            LMD_LAUNCH(queue, (kernel<false>), dim3(n_blocks), n_threads, smem_bytes,          \
                       __VA_ARGS__);                                                           \
    } while (0)

#define RUN(kernel, n_blocks, n_threads, smem_bytes, report, is_fault)                         \
    static void run_##kernel(lmd_cuda_queue *queue, bool is_buggy, float *in, float *out) {    \
        LAUNCH_EITHER(kernel, n_blocks, n_threads, smem_bytes, in, out);                       \
    }
BUGS(RUN)

/* ---- those that need something else of the host ---- */

static void run_blocks_share_word(lmd_cuda_queue *queue, bool is_buggy, float *in, float *out) {
    LAUNCH_EITHER(blocks_share_word, 2, 32, 0, in, (uint8_t *)out);
}

static void run_use_after_free(lmd_cuda_queue *queue, bool is_buggy, float *in, float *out) {
    void *freed;
    cudaMalloc(&freed, 4096);
    cudaMemset(freed, 0, 4096);
    cudaDeviceSynchronize();
    cudaFree(freed);
    LAUNCH_EITHER(use_after_free, 1, 32, 0, in, (const float *)freed, out);
}

static void run_host_pointer(lmd_cuda_queue *queue, bool is_buggy, float *in, float *out) {
    static float host[32];
    LAUNCH_EITHER(host_pointer, 1, 32, 0, in, (const float *)host, out);
}

static void run_hidden_pointer(lmd_cuda_queue *queue, bool is_buggy, float *in, float *out) {
    void *table;
    cudaMalloc(&table, sizeof in);
    cudaMemcpy(table, &in, sizeof in, cudaMemcpyHostToDevice);
    LAUNCH_EITHER(hidden_pointer, 1, 32, 0, in, (const float *const *)table, out);
    cudaStreamSynchronize(queue->stream);
    cudaFree(table);
}

static void run_host_reads_device(lmd_cuda_queue *queue, bool is_buggy, float *in, float *out) {
    float x;
    (void)queue, (void)out;
    if (is_buggy)
        x = *(volatile float *)in;
    else
        cudaMemcpy(&x, in, sizeof x, cudaMemcpyDeviceToHost);
}

/* ---- the table ---- */

#define ROW(kernel, n_blocks, n_threads, smem_bytes, report, is_fault)                         \
    {#kernel, report, is_fault, run_##kernel},

const bug bugs[] = {
    BUGS(ROW) /* each row ends with a comma */
    {"blocks_share_word", "race: write after write", false, run_blocks_share_word},
    {"use_after_free", "use after free", false, run_use_after_free},
    {"host_pointer", "host pointer", false, run_host_pointer},
    {"hidden_pointer", "hidden device pointer", false, run_hidden_pointer},
    {"host_reads_device", "the host touched device memory", false, run_host_reads_device},
};
const int n_bugs = sizeof bugs / sizeof *bugs;
