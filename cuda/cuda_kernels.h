/* The table of launchers: what runs on the device, one row for each family of kernels.
 * A launcher takes device pointers, sizes and a queue; it enqueues its work and returns. It
 * never allocates or waits, and never fails: an error stays in the queue. Every row computes
 * the same functions; "ref" is plain C and says what they are. Must not know: engines, models,
 * workspaces. C11, and C++ under nvcc. */
#ifndef LMD_CUDA_KERNELS_H
#define LMD_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/plan.h"
#include "cuda_layout.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A stream, and what launchers need beside it. One thread. */
typedef struct lmd_cuda_queue {
    cudaStream_t stream;
    cudaError_t error;          /* the first of this step; cudaSuccess: none */
    const char *error_at;       /* what was enqueued then */
    struct lmd_cuda_blas *blas; /* cuda_blas.h; NULL: there is none */
    int32_t n_sms;              /* multiprocessors of the device */
    /* Host memory for the arguments of host functions, which must live until they ran: only the
     * row "ref" uses it. The owner empties it when nothing enqueued still needs it. */
    uint8_t *args;
    size_t args_len, args_room; /* bytes */
} lmd_cuda_queue;

/* Keeps the first error of a step. */
static inline void lmd_cuda_note(lmd_cuda_queue *queue, cudaError_t error, const char *at) {
    if (error == cudaSuccess || queue->error != cudaSuccess) return;
    queue->error = error;
    queue->error_at = at;
}

/* A matrix on the device: one form, rows of one kind; cuda_layout.h says how it lies. */
typedef struct lmd_cuda_matrix {
    lmd_cuda_form form;
    int32_t n_rows, n_cols;       /* without padding; gate and up: the rows of both */
    int32_t group_size;           /* of codes: 32, 64 or 128 columns; F16: 0 */
    const uint8_t *codes;         /* or halves [padded rows][padded cols] */
    const lmd_cuda_group *groups; /* [rows / 16][padded cols / group_size][16]; F16: NULL */
    const float *row_scales;      /* [padded rows] powers of two; NULL: all are 1 */
} lmd_cuda_matrix;

/* ---- the step ---- */

/* A plan on the device. Row r of the step is a token; sequence s has rows token_offsets[s] to
 * token_offsets[s + 1] - 1. A padding sequence has slot -1, one row, and writes nothing outside
 * its own rows of buffers. */
typedef struct lmd_cuda_step {
    int32_t n_tokens, n_seqs;     /* with padding */
    int32_t *token_ids;           /* [n_tokens] -1: the newest of the sequence's slot */
    const int32_t *positions;     /* [n_tokens] */
    const int32_t *row_seqs;      /* [n_tokens] the sequence of a row */
    const int32_t *slots;         /* [n_seqs] */
    const int32_t *history_lens;  /* [n_seqs] tokens in KV before this step */
    const int32_t *token_offsets; /* [n_seqs + 1] */
    const int32_t *block_offsets; /* [n_seqs + 1] into block_ids */
    const int32_t *block_ids;     /* block i of a sequence has positions i * block_len and on */
    int32_t *newest;              /* [max_seqs] the newest token of each slot */
} lmd_cuda_step;

/* The KV of one layer. */
typedef struct lmd_cuda_kv {
    lmd_cuda_kv_format format;
    uint8_t *layer;       /* block 0, head 0 of this layer */
    int64_t block_stride; /* bytes from a block to the next */
    int32_t n_kv_head;    /* heads lie lmd_kv_part_bytes apart */
} lmd_cuda_kv;

/* Replaces each -1 of step.token_ids by the newest token of the row's slot; then copies blocks
 * whole, all layers, in any order (no block is both read and written). */
typedef struct lmd_cuda_begin_args {
    lmd_cuda_step step;
    uint8_t *kv; /* the pool */
    int64_t block_stride;
    const lmd_block_copy *copies; /* [n_copies] on the device */
    int32_t n_copies;
} lmd_cuda_begin_args;

/* out[r] = row token_ids[r] of the table, in fp32: scale * (code - zero) or fma(scale, code,
 * min) in fp32; halves times their row_scale. */
typedef struct lmd_cuda_embed_args {
    lmd_cuda_matrix table;
    const int32_t *token_ids; /* [n_rows] */
    int32_t n_rows;
    float *out; /* [n_rows, out_stride] */
    int32_t out_stride;
} lmd_cuda_embed_args;

/* out[r] = x[rows[r]] / rms * weight: rms = sqrt(mean of squares + eps), in fp32, rounded to
 * halves. */
typedef struct lmd_cuda_norm_args {
    const float *x;      /* [.., x_stride] */
    const int32_t *rows; /* [n_rows] rows of x; NULL: row r is row r */
    const float *weight; /* [n_cols] */
    float eps;
    int32_t n_rows, n_cols, x_stride, out_stride;
    uint16_t *out; /* halves [n_rows, out_stride] */
} lmd_cuda_norm_args;

