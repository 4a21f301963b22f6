/* Attention on the CPU: cutting a step into units and running them.
 * A unit computes what the numeric contract fixes (chunks of 256 positions, folded left to
 * right); the cut decides only who computes it. Prefill tiles fold their chunks themselves; a
 * lone decode row is split over chunks, so that all threads share a long context. The engine's
 * thread, and its workers in a region. */
#include <math.h>
#include <string.h>

#include "cpu/cpu_stream.h"

static int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }

static int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

/* Query heads of a KV head that one tile takes, and tokens beside them. */
static int32_t tile_heads(const lmd_stream_config *config) {
    return min_i32(config->n_head / config->n_kv_head, LMD_ATTEND_ROWS);
}

static int32_t tile_tokens(const lmd_stream_config *config) {
    return LMD_ATTEND_ROWS / tile_heads(config);
}

static int32_t head_tiles(const lmd_stream_config *config) {
    return config->n_kv_head * ceil_div(config->n_head / config->n_kv_head, tile_heads(config));
}

void lmd_cpu_attention_bounds(const lmd_stream_config *config, int32_t *max_units,
                              int32_t *max_partials) {
    int64_t positions = (int64_t)config->max_blocks * config->block_len;
    int32_t max_chunks = (int32_t)(positions / LMD_CHUNK_LEN) + config->max_seqs;
    int32_t max_tiles = config->max_tokens / tile_tokens(config) + config->max_seqs;
    *max_units = head_tiles(config) * (max_tiles + max_chunks);
    *max_partials = config->n_head * max_chunks;
}

static void add_unit(lmd_stream *stream, int32_t seq_idx, int32_t kv_head, int32_t token_begin,
                     int32_t n_tokens, int32_t begin, int32_t end, int32_t partial_idx) {
    const lmd_stream_config *config = &stream->config;
    int32_t group = config->n_head / config->n_kv_head;
    for (int32_t h = 0; h < group; h += tile_heads(config)) {
        stream->units[stream->n_units++] = (lmd_attend_unit){
            .seq_idx = seq_idx,
            .kv_head = kv_head,
            .head_begin = kv_head * group + h,
            .n_heads = min_i32(group - h, tile_heads(config)),
            .token_begin = token_begin,
            .n_tokens = n_tokens,
            .begin = begin,
            .end = end,
            .partial_idx = partial_idx < 0 ? -1 : partial_idx + kv_head * group + h,
        };
    }
}

/* A decode row: one unit for each chunk. Partials of chunk c stand at first + c * n_head +
 * head. */
static void add_split_units(lmd_stream *stream, int32_t seq_idx, int32_t row,
                            int32_t context_len, int32_t *n_partials) {
    const lmd_stream_config *config = &stream->config;
    stream->seq_partials[seq_idx] = *n_partials;
    for (int32_t begin = 0; begin < context_len; begin += LMD_CHUNK_LEN) {
        int32_t end = min_i32(begin + LMD_CHUNK_LEN, context_len);
        for (int32_t h = 0; h < config->n_kv_head; h++)
            add_unit(stream, seq_idx, h, row, 1, begin, end, *n_partials);
        *n_partials += config->n_head;
    }
}

/* Prefill: one unit for each tile of tokens, the last (and longest) first. */
static void add_tile_units(lmd_stream *stream, int32_t seq_idx, int32_t first_row,
                           int32_t n_rows, int32_t history_len) {
    int32_t n_tile = tile_tokens(&stream->config);
    stream->seq_partials[seq_idx] = -1;
    for (int32_t t = (n_rows - 1) / n_tile * n_tile; t >= 0; t -= n_tile) {
        int32_t n = min_i32(n_rows - t, n_tile);
        for (int32_t h = 0; h < stream->config.n_kv_head; h++)
            add_unit(stream, seq_idx, h, first_row + t, n, 0, history_len + t + n, -1);
    }
}

