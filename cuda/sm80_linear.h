/* The linear of the row "sm80": the kernel, for any form of weights.
 * Weights are the A operand of mma.m16n8k16 and x is the B operand, so that a tile of 16 weight
 * rows meets 8 tokens at once; a token is here a row of x. Weights stream from global memory to
 * registers as they lie, x goes through shared memory. A form is a struct of static functions
 * that load weights and make halves of them: the only part that knows codes.
 * Owns: how a block is cut into warps, the loop over columns, and the epilogue. Must not know:
 * which shape a launch takes (sm80_linear.cu). */
#ifndef LMD_CUDA_SM80_LINEAR_H
#define LMD_CUDA_SM80_LINEAR_H

#include "cuda_kernels.h"
#include "dev.h"

/* What a launch computes. A slice is LMD_TILE_COLS columns. */
typedef struct lmd_linear_job {
    lmd_cuda_linear_args args;
    const uint32_t *groups; /* the weight's, as pairs: the scale is the low half */
    int32_t n_tiles;        /* of 16 weight rows */
    int32_t n_slices;
    int32_t group_shift;               /* a group is 2 ^ group_shift half slices */
    int32_t steps_per_split, n_splits; /* a step is the slices that a block takes at once */
} lmd_linear_job;

/* How a block of threads is cut: a warp has M_TILES tiles of weight rows and N_TILES times 8
 * tokens; ROW_WARPS warps lie along the rows. K_WARPS warps take a slice each of the same rows
 * and tokens, and their sums are added in order. */
template <int M_TILES_, int N_TILES_, int ROW_WARPS_, int K_WARPS_> struct linear_shape {
    static constexpr int M_TILES = M_TILES_, N_TILES = N_TILES_;
    static constexpr int ROW_WARPS = ROW_WARPS_, K_WARPS = K_WARPS_;
    static constexpr int ROWS = M_TILES * ROW_WARPS * LMD_TILE_ROWS;
    static constexpr int TOKENS = N_TILES * 8;
    static constexpr int COLS = K_WARPS * LMD_TILE_COLS; /* of a step */
    static constexpr int THREADS = ROW_WARPS * K_WARPS * 32;
};

/* Few tokens: few rows in a block, so that there are many blocks, and all warps along the
 * columns of a row. With more tokens a block's reads of x must be shared by more rows. */
typedef linear_shape<1, 1, 1, 8> linear_shape_8;
typedef linear_shape<1, 2, 4, 2> linear_shape_16;
typedef linear_shape<2, 4, 4, 2> linear_shape_32;
typedef linear_shape<2, 8, 4, 1> linear_shape_64;

typedef enum lmd_linear_shape_id {
    LMD_LINEAR_8,
    LMD_LINEAR_16,
    LMD_LINEAR_32,
    LMD_LINEAR_64,
    LMD_LINEAR_SHAPE_COUNT
} lmd_linear_shape_id;

/* Each launches a job for the forms that its file holds, or prepares those forms. */
void lmd_sm80_linear_codes(const lmd_linear_job *job, lmd_linear_shape_id shape,
                           lmd_cuda_queue *queue);
void lmd_sm80_linear_halves(const lmd_linear_job *job, lmd_linear_shape_id shape,
                            lmd_cuda_queue *queue);
cudaError_t lmd_sm80_linear_codes_prepare(void);
cudaError_t lmd_sm80_linear_halves_prepare(void);

/* ---- the epilogue ---- */

LMD_DEVICE int32_t linear_out_cols(const lmd_cuda_linear_args *args) {
    return args->epilogue == LMD_CUDA_SILU_MUL ? args->weight.n_rows / 2 : args->weight.n_rows;
}

/* y of a weight row from its sum. */
LMD_DEVICE float linear_y(const lmd_cuda_linear_args *args, float sum, int32_t row,
                          int32_t bias_idx) {
    const float *row_scales = args->weight.row_scales;
    const float scale = row_scales ? args->scale * row_scales[row] : args->scale;
    return fmaf(scale, sum, args->bias ? args->bias[bias_idx] : 0.0f);
}

