/* Kernels with a bug each, for bugs.cu alone. BUG says whether a kernel has its bug; the other
 * one, its twin, must be silent. Each is as small as its bug allows. */
#ifndef TESTS_CUDA_BUGS_KERNELS_H
#define TESTS_CUDA_BUGS_KERNELS_H

#include "bugs.h"

#include "dev.h"

/* ---- barriers that are missing or wrong ---- */

/* Neighbours read before the barrier. */
template <bool BUG> LMD_KERNEL(64) no_barrier(const float *in, float *out) {
    __shared__ float line[64];
    const int t = threadIdx.x;
    line[t] = in[t];
    if (!BUG) __syncthreads();
    out[t] = line[63 - t];
}

/* The buffer is filled again while slower threads still read it. */
template <bool BUG> LMD_KERNEL(64) no_barrier_before_reuse(const float *in, float *out) {
    __shared__ float line[64];
    const int t = threadIdx.x;
    for (int i = 0; i < 4; i++) {
        line[t] = in[i * 64 + t];
        __syncthreads();
        out[i * 64 + t] = line[63 - t];
        if (!BUG) __syncthreads();
    }
}

/* A tree of sums, without the barrier between its levels. */
template <bool BUG> LMD_KERNEL(128) no_barrier_in_tree(const float *in, float *out) {
    __shared__ float sums[128];
    const int t = threadIdx.x;
    sums[t] = in[t];
    __syncthreads();
    for (int n = 64; n > 0; n /= 2) {
        if (t < n) sums[t] += sums[t + n];
        if (!BUG) __syncthreads();
    }
    if (t == 0) out[0] = sums[0];
}

/* One thread writes a result for all. */
template <bool BUG> LMD_KERNEL(64) no_barrier_after_one(const float *in, float *out) {
    __shared__ float scale;
    if (threadIdx.x == 32) scale = in[0];
    if (!BUG) __syncthreads();
    out[threadIdx.x] = scale;
}

/* Two warps add to one number without an atomic. */
template <bool BUG> LMD_KERNEL(64) no_atomic(const float *in, float *out) {
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    if (BUG)
        count += in[threadIdx.x] > 0;
    else
        atomicAdd(&count, in[threadIdx.x] > 0);
    __syncthreads();
    if (threadIdx.x == 0) out[0] = (float)count;
}

/* Some threads add, others read at once. */
template <bool BUG> LMD_KERNEL(64) read_beside_atomic(const float *in, float *out) {
    __shared__ int count;
    if (threadIdx.x == 0) count = (int)in[0];
    __syncthreads();
    atomicAdd(&count, 1);
    if (!BUG) __syncthreads();
    out[threadIdx.x] = (float)count;
}

template <bool BUG> LMD_KERNEL(32) no_syncwarp(const float *in, float *out) {
    __shared__ float line[32];
    const int t = threadIdx.x;
    line[t] = in[t];
    if (!BUG) __syncwarp();
    out[t] = line[t ^ 1];
}

/* A shuffle makes lanes meet, but orders no memory. */
template <bool BUG> LMD_KERNEL(32) shuffle_for_syncwarp(const float *in, float *out) {
    __shared__ float line[32];
    const int t = threadIdx.x;
    line[t] = in[t];
    float x = __shfl_xor_sync(0xffffffffu, in[t], 1);
    if (!BUG) __syncwarp();
    out[t] = line[t ^ 1] + x;
}

/* Lanes 0 to 15 meet, and lanes 16 to 31 do, but they read from one another. */
template <bool BUG> LMD_KERNEL(32) syncwarp_of_halves(const float *in, float *out) {
    __shared__ float line[32];
    const int t = threadIdx.x;
    line[t] = in[t];
    if (t < 16)
        __syncwarp(0x0000ffffu);
    else
        __syncwarp(0xffff0000u);
    out[t] = line[BUG ? 31 - t : t ^ 1];
}

