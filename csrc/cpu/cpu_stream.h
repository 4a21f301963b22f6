/* A CPU stream: what one engine needs on the CPU backend, and the operations of a step on it.
 * Owns: the KV pool, activation buffers, logits, scratch for each thread, the step's attention
 * units. Operations run at once on the backend's threads and return when done. The engine's
 * thread alone. Must not know: architectures, sequences' history beyond the plan. */
#ifndef LMD_CPU_CPU_STREAM_H
#define LMD_CPU_CPU_STREAM_H

#include "backend/backend.h"
#include "base/threads.h"
#include "cpu/cpu_kernels.h"
#include "cpu/cpu_sampling.h"
#include "cpu/cpu_weight.h"

struct lmd_buffer {
    lmd_buffer *next; /* of the stream's list */
    int32_t n_cols;
    float *x;           /* [max_rows, n_cols] */
    int16_t *q;         /* [max_rows, n_cols]; NULL where n_cols is no multiple of 32 */
    float *scales;      /* [max_rows, n_cols / 32] */
    int32_t *sums;      /* [max_rows, n_cols / 32] */
    int32_t group_size; /* q holds x quantised by it; 0: q is stale */
    size_t x_bytes, q_bytes, group_bytes;
};

/* One piece of a step's attention: some tokens of a sequence, some query heads of one KV head,
 * and either all chunks (partial_idx -1) or one chunk whose partial results go to
 * partials[partial_idx ...]. */
typedef struct lmd_attend_unit {
    int32_t seq_idx, kv_head;
    int32_t head_begin, n_heads;   /* query heads */
    int32_t token_begin, n_tokens; /* rows of the step */
    int32_t begin, end;            /* positions */
    int32_t partial_idx;           /* of head_begin at this chunk; -1: not split */
} lmd_attend_unit;

/* Private to one thread during a region. */
typedef struct lmd_thread_scratch {
    lmd_attend_state attend;
    float max[LMD_ATTEND_ROWS], sum[LMD_ATTEND_ROWS];
    int32_t row_ends[LMD_ATTEND_ROWS];
    _Alignas(64) float q[LMD_ATTEND_ROWS][LMD_MAX_HEAD_DIM];
    _Alignas(64) float o[LMD_ATTEND_ROWS][LMD_MAX_HEAD_DIM];
    lmd_cpu_sample_scratch sample;
} lmd_thread_scratch;

struct lmd_stream {
    lmd_backend *backend;
    lmd_threads *threads;
    const lmd_cpu_kernels *kernels;
    lmd_stream_config config; /* rope_table points to the stream's copy */
    lmd_buffer *buffers;      /* list */

    uint8_t *kv; /* [n_blocks][n_layer][n_kv_head] of head_bytes: keys, then values */
    int64_t head_bytes, block_stride;
    size_t kv_bytes;
    float *rope_table;

    const lmd_plan *plan;   /* of the step under way */
    int32_t *row_seqs;      /* [max_tokens] the sequence of each row */
    lmd_attend_unit *units; /* [max_units] */
    int32_t n_units, max_units;
    float *partials; /* [max_partials, head_dim + 2] o, max, sum */
    int32_t max_partials;
    int32_t *seq_partials; /* [max_seqs] first partial of a split sequence; -1: not split */

    lmd_buffer *final;            /* [max_logits_rows, hidden_dim] */
    float *logits;                /* [max_logits_rows, vocab_size] */
    lmd_thread_scratch **scratch; /* [n_threads] */
    atomic_int next[2];           /* work counters of a region's two phases */
};

/* Makes the step's attention units from its plan. */
void lmd_cpu_attention_plan(lmd_stream *stream);
/* The `attention` operation of the backend's table. */
void lmd_cpu_attention(lmd_stream *stream, const lmd_attention_args *args);
/* Upper bounds for the arrays that lmd_cpu_attention_plan fills. */
void lmd_cpu_attention_bounds(const lmd_stream_config *config, int32_t *max_units,
                              int32_t *max_partials);

/* The other operations; see backend.h. */
lmd_status lmd_cpu_stream_new(lmd_backend *backend, lmd_threads *threads,
                              const lmd_cpu_kernels *kernels, const lmd_stream_config *config,
                              lmd_stream **out, lmd_err *err);
void lmd_cpu_stream_free(lmd_stream *stream);
size_t lmd_cpu_kv_block_bytes(const lmd_stream_config *config);
lmd_status lmd_cpu_buffer_new(lmd_stream *stream, int32_t n_cols, lmd_buffer **out,
                              lmd_err *err);
void lmd_cpu_step_begin(lmd_stream *stream, const lmd_plan *plan);
void lmd_cpu_embed(lmd_stream *stream, const lmd_weight *table, lmd_buffer *out);
void lmd_cpu_add_norm(lmd_stream *stream, lmd_buffer *residual, const lmd_weight *weight,
                      float eps, lmd_buffer *out);
void lmd_cpu_linear(lmd_stream *stream, const lmd_linear_args *args);
void lmd_cpu_logits(lmd_stream *stream, lmd_buffer *residual, const lmd_weight *norm, float eps,
                    const lmd_weight *lm_head, int32_t first, int32_t n);
void lmd_cpu_sample(lmd_stream *stream, int32_t first, int32_t n, lmd_sample_result *results);
void lmd_cpu_kv_copy(lmd_stream *stream, const lmd_block_copy *copies, int32_t n);

#endif
