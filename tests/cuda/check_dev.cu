/* The kernels of check_dev.h: each puts words of dev.h and of CUDA to use, one output word for
 * each result. Must not know: what the results should be. */
#include "check_dev.h"

#include "dev.h"

/* ---- one thread, one result ---- */

LMD_KERNEL(128) half_math(const uint32_t *in, uint32_t *out) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    const uint32_t a = in[i], b = in[N_HALF_MATH + i], c = in[2 * N_HALF_MATH + i];
    out[i] = hfma2(a, b, c);
    out[N_HALF_MATH + i] = hadd2(a, b);
    out[2 * N_HALF_MATH + i] = hsub2(a, b);
    out[3 * N_HALF_MATH + i] = hmul2(a, b);
}

LMD_KERNEL(128) to_half(const uint32_t *in, uint32_t *out) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    const float x = __uint_as_float(in[i]), y = __uint_as_float(in[i ^ 1]);
    out[i] = pack_half2(x, y);
    out[N_CONVERT + i] = float_to_half(x);
}

LMD_KERNEL(128) to_float(const uint32_t *in, uint32_t *out) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    out[i] = __float_as_uint(low_half(in[i]));
    out[N_CONVERT + i] = __float_as_uint(high_half(in[i]));
    out[2 * N_CONVERT + i] = __float_as_uint(half_to_float((uint16_t)(in[i] >> 8)));
}

LMD_KERNEL(128) bit_math(const uint32_t *in, uint32_t *out) {
    const int i = blockIdx.x * 128 + threadIdx.x, n = N_BIT_MATH;
    const uint32_t a = in[i], b = in[n + i], c = in[2 * n + i];
    out[i] = lop3<(0xf0 & 0xcc) | 0xaa>(a, b, c);
    out[n + i] = lop3<0xf0 ^ 0xcc ^ 0xaa>(a, b, c);
    out[2 * n + i] = lop3<0x1b>(a, b, c);
    out[3 * n + i] = byte_perm(a, b, c);
    out[4 * n + i] = __umulhi(a, b);
    out[5 * n + i] =
        (uint32_t)(__popc(a) + 64 * __ffs((int)b) + 4096 * __clz((int)(c >> (a & 31))));
    out[6 * n + i] = (uint32_t)__dp4a((int)a, (int)b, (int)c);
    out[7 * n + i] = (uint32_t)__float2int_rn((float)(int)(a >> 8) * 0.5f);
    out[8 * n + i] = (uint32_t)min((int)a, (int)b) ^ max(a, b);
}

LMD_KERNEL(128) exp2_of(const uint32_t *in, uint32_t *out) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    out[i] = __float_as_uint(exp2_approx(__uint_as_float(in[i])));
}

LMD_KERNEL(128) approx(const uint32_t *in, uint32_t *out) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    const float x = __uint_as_float(in[i]);
    out[i] = __float_as_uint(__expf(x));
    out[N_APPROX + i] = __float_as_uint(expf(x));
    out[2 * N_APPROX + i] = __float_as_uint(rsqrtf(fabsf(x) + 0.25f));
    out[3 * N_APPROX + i] = __float_as_uint(logf(fabsf(x) + 0.25f));
}

/* ---- matrices ---- */

/* The last word of a lane's part of `in` chooses the row it names. */
LMD_KERNEL(32) ldmatrix_all(const uint32_t *in, uint32_t *out) {
    __shared__ __align__(16) uint8_t rows[N_ROWS * 16];
    const int t = threadIdx.x;
    uint32_t r[4];
    for (int i = t; i < N_ROWS; i += 32) store_smem16(rows + i * 16, ldg16(in + i * 4));
    __syncthreads();
    const uint8_t *const row = rows + in[N_ROWS * 4 + t] * 16;
    ldmatrix_x4(r, row);
    for (int i = 0; i < 4; i++) out[i * 32 + t] = r[i];
    ldmatrix_x4_trans(r, row);
    for (int i = 0; i < 4; i++) out[128 + i * 32 + t] = r[i];
    ldmatrix_x2(r, row);
    for (int i = 0; i < 2; i++) out[256 + i * 32 + t] = r[i];
    ldmatrix_x2_trans(r, row);
    for (int i = 0; i < 2; i++) out[320 + i * 32 + t] = r[i];
}

/* The half at a row and a column of a matrix in rows. */
static __device__ __forceinline__ uint32_t half_of(const uint32_t *m, int n_cols, int row,
                                                   int col) {
    const int i = row * n_cols + col;
    return m[i / 2] >> (i % 2 * 16) & 0xffff;
}