/* Stores column `col` of a token. sum is of this weight row, or of gate's, and up_sum of up's.
 */
LMD_DEVICE void linear_store(const lmd_cuda_linear_args *args, int32_t token, int32_t col,
                             float sum, float up_sum) {
    const int64_t at = (int64_t)token * args->out_stride + col;
    float *floats = (float *)args->out + at;
    uint16_t *halves = (uint16_t *)args->out + at;
    if (args->epilogue == LMD_CUDA_SILU_MUL) {
        const float gate = linear_y(args, sum, lmd_gated_row(0, col), col);
        const float up =
            linear_y(args, up_sum, lmd_gated_row(1, col), col + linear_out_cols(args));
        *halves = float_to_half(gate / (1.0f + __expf(-gate)) * up * LMD_FFN_SCALE);
        return;
    }
    const float y = linear_y(args, sum, col, col);
    if (args->epilogue == LMD_CUDA_STORE)
        *halves = float_to_half(y);
    else if (args->epilogue == LMD_CUDA_ADD)
        *floats += y;
    else
        *floats = y;
}

/* ---- x in shared memory ---- */

/* The byte of a stage where 16 bytes of a token lie: piece p is columns 8 * p to 8 * p + 7.
 * Pieces are swizzled for two readers: ldmatrix takes the same piece of 8 tokens at once, and
 * the 8 lanes that a load of 16 bytes serves at once take 4 pieces of 2 tokens. Either must
 * find 8 different pieces of a line of 128 bytes. */
template <typename shape> LMD_DEVICE int32_t linear_x_at(int32_t token, int32_t piece) {
    const int32_t swizzle = token / 2 % 4 + token % 2 * 4;
    return token * shape::COLS * 2 + (piece ^ swizzle) * 16;
}

/* Loads the B operand of 8 tokens for half a slice: b[0], b[1] of its first 16 columns, b[2],
 * b[3] of the others. */
template <typename form, typename shape>
LMD_DEVICE void linear_load_x(uint32_t b[4], const uint8_t *stage, int32_t token,
                              int32_t piece) {
    const int32_t lane = (int32_t)threadIdx.x % 32;
    if (!form::IN_ROWS) {
        ldmatrix_x4(b, stage + linear_x_at<shape>(token + lane % 8, piece + lane / 8));
        return;
    }
    /* In the order of the columns of a form that lies in rows: see sm80_linear_f16.cu. */
    const uint4 v = load_smem16(stage + linear_x_at<shape>(token + lane / 4, piece + lane % 4));
    b[0] = v.x, b[1] = v.y, b[2] = v.z, b[3] = v.w;
}

/* ---- weights in registers ---- */

/* A lane's weights of a slice. Its quad of lanes needs four pairs of groups, and each lane has
 * one of them: lane t that of half t / 2 of the slice, of row g for an even t, g + 8 for odd.
 */
template <typename form, typename shape> struct linear_weights {
    uint32_t words[shape::M_TILES][form::LOADS * 4];
    uint32_t groups[shape::M_TILES];
};

/* Slices of weights that a lane holds, one of which it computes with and the others are on
 * their way; and as many stages of x. 12 loads of 16 bytes are what registers have room for. */
template <typename form, typename shape> struct linear_depth {
    static constexpr int FITTING = 12 / (form::LOADS * shape::M_TILES);
    static constexpr int VALUE = FITTING > 4 ? 4 : FITTING < 2 ? 2 : FITTING;
};

/* ---- from global memory ---- */

/* The warp's place among the block's. */
template <typename shape> LMD_DEVICE int32_t linear_row_warp() {
    return (int32_t)threadIdx.x / 32 % shape::ROW_WARPS;
}
template <typename shape> LMD_DEVICE int32_t linear_k_warp() {
    return (int32_t)threadIdx.x / 32 / shape::ROW_WARPS;
}

