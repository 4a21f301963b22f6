/* The executor seam: plans in, tokens out.
 * The C executor is csrc/model/decoder.c on a backend; a PyTorch executor can stand in its
 * place. Owns nothing. Called by the engine's thread alone; at most one plan is in flight. */
#ifndef LMD_BACKEND_EXECUTOR_H
#define LMD_BACKEND_EXECUTOR_H

#include <stddef.h>

#include "backend/plan.h"
#include "base/status.h"

typedef struct lmd_executor lmd_executor;

typedef struct lmd_executor_ops {
    /* Starts a plan. The plan and all it points to must stay until collect returns. */
    lmd_status (*submit)(lmd_executor *self, const lmd_plan *plan, lmd_err *err);
    /* Waits for that plan and gives its rows. An error here means the device is broken. */
    lmd_status (*collect)(lmd_executor *self, int64_t plan_id, lmd_plan_result *out,
                          lmd_err *err);
    void (*free)(lmd_executor *self);

    /* Between steps: one block's KV of all layers as bytes in the executor's own layout.
     * kv_layout names that; KV of another name is never imported. */
    const char *(*kv_layout)(const lmd_executor *self);
    size_t (*kv_block_bytes)(const lmd_executor *self);
    void (*kv_export)(lmd_executor *self, int32_t block_id, uint8_t *out);
    void (*kv_import)(lmd_executor *self, int32_t block_id, const uint8_t *data);
} lmd_executor_ops;

struct lmd_executor {
    const lmd_executor_ops *ops;
};

#endif
