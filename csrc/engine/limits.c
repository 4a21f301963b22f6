/* Limits: see limits.h. */
#include "engine/limits.h"

#include <stddef.h>

lmd_status lmd_scheduler_config_check(const lmd_scheduler_config *config, lmd_err *err) {
    const struct {
        const char *name;
        int32_t value, max;
    } sizes[] = {
        {"n_blocks", config->n_blocks, LMD_MAX_BLOCKS},
        {"block_len", config->block_len, LMD_MAX_BLOCK_LEN},
        {"max_batch_size", config->max_batch_size, LMD_MAX_BATCH_SIZE},
        {"max_prefill_token_num", config->max_prefill_token_num, LMD_MAX_PREFILL_TOKEN_NUM},
        {"session_len", config->session_len, LMD_MAX_SESSION_LEN},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].value < 1 || sizes[i].value > sizes[i].max)
            return lmd_fail(err, LMD_INVALID, "%s must be 1 to %d, not %d", sizes[i].name,
                            sizes[i].max, sizes[i].value);
    return LMD_OK;
}