/* Where a step's x and weights lie, for this thread. It moves only once in a round of stages:
 * the steps of a round are at distances that the compiler knows. */
template <typename form, typename shape> struct linear_source {
    static constexpr int TOKEN_PIECES = shape::COLS / 8;
    static constexpr int N_PIECES = shape::TOKENS * TOKEN_PIECES / shape::THREADS;
    static_assert(N_PIECES * shape::THREADS == shape::TOKENS * TOKEN_PIECES,
                  "each thread copies as much");
    int32_t step;
    const uint16_t *x[N_PIECES];
    int32_t n_steps[N_PIECES];              /* that have the piece; 0: there is no such token */
    const uint8_t *weights[shape::M_TILES]; /* of the warp's slice, as the form says */
    const uint32_t *groups[shape::M_TILES]; /* of group 0, the lane's row */
};

template <typename form, typename shape>
LMD_DEVICE void linear_find_x(const lmd_linear_job *job, linear_source<form, shape> *out) {
    typedef linear_source<form, shape> source;
#pragma unroll
    for (int i = 0; i < source::N_PIECES; i++) {
        const int32_t idx = (int32_t)threadIdx.x + i * shape::THREADS;
        const int32_t token = (int32_t)blockIdx.x * shape::TOKENS + idx / source::TOKEN_PIECES;
        const int32_t col = idx % source::TOKEN_PIECES * 8;
        const int32_t n_cols = job->n_slices * LMD_TILE_COLS;
        const bool exists = token < job->args.n_rows;
        const int64_t at = exists ? (int64_t)token * job->args.x_stride + col : 0;
        out->x[i] = job->args.x + at + out->step * shape::COLS;
        out->n_steps[i] = exists ? (n_cols - col + shape::COLS - 1) / shape::COLS : 0;
    }
}

template <typename form, typename shape>
LMD_DEVICE void linear_find_weights(const lmd_linear_job *job,
                                    linear_source<form, shape> *out) {
    const int32_t lane = (int32_t)threadIdx.x % 32, row = lane / 4 + lane % 2 * 8;
    const int32_t n_groups = job->n_slices * 2 >> job->group_shift;
    const int32_t row_warp = (int32_t)blockIdx.y * shape::ROW_WARPS + linear_row_warp<shape>();
    const int32_t slice = out->step * shape::K_WARPS + linear_k_warp<shape>();
#pragma unroll
    for (int m = 0; m < shape::M_TILES; m++) {
        const int32_t tile = row_warp * shape::M_TILES + m;
        /* Beyond the last tile it is computed again, and its sums are not stored. */
        const int32_t existing = tile < job->n_tiles ? tile : job->n_tiles - 1;
        out->weights[m] = form::find(job, existing) + (int64_t)slice * form::SLICE_BYTES;
        out->groups[m] = job->groups + (int64_t)existing * n_groups * 16 + row;
    }
}

/* Starts the copy of x of the step `ahead` of the source's, [TOKENS, COLS] halves, 0 where x
 * has none; and loads the warp's slice of weights, if there is one. */
template <typename form, typename shape>
LMD_DEVICE void linear_fetch(const lmd_linear_job *job, const linear_source<form, shape> *from,
                             int ahead, uint8_t *stage, linear_weights<form, shape> *weights) {
    typedef linear_source<form, shape> source;
    const int32_t slice = (from->step + ahead) * shape::K_WARPS + linear_k_warp<shape>();
    const int32_t half = (int32_t)threadIdx.x % 4 / 2;
    const int32_t group = (slice * 2 + half) >> job->group_shift;
#pragma unroll
    for (int i = 0; i < source::N_PIECES; i++) {
        const int32_t idx = (int32_t)threadIdx.x + i * shape::THREADS;
        cp_async16(
            stage + linear_x_at<shape>(idx / source::TOKEN_PIECES, idx % source::TOKEN_PIECES),
            from->x[i] + ahead * shape::COLS, from->step + ahead < from->n_steps[i]);
    }
    if (slice >= job->n_slices) return;
#pragma unroll
    for (int m = 0; m < shape::M_TILES; m++) {
        form::load(weights->words[m], job,
                   from->weights[m] + ahead * (shape::K_WARPS * form::SLICE_BYTES));
        if (form::HAS_GROUPS) weights->groups[m] = from->groups[m][group * 16];
    }
}