/* Puts column order[c] of a row where column c is, for every row and column. */
typedef struct lmd_cuda_reorder_args {
    uint16_t *x;                      /* halves [n_rows, x_stride]; rows are 16-byte aligned */
    const int32_t *order;             /* [n_cols] */
    int32_t n_rows, n_cols, x_stride; /* n_cols: a multiple of 32, at most LMD_REORDER_COLS */
} lmd_cuda_reorder_args;

enum { LMD_REORDER_COLS = 48 << 10 }; /* a row fits in a block's shared memory on any device */

typedef enum lmd_cuda_epilogue {
    LMD_CUDA_STORE,     /* halves: y */
    LMD_CUDA_ADD,       /* fp32: out += y */
    LMD_CUDA_SILU_MUL,  /* halves: silu(gate) * up * LMD_FFN_SCALE; the matrix is gate and up */
    LMD_CUDA_STORE_F32, /* fp32: y */
    LMD_CUDA_EPILOGUE_COUNT
} lmd_cuda_epilogue;

/* The ffn's inner activation is stored so small, because a half holds no more than 65504. */
#define LMD_FFN_SCALE 0x1p-6f

/* y = scale * row_scale * (x W^T) + bias, summed in fp32. Weights are halves (cuda_layout.h).
 * silu(a) = a / (1 + exp(-a)). */
typedef struct lmd_cuda_linear_args {
    lmd_cuda_matrix weight;
    const uint16_t *x; /* halves [n_rows, x_stride]; columns from n_cols to padded cols are 0 */
    int32_t n_rows, x_stride; /* x_stride: at least padded cols; a multiple of 8 */
    const float
        *bias; /* [n_rows of the weight] or NULL; of gate and up: all of gate, then up */
    float scale;
    lmd_cuda_epilogue epilogue;
    void *out; /* [n_rows, out_stride] from the matrix's first column on; 16-byte aligned rows
                  are not promised */
    int32_t out_stride;
    bool batch_invariant; /* a row's bits must not depend on n_rows */
    float *scratch;       /* of the step; may be overwritten by any launcher */
    size_t scratch_bytes;
} lmd_cuda_linear_args;

/* For every row: normalises q and k heads (where norms are given), rotates them (RoPE in
 * halves: pairs d and d + head_dim / 2), writes K and V to the cache at the row's position, and
 * leaves q, rotated, in place. K and V are rounded to halves, then quantised. Rows of padding
 * are left alone. The only writer of the cache. */
typedef struct lmd_cuda_write_kv_args {
    lmd_cuda_step step;
    lmd_cuda_kv kv;
    uint16_t *qkv; /* halves [n_tokens, qkv_stride]: heads of q, of k, of v */
    int32_t qkv_stride, n_head;
    const float *q_norm, *k_norm; /* [head_dim] weights of a per-head RMS norm, or NULL */
    float norm_eps;
    const float *rope; /* [n_positions, head_dim / 2, {cos, sin}] */
} lmd_cuda_write_kv_args;

/* A run of attention rows that a thread block computes together. A sequence of n rows has
 * n * (n_head / n_kv_head) attention rows for each KV head: row i is token i / (n_head /
 * n_kv_head) of the sequence's rows of this step, and head i % (n_head / n_kv_head) of those
 * that share the KV head. */
typedef struct lmd_cuda_unit {
    int32_t seq,
        first; /* attention rows first to first + LMD_NARROW_ROWS or LMD_WIDE_ROWS - 1 */
} lmd_cuda_unit;

enum { LMD_NARROW_ROWS = 16, LMD_WIDE_ROWS = 64 };

/* out[row, head] = softmax(q k^T / sqrt(head_dim)) v over positions 0 to the row's own. Rows of
 * a padding sequence become 0. Narrow units may split the context; n_splits is the same for
 * all, and each computes on the device which part it takes. */
typedef struct lmd_cuda_attention_args {
    lmd_cuda_step step;
    lmd_cuda_kv kv;
    const uint16_t *q; /* halves [n_tokens, q_stride], rotated */
    int32_t q_stride, n_head;
    const lmd_cuda_unit *narrow, *wide; /* [n_narrow], [n_wide] on the device */
    int32_t n_narrow, n_wide;
    uint16_t *out; /* halves [n_tokens, out_stride] */
    int32_t out_stride;
    bool batch_invariant;
    float *scratch;
    size_t scratch_bytes;
} lmd_cuda_attention_args;

/* ---- sampling: backend/sampling.h is the definition ---- */

/* How one row of logits becomes a token. Lists are parts of the arrays of the arguments; those
 * of two rows do not overlap, since a row may overwrite its own. */