/* __syncwarp is no barrier between warps. */
template <bool BUG> LMD_KERNEL(64) syncwarp_for_syncthreads(const float *in, float *out) {
    __shared__ float line[64];
    const int t = threadIdx.x;
    line[t] = in[t];
    __syncwarp();
    if (!BUG) __syncthreads();
    out[t] = line[t ^ 32];
}

template <bool BUG> LMD_KERNEL(64) divergent_barrier(const float *in, float *out) {
    __shared__ float line[64];
    const int t = threadIdx.x;
    line[t] = in[t];
    if (!BUG) {
        __syncthreads();
    } else if (t < 40) {
        line[t] += 1.0f;
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[t] = line[63 - t];
}

/* Half of a warp waits for the block, the other half for the warp. */
template <bool BUG> LMD_KERNEL(64) barrier_against_shuffle(const float *in, float *out) {
    float x = in[threadIdx.x];
    if (BUG && threadIdx.x < 16) __syncthreads();
    x += __shfl_xor_sync(0xffffffffu, x, 16);
    __syncthreads();
    out[threadIdx.x] = x;
}

/* ---- warps ---- */

template <bool BUG> LMD_KERNEL(32) divergent_shuffle(const float *in, float *out) {
    float x = in[threadIdx.x];
    if (!BUG || threadIdx.x % 2) x = __shfl_xor_sync(0xffffffffu, x, 1);
    if (BUG) x += __ballot_sync(0xffffffffu, x > 0) != 0;
    out[threadIdx.x] = x;
}

template <bool BUG> LMD_KERNEL(32) exited_lane(const float *in, float *out) {
    if (threadIdx.x == 31) return;
    const unsigned mask = BUG ? 0xffffffffu : 0x7fffffffu;
    out[threadIdx.x] = __reduce_add_sync(mask, (unsigned)in[threadIdx.x]);
}

template <bool BUG> LMD_KERNEL(48) half_a_warp(const float *in, float *out) {
    const unsigned mask = BUG || threadIdx.x < 32 ? 0xffffffffu : 0x0000ffffu;
    out[threadIdx.x] = __shfl_xor_sync(mask, in[threadIdx.x], 1);
}

template <bool BUG> LMD_KERNEL(32) mask_without_lane(const float *in, float *out) {
    const unsigned mask = BUG ? 0x0000ffffu : 0xffffffffu;
    out[threadIdx.x] = __any_sync(mask, in[threadIdx.x] > 0);
}

template <bool BUG> LMD_KERNEL(32) shuffle_from_outside(const float *in, float *out) {
    if (threadIdx.x >= 16) return;
    out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, in[threadIdx.x], BUG ? 16 : 8);
}

/* ---- bounds, alignment, whose memory ---- */

template <bool BUG> LMD_KERNEL(64) read_behind_array(const float *in, float *out) {
    out[threadIdx.x] = in[BUGS_FLOATS - 64 + BUG + threadIdx.x];
}

template <bool BUG> LMD_KERNEL(64) write_behind_array(const float *in, float *out) {
    out[BUGS_FLOATS - 64 + BUG + threadIdx.x] = in[threadIdx.x];
}

template <bool BUG> LMD_KERNEL(64) write_before_array(const float *in, float *out) {
    out[(int)threadIdx.x - BUG] = in[threadIdx.x];
}

template <bool BUG> LMD_KERNEL(64) load16_behind_array(const float *in, float *out) {
    store16(out + 4 * threadIdx.x, load16(in + BUGS_FLOATS - 256 + 4 * (threadIdx.x + BUG)));
}

template <bool BUG> LMD_KERNEL(64) write_behind_dynamic_smem(const float *in, float *out) {
    LMD_DYNAMIC_SMEM(smem);
    float *line = (float *)smem;
    line[threadIdx.x + BUG] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = line[63 - threadIdx.x + BUG];
}