template <typename form, typename shape>
LMD_DEVICE void linear_advance(linear_source<form, shape> *source, int n_steps) {
    source->step += n_steps;
#pragma unroll
    for (int i = 0; i < linear_source<form, shape>::N_PIECES; i++)
        source->x[i] += n_steps * shape::COLS;
#pragma unroll
    for (int m = 0; m < shape::M_TILES; m++)
        source->weights[m] += n_steps * (shape::K_WARPS * form::SLICE_BYTES);
}

/* ---- the kernel ---- */

/* The pair that lane t of the quad has. */
template <typename form> LMD_DEVICE uint32_t linear_group(uint32_t own, int t) {
    return form::HAS_GROUPS ? __shfl_sync(0xffffffff, own, t, 4) : 0;
}

/* Adds a slice's products. */
template <typename form, typename shape>
LMD_DEVICE void linear_multiply(float acc[shape::M_TILES][shape::N_TILES][4],
                                const linear_weights<form, shape> *weights,
                                const uint8_t *stage) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t a[shape::M_TILES][2][4];
#pragma unroll
        for (int m = 0; m < shape::M_TILES; m++) {
            const uint32_t low = linear_group<form>(weights->groups[m], half * 2);
            const uint32_t high = linear_group<form>(weights->groups[m], half * 2 + 1);
            form::decode(a[m][0], weights->words[m], half * 2, low, high);
            form::decode(a[m][1], weights->words[m], half * 2 + 1, low, high);
        }
#pragma unroll
        for (int n = 0; n < shape::N_TILES; n++) {
            uint32_t b[4];
            linear_load_x<form, shape>(b, stage, n * 8, linear_k_warp<shape>() * 8 + half * 4);
#pragma unroll
            for (int m = 0; m < shape::M_TILES; m++) {
                mma_f16(acc[m][n], a[m][0], b[0], b[1]);
                mma_f16(acc[m][n], a[m][1], b[2], b[3]);
            }
        }
    }
}

/* A token's sums in shared memory: [K_WARPS][TOKENS][SUMS_STRIDE] floats. The 4 beyond the rows
 * put the 4 tokens that a warp stores at once into different banks. */
template <typename shape> struct linear_sums {
    static constexpr int STRIDE = shape::ROWS + 4;
    static constexpr int BYTES = shape::K_WARPS * shape::TOKENS * STRIDE * 4;
};

template <typename shape>
LMD_DEVICE void linear_put_sums(float *sums,
                                const float acc[shape::M_TILES][shape::N_TILES][4]) {
    const int32_t lane = (int32_t)threadIdx.x % 32;
    float *to = sums + linear_k_warp<shape>() * shape::TOKENS * linear_sums<shape>::STRIDE;
#pragma unroll
    for (int m = 0; m < shape::M_TILES; m++) {
        const int32_t tile = linear_row_warp<shape>() * shape::M_TILES + m;
#pragma unroll
        for (int i = 0; i < shape::N_TILES * 4; i++) {
            const int32_t token = i / 4 * 8 + lane % 4 * 2 + i % 2;
            const int32_t row = tile * LMD_TILE_ROWS + lane / 4 + i / 2 % 2 * 8;
            to[token * linear_sums<shape>::STRIDE + row] = acc[m][i / 4][i % 4];
        }
    }
}

