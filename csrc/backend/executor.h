/* The executor seam: plans in, tokens out.
 * The C executor is csrc/model/decoder.c on a backend; a PyTorch executor can stand in its
 * place. Owns nothing. Called by the engine's thread alone. C for C++ too. */
#ifndef LMD_BACKEND_EXECUTOR_H
#define LMD_BACKEND_EXECUTOR_H

#include <stdbool.h>
#include <stddef.h>

#include "backend/plan.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lmd_executor lmd_executor;

/* Each plan goes through submit, sample, collect, in the order of plan_id. Where the executor
 * runs ahead, plan n + 1 may be submitted between sample(n) and collect(n), with -1 for the
 * tokens that n gives. The plan, its arrays, its samples and what these point to stay until the
 * plan was collected. A call that fails leaves no work behind that still uses them; after a
 * failure only `free` is called, and collect for a plan that was sampled before. */
typedef struct lmd_executor_ops {
    /* Enqueues a plan's forward pass. */
    lmd_status (*submit)(lmd_executor *self, const lmd_plan *plan, lmd_err *err);
    /* Enqueues the sampling of the plan submitted last, before the next one is submitted.
     * plan->samples are set only now. */
    lmd_status (*sample)(lmd_executor *self, const lmd_plan *plan, lmd_err *err);
    /* Waits for that plan and gives its rows. An error here means the device is broken. */
    lmd_status (*collect)(lmd_executor *self, int64_t plan_id, lmd_plan_result *out,
                          lmd_err *err);
    void (*free)(lmd_executor *self);

    /* Between steps, with no plan in flight: the KV of n blocks, kv_block_bytes each, in the
     * executor's own layout. kv_layout names that; KV of another name is never imported. */
    const char *(*kv_layout)(const lmd_executor *self);
    size_t (*kv_block_bytes)(const lmd_executor *self);
    lmd_status (*kv_export)(lmd_executor *self, const int32_t *block_ids, int32_t n,
                            uint8_t *out, lmd_err *err);
    lmd_status (*kv_import)(lmd_executor *self, const int32_t *block_ids, int32_t n,
                            const uint8_t *data, lmd_err *err);
} lmd_executor_ops;

struct lmd_executor {
    const lmd_executor_ops *ops;
    bool runs_ahead; /* two plans may be in flight */
};

#ifdef __cplusplus
}
#endif

#endif