void lmd_cpu_attention_plan(lmd_stream *stream) {
    const lmd_plan *plan = stream->plan;
    int32_t n_partials = 0;
    stream->n_units = 0;
    for (int32_t s = 0; s < plan->n_seqs; s++) {
        int32_t first = plan->token_offsets[s], n = plan->input_lens[s];
        for (int32_t r = first; r < first + n; r++) stream->row_seqs[r] = s;
        if (plan->slots[s] < 0)
            stream->seq_partials[s] = -1;
        else if (n == 1)
            add_split_units(stream, s, first, plan->history_lens[s] + 1, &n_partials);
        else
            add_tile_units(stream, s, first, n, plan->history_lens[s]);
    }
}

/* ---- a region: write KV, attend, fold ---- */

typedef struct attention_job {
    lmd_stream *stream;
    const lmd_attention_args *args;
} attention_job;

static uint8_t *kv_head_base(const lmd_stream *stream, int32_t layer, int32_t kv_head) {
    return stream->kv +
           ((int64_t)layer * stream->config.n_kv_head + kv_head) * stream->head_bytes;
}

static float *partial_at(const lmd_stream *stream, int32_t idx) {
    return stream->partials + (int64_t)idx * (stream->config.head_dim + 2);
}

/* q/k norm and RoPE in place, then K and V into the cache: one row of the step. */
static void write_row(const attention_job *job, int32_t row) {
    const lmd_stream *stream = job->stream;
    const lmd_stream_config *config = &stream->config;
    const lmd_plan *plan = stream->plan;
    const int32_t head_dim = config->head_dim, position = plan->positions[row];
    const int32_t seq = stream->row_seqs[row];
    if (plan->slots[seq] < 0) return;
    float *x = job->args->qkv->x + (int64_t)row * job->args->qkv->n_cols;
    const float *cos_sin = config->rope_table + (int64_t)position * head_dim;
    for (int32_t h = 0; h < config->n_head + config->n_kv_head; h++) {
        float *head = x + (int64_t)h * head_dim;
        const lmd_weight *norm = h < config->n_head ? job->args->q_norm : job->args->k_norm;
        if (norm)
            stream->kernels->rms_norm(head, head, norm->vector, head_dim, job->args->norm_eps);
        stream->kernels->rope(head, cos_sin, head_dim);
    }
    const float *keys = x + (int64_t)config->n_head * head_dim;
    const float *values = keys + (int64_t)config->n_kv_head * head_dim;
    const int32_t *block_ids = plan->block_ids + plan->block_offsets[seq];
    int64_t block = block_ids[position / config->block_len] * stream->block_stride;
    for (int32_t h = 0; h < config->n_kv_head; h++)
        stream->kernels->kv_write(kv_head_base(stream, job->args->layer, h) + block,
                                  keys + (int64_t)h * head_dim, values + (int64_t)h * head_dim,
                                  position % config->block_len, config->block_len, head_dim,
                                  config->kv_bits);
}

/* Copies the unit's queries, scaled, one row for each (token, head). */
static int32_t gather_queries(const attention_job *job, const lmd_attend_unit *unit,
                              lmd_thread_scratch *scratch) {
    const lmd_stream *stream = job->stream;
    const int32_t head_dim = stream->config.head_dim;
    const float scale = 1.0f / sqrtf((float)head_dim);
    int32_t n_rows = 0;
    for (int32_t t = 0; t < unit->n_tokens; t++) {
        int32_t row = unit->token_begin + t;
        for (int32_t h = 0; h < unit->n_heads; h++, n_rows++) {
            const float *q = job->args->qkv->x + (int64_t)row * job->args->qkv->n_cols +
                             (int64_t)(unit->head_begin + h) * head_dim;
            for (int32_t d = 0; d < head_dim; d++) scratch->q[n_rows][d] = q[d] * scale;
            scratch->row_ends[n_rows] = stream->plan->positions[row] + 1;
        }
    }
    return n_rows;
}

static void write_output(const attention_job *job, int32_t row, int32_t head, const float *o,
                         float sum) {
    const int32_t head_dim = job->stream->config.head_dim;
    float *out =
        job->args->out->x + (int64_t)row * job->args->out->n_cols + (int64_t)head * head_dim;
    float inverse = 1.0f / sum;
    for (int32_t d = 0; d < head_dim; d++) out[d] = o[d] * inverse;
}

