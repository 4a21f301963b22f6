/* The linear of the row "sm80": which kernel a linear takes.
 * Owns: the choice of a shape and of splits, or of cuBLAS, the sum of splits, and the scratch
 * that they need. Must not know: how weights become halves. Launchers: the queue's thread. */
#include "cuda_blas.h"
#include "sm80_linear.h"

/* ---- the choice ---- */

/* Of a shape: what sm80_linear.h says, and the most tokens for which it is the first choice. */
typedef struct shape_facts {
    int32_t rows, tokens, k_warps, most_tokens;
} shape_facts;

template <typename shape> static constexpr shape_facts facts_of(int32_t most_tokens) {
    return {shape::ROWS, shape::TOKENS, shape::K_WARPS, most_tokens};
}

/* By lmd_linear_shape_id. A block of 16 weight rows reads as much of x for 4 tokens as of 4-bit
 * weights, so more tokens than that take more rows. */
static constexpr shape_facts SHAPES[LMD_LINEAR_SHAPE_COUNT] = {
    facts_of<linear_shape_8>(4), facts_of<linear_shape_16>(16), facts_of<linear_shape_32>(32),
    facts_of<linear_shape_64>(INT32_MAX)};

enum {
    BLOCKS_PER_SM = 2,      /* wanted, so that one computes while the other waits */
    LEAST_STEPS = 2,        /* of a split */
    MOST_SPLIT_TOKENS = 64, /* of a launch with splits: more tokens fill the device */
    MOST_ROWS = 128         /* of any shape */
};

static_assert(linear_shape_8::ROWS <= MOST_ROWS && linear_shape_16::ROWS <= MOST_ROWS &&
                  linear_shape_32::ROWS <= MOST_ROWS && linear_shape_64::ROWS <= MOST_ROWS,
              "the scratch is for so many");

typedef struct choice {
    lmd_linear_shape_id shape;
    int32_t steps_per_split, n_splits;
    int32_t tokens_per_launch;
} choice;

static int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

static lmd_linear_shape_id choose_shape(const lmd_cuda_linear_args *args, int32_t n_tokens,
                                        int32_t n_sms) {
    /* Any shape would do; this one is tolerable for one token and for many. */
    if (args->batch_invariant) return LMD_LINEAR_32;
    int32_t shape = LMD_LINEAR_8;
    while (n_tokens > SHAPES[shape].most_tokens) shape++;
    const shape_facts *facts = &SHAPES[shape];
    const int32_t n_blocks =
        ceil_div(args->weight.n_rows, facts->rows) * ceil_div(n_tokens, facts->tokens);
    if (shape == LMD_LINEAR_64 && n_blocks < n_sms) return LMD_LINEAR_32;
    return (lmd_linear_shape_id)shape;
}

/* Splits the columns where there are too few blocks for the device. With batch_invariant,
 * splits are those of a launch of one token, whatever n_tokens is. */
static choice choose(const lmd_cuda_linear_args *args, int32_t n_sms) {
    const lmd_linear_shape_id shape = choose_shape(args, args->n_rows, n_sms);
    const shape_facts *facts = &SHAPES[shape];
    const int32_t n_slices = lmd_pad_cols(args->weight.n_cols) / LMD_TILE_COLS;
    const int32_t n_steps = ceil_div(n_slices, facts->k_warps);
    const int32_t n_tokens = args->batch_invariant ? 1 : args->n_rows;
    const int32_t n_blocks =
        ceil_div(args->weight.n_rows, facts->rows) * ceil_div(n_tokens, facts->tokens);
    int32_t n_splits = n_tokens > MOST_SPLIT_TOKENS ? 1 : BLOCKS_PER_SM * n_sms / n_blocks;
    if (n_splits > n_steps / LEAST_STEPS) n_splits = n_steps / LEAST_STEPS;
    if (n_splits < 1) n_splits = 1;
    const int32_t steps_per_split = ceil_div(n_steps, n_splits);
    n_splits = ceil_div(n_steps, steps_per_split); /* none is empty */
    const int32_t tokens = n_splits > 1 ? MOST_SPLIT_TOKENS : args->n_rows;
    return (choice){shape, steps_per_split, n_splits, tokens};
}

/* ---- the sum of splits ---- */

enum { SUM_THREADS = 128 };

LMD_DEVICE float sum_of_splits(const lmd_linear_job *job, int32_t token, int32_t row) {
    const int64_t n_rows = job->n_tiles * LMD_TILE_ROWS;
    const float *sums = job->args.scratch + token * n_rows + row;
    float sum = sums[0];
    for (int32_t i = 1; i < job->n_splits; i++) sum += sums[i * job->args.n_rows * n_rows];
    return sum;
}