/* Lays out the operands by hand, so that ldmatrix has no part in it. */
LMD_KERNEL(32) mma(const uint32_t *in, uint32_t *out) {
    const uint32_t *const a = in + blockIdx.x * MMA_IN, *const b = a + 128, *const c = b + 64;
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    uint32_t ra[4], rb[2];
    float rc[4];
    for (int i = 0; i < 4; i++) {
        const int row = g + i % 2 * 8, col = t * 2 + i / 2 * 8;
        ra[i] = half_of(a, 16, row, col) | half_of(a, 16, row, col + 1) << 16;
    }
    for (int i = 0; i < 2; i++) {
        const int row = t * 2 + i * 8;
        rb[i] = half_of(b, 8, row, g) | half_of(b, 8, row + 1, g) << 16;
    }
    for (int i = 0; i < 4; i++) rc[i] = __uint_as_float(c[(g + i / 2 * 8) * 8 + t * 2 + i % 2]);
    mma_f16(rc, ra, rb[0], rb[1]);
    for (int i = 0; i < 4; i++)
        out[blockIdx.x * 128 + (g + i / 2 * 8) * 8 + t * 2 + i % 2] = __float_as_uint(rc[i]);
}

/* ---- warps and blocks ---- */

LMD_KERNEL(32) shuffles(const uint32_t *in, uint32_t *out) {
    const int t = threadIdx.x;
    const unsigned all = 0xffffffffu;
    const uint32_t x = in[t], by = in[32 + t];
    uint32_t y[N_SHUFFLES];
    y[0] = __shfl_sync(all, x, (int)by);
    y[1] = __shfl_sync(all, x, (int)by, 8);
    y[2] = __shfl_up_sync(all, x, 3);
    y[3] = __shfl_up_sync(all, x, 5, 16);
    y[4] = __shfl_down_sync(all, x, 7);
    y[5] = __shfl_down_sync(all, x, 1, 4);
    y[6] = __shfl_xor_sync(all, x, 16);
    y[7] = __shfl_xor_sync(all, x, 5, 8);
    y[8] = __shfl_xor_sync(all, x, 9, 8); /* from a segment below: allowed; above: not */
    y[9] = __float_as_uint(__shfl_xor_sync(all, (float)(x & 1023), 1));
    y[10] = (uint32_t)(__shfl_xor_sync(all, (unsigned long long)x << 32 | by, 2) >> 24);
    y[11] = x;
    if (t < 16) y[11] = __shfl_xor_sync(0xffffu, x, 1);
    for (int i = 0; i < N_SHUFFLES; i++) out[i * 32 + t] = y[i];
}

LMD_KERNEL(32) votes(const uint32_t *in, uint32_t *out) {
    const int t = threadIdx.x;
    const unsigned mask = t % 2 ? 0xaaaaaaaau : 0x55555555u; /* odd and even lanes, apart */
    const uint32_t x = in[t];
    uint32_t y[N_VOTES];
    y[0] = __ballot_sync(0xffffffffu, x & 1);
    y[1] = 0;
    if (t % 2)
        y[1] = __ballot_sync(mask, x & 2);
    else
        y[1] = (uint32_t)__any_sync(mask, x & 4) + 2u * (uint32_t)__all_sync(mask, x & 8);
    y[2] = (uint32_t)__any_sync(0xffffffffu, x == 0) +
           2u * (uint32_t)__all_sync(0xffffffffu, x != 0);
    y[3] = __reduce_add_sync(0xffffffffu, x);
    y[4] = __reduce_min_sync(0xffffffffu, x);
    y[5] = (uint32_t)__reduce_min_sync(0xffffffffu, (int)x);
    y[6] = (uint32_t)__reduce_max_sync(0xffffffffu, (int)x);
    y[7] = __reduce_max_sync(0xffffffffu, x);
    y[8] = __reduce_xor_sync(0xffffffffu, x);
    for (int i = 0; i < N_VOTES; i++) out[i * 32 + t] = y[i];
}

LMD_KERNEL(96) barriers(const uint32_t *in, uint32_t *out) {
    const int t = threadIdx.x;
    out[t] = (uint32_t)__syncthreads_count((int)(in[t] & 1));
    out[96 + t] = (uint32_t)(__syncthreads_or((int)(in[t] & 2)) != 0);
    out[192 + t] = (uint32_t)(__syncthreads_and((int)(in[t] & 4)) != 0);
    out[288 + t] = (uint32_t)(__syncthreads_or(0) != 0) + 2u * (__syncthreads_and(1) != 0);
}

LMD_KERNEL(64) atomics(const uint32_t *in, uint32_t *out) {
    __shared__ uint32_t sum, largest, smallest, bits, first;
    __shared__ int32_t signed_largest;
    __shared__ unsigned long long wide;
    const int t = threadIdx.x;
    if (t == 0) {
        sum = largest = bits = 0;
        smallest = first = 0xffffffffu;
        signed_largest = -2147483647 - 1;
        wide = 0;
    }
    __syncthreads();
    atomicAdd(&sum, in[t]);
    atomicMax(&largest, in[t]);
    atomicMin(&smallest, in[t]);
    atomicOr(&bits, in[t]);
    atomicMax(&signed_largest, (int32_t)in[t]);
    atomicMax(&wide, (unsigned long long)in[t] << 32 | (unsigned)t);
    atomicCAS(&first, 0xffffffffu, 77u); /* whoever comes first */
    __syncthreads();
    if (t > 0) return;
    out[0] = sum;
    out[1] = largest;
    out[2] = smallest;
    out[3] = bits;
    out[4] = (uint32_t)signed_largest;
    out[5] = (uint32_t)wide;
    out[6] = (uint32_t)(wide >> 32);
    out[7] = first;
}

