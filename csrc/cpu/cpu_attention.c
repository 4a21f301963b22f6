/* Running attention: see cpu_attention.h. */
#include "cpu/cpu_attention.h"

#include <math.h>
#include <string.h>

#include "base/ints.h"
#include "cpu/cpu_weight.h"
#include "cpu/cpu_workspace.h"

/* What the items of one attention share. */
typedef struct attention_job {
    const lmd_workspace *workspace;
    const lmd_cpu_op *op;
    const lmd_attention_args *args;
} attention_job;

static attention_job job_of(void *workspace, const lmd_stage *stage) {
    const lmd_cpu_op *op = (const lmd_cpu_op *)stage;
    return (attention_job){workspace, op, &op->attention};
}

/* ---- where things lie ---- */

static uint8_t *kv_head_base(const lmd_workspace *workspace, int32_t layer, int32_t kv_head) {
    return workspace->kv +
           ((int64_t)layer * workspace->config.n_kv_head + kv_head) * workspace->head_bytes;
}

static const int32_t *block_ids_of(const lmd_workspace *workspace, int32_t seq_idx) {
    return workspace->plan->block_ids + workspace->plan->block_offsets[seq_idx];
}

static float *partial_at(const lmd_workspace *workspace, int32_t idx) {
    return workspace->partials + (int64_t)idx * (workspace->config.head_dim + 2);
}

/* One head of one row of q, k and v. */
static float *qkv_at(const attention_job *job, int32_t row, int32_t head) {
    const lmd_buffer *qkv = job->args->qkv;
    return qkv->memory.x + (int64_t)row * qkv->n_cols +
           (int64_t)head * job->workspace->config.head_dim;
}

/* ---- K and V ---- */

/* Norms (if the model does) and rotates one query or key head, in place. */
static void rotate_head(const attention_job *job, float *head, int32_t position,
                        const lmd_weight *norm) {
    const lmd_workspace *workspace = job->workspace;
    const int32_t head_dim = workspace->config.head_dim;
    if (norm)
        workspace->kernels->rms_norm(head, head, norm->vector, head_dim, job->args->norm_eps);
    workspace->kernels->rope(head, workspace->config.rope_table + (int64_t)position * head_dim,
                             head_dim);
}

/* Rotates one row's key of one head, in place, and writes it and the value into the cache. */
static void write_kv(const attention_job *job, int32_t row, int32_t kv_head) {
    const lmd_workspace *workspace = job->workspace;
    const lmd_workspace_config *config = &workspace->config;
    const int32_t position = workspace->plan->positions[row];
    const int32_t *block_ids = block_ids_of(workspace, workspace->cut.row_seqs[row]);
    float *key = qkv_at(job, row, config->n_head + kv_head);
    rotate_head(job, key, position, job->args->k_norm);
    workspace->kernels->kv_write(
        kv_head_base(workspace, job->args->layer, kv_head) +
            block_ids[position / config->block_len] * workspace->block_stride,
        key, qkv_at(job, row, config->n_head + config->n_kv_head + kv_head),
        position % config->block_len, &workspace->kv_format);
}

/* Writes the K and V of a row that no unit writes: those of a sequence with several tokens in
 * this step, whose units read one another's. */
static void write_kv_item(void *arg, const lmd_stage *stage, int32_t row, int32_t thread_idx,
                          bool is_first) {
    const attention_job job = job_of(arg, stage);
    const lmd_workspace_config *config = &job.workspace->config;
    const lmd_plan *plan = job.workspace->plan;
    const int32_t seq = job.workspace->cut.row_seqs[row];
    (void)thread_idx, (void)is_first;
    if (plan->slots[seq] < 0) return;
    if (plan->input_lens[seq] == 1 && lmd_cpu_units_write_kv(config)) return;
    for (int32_t h = 0; h < config->n_kv_head; h++) write_kv(&job, row, h);
}

/* ---- units ---- */

/* Copies the unit's queries, rotated and scaled, one row for each (token, head); returns how
 * many. */
