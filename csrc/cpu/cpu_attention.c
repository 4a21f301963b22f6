/* Attention on the CPU: cutting a step into units and running them.
 * A unit computes what the numeric contract fixes (chunks of 256 positions, folded left to
 * right); the cut decides only who computes it. A unit folds its chunks itself; a lone decode
 * row is split into stretches of chunks, so that all threads share a long context. The engine's
 * thread, and its workers in a run. */
#include <math.h>
#include <string.h>

#include "base/ints.h"
#include "cpu/cpu_workspace.h"

/* Query heads of a KV head that one tile takes, and tokens beside them. */
static int32_t tile_heads(const lmd_workspace_config *config) {
    return lmd_min_i32(config->n_head / config->n_kv_head, LMD_ATTEND_ROWS);
}

static int32_t tile_tokens(const lmd_workspace_config *config) {
    return LMD_ATTEND_ROWS / tile_heads(config);
}

static int32_t head_tiles(const lmd_workspace_config *config) {
    const int32_t group = config->n_head / config->n_kv_head;
    return config->n_kv_head * lmd_ceil_div(group, tile_heads(config));
}

/* Long contexts are split over chunks where sequences and heads alone are too few to keep the
 * threads evenly busy. */
static int32_t most_split_tokens(const lmd_workspace_config *config, int32_t n_threads) {
    return (8 * n_threads - 1) / head_tiles(config);
}

void lmd_cpu_attention_bounds(const lmd_workspace_config *config, int32_t n_threads,
                              int32_t *max_units, int32_t *max_partials) {
    int32_t n_split = lmd_min_i32(config->max_seqs, most_split_tokens(config, n_threads));
    int32_t max_chunks = n_split * lmd_ceil_div(config->n_positions, LMD_CHUNK_LEN);
    int32_t max_tiles = config->max_tokens / tile_tokens(config) + config->max_seqs;
    *max_units = head_tiles(config) * (max_tiles + max_chunks);
    *max_partials = config->n_head * max_chunks;
}

/* Units of one KV head: all its query heads, in as many tiles as they need. */
static void add_units(lmd_workspace *workspace, lmd_attend_unit unit) {
    const lmd_workspace_config *config = &workspace->config;
    int32_t group = config->n_head / config->n_kv_head, partial_idx = unit.partial_idx;
    for (int32_t h = 0; h < group; h += tile_heads(config)) {
        unit.head_begin = unit.kv_head * group + h;
        unit.n_heads = lmd_min_i32(group - h, tile_heads(config));
        unit.partial_idx = partial_idx < 0 ? -1 : partial_idx + unit.head_begin;
        workspace->units[workspace->n_units++] = unit;
    }
}

/* Whether one unit of a decode row can write its K and V: no other reads them in this step. */
static bool units_write_kv(const lmd_workspace_config *config) {
    return config->n_head / config->n_kv_head <= LMD_ATTEND_ROWS;
}

/* Positions of a split sequence that one unit takes, whole chunks: long stretches, whose blocks
 * are prefetched one from the other, but enough units to keep the threads evenly busy. */
static int32_t split_len(const lmd_workspace *workspace, int32_t context_len) {
    enum { UNITS_PER_THREAD = 12 };
    const int32_t n_others = head_tiles(&workspace->config) * workspace->plan->n_tokens;
    const int32_t n_units = UNITS_PER_THREAD * lmd_threads_count(workspace->threads);
    const int32_t n_pieces = lmd_ceil_div(n_units, n_others);
    const int32_t n_chunks = lmd_ceil_div(context_len, LMD_CHUNK_LEN) / n_pieces;
    return (n_chunks < 1 ? 1 : n_chunks) * LMD_CHUNK_LEN;
}

/* A decode row: one unit for each KV head, or for each stretch of it when `split`, in the order
 * in which a thread reads on from one to the next. Partials of
 * chunk c stand at first + c * n_head + head. */
