/* The CPU backend: see cpu_backend.h. */
#include "cpu/cpu_backend.h"

#include <assert.h>

#include "base/host_memory.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/cpu_attention.h"
#include "cpu/cpu_features.h"
#include "cpu/cpu_linear.h"
#include "cpu/cpu_rows.h"
#include "cpu/cpu_weight.h"
#include "cpu/cpu_workspace.h"

typedef struct cpu_backend {
    lmd_backend base;
    lmd_threads *threads;
    const lmd_cpu_kernels *kernels;
    lmd_matrices matrices;
    lmd_arena arena; /* of the weights */
} cpu_backend;

static const char *backend_isa(const lmd_backend *self) {
    return ((const cpu_backend *)self)->kernels->isa;
}

static int32_t backend_n_threads(const lmd_backend *self) {
    return lmd_threads_count(((const cpu_backend *)self)->threads);
}

/* ---- facts ---- */

static lmd_status backend_memory(const lmd_backend *self, size_t *free_bytes,
                                 size_t *total_bytes, lmd_err *err) {
    (void)self, (void)err; /* a machine that says nothing has 0 bytes */
    const lmd_memory_size memory = lmd_process_memory("/", NULL);
    *free_bytes = (size_t)memory.available;
    *total_bytes = (size_t)memory.total;
    return LMD_OK;
}

static lmd_status backend_workspace_size(const lmd_backend *self,
                                         const lmd_workspace_config *config, size_t *out,
                                         lmd_err *err) {
    const cpu_backend *cpu = (const cpu_backend *)self;
    LMD_TRY(lmd_workspace_config_check(config, err));
    *out = lmd_cpu_workspace_bytes(cpu->threads, cpu->kernels, config);
    return LMD_OK;
}

static size_t backend_buffer_bytes(const lmd_backend *self, const lmd_workspace_config *config,
                                   int32_t n_cols, lmd_buffer_role role) {
    (void)self, (void)role; /* a buffer has room for fp32 and for quantised rows */
    return lmd_cpu_buffer_bytes(config, n_cols);
}

static lmd_status backend_weight_size(const lmd_backend *self, const lmd_weight_source *src,
                                      size_t *out, lmd_err *err) {
    (void)self;
    return lmd_cpu_weight_size(src, out, err);
}

/* ---- weights ---- */

/* An arena of pages needs no room beforehand: it wastes none. */
static lmd_status backend_reserve(lmd_backend *self, size_t n_bytes, lmd_err *err) {
    (void)self, (void)n_bytes, (void)err;
    return LMD_OK;
}

static lmd_status backend_upload(lmd_backend *self, const lmd_weight_source *src,
                                 lmd_weight **out, lmd_err *err) {
    cpu_backend *cpu = (cpu_backend *)self;
    if (cpu->matrices == LMD_MATRICES_BLANK)
        return lmd_cpu_weight_blank(src, cpu->threads, &cpu->arena, out, err);
    return lmd_cpu_weight_pack(src, cpu->kernels, cpu->threads, &cpu->arena, out, err);
}

static lmd_status backend_upload_vector(lmd_backend *self, const float *values, int32_t n,
                                        lmd_weight **out, lmd_err *err) {
    (void)self;
    return lmd_cpu_weight_vector(values, n, out, err);
}

static void backend_weight_free(lmd_backend *self, lmd_weight *weight) {
    (void)self;
    lmd_cpu_weight_free(weight);
}

static void backend_free(lmd_backend *self) {
    if (!self) return;
    lmd_threads_free(((cpu_backend *)self)->threads);
    lmd_arena_free(&((cpu_backend *)self)->arena);
    lmd_free(self);
}

/* ---- workspaces and steps ---- */

static lmd_status backend_workspace_new(lmd_backend *self, const lmd_workspace_config *config,
                                        lmd_workspace **out, lmd_err *err) {
    cpu_backend *cpu = (cpu_backend *)self;
    return lmd_cpu_workspace_new(cpu->threads, cpu->kernels, config, out, err);
}

static void backend_step_begin(lmd_workspace *workspace, const lmd_plan *plan) {
    for (int32_t i = 0; i < plan->n_tokens; i++)
        assert(plan->token_ids[i] >= 0); /* one plan at a time: every token is known */
    workspace->plan = plan;              /* stays valid until it is collected */
    lmd_cpu_record_clear(workspace);
    lmd_cpu_kv_copy(workspace, plan->copies, plan->n_copies);
    lmd_cpu_units_cut(&workspace->cut, &workspace->config,
                      lmd_threads_count(workspace->threads), plan);
}

/* Nothing is left to do: step_wait runs what was recorded. */
static void backend_step_end(lmd_workspace *workspace) { (void)workspace; }

static lmd_status backend_step_wait(lmd_workspace *workspace, int64_t plan_id, lmd_err *err) {
    (void)plan_id; /* one plan at a time */
    (void)err;     /* no operation can fail */
    lmd_cpu_record_run(workspace);
    return LMD_OK;
}

const lmd_backend_ops lmd_cpu_backend_ops = {
    .name = "cpu",
    .kv_layout = "cpu-panels-1",
    .defaults = {.max_batch_size = 64,
                 .max_prefill_token_num = 512,
                 .step_seconds = 0.1,
                 .kv_fraction = 0.5,
                 .kv_max_bytes = (size_t)4 << 30},
    .memory = backend_memory,
    .weight_size = backend_weight_size,
    .kv_block_bytes = lmd_cpu_kv_block_bytes,
    .workspace_size = backend_workspace_size,
    .buffer_bytes = backend_buffer_bytes,
    .isa = backend_isa,
    .n_threads = backend_n_threads,
    .reserve = backend_reserve,
    .upload = backend_upload,
    .upload_vector = backend_upload_vector,
    .weight_free = backend_weight_free,
    .free = backend_free,
    .workspace_new = backend_workspace_new,
    .buffer_new = lmd_cpu_buffer_new,
    .workspace_free = lmd_cpu_workspace_free,
    .step_begin = backend_step_begin,
    .embed = lmd_cpu_embed,
    .add_norm = lmd_cpu_add_norm,
    .linear = lmd_cpu_linear,
    .attention = lmd_cpu_attention,
    .observe = lmd_cpu_observe,
    .logits = lmd_cpu_logits,
    .sample = lmd_cpu_sample,
    .step_end = backend_step_end,
    .step_wait = backend_step_wait,
    .kv_export = lmd_cpu_kv_export,
    .kv_import = lmd_cpu_kv_import,
};

lmd_status lmd_cpu_backend_open(const lmd_backend_config *config, lmd_backend **out,
                                lmd_err *err) {
    cpu_backend *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "the CPU backend");
    self->base.ops = &lmd_cpu_backend_ops;
    self->matrices = config->matrices;
    lmd_status status = lmd_cpu_kernels_select(&self->kernels, err);
    if (status == LMD_OK) status = lmd_threads_new(config->n_threads, &self->threads, err);
    if (status != LMD_OK) {
        lmd_free(self);
        return status;
    }
    *out = &self->base;
    return LMD_OK;
}
