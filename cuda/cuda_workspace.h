/* A workspace on a CUDA device: what one engine needs there.
 * Owns: the KV pool, the activation buffers, one allocation for everything else, the stream,
 * and the two flights: what the host keeps of a plan until it was waited for. Knows the size of
 * all that before it is allocated. Must not know: what operations compute. The engine's thread.
 */
#ifndef LMD_CUDA_CUDA_WORKSPACE_H
#define LMD_CUDA_CUDA_WORKSPACE_H

#include "cuda_device.h"
#include "cuda_plan.h"

struct lmd_buffer {
    lmd_buffer *next;       /* of the workspace's list */
    int32_t n_cols, stride; /* the stride is padded for kernels; columns beyond n_cols stay 0 */
    lmd_buffer_role role;
    void *data; /* residual: floats; activation: halves [max_tokens, stride] */
    float unit; /* an activation's values are stored divided by 1 / unit: LMD_FFN_SCALE or 1 */
};

/* Rows that one call of `sample` gave: where their results go. */
typedef struct lmd_cuda_tile {
    int32_t first, n; /* among the flight's rows */
    lmd_sample_result *results;
} lmd_cuda_tile;

/* A plan between step_begin and step_wait. All arrays are pinned. */
typedef struct lmd_cuda_flight {
    int64_t plan_id; /* 0: none yet */
    const lmd_plan *plan;
    lmd_cuda_packed packed;
    int32_t *ints;                   /* [plan room] the packed plan */
    lmd_cuda_sample_row *rows;       /* [max_tokens] */
    lmd_cuda_sample_result *results; /* [max_tokens] */
    lmd_cuda_tops *tops;             /* [max_tokens] of the rows that want them */
    uint8_t *lists;                  /* [lists_room] biases, counts and masks of rows */
    size_t lists_len;
    int32_t n_rows, n_tops;
    lmd_cuda_tile *tiles; /* [max_tiles], not pinned */
    int32_t n_tiles;
    uint8_t *args; /* [args_room] of the queue, not pinned */
    cudaEvent_t done;
} lmd_cuda_flight;

enum { LMD_CUDA_FLIGHTS = 2, LMD_CUDA_MAX_GRAPHS = 32 };

/* The captured forward pass of decode steps of one bucket. */
typedef struct lmd_cuda_graph {
    int32_t bucket;
    int32_t n_seen;       /* steps of this bucket before the capture */
    cudaGraphExec_t exec; /* NULL: not captured yet */
    uint8_t *args;        /* of its host functions */
} lmd_cuda_graph;

typedef enum lmd_cuda_mode {
    LMD_CUDA_EAGER,   /* operations are enqueued as they come */
    LMD_CUDA_CAPTURE, /* they become a graph, which is launched at the end of the pass */
    LMD_CUDA_REPLAY   /* a graph has them already */
} lmd_cuda_mode;

struct lmd_workspace {
    const lmd_cuda_device *device;
    lmd_workspace_config config;
    lmd_cuda_kv_format kv_format;
    lmd_cuda_queue queue;
    lmd_buffer *buffers; /* list */

    uint8_t *kv; /* [n_blocks][n_layer][n_kv_head] parts of a block */
    size_t layer_bytes, block_bytes;

    uint8_t *memory; /* the one allocation for what follows */
    int32_t *ints;   /* [plan room] the plan that runs */
    int32_t *newest; /* [max_seqs] */
    float *rope;     /* [n_positions, head_dim / 2, {cos, sin}] */
    uint16_t *final; /* halves [max_logits_rows, final_stride] */
    float *logits;   /* [max_logits_rows, logits_stride] */
    float *scratch;
    lmd_cuda_sample_row *rows; /* [max_logits_rows] */
    lmd_cuda_sample_result *results;
    lmd_cuda_tops *tops;
    uint8_t *lists; /* [lists_room] */
    int32_t final_stride, logits_stride;
    size_t scratch_bytes, lists_room, args_room;

    lmd_cuda_flight flights[LMD_CUDA_FLIGHTS]; /* plan p is at p % LMD_CUDA_FLIGHTS */
    lmd_cuda_flight *current;                  /* the plan begun last */
    lmd_cuda_step step;                        /* its lists on the device */
    lmd_cuda_mode mode;
    size_t args_mark; /* of the current flight, while a graph has the queue's args */
    bool uses_graphs, forward_ended;
    lmd_cuda_graph graphs[LMD_CUDA_MAX_GRAPHS];
    lmd_cuda_graph *graph; /* that is captured or replayed */
};

size_t lmd_cuda_kv_block_bytes(const lmd_workspace_config *config);
/* Bytes on the device, without KV blocks and buffers. LMD_INVALID and LMD_UNSUPPORTED say what
 * is not served. */
lmd_status lmd_cuda_workspace_size(const lmd_cuda_device *device,
                                   const lmd_workspace_config *config, size_t *out,
                                   lmd_err *err);
/* Of one buffer. */
size_t lmd_cuda_buffer_bytes(const lmd_workspace_config *config, int32_t n_cols,
                             lmd_buffer_role role);

lmd_status lmd_cuda_workspace_new(const lmd_cuda_device *device,
                                  const lmd_workspace_config *config, lmd_workspace **out,
                                  lmd_err *err);
void lmd_cuda_workspace_free(lmd_workspace *self);
lmd_status lmd_cuda_buffer_new(lmd_workspace *self, int32_t n_cols, lmd_buffer_role role,
                               lmd_buffer **out, lmd_err *err);

lmd_status lmd_cuda_kv_export(lmd_workspace *self, const int32_t *block_ids, int32_t n,
                              uint8_t *out, lmd_err *err);
lmd_status lmd_cuda_kv_import(lmd_workspace *self, const int32_t *block_ids, int32_t n,
                              const uint8_t *data, lmd_err *err);

#endif