static int32_t gather_queries(const attention_job *job, const lmd_attend_unit *unit,
                              lmd_thread_scratch *scratch) {
    const lmd_workspace *workspace = job->workspace;
    const int32_t head_dim = workspace->config.head_dim;
    const float scale = 1.0f / sqrtf((float)head_dim);
    int32_t n_rows = 0;
    for (int32_t t = 0; t < unit->n_tokens; t++) {
        int32_t row = unit->token_begin + t, position = workspace->plan->positions[row];
        for (int32_t h = 0; h < unit->n_heads; h++, n_rows++) {
            float *q = scratch->q[n_rows];
            memcpy(q, qkv_at(job, row, unit->head_begin + h), (size_t)head_dim * sizeof *q);
            rotate_head(job, q, position, job->args->q_norm);
            for (int32_t d = 0; d < head_dim; d++) q[d] *= scale;
            scratch->row_ends[n_rows] = position + 1;
        }
    }
    return n_rows;
}

/* Divides one head's result by its sum and hands it on in the form that the reader wants. */
static void write_output(const attention_job *job, int32_t row, int32_t head, float *o,
                         float sum) {
    const lmd_cpu_op *op = job->op;
    const int32_t head_dim = job->workspace->config.head_dim;
    float inverse = 1.0f / sum;
    for (int32_t d = 0; d < head_dim; d++) o[d] *= inverse;
    if (op->quantizes)
        job->workspace->kernels->quantize(&op->out_acts, row, head * head_dim, head_dim, o);
    if (!op->quantizes || op->keeps_x)
        memcpy(op->out->memory.x + (int64_t)row * op->out->n_cols + (int64_t)head * head_dim, o,
               (size_t)head_dim * sizeof *o);
}

/* Keeps one chunk's results for fold_sequence. */
static void keep_partials(const lmd_workspace *workspace, const lmd_attend_state *state,
                          int32_t idx, int32_t n_rows) {
    const int32_t head_dim = workspace->config.head_dim;
    for (int32_t r = 0; r < n_rows; r++) {
        float *partial = partial_at(workspace, idx + r);
        memcpy(partial, state->o[r], (size_t)head_dim * sizeof *partial);
        partial[head_dim] = state->max[r];
        partial[head_dim + 1] = state->sum[r];
    }
}

/* Folds one chunk's results into those of the chunks before it. */
static void fold_chunk(const lmd_workspace *workspace, lmd_thread_scratch *scratch,
                       int32_t n_rows) {
    const lmd_attend_state *chunk = &scratch->attend;
    for (int32_t r = 0; r < n_rows; r++)
        workspace->kernels->attend_fold(&scratch->max[r], &scratch->sum[r], scratch->o[r],
                                        chunk->max[r], chunk->sum[r], chunk->o[r],
                                        workspace->config.head_dim);
}

static const uint8_t *first_block(const attention_job *job, const lmd_attend_unit *unit) {
    const lmd_workspace *workspace = job->workspace;
    const int32_t idx = unit->begin / workspace->config.block_len;
    return kv_head_base(workspace, job->args->layer, unit->kv_head) +
           block_ids_of(workspace, unit->seq_idx)[idx] * workspace->block_stride;
}

/* Prefetches a whole block. The kernels prefetch each further block from the one before. */
static void prefetch_block(const lmd_workspace *workspace, const uint8_t *block) {
    for (int64_t i = 0; i < workspace->head_bytes; i += LMD_CACHE_LINE) lmd_prefetch(block + i);
}

static lmd_attend_args unit_args(const attention_job *job, int32_t unit_idx,
                                 const lmd_thread_scratch *scratch) {
    const lmd_workspace *workspace = job->workspace;
    const lmd_attend_unit *unit = &workspace->cut.units[unit_idx];
    const bool is_last = unit_idx + 1 == workspace->cut.n_units;
    return (lmd_attend_args){
        .q = scratch->q[0],
        .row_ends = scratch->row_ends,
        .begin = unit->begin,
        .last = unit->end,
        .next = is_last ? NULL : first_block(job, unit + 1),
        .format = workspace->kv_format,
        .kv = kv_head_base(workspace, job->args->layer, unit->kv_head),
        .block_stride = workspace->block_stride,
        .block_ids = block_ids_of(workspace, unit->seq_idx),
    };
}