/* Adds the splits in order, and stores. Blocks: [columns of the output, tokens]. */
LMD_KERNEL(SUM_THREADS) linear_sum_splits(const lmd_linear_job job) {
    const int32_t col = (int32_t)(blockIdx.x * SUM_THREADS + threadIdx.x);
    const int32_t token = (int32_t)blockIdx.y;
    const bool gated = job.args.epilogue == LMD_CUDA_SILU_MUL;
    if (col >= linear_out_cols(&job.args)) return;
    const float sum = sum_of_splits(&job, token, gated ? lmd_gated_row(0, col) : col);
    const float up = gated ? sum_of_splits(&job, token, lmd_gated_row(1, col)) : 0.0f;
    linear_store(&job.args, token, col, sum, up);
}

/* ---- launching ---- */

static lmd_linear_job make_job(const lmd_cuda_linear_args *args, const choice *chosen) {
    lmd_linear_job job = {};
    job.args = *args;
    job.groups = (const uint32_t *)args->weight.groups;
    job.n_tiles = lmd_pad_rows(args->weight.n_rows) / LMD_TILE_ROWS;
    job.n_slices = lmd_pad_cols(args->weight.n_cols) / LMD_TILE_COLS;
    while (LMD_TILE_COLS / 2 << job.group_shift < args->weight.group_size) job.group_shift++;
    job.steps_per_split = chosen->steps_per_split;
    job.n_splits = chosen->n_splits;
    return job;
}

/* Adds the splits of a job, and stores. */
static void launch_sum(const lmd_linear_job *job, lmd_cuda_queue *queue) {
    const bool gated = job->args.epilogue == LMD_CUDA_SILU_MUL;
    const int32_t n_cols = gated ? job->args.weight.n_rows / 2 : job->args.weight.n_rows;
    const dim3 grid((unsigned)ceil_div(n_cols, SUM_THREADS), (unsigned)job->args.n_rows);
    LMD_LAUNCH(queue, linear_sum_splits, grid, SUM_THREADS, 0, *job);
}

/* Launches a job for its args' rows. */
static void launch(const lmd_linear_job *job, lmd_linear_shape_id shape,
                   lmd_cuda_queue *queue) {
    if (lmd_form_is_codes(job->args.weight.form))
        lmd_sm80_linear_codes(job, shape, queue);
    else
        lmd_sm80_linear_halves(job, shape, queue);
    if (job->n_splits > 1) launch_sum(job, queue);
}

static size_t bytes_of_elements(lmd_cuda_epilogue epilogue) {
    return epilogue == LMD_CUDA_STORE || epilogue == LMD_CUDA_SILU_MUL ? sizeof(uint16_t)
                                                                       : sizeof(float);
}

/* ---- cuBLAS ---- */

enum {
    LEAST_BLAS_TOKENS = 65,    /* fewer read the weights once, which our kernel does as well */
    BLAS_WORKSPACE = 16 << 20, /* bytes */
    MOST_BLAS_TOKENS = 256     /* of a product whose sums go to the scratch */
};

/* Whether the output is the product alone, so that cuBLAS stores it where it belongs. */
static bool is_plain(const lmd_cuda_linear_args *args) {
    return !args->bias && !args->weight.row_scales && args->epilogue != LMD_CUDA_SILU_MUL;
}

static lmd_cuda_blas_args blas_args(const lmd_cuda_linear_args *args, int32_t n_out) {
    lmd_cuda_blas_args out = {};
    out.weight = (const uint16_t *)args->weight.codes;
    out.x = args->x;
    out.out = args->out;
    out.n_out = n_out;
    out.n_in = lmd_pad_cols(args->weight.n_cols);
    out.n_rows = args->n_rows;
    out.x_stride = args->x_stride;
    out.out_stride = args->out_stride;
    out.out_is_float = args->epilogue != LMD_CUDA_STORE;
    out.adds = args->epilogue == LMD_CUDA_ADD;
    out.scale = args->scale;
    out.workspace = args->scratch;
    out.workspace_bytes = BLAS_WORKSPACE;
    return out;
}