static void add_decode_units(lmd_workspace *workspace, int32_t seq_idx, int32_t row,
                             int32_t context_len, bool split, int32_t *n_partials) {
    const lmd_workspace_config *config = &workspace->config;
    split = split && context_len > LMD_CHUNK_LEN;
    const int32_t piece = split ? split_len(workspace, context_len) : context_len;
    const int32_t first = split ? *n_partials : -1;
    workspace->seq_partials[seq_idx] = first;
    for (int32_t h = 0; h < config->n_kv_head; h++)
        for (int32_t begin = 0; begin < context_len; begin += piece) {
            const int32_t end = lmd_min_i32(begin + piece, context_len);
            const int32_t before = begin / LMD_CHUNK_LEN * config->n_head;
            add_units(workspace, (lmd_attend_unit){.seq_idx = seq_idx,
                                                   .kv_head = h,
                                                   .token_begin = row,
                                                   .n_tokens = 1,
                                                   .begin = begin,
                                                   .end = end,
                                                   .partial_idx = split ? first + before : -1,
                                                   .writes_kv = end == context_len &&
                                                                units_write_kv(config)});
        }
    if (split) *n_partials += lmd_ceil_div(context_len, LMD_CHUNK_LEN) * config->n_head;
}

/* Prefill: one unit for each tile of tokens, the last (and longest) first. */
static void add_tile_units(lmd_workspace *workspace, int32_t seq_idx, int32_t first_row,
                           int32_t n_rows, int32_t history_len) {
    int32_t n_tile = tile_tokens(&workspace->config);
    workspace->seq_partials[seq_idx] = -1;
    for (int32_t t = (n_rows - 1) / n_tile * n_tile; t >= 0; t -= n_tile) {
        int32_t n = lmd_min_i32(n_rows - t, n_tile);
        for (int32_t h = 0; h < workspace->config.n_kv_head; h++)
            add_units(workspace, (lmd_attend_unit){.seq_idx = seq_idx,
                                                   .kv_head = h,
                                                   .token_begin = first_row + t,
                                                   .n_tokens = n,
                                                   .end = history_len + t + n,
                                                   .partial_idx = -1});
    }
}

void lmd_cpu_attention_plan(lmd_workspace *workspace) {
    const lmd_plan *plan = workspace->plan;
    const bool split =
        plan->n_tokens <=
        most_split_tokens(&workspace->config, lmd_threads_count(workspace->threads));
    int32_t n_partials = 0;
    workspace->n_units = 0;
    workspace->writes_kv_first = false;
    for (int32_t s = 0; s < plan->n_seqs; s++) {
        int32_t first = plan->token_offsets[s], n = plan->input_lens[s];
        for (int32_t r = first; r < first + n; r++) workspace->row_seqs[r] = s;
        if (plan->slots[s] < 0) {
            workspace->seq_partials[s] = -1;
        } else if (n == 1) {
            add_decode_units(workspace, s, first, plan->history_lens[s] + 1, split,
                             &n_partials);
        } else {
            add_tile_units(workspace, s, first, n, plan->history_lens[s]);
            workspace->writes_kv_first = true;
        }
        if (!units_write_kv(&workspace->config)) workspace->writes_kv_first = true;
    }
    workspace->has_splits = n_partials > 0;
}

/* ---- stages: write KV, attend, fold ---- */

typedef struct attention_job {
    const lmd_workspace *workspace;
    const lmd_cpu_op *op;
    const lmd_attention_args *args;
} attention_job;

static attention_job job_of(void *workspace, const lmd_stage *stage) {
    const lmd_cpu_op *op = (const lmd_cpu_op *)stage;
    return (attention_job){workspace, op, &op->attention};
}

static uint8_t *kv_head_base(const lmd_workspace *workspace, int32_t layer, int32_t kv_head) {
    return workspace->kv +
           ((int64_t)layer * workspace->config.n_kv_head + kv_head) * workspace->head_bytes;
}

static float *partial_at(const lmd_workspace *workspace, int32_t idx) {
    return workspace->partials + (int64_t)idx * (workspace->config.head_dim + 2);
}

