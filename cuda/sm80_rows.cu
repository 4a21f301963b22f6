/* begin, embed and norm of the row "sm80".
 * Owns: these kernels, and their launchers at the end. Must not know: layers. Launchers: the
 * queue's thread. */
#include "cuda_kernels.h"
#include "dev.h"

enum { THREADS = 256 };

/* ---- begin ---- */

/* Replaces -1 by the sequence's newest token. Padding has none, nor has a sequence for which
 * sampling gave none: any token will do, since nobody reads what becomes of it. */
LMD_KERNEL(THREADS) resolve_tokens(const lmd_cuda_step step) {
    const int32_t row = (int32_t)(blockIdx.x * THREADS + threadIdx.x);
    if (row >= step.n_tokens || step.token_ids[row] >= 0) return;
    const int32_t slot = step.slots[step.row_seqs[row]];
    const int32_t token = slot < 0 ? 0 : step.newest[slot];
    step.token_ids[row] = token < 0 ? 0 : token;
}

enum { COPY_LOADS = 4, COPY_BYTES = COPY_LOADS * THREADS * 16 };

/* Copies a part of a KV block, whose size is a multiple of 16 bytes. Thread blocks: [copies,
 * parts of COPY_BYTES]. */
LMD_KERNEL(THREADS)
copy_blocks(uint8_t *kv, int64_t block_stride, const lmd_block_copy *copies) {
    const lmd_block_copy copy = copies[blockIdx.x];
    const uint8_t *from = kv + copy.from_block * block_stride;
    uint8_t *to = kv + copy.to_block * block_stride;
    const int64_t first = (int64_t)blockIdx.y * COPY_BYTES + threadIdx.x * 16;
#pragma unroll
    for (int i = 0; i < COPY_LOADS; i++) {
        const int64_t at = first + i * THREADS * 16;
        if (at < block_stride) store16(to + at, load16(from + at));
    }
}

/* ---- embed ---- */

LMD_DEVICE float table_value(const lmd_cuda_matrix *table, int32_t row, int32_t col) {
    const int32_t n_cols = lmd_pad_cols(table->n_cols);
    if (!lmd_form_is_codes(table->form))
        return half_to_float(((const uint16_t *)table->codes)[(int64_t)row * n_cols + col]);
    const lmd_code_place place = lmd_code_at(table->form, n_cols, row, col);
    const int32_t mask = lmd_form_bits(table->form) == 4 ? 0xf : 0xff;
    const float code = (float)(table->codes[place.byte] >> place.shift & mask);
    const lmd_cuda_group group =
        table->groups[lmd_group_at(n_cols / table->group_size, row, col / table->group_size)];
    const float scale = half_to_float(group.scale), offset = half_to_float(group.offset);
    if (table->form == LMD_FORM_U4_ZERO || table->form == LMD_FORM_U8_ZERO)
        return scale * (code - (offset - 1024.0f));
    return fmaf(scale, code, offset);
}

/* Blocks: [rows]. */
LMD_KERNEL(THREADS) embed(const lmd_cuda_embed_args args) {
    const int32_t id = args.token_ids[blockIdx.x];
    const float row_scale = args.table.row_scales ? args.table.row_scales[id] : 1.0f;
    float *out = args.out + (int64_t)blockIdx.x * args.out_stride;
    for (int32_t c = (int32_t)threadIdx.x; c < args.table.n_cols; c += THREADS)
        out[c] = row_scale * table_value(&args.table, id, c);
}

/* ---- norm ---- */

/* The sum of every thread's x, for all threads. */
LMD_DEVICE float block_sum(float x) {
    __shared__ float sums[THREADS / 32];
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffff, x, lanes);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads(); /* every warp's sum is there */
    x = 0.0f;
    for (int i = 0; i < THREADS / 32; i++) x += sums[i];
    return x;
}

/* Blocks: [rows]. n_vectors times 4 columns are loaded at once, the rest one by one. */
LMD_KERNEL(THREADS) norm(const lmd_cuda_norm_args args, int32_t n_vectors) {
    const int32_t from = args.rows ? args.rows[blockIdx.x] : (int32_t)blockIdx.x;
    const float4 *x = (const float4 *)(args.x + (int64_t)from * args.x_stride);
    const float4 *weight = (const float4 *)args.weight;
    uint16_t *out = args.out + (int64_t)blockIdx.x * args.out_stride;
    const int32_t thread = (int32_t)threadIdx.x, first_single = n_vectors * 4 + thread;
    float sum = 0.0f;
    for (int32_t i = thread; i < n_vectors; i += THREADS) {
        const float4 v = x[i];
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    for (int32_t c = first_single; c < args.n_cols; c += THREADS) {
        const float v = ((const float *)x)[c];
        sum += v * v;
    }
    const float scale = rsqrtf(block_sum(sum) / (float)args.n_cols + args.eps);
    for (int32_t i = thread; i < n_vectors; i += THREADS) {
        const float4 v = x[i], w = weight[i];
        uint2 halves;
        halves.x = pack_half2(v.x * scale * w.x, v.y * scale * w.y);
        halves.y = pack_half2(v.z * scale * w.z, v.w * scale * w.w);
        *(uint2 *)(out + i * 4) = halves;
    }
    for (int32_t c = first_single; c < args.n_cols; c += THREADS)
        out[c] = float_to_half(((const float *)x)[c] * scale * args.weight[c]);
}

/* ---- launchers ---- */

void lmd_sm80_begin(const lmd_cuda_begin_args *args, lmd_cuda_queue *queue) {
    const lmd_cuda_step *step = &args->step;
    LMD_LAUNCH(queue, resolve_tokens, dim3((unsigned)(step->n_tokens + THREADS - 1) / THREADS),
               THREADS, 0, *step);
    if (args->n_copies == 0) return;
    const int64_t n_parts = (args->block_stride + COPY_BYTES - 1) / COPY_BYTES;
    LMD_LAUNCH(queue, copy_blocks, dim3((unsigned)args->n_copies, (unsigned)n_parts), THREADS,
               0, args->kv, args->block_stride, args->copies);
}

void lmd_sm80_embed(const lmd_cuda_embed_args *args, lmd_cuda_queue *queue) {
    LMD_LAUNCH(queue, embed, dim3((unsigned)args->n_rows), THREADS, 0, *args);
}

void lmd_sm80_norm(const lmd_cuda_norm_args *args, lmd_cuda_queue *queue) {
    if (args->n_rows == 0) return;
    const bool rows_are_aligned = args->x_stride % 4 == 0 && args->out_stride % 4 == 0;
    LMD_LAUNCH(queue, norm, dim3((unsigned)args->n_rows), THREADS, 0, *args,
               rows_are_aligned ? args->n_cols / 4 : 0);
}