static void run_unit(const attention_job *job, int32_t unit_idx, lmd_thread_scratch *scratch,
                     bool is_first) {
    const lmd_workspace *workspace = job->workspace;
    const lmd_attend_unit *unit = &workspace->cut.units[unit_idx];
    const bool is_split = unit->partial_idx >= 0;
    lmd_attend_args args = unit_args(job, unit_idx, scratch);
    if (is_first && unit->n_tokens == 1) prefetch_block(workspace, first_block(job, unit));
    args.n_rows = gather_queries(job, unit, scratch);
    if (unit->writes_kv) write_kv(job, unit->token_begin, unit->kv_head);
    memset(scratch->sum, 0, sizeof scratch->sum);
    int32_t partial_idx = unit->partial_idx; /* of this chunk's first head */
    for (; args.begin < unit->end; args.begin += LMD_CHUNK_LEN) {
        args.end = lmd_min_i32(args.begin + LMD_CHUNK_LEN, unit->end);
        workspace->kernels->attend_chunk(&scratch->attend, &args);
        if (is_split)
            keep_partials(workspace, &scratch->attend, partial_idx, args.n_rows);
        else
            fold_chunk(workspace, scratch, args.n_rows);
        partial_idx += workspace->config.n_head;
    }
    for (int32_t r = 0; !is_split && r < args.n_rows; r++)
        write_output(job, unit->token_begin + r / unit->n_heads,
                     unit->head_begin + r % unit->n_heads, scratch->o[r], scratch->sum[r]);
}

static void unit_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                      bool is_first) {
    const attention_job job = job_of(arg, stage);
    run_unit(&job, item, &job.workspace->scratch[thread_idx], is_first);
}

/* ---- split contexts ---- */

/* Folds the chunks of one split sequence, all heads. */
static void fold_sequence(const attention_job *job, int32_t seq_idx, float *o) {
    const lmd_workspace *workspace = job->workspace;
    const lmd_plan *plan = workspace->plan;
    const int32_t head_dim = workspace->config.head_dim, n_head = workspace->config.n_head;
    const int32_t first = workspace->cut.seq_partials[seq_idx];
    const int32_t n_chunks = lmd_ceil_div(plan->history_lens[seq_idx] + 1, LMD_CHUNK_LEN);
    for (int32_t h = 0; h < n_head; h++) {
        float max = 0.0f, sum = 0.0f;
        for (int32_t c = 0; c < n_chunks; c++) {
            const float *partial = partial_at(workspace, first + c * n_head + h);
            workspace->kernels->attend_fold(&max, &sum, o, partial[head_dim],
                                            partial[head_dim + 1], partial, head_dim);
        }
        write_output(job, plan->token_offsets[seq_idx], h, o, sum);
    }
}

static void fold_item(void *arg, const lmd_stage *stage, int32_t seq_idx, int32_t thread_idx,
                      bool is_first) {
    const attention_job job = job_of(arg, stage);
    (void)is_first;
    if (job.workspace->cut.seq_partials[seq_idx] >= 0)
        fold_sequence(&job, seq_idx, job.workspace->scratch[thread_idx].o[0]);
}

/* ---- recording ---- */

static lmd_cpu_op *add_stage(lmd_workspace *workspace, const lmd_attention_args *args,
                             lmd_cpu_item_fn run, lmd_buffer *out, int32_t n_items) {
    lmd_cpu_op *op = lmd_cpu_record_add(workspace, run, out, workspace->plan->n_tokens);
    op->attention = *args;
    op->quantize_unit = workspace->config.head_dim;
    op->stage.n_items = n_items;
    return op;
}

void lmd_cpu_attention(lmd_workspace *workspace, const lmd_attention_args *args) {
    const lmd_cpu_units *cut = &workspace->cut;
    const lmd_plan *plan = workspace->plan;
    lmd_cpu_record_reserve(workspace, 3);
    if (cut->writes_kv_first) add_stage(workspace, args, write_kv_item, NULL, plan->n_tokens);
    lmd_cpu_op *units = add_stage(workspace, args, unit_item, args->out, cut->n_units);
    if (cut->n_partials > 0)
        add_stage(workspace, args, fold_item, args->out, plan->n_seqs)->part = units;
}
