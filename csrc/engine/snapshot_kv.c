/* A snapshot's KV as bytes: see snapshot_kv.h. */
#include "engine/snapshot_kv.h"

#include <string.h>

#include "base/ints.h"
#include "base/memory.h"

typedef struct export_job {
    const lmd_snapshot_info *info;
    lmd_snapshot_kv *out;
} export_job;

static void run_export(lmd_scheduler *scheduler, lmd_executor *executor, void *arg) {
    const export_job *job = arg;
    const lmd_snapshot_info *info = job->info;
    lmd_snapshot_kv *out = job->out;
    out->layout = executor->ops->kv_layout(executor);
    out->block_bytes = executor->ops->kv_block_bytes(executor);
    out->data = lmd_calloc((size_t)info->n_blocks, out->block_bytes);
    for (int32_t n = 0; out->data && n < info->n_blocks; n++, out->n_blocks++) {
        if (!lmd_scheduler_has_block(scheduler, info->blocks[n])) break;
        executor->ops->kv_export(executor, info->blocks[n].block_id,
                                 out->data + (size_t)n * out->block_bytes);
    }
    out->n_computed = out->n_blocks == info->n_blocks
                          ? info->n_computed
                          : out->n_blocks * lmd_scheduler_block_len(scheduler);
}

lmd_status lmd_snapshot_export(lmd_engine *engine, const lmd_snapshot *snapshot,
                               lmd_snapshot_kv *out, lmd_err *err) {
    lmd_snapshot_kv kv = {0};
    export_job job = {lmd_snapshot_get(snapshot), &kv};
    LMD_TRY(lmd_engine_run_between_steps(engine, run_export, &job, err));
    if (!kv.data)
        return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for %d blocks of KV",
                        job.info->n_blocks);
    *out = kv;
    return LMD_OK;
}

typedef struct import_job {
    const lmd_snapshot_info *text;
    const lmd_snapshot_kv *kv;
    lmd_executor *executor;
    lmd_snapshot *made;
} import_job;

static void fill_block(void *arg, int32_t block_idx, int32_t block_id) {
    const import_job *job = arg;
    job->executor->ops->kv_import(job->executor, block_id,
                                  job->kv->data + (size_t)block_idx * job->kv->block_bytes);
}

static void run_import(lmd_scheduler *scheduler, lmd_executor *executor, void *arg) {
    import_job *job = arg;
    const lmd_snapshot_kv *kv = job->kv;
    lmd_snapshot_info text = *job->text;
    const char *layout = executor->ops->kv_layout(executor);
    const bool fits = kv->layout && strcmp(kv->layout, layout) == 0 &&
                      kv->block_bytes == executor->ops->kv_block_bytes(executor);
    const int32_t block_len = lmd_scheduler_block_len(scheduler);
    text.n_computed = fits ? lmd_min_i32(text.n_tokens, kv->n_computed) : 0;
    if (text.n_computed > (int64_t)kv->n_blocks * block_len)
        text.n_computed = kv->n_blocks * block_len;
    job->executor = executor;
    job->made = lmd_scheduler_import(scheduler, &text, fill_block, job);
}

lmd_status lmd_snapshot_import(lmd_engine *engine, const lmd_snapshot_info *text,
                               const lmd_snapshot_kv *kv, lmd_snapshot **out, lmd_err *err) {
    import_job job = {.text = text, .kv = kv};
    LMD_TRY(lmd_engine_run_between_steps(engine, run_import, &job, err));
    if (!job.made) return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for a snapshot");
    *out = job.made;
    return LMD_OK;
}