typedef struct lmd_cuda_sample_row {
    uint64_t seed;
    float top_p, min_p, temperature;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;
    int32_t wants_token, greedy; /* 0 or 1 */
    int32_t first_bias, n_biases, first_count, n_counts;
    int32_t first_mask; /* word of masks; -1: no grammar */
    uint32_t position, sample_idx;
    int32_t target_id, n_logprobs;
    int32_t logprobs_at; /* which of the arguments' tops is this row's; -1: none wanted */
    int32_t slot;        /* whose newest token this row gives; -1: nobody's */
} lmd_cuda_sample_row;

typedef struct lmd_cuda_sample_result {
    int32_t token_id, not_finite; /* as lmd_sample_result */
    float token_logprob, target_logprob;
} lmd_cuda_sample_result;

typedef struct lmd_cuda_tops {
    int32_t n;
    int32_t ids[LMD_MAX_LOGPROBS];
    float logprobs[LMD_MAX_LOGPROBS];
} lmd_cuda_tops;

typedef struct lmd_cuda_sample_args {
    float *logits; /* [n_rows, logits_stride] raw; overwritten */
    int32_t n_rows, logits_stride, vocab_size;
    const lmd_cuda_sample_row *rows; /* [n_rows] */
    lmd_token_bias *biases;          /* overwritten */
    lmd_token_count *counts;         /* overwritten */
    const uint32_t *masks;
    int32_t *newest;                 /* [max_seqs] */
    lmd_cuda_sample_result *results; /* [n_rows] */
    lmd_cuda_tops *tops;
    float *scratch;
    size_t scratch_bytes;
} lmd_cuda_sample_args;

/* ---- the table ---- */

/* What a step of one workspace can reach; scratch is sized by it. */
typedef struct lmd_cuda_limits {
    int32_t max_tokens, max_seqs, max_logits_rows;
    int32_t max_cols; /* rows of the widest matrix but for the lm_head (gate and up: of both),
                         and columns of the widest */
    int32_t vocab_size, n_head, n_kv_head, head_dim, block_len;
    int32_t n_positions; /* most of one sequence */
    int32_t n_sms;
    bool batch_invariant;
} lmd_cuda_limits;

typedef struct lmd_cuda_kernels {
    const char *name; /* "ref" */
    int32_t min_arch; /* 80: compute capability 8.0; 0: none is needed */
    bool on_host;     /* kernels are host functions, and memory must be the host's (pinned) */

    bool (*serves_head_dim)(int32_t head_dim);
    /* Sets attributes of kernels and checks that each can be launched on the current device. */
    cudaError_t (*prepare)(void);
    /* Bytes of scratch that linear, attention and sample may use in a step. */
    size_t (*scratch_bytes)(const lmd_cuda_limits *limits);

    void (*begin)(const lmd_cuda_begin_args *args, lmd_cuda_queue *queue);
    void (*embed)(const lmd_cuda_embed_args *args, lmd_cuda_queue *queue);
    void (*norm)(const lmd_cuda_norm_args *args, lmd_cuda_queue *queue);
    void (*reorder)(const lmd_cuda_reorder_args *args, lmd_cuda_queue *queue);
    void (*linear)(const lmd_cuda_linear_args *args, lmd_cuda_queue *queue);
    void (*write_kv)(const lmd_cuda_write_kv_args *args, lmd_cuda_queue *queue);
    void (*attention)(const lmd_cuda_attention_args *args, lmd_cuda_queue *queue);
    void (*sample)(const lmd_cuda_sample_args *args, lmd_cuda_queue *queue);
} lmd_cuda_kernels;

extern const lmd_cuda_kernels lmd_cuda_ref, lmd_cuda_sm80;

/* The launchers of the row sm80, each beside its kernels. */
void lmd_sm80_begin(const lmd_cuda_begin_args *args, lmd_cuda_queue *queue);
void lmd_sm80_embed(const lmd_cuda_embed_args *args, lmd_cuda_queue *queue);
void lmd_sm80_norm(const lmd_cuda_norm_args *args, lmd_cuda_queue *queue);
void lmd_sm80_reorder(const lmd_cuda_reorder_args *args, lmd_cuda_queue *queue);
void lmd_sm80_linear(const lmd_cuda_linear_args *args, lmd_cuda_queue *queue);
void lmd_sm80_write_kv(const lmd_cuda_write_kv_args *args, lmd_cuda_queue *queue);
void lmd_sm80_attention(const lmd_cuda_attention_args *args, lmd_cuda_queue *queue);
void lmd_sm80_sample(const lmd_cuda_sample_args *args, lmd_cuda_queue *queue);
size_t lmd_sm80_linear_scratch(const lmd_cuda_limits *limits);
size_t lmd_sm80_attention_scratch(const lmd_cuda_limits *limits);
size_t lmd_sm80_sample_scratch(const lmd_cuda_limits *limits);
cudaError_t lmd_sm80_reorder_prepare(void);
cudaError_t lmd_sm80_linear_prepare(void);
cudaError_t lmd_sm80_attention_prepare(void);
cudaError_t lmd_sm80_sample_prepare(void);

#ifdef __cplusplus
}
#endif

#endif
