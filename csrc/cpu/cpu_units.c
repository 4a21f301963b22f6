/* Cutting attention into units: see cpu_units.h. */
#include "cpu/cpu_units.h"

#include "base/ints.h"
#include "cpu/kernels/kernels.h"

/* Query heads of one KV head that a tile covers, and its tokens beside them. */
static int32_t tile_heads(const lmd_workspace_config *config) {
    return lmd_min_i32(config->n_head / config->n_kv_head, LMD_ATTEND_ROWS);
}

static int32_t tile_tokens(const lmd_workspace_config *config) {
    return LMD_ATTEND_ROWS / tile_heads(config);
}

/* Tiles of one token, of all heads. */
static int32_t head_tiles(const lmd_workspace_config *config) {
    const int32_t group = config->n_head / config->n_kv_head;
    return config->n_kv_head * lmd_ceil_div(group, tile_heads(config));
}

/* Long contexts are split in steps of up to so many tokens: with more, sequences and heads
 * alone keep the threads evenly busy. */
static int32_t most_split_tokens(const lmd_workspace_config *config, int32_t n_threads) {
    return (8 * n_threads - 1) / head_tiles(config);
}

void lmd_cpu_units_bound(lmd_cpu_units *self, const lmd_workspace_config *config,
                         int32_t n_threads) {
    int32_t n_split = lmd_min_i32(config->max_seqs, most_split_tokens(config, n_threads));
    int32_t max_chunks = n_split * lmd_ceil_div(config->n_positions, LMD_CHUNK_LEN);
    int32_t max_tiles = config->max_tokens / tile_tokens(config) + config->max_seqs;
    self->max_units = head_tiles(config) * (max_tiles + max_chunks);
    self->max_partials = config->n_head * max_chunks;
}

bool lmd_cpu_units_write_kv(const lmd_workspace_config *config) {
    return config->n_head / config->n_kv_head <= LMD_ATTEND_ROWS;
}

/* ---- one step ---- */

/* What the cut of a step goes by. */
typedef struct cut {
    lmd_cpu_units *self;
    const lmd_workspace_config *config;
    int32_t n_threads, n_tokens; /* of the step */
    bool splits;                 /* long contexts */
} cut;

/* Adds the units of one KV head: its query heads in as many tiles as they need. */
static void add_units(const cut *step, lmd_attend_unit unit) {
    const lmd_workspace_config *config = step->config;
    int32_t group = config->n_head / config->n_kv_head, partial_idx = unit.partial_idx;
    for (int32_t h = 0; h < group; h += tile_heads(config)) {
        unit.head_begin = unit.kv_head * group + h;
        unit.n_heads = lmd_min_i32(group - h, tile_heads(config));
        unit.partial_idx = partial_idx < 0 ? -1 : partial_idx + unit.head_begin;
        step->self->units[step->self->n_units++] = unit;
    }
}

/* Positions of a split context that one unit covers, whole chunks: a long stretch, so that each
 * block is prefetched while the one before it is read, but enough units to keep the threads
 * evenly busy. */
static int32_t stretch_len(const cut *step, int32_t context_len) {
    enum { UNITS_PER_THREAD = 12 };
    const int32_t n_units = UNITS_PER_THREAD * step->n_threads;
    const int32_t n_stretches =
        lmd_ceil_div(n_units, head_tiles(step->config) * step->n_tokens);
    const int32_t n_chunks = lmd_ceil_div(context_len, LMD_CHUNK_LEN) / n_stretches;
    return lmd_max_i32(n_chunks, 1) * LMD_CHUNK_LEN;
}

/* Adds a decode row's units: one for each KV head, or for each stretch of it, in an order in
 * which a thread continues from unit to unit where it stopped reading. */
static void add_decode_units(const cut *step, int32_t seq_idx, int32_t row,
                             int32_t context_len) {
    const lmd_workspace_config *config = step->config;
    const bool is_split = step->splits && context_len > LMD_CHUNK_LEN;
    const int32_t stretch = is_split ? stretch_len(step, context_len) : context_len;
    const int32_t first = is_split ? step->self->n_partials : -1;
    step->self->seq_partials[seq_idx] = first;
    for (int32_t h = 0; h < config->n_kv_head; h++)
        for (int32_t begin = 0; begin < context_len; begin += stretch) {
            const int32_t end = lmd_min_i32(begin + stretch, context_len);
            const int32_t before = begin / LMD_CHUNK_LEN * config->n_head;
            add_units(step, (lmd_attend_unit){.seq_idx = seq_idx,
                                              .kv_head = h,
                                              .token_begin = row,
                                              .n_tokens = 1,
                                              .begin = begin,
                                              .end = end,
                                              .partial_idx = is_split ? first + before : -1,
                                              .writes_kv = end == context_len &&
                                                           lmd_cpu_units_write_kv(config)});
        }
    if (is_split)
        step->self->n_partials += lmd_ceil_div(context_len, LMD_CHUNK_LEN) * config->n_head;
}

/* Adds a prefill's units: one for each tile of tokens, the last first, for it is the longest.
 */
static void add_prefill_units(const cut *step, int32_t seq_idx, int32_t first_row,
                              int32_t n_rows, int32_t history_len) {
    const int32_t n_tile = tile_tokens(step->config);
    step->self->seq_partials[seq_idx] = -1;
    for (int32_t t = (n_rows - 1) / n_tile * n_tile; t >= 0; t -= n_tile) {
        int32_t n = lmd_min_i32(n_rows - t, n_tile);
        for (int32_t h = 0; h < step->config->n_kv_head; h++)
            add_units(step, (lmd_attend_unit){.seq_idx = seq_idx,
                                              .kv_head = h,
                                              .token_begin = first_row + t,
                                              .n_tokens = n,
                                              .end = history_len + t + n,
                                              .partial_idx = -1});
    }
}

void lmd_cpu_units_cut(lmd_cpu_units *self, const lmd_workspace_config *config,
                       int32_t n_threads, const lmd_plan *plan) {
    const cut step = {self, config, n_threads, plan->n_tokens,
                      plan->n_tokens <= most_split_tokens(config, n_threads)};
    self->n_units = self->n_partials = 0;
    self->writes_kv_first = plan->n_seqs > 0 && !lmd_cpu_units_write_kv(config);
    for (int32_t s = 0; s < plan->n_seqs; s++) {
        const int32_t first = plan->token_offsets[s], n = plan->input_lens[s];
        for (int32_t r = first; r < first + n; r++) self->row_seqs[r] = s;
        if (plan->slots[s] < 0) {
            self->seq_partials[s] = -1;
        } else if (n == 1) {
            add_decode_units(&step, s, first, plan->history_lens[s] + 1);
        } else {
            add_prefill_units(&step, s, first, n, plan->history_lens[s]);
            self->writes_kv_first = true;
        }
    }
}