/* Norm (if any) and RoPE of one query or key head, in place. */
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
    const lmd_plan *plan = workspace->plan;
    const int32_t head_dim = config->head_dim, position = plan->positions[row];
    const lmd_buffer *qkv = job->args->qkv;
    float *key = qkv->memory.x + (int64_t)row * qkv->n_cols +
                 (int64_t)(config->n_head + kv_head) * head_dim;
    const int32_t *block_ids = plan->block_ids + plan->block_offsets[workspace->row_seqs[row]];
    rotate_head(job, key, position, job->args->k_norm);
    workspace->kernels->kv_write(kv_head_base(workspace, job->args->layer, kv_head) +
                                     block_ids[position / config->block_len] *
                                         workspace->block_stride,
                                 key, key + (int64_t)config->n_kv_head * head_dim,
                                 position % config->block_len, &workspace->kv_format);
}

/* A row of a sequence with several tokens in this step: its units read one another's K and V,
 * which are all written before the first unit. */
static void write_kv_item(void *arg, const lmd_stage *stage, int32_t row, int32_t thread_idx,
                          bool is_first) {
    const attention_job job = job_of(arg, stage);
    const lmd_plan *plan = job.workspace->plan;
    const int32_t seq = job.workspace->row_seqs[row];
    const bool every_row = !units_write_kv(&job.workspace->config);
    (void)thread_idx, (void)is_first;
    if (plan->slots[seq] < 0 || (plan->input_lens[seq] == 1 && !every_row)) return;
    for (int32_t h = 0; h < job.workspace->config.n_kv_head; h++) write_kv(&job, row, h);
}

/* Copies the unit's queries, rotated and scaled, one row for each (token, head). */
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
            memcpy(q,
                   job->args->qkv->memory.x + (int64_t)row * job->args->qkv->n_cols +
                       (int64_t)(unit->head_begin + h) * head_dim,
                   (size_t)head_dim * sizeof *q);
            rotate_head(job, q, position, job->args->q_norm);
            for (int32_t d = 0; d < head_dim; d++) q[d] *= scale;
            scratch->row_ends[n_rows] = position + 1;
        }
    }
    return n_rows;
}

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

/* One chunk's results, for the unit that folds them. */
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

/* Where a unit's block ids stand, and where its first block does. */
static const int32_t *unit_block_ids(const lmd_workspace *workspace,
                                     const lmd_attend_unit *unit) {
    return workspace->plan->block_ids + workspace->plan->block_offsets[unit->seq_idx];
}

static const uint8_t *first_block(const attention_job *job, const lmd_attend_unit *unit) {
    const lmd_workspace *workspace = job->workspace;
    const int32_t idx = unit->begin / workspace->config.block_len;
    return kv_head_base(workspace, job->args->layer, unit->kv_head) +
           unit_block_ids(workspace, unit)[idx] * workspace->block_stride;
}

/* Asks for all of a block at once; the kernels ask for one block from another. */
static void prefetch_block(const lmd_workspace *workspace, const uint8_t *block) {
    for (int64_t i = 0; i < workspace->head_bytes; i += LMD_CACHE_LINE) lmd_prefetch(block + i);
}

