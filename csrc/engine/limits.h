/* Limits: the largest sizes that a config may name.
 * Owns: the numbers, and the check of a scheduler's config against them. They are far above
 * what a machine holds, and keep every product of two of them within int64_t. Other limits
 * are beside what they limit: LMD_MAX_PRIORITY, LMD_MAX_DRAFT_TOKENS, LMD_MAX_LOGPROBS.
 * Must not know: devices, Python. Any thread. */
#ifndef LMD_ENGINE_LIMITS_H
#define LMD_ENGINE_LIMITS_H

#include "engine/scheduler.h"

enum {
    LMD_MAX_SESSION_LEN = 1 << 24, /* tokens of one sequence */
    LMD_MAX_BLOCKS = 1 << 28,
    LMD_MAX_BLOCK_LEN = 4096,            /* tokens; a backend may allow fewer */
    LMD_MAX_BATCH_SIZE = 4096,           /* slots */
    LMD_MAX_PREFILL_TOKEN_NUM = 1 << 16, /* tokens of one step */
    LMD_MAX_TIMEOUT = 100000000          /* seconds */
};

/* Checks that each size is at least 1 and within its limit. LMD_INVALID names the field. */
lmd_status lmd_scheduler_config_check(const lmd_scheduler_config *config, lmd_err *err);

#endif