/* The sum of a row over the block's columns: of its warps along them, in order. */
template <typename shape>
LMD_DEVICE float linear_sum(const float *sums, int32_t token, int32_t row) {
    float sum = sums[token * linear_sums<shape>::STRIDE + row];
#pragma unroll
    for (int k = 1; k < shape::K_WARPS; k++)
        sum += sums[(k * shape::TOKENS + token) * linear_sums<shape>::STRIDE + row];
    return sum;
}

/* Stores a split's sums: [n_splits][n_rows, padded rows of the weight] floats in scratch. */
template <typename shape>
LMD_DEVICE void linear_store_split(const lmd_linear_job *job, const float *sums) {
    const int32_t n_rows = job->n_tiles * LMD_TILE_ROWS;
    for (int32_t i = (int32_t)threadIdx.x; i < shape::TOKENS * shape::ROWS;
         i += shape::THREADS) {
        const int32_t token = (int32_t)blockIdx.x * shape::TOKENS + i / shape::ROWS;
        const int32_t row = (int32_t)blockIdx.y * shape::ROWS + i % shape::ROWS;
        const int64_t at = ((int64_t)blockIdx.z * job->args.n_rows + token) * n_rows + row;
        if (token < job->args.n_rows && row < n_rows)
            job->args.scratch[at] = linear_sum<shape>(sums, i / shape::ROWS, i % shape::ROWS);
    }
}

/* Stores a block's part of the output. */
template <typename shape>
LMD_DEVICE void linear_store_block(const lmd_linear_job *job, const float *sums) {
    const bool gated = job->args.epilogue == LMD_CUDA_SILU_MUL;
    const int32_t n_cols = gated ? shape::ROWS / 2 : shape::ROWS; /* of the block */
    for (int32_t i = (int32_t)threadIdx.x; i < shape::TOKENS * n_cols; i += shape::THREADS) {
        const int32_t token = i / n_cols, col = i % n_cols;
        const int32_t out_token = (int32_t)blockIdx.x * shape::TOKENS + token;
        const int32_t out_col = (int32_t)blockIdx.y * n_cols + col;
        if (out_token >= job->args.n_rows || out_col >= linear_out_cols(&job->args)) continue;
        const float sum = linear_sum<shape>(sums, token, gated ? lmd_gated_row(0, col) : col);
        const float up = gated ? linear_sum<shape>(sums, token, lmd_gated_row(1, col)) : 0.0f;
        linear_store(&job->args, out_token, out_col, sum, up);
    }
}

/* A block loads what is DEPTH - 1 steps ahead, x into a ring of stages and weights into a ring
 * of registers. Blocks: [tokens / TOKENS, rows / ROWS, n_splits]; those that share weights
 * follow each other. */
template <typename form, typename shape>
LMD_KERNEL(shape::THREADS)
linear_kernel(const lmd_linear_job job) {
    constexpr int DEPTH = linear_depth<form, shape>::VALUE;
    constexpr int STAGE_BYTES = shape::TOKENS * shape::COLS * 2;
    LMD_DYNAMIC_SMEM(smem);
    linear_weights<form, shape> weights[DEPTH];
    linear_source<form, shape> source;
    float acc[shape::M_TILES][shape::N_TILES][4] = {};
    const int32_t n_steps = (job.n_slices + shape::K_WARPS - 1) / shape::K_WARPS;
    const int32_t first = (int32_t)blockIdx.z * job.steps_per_split;
    const int32_t end =
        first + job.steps_per_split < n_steps ? first + job.steps_per_split : n_steps;

    source.step = first;
    linear_find_x(&job, &source);
    linear_find_weights(&job, &source);
#pragma unroll
    for (int s = 0; s < DEPTH - 1; s++) {
        if (first + s < end)
            linear_fetch(&job, &source, s, smem + s * STAGE_BYTES, &weights[s]);
        cp_async_commit();
    }
    for (; source.step < end; linear_advance(&source, DEPTH))
#pragma unroll
        for (int s = 0; s < DEPTH; s++) {
            constexpr int AHEAD = DEPTH - 1;
            const int slot = (s + AHEAD) % DEPTH; /* of the step before this one */
            if (source.step + s >= end) break;
            cp_async_wait<DEPTH - 2>();
            /* The step's x has come for all threads, and none still reads the step before. */
            __syncthreads();
            if (source.step + s + AHEAD < end)
                linear_fetch(&job, &source, s + AHEAD, smem + slot * STAGE_BYTES,
                             &weights[slot]);
            cp_async_commit();
            if ((source.step + s) * shape::K_WARPS + linear_k_warp<shape>() < job.n_slices)
                linear_multiply<form, shape>(acc, &weights[s], smem + s * STAGE_BYTES);
        }

    float *sums = (float *)smem;
    __syncthreads(); /* the stages are read, and the sums take their place */
    linear_put_sums<shape>(sums, acc);
    __syncthreads(); /* a thread stores what others summed */
    if (job.n_splits > 1)
        linear_store_split<shape>(&job, sums);
    else
        linear_store_block<shape>(&job, sums);
}

