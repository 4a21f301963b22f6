/* A CPU workspace: what one engine needs on the CPU backend.
 * Owns: the KV pool, activation buffers, logits, scratch for each thread, and the memory of the
 * step's list of operations and of its attention units; and knows the size of all that, before
 * it is allocated too. An operation is recorded when it is called, and all of them run as the
 * stages of one parallel run in step_wait: so an operation can know who reads its output. The
 * engine's thread alone. Must not know: architectures, sequences' history beyond the plan. */
#ifndef LMD_CPU_CPU_WORKSPACE_H
#define LMD_CPU_CPU_WORKSPACE_H

#include "backend/backend.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/cpu_record.h"
#include "cpu/cpu_sampling.h"
#include "cpu/cpu_units.h"
#include "cpu/kernels/kernels.h"

struct lmd_buffer {
    lmd_buffer *next; /* of the workspace's list */
    int32_t max_rows, n_cols;
    lmd_acts memory;    /* x; and, where n_cols is a multiple of 32, the quantised arrays */
    lmd_cpu_op *writer; /* the operation of this step that wrote it last; NULL: none */
};

enum {
    LMD_ROW_BLOCK = 96,     /* rows that meet a panel while it is in the first caches */
    LMD_GATED_PANELS = 16,  /* most panels of an item of gate and up */
    LMD_PRIVATE_COLS = 8192 /* most rows * columns that each thread may norm for itself */
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
    _Alignas(64) float wide[LMD_ROW_BLOCK * LMD_GATED_PANELS * LMD_PANEL_ROWS];
    _Alignas(64) float private_x[LMD_PRIVATE_COLS];
    _Alignas(64) uint8_t private_q[LMD_PRIVATE_COLS * 2];
    float private_scales[LMD_PRIVATE_COLS / 32], private_scaled_sums[LMD_PRIVATE_COLS / 32];
    int32_t private_sums[LMD_PRIVATE_COLS / 32];
    uint8_t *kernel; /* [workspace's kernel_scratch_bytes] of the panel kernel */
    lmd_cpu_sample_scratch sample;
} lmd_thread_scratch;

struct lmd_workspace {
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
    lmd_cpu_units cut; /* of the step's attention */
    float *partials;   /* [cut.max_partials, head_dim + 2] o, max, sum */

    lmd_buffer *final;           /* [max_logits_rows, hidden_dim] */
    float *logits;               /* [max_logits_rows, vocab_size] */
    lmd_thread_scratch *scratch; /* [n_threads] */
    size_t kernel_scratch_bytes; /* of one thread, whole cache lines */
    uint8_t *kernel_scratch;     /* [n_threads] of them */
};

lmd_status lmd_cpu_workspace_new(lmd_threads *threads, const lmd_cpu_kernels *kernels,
                                 const lmd_workspace_config *config, lmd_workspace **out,
                                 lmd_err *err);
void lmd_cpu_workspace_free(lmd_workspace *workspace);
/* Adds a buffer of max_tokens rows. LMD_INVALID for more than max_cols columns. */
lmd_status lmd_cpu_buffer_new(lmd_workspace *workspace, int32_t n_cols, lmd_buffer_role role,
                              lmd_buffer **out, lmd_err *err);

/* What lmd_alloc_bytes counts of a new workspace, without its KV blocks (of kv_block_bytes
 * each) and the buffers that are added to it; and of one such buffer. */
size_t lmd_cpu_workspace_bytes(lmd_threads *threads, const lmd_cpu_kernels *kernels,
                               const lmd_workspace_config *config);
size_t lmd_cpu_buffer_bytes(const lmd_workspace_config *config, int32_t n_cols);
size_t lmd_cpu_kv_block_bytes(const lmd_workspace_config *config);

void lmd_cpu_kv_copy(lmd_workspace *workspace, const lmd_block_copy *copies, int32_t n);
lmd_status lmd_cpu_kv_export(lmd_workspace *workspace, const int32_t *block_ids, int32_t n,
                             uint8_t *out, lmd_err *err);
lmd_status lmd_cpu_kv_import(lmd_workspace *workspace, const int32_t *block_ids, int32_t n,
                             const uint8_t *data, lmd_err *err);

#endif