template <bool BUG> LMD_KERNEL(64) read_behind_dynamic_smem(const float *in, float *out) {
    LMD_DYNAMIC_SMEM(smem);
    float *line = (float *)smem;
    line[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = line[threadIdx.x + BUG];
}

template <bool BUG> LMD_KERNEL(64) write_before_static_smem(const float *in, float *out) {
    __shared__ float line[64];
    const int far = BUG && threadIdx.x == 0 ? -70 : 0; /* in another kernel's variable */
    line[(int)threadIdx.x + far] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = line[63 - threadIdx.x];
}

template <bool BUG> LMD_KERNEL(32) misaligned_load16(const float *in, float *out) {
    store16(out + 4 * threadIdx.x, load16(in + 4 * threadIdx.x + BUG));
}

template <bool BUG> LMD_KERNEL(32) misaligned_store_smem16(const float *in, float *out) {
    LMD_DYNAMIC_SMEM(smem);
    store_smem16(smem + threadIdx.x * 20 - threadIdx.x * (BUG ? 0 : 4), ldg16(in));
    __syncthreads();
    out[threadIdx.x] = ((const float *)smem)[threadIdx.x];
}

template <bool BUG> LMD_KERNEL(32) misaligned_cp_async(const float *in, float *out) {
    LMD_DYNAMIC_SMEM(smem);
    cp_async16(smem + threadIdx.x * 16, in + threadIdx.x * (BUG ? 2 : 4), true);
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = ((const float *)smem)[threadIdx.x * 4];
}

template <bool BUG> LMD_KERNEL(32) misaligned_ldmatrix(const float *in, float *out) {
    LMD_DYNAMIC_SMEM(smem);
    uint32_t r[4];
    for (int i = 0; i < 32; i++)
        ((float *)smem)[i * 32 + threadIdx.x] = in[i * 32 + threadIdx.x];
    __syncthreads();
    ldmatrix_x4(r, smem + threadIdx.x * (BUG ? 40 : 48));
    out[threadIdx.x] = (float)(r[0] ^ r[1] ^ r[2] ^ r[3]);
}

/* Plain C++ promises alignment by the type. */
template <bool BUG> LMD_KERNEL(32) misaligned_pointer(const float *in, float *out) {
    const char *bytes = (const char *)in;
    out[threadIdx.x] = *(const float *)(bytes + threadIdx.x * 4 + 2 * BUG);
}

template <bool BUG>
LMD_KERNEL(32)
use_after_free(const float *in, const float *freed, float *out) {
    out[threadIdx.x] = BUG ? freed[threadIdx.x] : in[threadIdx.x];
}

template <bool BUG>
LMD_KERNEL(32)
host_pointer(const float *in, const float *host, float *out) {
    out[threadIdx.x] = in[threadIdx.x] + (BUG ? host[threadIdx.x] : 0.0f);
}

/* A table of pointers in device memory: nobody translates those. */
template <bool BUG>
LMD_KERNEL(32)
hidden_pointer(const float *in, const float *const *table, float *out) {
    out[threadIdx.x] = BUG ? table[0][threadIdx.x] : in[threadIdx.x];
}

template <bool BUG> LMD_KERNEL(32) shared_as_global(const float *in, float *out) {
    LMD_DYNAMIC_SMEM(smem);
    store_smem16(smem + 16 * threadIdx.x, ldg16(in + 4 * threadIdx.x));
    store16(out + 4 * threadIdx.x,
            BUG ? load16(smem + 16 * threadIdx.x) : load_smem16(smem + 16 * threadIdx.x));
}

/* ---- memory that nobody wrote ---- */

template <bool BUG> LMD_KERNEL(32) unwritten_global(const float *in, float *out) {
    const float x = in[threadIdx.x] + (BUG ? out[threadIdx.x + 1] : 0.0f);
    __syncthreads();
    out[threadIdx.x] = x;
}

template <bool BUG> LMD_KERNEL(64) unwritten_shared(const float *in, float *out) {
    __shared__ float line[65];
    line[threadIdx.x + 1] = in[threadIdx.x];
    if (!BUG && threadIdx.x == 0) line[0] = 0.0f;
    __syncthreads();
    out[threadIdx.x] = line[threadIdx.x];
}

/* What the last block left in shared memory. */
template <bool BUG> LMD_KERNEL(32) left_in_shared(const float *in, float *out) {
    __shared__ float line[32];
    if (!BUG || blockIdx.x == 0) line[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[blockIdx.x * 32 + threadIdx.x] = line[threadIdx.x];
}

/* ---- blocks against blocks ---- */

template <bool BUG> LMD_KERNEL(32) blocks_write_same(const float *in, float *out) {
    out[(BUG ? 0 : blockIdx.x * 32) + threadIdx.x] = in[threadIdx.x];
}

template <bool BUG> LMD_KERNEL(32) block_reads_other(float *in, float *out) {
    const int other = BUG ? 1 - blockIdx.x : blockIdx.x;
    out[blockIdx.x * 32 + threadIdx.x] = in[threadIdx.x];
    out[64 + blockIdx.x * 32 + threadIdx.x] = out[other * 32 + threadIdx.x];
}

template <bool BUG> LMD_KERNEL(32) block_overwrites_input(float *in, float *out) {
    out[blockIdx.x * 32 + threadIdx.x] = in[threadIdx.x];
    if (BUG && blockIdx.x == 1) in[threadIdx.x] = 0.0f;
}

/* Rows of odd bytes: two blocks share a word, but no byte of it, unless BUG. */
template <bool BUG> LMD_KERNEL(32) blocks_share_word(const float *in, uint8_t *out) {
    const int row = blockIdx.x * (BUG ? 30 : 33);
    out[row + threadIdx.x] = (uint8_t)in[threadIdx.x];
}

/* ---- cp.async ---- */

/* Copies tiles of 32 floats, a stage ahead. */
template <bool BUG> LMD_KERNEL(32) wait_group_off_by_one(const float *in, float *out) {
    __shared__ float stages[2][128];
    const int t = threadIdx.x;
    cp_async16(&stages[0][t * 4], in + t * 4, true);
    cp_async_commit();
    for (int i = 0; i < 4; i++) {
        if (i < 3) cp_async16(&stages[(i + 1) % 2][t * 4], in + (i + 1) * 128 + t * 4, true);
        cp_async_commit();
        if (BUG)
            cp_async_wait<2>();
        else
            cp_async_wait<1>();
        __syncthreads();
        out[i * 32 + t] = stages[i % 2][(t ^ 1) * 4];
        __syncthreads();
    }
}

/* The next copy goes into the stage that others still read. */
template <bool BUG> LMD_KERNEL(64) stage_reused_too_early(const float *in, float *out) {
    __shared__ float stages[2][256];
    const int t = threadIdx.x;
    for (int i = 0; i < 2; i++) {
        cp_async16(&stages[i][t * 4], in + i * 256 + t * 4, true);
        cp_async_commit();
    }
    for (int i = 0; i < 4; i++) {
        cp_async_wait<1>();
        __syncthreads();
        out[i * 64 + t] = stages[i % 2][(63 - t) * 4];
        if (!BUG) __syncthreads();
        if (i < 2) cp_async16(&stages[i % 2][t * 4], in + (i + 2) * 256 + t * 4, true);
        cp_async_commit();
    }
}

/* A wait is for one's own copies only. */
template <bool BUG> LMD_KERNEL(64) copies_of_others(const float *in, float *out) {
    __shared__ float line[256];
    const int t = threadIdx.x;
    cp_async16(&line[t * 4], in + t * 4, true);
    cp_async_commit();
    if (BUG) __syncthreads();
    cp_async_wait<0>();
    if (!BUG) __syncthreads();
    out[t] = line[(63 - t) * 4];
}

template <bool BUG> LMD_KERNEL(32) copy_never_committed(const float *in, float *out) {
    __shared__ float line[128];
    cp_async16(&line[threadIdx.x * 4], in + threadIdx.x * 4, true);
    if (!BUG) cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = line[threadIdx.x * 4];
}

/* A plain store into bytes that a copy will overwrite. */
template <bool BUG> LMD_KERNEL(32) store_under_copy(const float *in, float *out) {
    __shared__ float line[128];
    const int t = threadIdx.x;
    cp_async16(&line[t * 4], in + t * 4, true);
    cp_async_commit();
    if (BUG) line[t * 4] = 0.0f;
    cp_async_wait<0>();
    if (!BUG) line[t * 4] = 0.0f;
    out[t] = line[t * 4] + line[t * 4 + 1];
}

/* ---- bulk copies ---- */

/* Copies 4 lines of 512 bytes through two stages; expects so many bytes too much for each, and
 * waits for phases that differ from the right ones by so much. */
struct bulk_bug {
    int too_many, phase;
    bool no_wait, no_fence, no_reuse_barrier;
};

static __device__ __forceinline__ void bulk_lines(const float *in, float *out, bulk_bug bug) {
    __shared__ __align__(16) float stages[2][128];
    __shared__ uint64_t full[2];
    const int t = threadIdx.x;
    if (t == 0) {
        mbarrier_init(&full[0], 1);
        mbarrier_init(&full[1], 1);
        if (!bug.no_fence) fence_proxy_async();
    }
    __syncthreads();
    for (int i = 0; i < 4; i++) {
        if (t == 0) {
            mbarrier_expect_bytes(&full[i % 2], (uint32_t)(512 + bug.too_many));
            bulk_copy(stages[i % 2], in + i * 128, 256, &full[i % 2]);
            bulk_copy(stages[i % 2] + 64, in + i * 128 + 64, 256, &full[i % 2]);
            mbarrier_arrive(&full[i % 2]);
        }
        if (!bug.no_wait) mbarrier_wait(&full[i % 2], (uint32_t)(i / 2 + bug.phase) % 2);
        for (int j = t; j < 128; j += 64) out[i * 128 + j] = stages[i % 2][j];
        if (!bug.no_reuse_barrier) __syncthreads();
    }
}

template <bool BUG> LMD_KERNEL(64) expects_too_few(const float *in, float *out) {
    bulk_lines(in, out, {BUG ? -256 : 0, 0, false, false, false});
}
template <bool BUG> LMD_KERNEL(64) expects_too_many(const float *in, float *out) {
    bulk_lines(in, out, {BUG ? 256 : 0, 0, false, false, false});
}
template <bool BUG> LMD_KERNEL(64) wrong_phase(const float *in, float *out) {
    bulk_lines(in, out, {0, BUG, false, false, false});
}
template <bool BUG> LMD_KERNEL(64) bulk_not_waited_for(const float *in, float *out) {
    bulk_lines(in, out, {0, 0, BUG, false, false});
}
template <bool BUG> LMD_KERNEL(64) mbarrier_not_fenced(const float *in, float *out) {
    bulk_lines(in, out, {0, 0, false, BUG, false});
}
template <bool BUG> LMD_KERNEL(64) bulk_stage_reused(const float *in, float *out) {
    bulk_lines(in, out, {0, 0, false, false, BUG});
}

/* Waits for a phase that nobody will end. */
template <bool BUG> LMD_KERNEL(32) phase_without_end(const float *in, float *out) {
    __shared__ uint64_t barrier;
    if (threadIdx.x == 0) mbarrier_init(&barrier, 32);
    __syncthreads();
    if (!BUG || threadIdx.x > 0) mbarrier_arrive(&barrier);
    mbarrier_wait(&barrier, 0);
    out[threadIdx.x] = in[threadIdx.x];
}

template <bool BUG> LMD_KERNEL(32) mbarrier_overwritten(const float *in, float *out) {
    __shared__ uint64_t words[2];
    if (threadIdx.x == 0) mbarrier_init(&words[0], 32);
    __syncthreads();
    if (threadIdx.x == 0) words[BUG ? 0 : 1] = 0;
    __syncthreads();
    mbarrier_arrive(&words[0]);
    mbarrier_wait(&words[0], 0);
    out[threadIdx.x] = in[threadIdx.x];
}

template <bool BUG> LMD_KERNEL(32) mbarrier_without_init(const float *in, float *out) {
    __shared__ uint64_t barrier;
    if (!BUG && threadIdx.x == 0) mbarrier_init(&barrier, 32);
    __syncthreads();
    mbarrier_arrive(&barrier);
    mbarrier_wait(&barrier, 0);
    out[threadIdx.x] = in[threadIdx.x];
}

/* All arrive twice in a phase that waits for bytes. */
template <bool BUG> LMD_KERNEL(32) arrives_too_often(const float *in, float *out) {
    __shared__ __align__(16) float line[32];
    __shared__ uint64_t barrier;
    if (threadIdx.x == 0) {
        mbarrier_init(&barrier, 32);
        fence_proxy_async();
        mbarrier_expect_bytes(&barrier, 128);
    }
    __syncthreads();
    mbarrier_arrive(&barrier);
    if (BUG) mbarrier_arrive(&barrier);
    __syncthreads();
    if (threadIdx.x == 0) bulk_copy(line, in, 128, &barrier);
    mbarrier_wait(&barrier, 0);
    out[threadIdx.x] = line[threadIdx.x];
}

/* Producers and consumers that know of each other through mbarriers alone. */
template <bool BUG> LMD_KERNEL(64) full_and_empty(const float *in, float *out) {
    __shared__ float line[32];
    __shared__ uint64_t full, empty;
    const int t = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 32);
        mbarrier_init(&empty, 32);
    }
    __syncthreads();
    for (int i = 0; i < 4; i++) {
        if (threadIdx.x < 32) {
            /* The buffer is empty at first: the phase before the first counts as over. */
            if (!BUG || i == 0) mbarrier_wait(&empty, (uint32_t)(i + 1) % 2);
            line[t] = in[i * 32 + t];
            mbarrier_arrive(&full);
        } else {
            mbarrier_wait(&full, (uint32_t)i % 2);
            out[i * 32 + t] = line[31 - t];
            mbarrier_arrive(&empty);
        }
    }
}