/* ---- memory ---- */

LMD_KERNEL(64) moves(const uint32_t *in, uint32_t *out) {
    LMD_DYNAMIC_SMEM(smem);
    const int t = threadIdx.x;
    store_smem16(smem + 16 * t, load16(in + 4 * t));
    store_smem16(smem + 1024 + 16 * t, ldg16(in + 4 * (63 - t)));
    __syncthreads();
    store16(out + 4 * t, load_smem16(smem + 16 * (t ^ 5)));
    store16(out + 256 + 4 * t, load_smem16(smem + 1024 + 16 * (t ^ 9)));
}

/* Words 0 to 255 and 256 to 511 in two groups; the words behind say which copies are valid. */
LMD_KERNEL(N_COPY_THREADS) copies(const uint32_t *in, uint32_t *out) {
    LMD_DYNAMIC_SMEM(smem);
    const int t = threadIdx.x;
    const uint32_t *const valid = in + 512;
    cp_async16(smem + 16 * t, in + 4 * t, valid[t] & 1);
    cp_async_commit();
    cp_async16(smem + 1024 + 16 * t, in + 256 + 4 * t, valid[t] & 2);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    store16(out + 4 * t, load_smem16(smem + 16 * (t ^ 33)));
    cp_async_wait<0>();
    __syncthreads();
    store16(out + 256 + 4 * t, load_smem16(smem + 1024 + 16 * (t ^ 34)));
}

/* Lines through two stages; every thread says when it is done with a stage. */
LMD_KERNEL(64) bulk_copies(const uint32_t *in, uint32_t *out) {
    LMD_DYNAMIC_SMEM(smem);
    __shared__ uint64_t full[2], empty[2];
    const int t = threadIdx.x;
    if (t == 0) {
        for (int i = 0; i < 2; i++) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], 64);
        }
        fence_proxy_async();
    }
    __syncthreads();
    for (int i = 0; i < N_BULK_LINES; i++) {
        uint8_t *const stage = smem + i % 2 * BULK_LINE * 4;
        if (t == 0) {
            /* A stage is empty at first: the phase before the first counts as over. */
            mbarrier_wait(&empty[i % 2], (uint32_t)(i / 2 + 1) % 2);
            mbarrier_expect_bytes(&full[i % 2], BULK_LINE * 4);
            bulk_copy(stage, in + i * BULK_LINE, BULK_LINE * 2, &full[i % 2]);
            bulk_copy(stage + BULK_LINE * 2, in + i * BULK_LINE + BULK_LINE / 2, BULK_LINE * 2,
                      &full[i % 2]);
            mbarrier_arrive(&full[i % 2]);
        }
        mbarrier_wait(&full[i % 2], (uint32_t)(i / 2) % 2);
        for (int j = t; j < BULK_LINE; j += 64)
            out[i * BULK_LINE + j] = ((const uint32_t *)stage)[BULK_LINE - 1 - j];
        mbarrier_arrive(&empty[i % 2]);
    }
}

LMD_KERNEL(32) geometry(const uint32_t *in, uint32_t *out) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    out[block * 32 + threadIdx.x] = in[0] + blockIdx.x + 16 * blockIdx.y + 256 * blockIdx.z +
                                    4096 * blockDim.x + (gridDim.x << 20) + (gridDim.y << 24) +
                                    (gridDim.z << 28) + threadIdx.x * 7;
}

/* ---- launches ---- */

#define RUN(name, kernel, grid, n_threads, smem_bytes)                                         \
    void run_##name(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out) {                \
        LMD_LAUNCH(queue, kernel, grid, n_threads, smem_bytes, in, out);                       \
    }
RUN(half_math, half_math, dim3(N_HALF_MATH / 128), 128, 0)
RUN(to_half, to_half, dim3(N_CONVERT / 128), 128, 0)
RUN(to_float, to_float, dim3(N_CONVERT / 128), 128, 0)
RUN(bit_math, bit_math, dim3(N_BIT_MATH / 128), 128, 0)
RUN(exp2, exp2_of, dim3(N_APPROX / 128), 128, 0)
RUN(approx, approx, dim3(N_APPROX / 128), 128, 0)
RUN(ldmatrix, ldmatrix_all, dim3(1), 32, 0)
RUN(mma, mma, dim3(N_MMA), 32, 0)
RUN(shuffles, shuffles, dim3(1), 32, 0)
RUN(votes, votes, dim3(1), 32, 0)
RUN(barriers, barriers, dim3(1), 96, 0)
RUN(atomics, atomics, dim3(1), 64, 0)
RUN(moves, moves, dim3(1), 64, 2048)
RUN(copies, copies, dim3(1), N_COPY_THREADS, 2048)
RUN(bulk_copies, bulk_copies, dim3(1), 64, 2 * BULK_LINE * 4)
RUN(geometry, geometry, dim3(3, 2, 2), 32, 0)
