/* A CPU workspace: what one engine needs on the CPU backend.
 * Owns: the KV pool, activation buffers, logits, scratch for each thread, the step's list of
 * operations. An operation is recorded when it is called, and run, with the others, as a stage
 * of one parallel run by step_wait: so an operation knows who reads its output. The engine's
 * thread alone. Must not know: architectures, sequences' history beyond the plan. */
#ifndef LMD_CPU_CPU_WORKSPACE_H
#define LMD_CPU_CPU_WORKSPACE_H

#include "backend/backend.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/kernels/kernels.h"
#include "cpu/cpu_sampling.h"
#include "cpu/cpu_weight.h"

typedef struct lmd_cpu_op lmd_cpu_op;

struct lmd_buffer {
    lmd_buffer *next; /* of the workspace's list */
    int32_t max_rows, n_cols;
    lmd_acts memory;      /* x; and, where n_cols is a multiple of 32, the quantised arrays */
    lmd_cpu_op *producer; /* the operation of this step that wrote it last; NULL: none */
};

/* One recorded operation, a stage of the step; each kind uses its own few fields. */
struct lmd_cpu_op {
    lmd_stage stage; /* its argument is the workspace */
    lmd_buffer *in, *out;
    const lmd_weight *weight;
    const float *bias; /* [n_rows of weight] or NULL */
    float *to;         /* a linear's [n_rows, n_to] */
    int32_t n_to;
    int32_t n_rows;      /* of the step, or of its logits rows */
    const int32_t *rows; /* norm: [n_rows] rows of `in`; NULL: as they stand */
    lmd_epilogue epilogue;
    float eps;
    lmd_attention_args attention;
    const lmd_sample_params *params; /* sampling: [n_rows], and their results */
    lmd_sample_result *results;
    lmd_acts acts;          /* a linear's input, quantised or not */
    lmd_acts out_acts;      /* `out` as its reader wants it */
    bool quantizes;         /* writes out as out_acts says */
    bool keeps_x;           /* and fp32 too: another reader wants another form */
    lmd_cpu_op *part;       /* an earlier one that writes the rest of `out`; or NULL */
    const lmd_cpu_op *norm; /* a linear: every thread makes its input for itself, by this */
    int32_t take_panels, n_takes, block_tiles; /* a linear's cut */
};

/* One piece of a step's attention: some tokens of a sequence, some query heads of one KV head,
 * and all chunks (partial_idx -1), or some, whose partial results go to partials[partial_idx
 * ...], n_head further on from chunk to chunk. */
typedef struct lmd_attend_unit {
    int32_t seq_idx, kv_head;
    int32_t head_begin, n_heads;   /* query heads */
    int32_t token_begin, n_tokens; /* rows of the step */
    int32_t begin, end;            /* positions */
    int32_t partial_idx;           /* of head_begin at the first chunk; -1: not split */
    bool writes_kv;                /* of its one token, before it attends */
} lmd_attend_unit;

enum {
    LMD_ROW_BLOCK = 96,     /* rows that meet a panel while it is in the first caches */
    LMD_TAKE_PANELS = 16,   /* most gated panels that a thread takes at once */
    LMD_PRIVATE_COLS = 8192 /* rows * columns that each thread may norm for itself */
};

/* Private to one thread during a run. */
typedef struct lmd_thread_scratch {
    lmd_attend_state attend;
    float max[LMD_ATTEND_ROWS], sum[LMD_ATTEND_ROWS];
    int32_t row_ends[LMD_ATTEND_ROWS];
    _Alignas(64) float q[LMD_ATTEND_ROWS][LMD_MAX_HEAD_DIM];
    _Alignas(64) float o[LMD_ATTEND_ROWS][LMD_MAX_HEAD_DIM];
    _Alignas(64) float tile[LMD_ROW_BLOCK * LMD_PANEL_ROWS];
    _Alignas(64) float up[LMD_ROW_BLOCK * LMD_PANEL_ROWS];
    _Alignas(64) float wide[LMD_ROW_BLOCK * LMD_TAKE_PANELS * LMD_PANEL_ROWS];
    _Alignas(64) float private_x[LMD_PRIVATE_COLS];
    _Alignas(64) uint8_t private_q[LMD_PRIVATE_COLS * 2];
    float private_scales[LMD_PRIVATE_COLS / 32], private_scaled_sums[LMD_PRIVATE_COLS / 32];
    int32_t private_sums[LMD_PRIVATE_COLS / 32];
    uint8_t *panel; /* [workspace's panel_scratch_bytes] the kernels' own */
    lmd_cpu_sample_scratch sample;
} lmd_thread_scratch;

struct lmd_workspace {
    lmd_backend *backend;
    lmd_threads *threads;
    const lmd_cpu_kernels *kernels;
    lmd_workspace_config config; /* rope_table points to the workspace's copy */
    lmd_buffer *buffers;         /* list */