/* ---- what only the counters see ---- */

/* Eight rows of ldmatrix in one bank group: without the swizzle of chunks. */
template <bool BUG> LMD_KERNEL(32) ldmatrix_conflict(const float *in, float *out) {
    LMD_DYNAMIC_SMEM(smem);
    const int t = threadIdx.x;
    uint32_t r[4];
    for (int i = 0; i < 8; i++)
        store_smem16(smem + (i * 32 + t) * 16, ldg16(in + i * 128 + t * 4));
    __syncwarp();
    const int row = t % 8 + t / 16 * 8, chunk = t / 8 % 2;
    ldmatrix_x4(r, smem + row * 128 + (BUG ? chunk : chunk ^ row % 8) * 16);
    out[t] = (float)(r[0] ^ r[1] ^ r[2] ^ r[3]);
}

template <bool BUG> LMD_KERNEL(32) column_of_floats(const float *in, float *out) {
    __shared__ float tile[32][BUG ? 32 : 33];
    for (int i = 0; i < 32; i++) tile[i][threadIdx.x] = in[i * 32 + threadIdx.x];
    __syncwarp();
    float sum = 0.0f;
    for (int i = 0; i < 32; i++) sum += tile[threadIdx.x][i];
    out[threadIdx.x] = sum;
}

template <bool BUG> LMD_KERNEL(32) column_of_16_bytes(const float *in, float *out) {
    LMD_DYNAMIC_SMEM(smem);
    store_smem16(smem + threadIdx.x * (BUG ? 128 : 144), ldg16(in + threadIdx.x * 4));
    __syncwarp();
    out[threadIdx.x] = ((const float *)smem)[threadIdx.x / 32];
}

template <bool BUG> LMD_KERNEL(32) strided_loads(const float *in, float *out) {
    out[threadIdx.x] = in[threadIdx.x * (BUG ? 32 : 1)];
}

template <bool BUG> LMD_KERNEL(32) strided_stores(const float *in, float *out) {
    out[threadIdx.x * (BUG ? 4 : 1)] = in[threadIdx.x];
}

#endif