/* Multiplies into the scratch, behind cuBLAS's workspace, as one split whose sum is stored. */
static bool multiply_to_scratch(const lmd_linear_job *job, lmd_cuda_queue *queue) {
    const int32_t n_rows = job->n_tiles * LMD_TILE_ROWS; /* of the weight, with padding */
    lmd_linear_job sums = *job;
    lmd_cuda_blas_args product = blas_args(&job->args, n_rows);
    sums.args.scratch = job->args.scratch + BLAS_WORKSPACE / sizeof(float);
    sums.n_splits = 1;
    product.out = sums.args.scratch;
    product.out_stride = n_rows;
    product.out_is_float = true;
    product.adds = false;
    product.scale = 1.0f;
    if (!lmd_cuda_blas_multiply(queue->blas, &product, queue)) return false;
    launch_sum(&sums, queue);
    return true;
}

static bool serves_blas(const lmd_cuda_linear_args *args, const lmd_cuda_queue *queue) {
    const size_t row_bytes = sizeof(float) * (size_t)lmd_pad_rows(args->weight.n_rows);
    const size_t sums_bytes = is_plain(args) ? 0 : MOST_BLAS_TOKENS * row_bytes;
    return queue->blas && args->weight.form == LMD_FORM_F16 && !args->batch_invariant &&
           args->n_rows >= LEAST_BLAS_TOKENS &&
           BLAS_WORKSPACE + sums_bytes <= args->scratch_bytes;
}

/* False: cuBLAS does not serve this, and nothing was enqueued. */
static bool multiply_by_blas(const lmd_cuda_linear_args *args, lmd_cuda_queue *queue) {
    if (!serves_blas(args, queue)) return false;
    if (is_plain(args)) {
        const lmd_cuda_blas_args product = blas_args(args, args->weight.n_rows);
        return lmd_cuda_blas_multiply(queue->blas, &product, queue);
    }
    const choice whole = {};
    lmd_linear_job job = make_job(args, &whole);
    const size_t row_bytes = (size_t)args->out_stride * bytes_of_elements(args->epilogue);
    for (int32_t first = 0; first < args->n_rows; first += MOST_BLAS_TOKENS) {
        const int32_t left = args->n_rows - first;
        job.args.n_rows = left < MOST_BLAS_TOKENS ? left : MOST_BLAS_TOKENS;
        job.args.x = args->x + (int64_t)first * args->x_stride;
        job.args.out = (uint8_t *)args->out + (size_t)first * row_bytes;
        if (!multiply_to_scratch(&job, queue)) return false; /* the same for every part */
    }
    return true;
}

/* ---- the launcher ---- */

void lmd_sm80_linear(const lmd_cuda_linear_args *args, lmd_cuda_queue *queue) {
    if (args->n_rows == 0 || multiply_by_blas(args, queue)) return;
    const choice chosen = choose(args, queue->n_sms);
    lmd_linear_job job = make_job(args, &chosen);
    const size_t row_bytes = (size_t)args->out_stride * bytes_of_elements(args->epilogue);
    for (int32_t first = 0; first < args->n_rows; first += chosen.tokens_per_launch) {
        const int32_t left = args->n_rows - first;
        job.args.n_rows = left < chosen.tokens_per_launch ? left : chosen.tokens_per_launch;
        job.args.x = args->x + (int64_t)first * args->x_stride;
        job.args.out = (uint8_t *)args->out + (size_t)first * row_bytes;
        launch(&job, chosen.shape, queue);
    }
}

/* Splits and blocks of a launch are together at most BLOCKS_PER_SM * n_sms, and a block has at
 * most MOST_ROWS rows. */
size_t lmd_sm80_linear_scratch(const lmd_cuda_limits *limits) {
    const int32_t n_rows = limits->max_tokens > limits->max_logits_rows
                               ? limits->max_tokens
                               : limits->max_logits_rows;
    const int32_t n_tokens = n_rows < MOST_SPLIT_TOKENS ? n_rows : MOST_SPLIT_TOKENS;
    const size_t splits_bytes =
        sizeof(float) * (size_t)n_tokens * MOST_ROWS * BLOCKS_PER_SM * (size_t)limits->n_sms;
    if (n_rows < LEAST_BLAS_TOKENS || limits->batch_invariant) return splits_bytes;
    const size_t blas_bytes = BLAS_WORKSPACE + sizeof(float) * MOST_BLAS_TOKENS *
                                                   (size_t)lmd_pad_rows(limits->max_cols);
    return splits_bytes > blas_bytes ? splits_bytes : blas_bytes;
}

cudaError_t lmd_sm80_linear_prepare(void) {
    const cudaError_t error = lmd_sm80_linear_codes_prepare();
    return error == cudaSuccess ? lmd_sm80_linear_halves_prepare() : error;
}