static void run_unit(const attention_job *job, int32_t unit_idx, lmd_thread_scratch *scratch,
                     bool is_first) {
    const lmd_workspace *workspace = job->workspace;
    const lmd_attend_unit *unit = &workspace->units[unit_idx];
    const lmd_workspace_config *config = &workspace->config;
    const bool is_split = unit->partial_idx >= 0;
    lmd_attend_args args = {
        .q = scratch->q[0],
        .row_ends = scratch->row_ends,
        .begin = unit->begin,
        .last = unit->end,
        .next = unit_idx + 1 < workspace->n_units ? first_block(job, unit + 1) : NULL,
        .format = workspace->kv_format,
        .kv = kv_head_base(workspace, job->args->layer, unit->kv_head),
        .block_stride = workspace->block_stride,
        .block_ids = unit_block_ids(workspace, unit),
    };
    if (is_first && unit->n_tokens == 1) prefetch_block(workspace, first_block(job, unit));
    args.n_rows = gather_queries(job, unit, scratch);
    if (unit->writes_kv) write_kv(job, unit->token_begin, unit->kv_head);
    memset(scratch->sum, 0, sizeof scratch->sum);
    for (; args.begin < unit->end; args.begin += LMD_CHUNK_LEN) {
        args.end = lmd_min_i32(args.begin + LMD_CHUNK_LEN, unit->end);
        workspace->kernels->attend_chunk(&scratch->attend, &args);
        if (is_split) {
            const int32_t before = (args.begin - unit->begin) / LMD_CHUNK_LEN * config->n_head;
            keep_partials(workspace, &scratch->attend, unit->partial_idx + before, args.n_rows);
            continue;
        }
        for (int32_t r = 0; r < args.n_rows; r++)
            workspace->kernels->attend_fold(&scratch->max[r], &scratch->sum[r], scratch->o[r],
                                            scratch->attend.max[r], scratch->attend.sum[r],
                                            scratch->attend.o[r], config->head_dim);
    }
    if (is_split) return;
    for (int32_t r = 0; r < args.n_rows; r++)
        write_output(job, unit->token_begin + r / unit->n_heads,
                     unit->head_begin + r % unit->n_heads, scratch->o[r], scratch->sum[r]);
}

/* Folds the chunks of one split sequence, all heads. */
static void fold_sequence(const attention_job *job, int32_t seq_idx,
                          lmd_thread_scratch *scratch) {
    const lmd_workspace *workspace = job->workspace;
    const int32_t head_dim = workspace->config.head_dim, n_head = workspace->config.n_head;
    const int32_t n_chunks =
        lmd_ceil_div(workspace->plan->history_lens[seq_idx] + 1, LMD_CHUNK_LEN);
    for (int32_t h = 0; h < n_head; h++) {
        float max = 0.0f, sum = 0.0f;
        for (int32_t c = 0; c < n_chunks; c++) {
            const float *partial =
                partial_at(workspace, workspace->seq_partials[seq_idx] + c * n_head + h);
            workspace->kernels->attend_fold(&max, &sum, scratch->o[0], partial[head_dim],
                                            partial[head_dim + 1], partial, head_dim);
        }
        write_output(job, workspace->plan->token_offsets[seq_idx], h, scratch->o[0], sum);
    }
}

void lmd_cpu_attention_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                            bool is_first) {
    const attention_job job = job_of(arg, stage);
    run_unit(&job, item, job.workspace->scratch[thread_idx], is_first);
}

void lmd_cpu_fold_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                       bool is_first) {
    const attention_job job = job_of(arg, stage);
    (void)is_first;
    if (job.workspace->seq_partials[item] >= 0)
        fold_sequence(&job, item, job.workspace->scratch[thread_idx]);
}

static lmd_cpu_op *add_stage(lmd_workspace *workspace, const lmd_attention_args *args,
                             lmd_cpu_item_fn run, int32_t n_items) {
    lmd_cpu_op *op = lmd_cpu_op_add(workspace, run, args->out, workspace->plan->n_tokens);
    op->attention = *args;
    op->out_acts = args->out->memory;
    op->stage.n_items = n_items;
    return op;
}

void lmd_cpu_attention(lmd_workspace *workspace, const lmd_attention_args *args) {
    lmd_cpu_ops_reserve(workspace, 3);
    if (workspace->writes_kv_first)
        add_stage(workspace, args, write_kv_item, workspace->plan->n_tokens);
    lmd_cpu_op *units = add_stage(workspace, args, lmd_cpu_attention_item, workspace->n_units);
    if (!workspace->has_splits) return;
    add_stage(workspace, args, lmd_cpu_fold_item, workspace->plan->n_seqs)->part = units;
}