/* ---- launching ---- */

template <typename form, typename shape> struct linear_smem {
    static constexpr int STAGES =
        linear_depth<form, shape>::VALUE * shape::TOKENS * shape::COLS * 2;
    static constexpr int BYTES =
        STAGES > linear_sums<shape>::BYTES ? STAGES : linear_sums<shape>::BYTES;
    static_assert(BYTES <= 64 << 10,
                  "some devices have 99 KiB, and two blocks should fit others");
};

template <typename form, typename shape>
static void linear_launch_shape(const lmd_linear_job *job, lmd_cuda_queue *queue) {
    const dim3 grid((unsigned)(job->args.n_rows + shape::TOKENS - 1) / shape::TOKENS,
                    (unsigned)(job->n_tiles * LMD_TILE_ROWS + shape::ROWS - 1) / shape::ROWS,
                    (unsigned)job->n_splits);
    constexpr int SMEM_BYTES = linear_smem<form, shape>::BYTES;
    LMD_LAUNCH(queue, (linear_kernel<form, shape>), grid, shape::THREADS, SMEM_BYTES, *job);
}

template <typename form>
static void linear_launch(const lmd_linear_job *job, lmd_linear_shape_id shape,
                          lmd_cuda_queue *queue) {
    switch (shape) {
    case LMD_LINEAR_8: linear_launch_shape<form, linear_shape_8>(job, queue); break;
    case LMD_LINEAR_16: linear_launch_shape<form, linear_shape_16>(job, queue); break;
    case LMD_LINEAR_32: linear_launch_shape<form, linear_shape_32>(job, queue); break;
    case LMD_LINEAR_64: linear_launch_shape<form, linear_shape_64>(job, queue); break;
    case LMD_LINEAR_SHAPE_COUNT: break;
    }
}

/* Allows a kernel its shared memory, and checks that a multiprocessor can hold a block. */
template <typename form, typename shape> static cudaError_t linear_prepare_shape() {
    constexpr int SMEM_BYTES = linear_smem<form, shape>::BYTES;
    const void *kernel = (const void *)linear_kernel<form, shape>;
    int n_blocks = 0;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES);
    if (error == cudaSuccess)
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n_blocks, kernel, shape::THREADS,
                                                              SMEM_BYTES);
    if (error == cudaSuccess && n_blocks == 0) error = cudaErrorLaunchOutOfResources;
    return error;
}

template <typename form> static cudaError_t linear_prepare() {
    cudaError_t error = linear_prepare_shape<form, linear_shape_8>();
    if (error == cudaSuccess) error = linear_prepare_shape<form, linear_shape_16>();
    if (error == cudaSuccess) error = linear_prepare_shape<form, linear_shape_32>();
    if (error == cudaSuccess) error = linear_prepare_shape<form, linear_shape_64>();
    return error;
}

#endif
