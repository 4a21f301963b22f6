/* The scheduler's fields, for scheduler.c and scheduler_step.c alone. The engine's thread. */
#ifndef LMD_ENGINE_SCHEDULER_STATE_H
#define LMD_ENGINE_SCHEDULER_STATE_H

#include "engine/plan_builder.h"
#include "engine/scheduler.h"
#include "engine/seq_queue.h"

enum {
    LMD_SCHEDULER_PLANS = 2, /* one in flight and the one being made */
    LMD_SCHEDULER_BUCKETS = 1024
};

struct lmd_scheduler {
    lmd_scheduler_config config;
    int32_t budget;
    lmd_block_pool *pool;
    lmd_prefix_cache *cache;                      /* NULL: no prefix caching */
    lmd_seq_queue queue;                          /* who waits and who runs */
    lmd_sequence *buckets[LMD_SCHEDULER_BUCKETS]; /* every live sequence, by seq_id */
    int64_t next_plan_id, next_arrival, n_preempted;
    int64_t n_prompt_tokens, n_cached_tokens;
    lmd_plan_builder plans[LMD_SCHEDULER_PLANS]; /* plan p is at p % LMD_SCHEDULER_PLANS */
    int64_t oldest_plan_id; /* it is in flight if it is below next_plan_id */

    int64_t *preempted; /* [max_batch_size] of the last schedule */
    int32_t n_now_preempted;
    lmd_waiting *reports; /* [report_capacity] */
    size_t report_capacity;
};

/* Frees a sequence that no plan in flight names. */
void lmd_scheduler_destroy(lmd_scheduler *self, lmd_sequence *seq);

#endif