static void run_unit(const attention_job *job, const lmd_attend_unit *unit,
                     lmd_thread_scratch *scratch) {
    const lmd_stream *stream = job->stream;
    const lmd_stream_config *config = &stream->config;
    const int32_t head_dim = config->head_dim;
    const int32_t n_rows = gather_queries(job, unit, scratch);
    lmd_attend_args args = {
        .q = scratch->q[0],
        .q_stride = LMD_MAX_HEAD_DIM,
        .n_rows = n_rows,
        .row_ends = scratch->row_ends,
        .block_len = config->block_len,
        .head_dim = head_dim,
        .kv = kv_head_base(stream, job->args->layer, unit->kv_head),
        .block_stride = stream->block_stride,
        .block_ids = stream->plan->block_ids + stream->plan->block_offsets[unit->seq_idx],
        .kv_bits = config->kv_bits,
    };
    memset(scratch->sum, 0, sizeof scratch->sum);
    for (args.begin = unit->begin; args.begin < unit->end; args.begin += LMD_CHUNK_LEN) {
        args.end = min_i32(args.begin + LMD_CHUNK_LEN, unit->end);
        stream->kernels->attend_chunk(&scratch->attend, &args);
        for (int32_t r = 0; r < n_rows; r++)
            stream->kernels->attend_fold(&scratch->max[r], &scratch->sum[r], scratch->o[r],
                                         scratch->attend.max[r], scratch->attend.sum[r],
                                         scratch->attend.o[r], head_dim);
    }
    for (int32_t r = 0; r < n_rows; r++) {
        if (unit->partial_idx < 0) {
            write_output(job, unit->token_begin + r / unit->n_heads,
                         unit->head_begin + r % unit->n_heads, scratch->o[r], scratch->sum[r]);
            continue;
        }
        float *partial = partial_at(stream, unit->partial_idx + r);
        memcpy(partial, scratch->o[r], (size_t)head_dim * sizeof *partial);
        partial[head_dim] = scratch->max[r];
        partial[head_dim + 1] = scratch->sum[r];
    }
}

/* Folds the chunks of one split sequence, all heads. */
static void fold_sequence(const attention_job *job, int32_t seq_idx,
                          lmd_thread_scratch *scratch) {
    const lmd_stream *stream = job->stream;
    const int32_t head_dim = stream->config.head_dim, n_head = stream->config.n_head;
    const int32_t n_chunks = ceil_div(stream->plan->history_lens[seq_idx] + 1, LMD_CHUNK_LEN);
    for (int32_t h = 0; h < n_head; h++) {
        float max = 0.0f, sum = 0.0f;
        for (int32_t c = 0; c < n_chunks; c++) {
            const float *partial =
                partial_at(stream, stream->seq_partials[seq_idx] + c * n_head + h);
            stream->kernels->attend_fold(&max, &sum, scratch->o[0], partial[head_dim],
                                         partial[head_dim + 1], partial, head_dim);
        }
        write_output(job, stream->plan->token_offsets[seq_idx], h, scratch->o[0], sum);
    }
}

static void attention_region(void *arg, int32_t thread_idx) {
    const attention_job *job = arg;
    lmd_stream *stream = job->stream;
    const lmd_plan *plan = stream->plan;
    const int32_t n_threads = lmd_threads_count(stream->threads);
    lmd_thread_scratch *scratch = stream->scratch[thread_idx];
    for (int32_t r = thread_idx; r < plan->n_tokens; r += n_threads) write_row(job, r);
    lmd_threads_barrier(stream->threads);
    for (int32_t i; (i = lmd_threads_take(&stream->next[0], stream->n_units)) >= 0;)
        run_unit(job, &stream->units[i], scratch);
    lmd_threads_barrier(stream->threads);
    for (int32_t s = thread_idx; s < plan->n_seqs; s += n_threads)
        if (stream->seq_partials[s] >= 0) fold_sequence(job, s, scratch);
}

void lmd_cpu_attention(lmd_stream *stream, const lmd_attention_args *args) {
    attention_job job = {stream, args};
    args->qkv->group_size = 0;
    args->out->group_size = 0;
    atomic_store(&stream->next[0], 0);
    lmd_threads_run(stream->threads, attention_region, &job);
}
