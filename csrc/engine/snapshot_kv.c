/* A snapshot's KV as bytes: see snapshot_kv.h. */
#include "engine/snapshot_kv.h"

#include <string.h>

#include "base/ints.h"
#include "base/memory.h"

typedef struct export_job {
    const lmd_snapshot_info *info;
    lmd_snapshot_kv *out;
    lmd_status status;
    lmd_err *err;
} export_job;

/* How many of a snapshot's blocks, from the first on, still have their content. */
static int32_t count_kept_blocks(const lmd_scheduler *scheduler,
                                 const lmd_snapshot_info *info) {
    int32_t n = 0;
    while (n < info->n_blocks && lmd_scheduler_has_block(scheduler, info->blocks[n])) n++;
    return n;
}

static lmd_status export_blocks(lmd_scheduler *scheduler, lmd_executor *executor,
                                const lmd_snapshot_info *info, lmd_snapshot_kv *out,
                                lmd_err *err) {
    const int32_t n = count_kept_blocks(scheduler, info);
    out->layout = executor->ops->kv_layout(executor);
    out->block_bytes = executor->ops->kv_block_bytes(executor);
    out->n_blocks = n;
    out->n_computed =
        n == info->n_blocks ? info->n_computed : n * lmd_scheduler_block_len(scheduler);
    out->data = lmd_calloc((size_t)n, out->block_bytes);
    int32_t *block_ids = lmd_calloc((size_t)n, sizeof *block_ids);
    lmd_status status =
        out->data && block_ids ? LMD_OK : lmd_no_memory(err, "%d blocks of KV", n);
    for (int32_t i = 0; status == LMD_OK && i < n; i++) block_ids[i] = info->blocks[i].block_id;
    if (status == LMD_OK)
        status = executor->ops->kv_export(executor, block_ids, n, out->data, err);
    lmd_free(block_ids);
    return status;
}

static void run_export(lmd_scheduler *scheduler, lmd_executor *executor, void *arg) {
    export_job *job = arg;
    job->status = export_blocks(scheduler, executor, job->info, job->out, job->err);
}

lmd_status lmd_snapshot_export(lmd_engine *engine, const lmd_snapshot *snapshot,
                               lmd_snapshot_kv *out, lmd_err *err) {
    lmd_snapshot_kv kv = {0};
    export_job job = {.info = lmd_snapshot_get(snapshot), .out = &kv, .err = err};
    lmd_status status = lmd_engine_run_between_steps(engine, run_export, &job, err);
    if (status == LMD_OK) status = job.status;
    if (status != LMD_OK) {
        lmd_free(kv.data);
        return status;
    }
    *out = kv;
    return LMD_OK;
}

typedef struct import_job {
    const lmd_snapshot_info *text;
    const lmd_snapshot_kv *kv;
    lmd_executor *executor;
    lmd_snapshot *made;
    lmd_status status;
    lmd_err *err;
} import_job;

static lmd_status fill_blocks(void *arg, const int32_t *block_ids, int32_t n) {
    const import_job *job = arg;
    return job->executor->ops->kv_import(job->executor, block_ids, n, job->kv->data, job->err);
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
    job->status =
        lmd_scheduler_import(scheduler, &text, fill_blocks, job, &job->made, job->err);
}

lmd_status lmd_snapshot_import(lmd_engine *engine, const lmd_snapshot_info *text,
                               const lmd_snapshot_kv *kv, lmd_snapshot **out, lmd_err *err) {
    import_job job = {.text = text, .kv = kv, .err = err};
    LMD_TRY(lmd_engine_run_between_steps(engine, run_import, &job, err));
    if (job.status == LMD_OK) *out = job.made;
    return job.status;
}