    uint8_t *kv;             /* [n_blocks][n_layer][n_kv_head] of head_bytes */
    lmd_kv_format kv_format; /* of head_bytes: one head's part of a block */
    int64_t head_bytes, block_stride;
    size_t kv_bytes; /* with LMD_KV_PADDING */
    float *rope_table;

    const lmd_plan *plan; /* of the step under way */
    lmd_cpu_op *ops;      /* [max_ops] */
    int32_t n_ops, max_ops;

    int32_t *row_seqs;      /* [max_tokens] the sequence of each row */
    lmd_attend_unit *units; /* [max_units] */
    int32_t n_units, max_units;
    bool writes_kv_first; /* some rows write K and V before any unit starts */
    bool has_splits;
    float *partials; /* [max_partials, head_dim + 2] o, max, sum */
    int32_t max_partials;
    int32_t *seq_partials; /* [max_seqs] first partial of a split sequence; -1: not split */

    lmd_buffer *final;            /* [max_logits_rows, hidden_dim] */
    float *logits;                /* [max_logits_rows, vocab_size] */
    lmd_thread_scratch **scratch; /* [n_threads] */
    size_t panel_scratch_bytes;
};

lmd_status lmd_cpu_workspace_new(lmd_backend *backend, lmd_threads *threads,
                                 const lmd_cpu_kernels *kernels,
                                 const lmd_workspace_config *config, lmd_workspace **out,
                                 lmd_err *err);
void lmd_cpu_workspace_free(lmd_workspace *workspace);
size_t lmd_cpu_kv_block_bytes(const lmd_workspace_config *config);
lmd_status lmd_cpu_buffer_new(lmd_workspace *workspace, int32_t n_cols, lmd_buffer_role role,
                              lmd_buffer **out, lmd_err *err);

/* The operations of a step; see backend.h. */
void lmd_cpu_step_begin(lmd_workspace *workspace, const lmd_plan *plan);
void lmd_cpu_embed(lmd_workspace *workspace, const lmd_weight *table, lmd_buffer *out);
void lmd_cpu_add_norm(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *weight,
                      float eps, lmd_buffer *out);
void lmd_cpu_linear(lmd_workspace *workspace, const lmd_linear_args *args);
void lmd_cpu_attention(lmd_workspace *workspace, const lmd_attention_args *args);
void lmd_cpu_logits(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *norm,
                    float eps, const lmd_weight *lm_head, int32_t first, int32_t n);
void lmd_cpu_sample(lmd_workspace *workspace, const lmd_sample_params *params, int32_t n,
                    lmd_sample_result *results);
void lmd_cpu_step_run(lmd_workspace *workspace);
/* Copies blocks within the pool, in the order given. */
void lmd_cpu_kv_copy(lmd_workspace *workspace, const lmd_block_copy *copies, int32_t n);
lmd_status lmd_cpu_kv_export(lmd_workspace *workspace, const int32_t *block_ids, int32_t n,
                             uint8_t *out, lmd_err *err);
lmd_status lmd_cpu_kv_import(lmd_workspace *workspace, const int32_t *block_ids, int32_t n,
                             const uint8_t *data, lmd_err *err);

/* Between the files of a workspace. */

/* As lmd_stage's run. */
typedef void (*lmd_cpu_item_fn)(void *arg, const lmd_stage *stage, int32_t item,
                                int32_t thread_idx, bool is_first);

/* Makes room for n operations of one list, which may point to one another: where there is none,
 * the list so far is run. */
void lmd_cpu_ops_reserve(lmd_workspace *workspace, int32_t n);
/* Appends an operation that writes `out` (NULL: none of the buffers); there is room. */
lmd_cpu_op *lmd_cpu_op_add(lmd_workspace *workspace, lmd_cpu_item_fn run, lmd_buffer *out,
                           int32_t n_rows);
/* The thread's copy of a linear's input; thread 0 has the buffer. */
lmd_acts lmd_cpu_private_acts(const lmd_workspace *workspace, const lmd_acts *shared,
                              int32_t thread_idx);
/* Makes that copy, by the linear's norm. */
void lmd_cpu_private_norm(const lmd_workspace *workspace, const lmd_cpu_op *norm,
                          const lmd_acts *acts);
void lmd_cpu_linear_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                         bool is_first);
/* Cuts a linear into takes of panels and blocks of rows, once its output's form is known. */
void lmd_cpu_linear_cut(const lmd_workspace *workspace, lmd_cpu_op *op);

/* Makes the step's attention units from its plan. */
void lmd_cpu_attention_plan(lmd_workspace *workspace);
/* One attention unit; the operation that a linear may ask to quantise what it writes. */
void lmd_cpu_attention_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                            bool is_first);
/* All chunks of one split sequence, folded: likewise. */
void lmd_cpu_fold_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                       bool is_first);
/* Upper bounds for the arrays that lmd_cpu_attention_plan fills. */
void lmd_cpu_attention_bounds(const lmd_workspace_config *config, int32_t n_threads,
                              int32_t *max_units, int32_t *max_partials);

#endif
