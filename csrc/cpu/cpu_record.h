/* Recording a step: the list of operations that step_wait runs as the stages of one parallel
 * run.
 * Owns: the form of the list, and how the writer and the readers of a buffer agree on what is
 * written. An operation says what it can do as data (quantize_unit, cut, write_all), so the
 * recorder never asks what it computes. Recording allocates nothing. Must not know: what an
 * operation computes, plans. The engine's thread alone. */
#ifndef LMD_CPU_CPU_RECORD_H
#define LMD_CPU_CPU_RECORD_H

#include "backend/backend.h"
#include "base/threads.h"
#include "cpu/kernels/kernels.h"

typedef struct lmd_cpu_op lmd_cpu_op;

/* As lmd_stage's run. */
typedef void (*lmd_cpu_item_fn)(void *arg, const lmd_stage *stage, int32_t item,
                                int32_t thread_idx, bool is_first);

typedef struct lmd_cpu_norm_op {
    const int32_t *rows; /* [n_rows] rows of the input; NULL: row i is row i */
    float eps;
} lmd_cpu_norm_op;

/* Items: the matrix's panels are cut into items_per_block runs of panels_per_item, and the rows
 * into blocks of tiles_per_block tiles; item i is run i % items_per_block of block
 * i / items_per_block. */
typedef struct lmd_cpu_linear_op {
    lmd_acts acts;           /* the input, quantised where the weight has codes */
    const lmd_cpu_op *input; /* its write_all makes each thread's copy of the input; or NULL */
    const float *bias;       /* [rows of the weight] or NULL */
    float *to;               /* [n_rows, n_to] */
    int32_t n_to;
    lmd_epilogue epilogue;
    int32_t panels_per_item, items_per_block, tiles_per_block;
} lmd_cpu_linear_op;

typedef struct lmd_cpu_sample_op {
    const lmd_sample_params *params; /* [n_rows] */
    lmd_sample_result *results;      /* [n_rows] */
} lmd_cpu_sample_op;

typedef struct lmd_cpu_observe_op {
    const lmd_observer *observer;
    int32_t layer, place;
} lmd_cpu_observe_op;

/* One recorded operation, a stage of the step. */
struct lmd_cpu_op {
    lmd_stage stage; /* its argument is the workspace */
    lmd_buffer *in, *out;
    const lmd_weight *weight;
    int32_t n_rows; /* of the step, or of its logits rows */

    /* What it can do. */

    /* It writes so many columns of `out` together, and can quantise groups of which they are a
     * multiple; 0: it cannot quantise. */
    int32_t quantize_unit;
    /* Cuts it into items, which depend on the form of `out`; NULL: they do not. */
    void (*cut)(const lmd_workspace *workspace, lmd_cpu_op *op);
    /* Writes every row of `out` to a thread's own copy; NULL: it cannot. */
    void (*write_all)(const lmd_workspace *workspace, const lmd_cpu_op *op, const lmd_acts *to);

    /* What the recorder has decided. */

    lmd_acts out_acts; /* `out` in the form that its reader wants */
    bool quantizes;    /* it writes the integers of out_acts */
    bool keeps_x;      /* it writes fp32 beside them, for another reader */
    bool is_private;   /* its only reader's threads call write_all; it has no items */
    lmd_cpu_op *part;  /* an earlier operation that writes the rest of `out`; or NULL */

    union { /* by kind */
        lmd_cpu_norm_op norm;
        lmd_cpu_linear_op linear;
        lmd_attention_args attention;
        lmd_cpu_sample_op sample;
        lmd_cpu_observe_op observe;
    };
};

/* Operations of the longest list that runs as one: a layer has nine stages at most, and four of
 * them may need one more that quantises their input. A longer list runs in pieces. */
static inline int32_t lmd_cpu_max_ops(int32_t n_layer) { return 13 * n_layer + 16; }

/* Empties the list, so that no buffer has a writer. */
void lmd_cpu_record_clear(lmd_workspace *workspace);
/* Runs the list and clears it. */
void lmd_cpu_record_run(lmd_workspace *workspace);

/* Makes room for n operations that may point to one another: a list without room is run. */
void lmd_cpu_record_reserve(lmd_workspace *workspace, int32_t n);
/* Appends an operation that writes `out` (NULL: no buffer), for which there is room. */
lmd_cpu_op *lmd_cpu_record_add(lmd_workspace *workspace, lmd_cpu_item_fn run, lmd_buffer *out,
                               int32_t n_rows);

/* Has the writer of a buffer keep its fp32 rows, whatever other readers want. */
void lmd_cpu_record_keep_x(lmd_workspace *workspace, lmd_buffer *buffer);
/* Has the writer of a buffer quantise it as `acts` says; false: it cannot, and keeps the fp32
 * rows for an operation that does. */
bool lmd_cpu_record_quantized(lmd_workspace *workspace, lmd_buffer *buffer,
                              const lmd_acts *acts);
/* Leaves the writing of a buffer, which lmd_cpu_record_quantized has agreed on, to the
 * operation that is recorded next: each of its threads writes a copy of its own, which for a
 * small buffer takes less time than waiting for one another. Returns the writer, or NULL where
 * the buffer is large or has other readers, and the writer stays a stage of its own. */
const lmd_cpu_op *lmd_cpu_record_private(lmd_workspace *workspace, const lmd_buffer *buffer);

#endif
