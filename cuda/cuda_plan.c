/* A plan as the device gets it: see cuda_plan.h. */
#include "cuda_plan.h"

#include <string.h>

#include "base/ints.h"

/* ---- buckets ---- */

int32_t lmd_cuda_bucket(int32_t n, int32_t max_seqs) {
    int32_t bucket = 1;
    /* From 8 on, two buckets for each power of two: a step is never padded by more than half.
     */
    while (bucket < n) {
        const bool is_power = (bucket & (bucket - 1)) == 0;
        bucket = bucket < 16 ? bucket * 2 : is_power ? bucket * 3 / 2 : bucket / 3 * 4;
    }
    return lmd_min_i32(bucket, max_seqs);
}

bool lmd_cuda_plan_is_decode(const lmd_plan *plan) {
    if (plan->n_tokens != plan->n_seqs || plan->n_logits_rows != plan->n_seqs) return false;
    for (int32_t i = 0; i < plan->n_seqs; i++)
        if (plan->input_lens[i] != 1 || plan->logits_rows[i] != i) return false;
    return true;
}

/* ---- attention units ---- */

static int32_t heads_per_kv(const lmd_workspace_config *config) {
    return config->n_head / config->n_kv_head;
}

/* A sequence of so few attention rows is a narrow unit. With batch_invariant all are wide,
 * since the two kinds add in different orders. */
static bool is_narrow(const lmd_workspace_config *config, int32_t n_rows) {
    return !config->batch_invariant && n_rows <= LMD_NARROW_ROWS;
}

static void count_units(const lmd_plan *plan, const lmd_workspace_config *config,
                        int32_t n_padding, lmd_cuda_packed *out) {
    const int32_t group = heads_per_kv(config);
    out->n_narrow = out->n_wide = 0;
    for (int32_t i = 0; i < plan->n_seqs + n_padding; i++) {
        const int32_t n_rows = (i < plan->n_seqs ? plan->input_lens[i] : 1) * group;
        if (is_narrow(config, n_rows))
            out->n_narrow++;
        else
            out->n_wide += lmd_ceil_div(n_rows, LMD_WIDE_ROWS);
    }
}

static void put_units(const lmd_plan *plan, const lmd_workspace_config *config,
                      const lmd_cuda_packed *packed, int32_t *to) {
    const int32_t group = heads_per_kv(config);
    int32_t *narrow = to + packed->narrow, *wide = to + packed->wide;
    for (int32_t i = 0; i < packed->n_seqs; i++) {
        const int32_t n_rows = (i < plan->n_seqs ? plan->input_lens[i] : 1) * group;
        if (is_narrow(config, n_rows)) {
            *narrow++ = i;
            *narrow++ = 0;
        }
        for (int32_t r = 0; r < n_rows && !is_narrow(config, n_rows); r += LMD_WIDE_ROWS) {
            *wide++ = i;
            *wide++ = r;
        }
    }
}

/* ---- the array ---- */

/* Gives a list of n integers its place. */
static size_t place(lmd_cuda_packed *out, int64_t n) {
    const size_t at = out->len;
    out->len += ((size_t)n + 3) / 4 * 4; /* a list begins at a multiple of 16 bytes */
    return at;
}

static void place_all(lmd_cuda_packed *out, int64_t n_block_ids) {
    out->len = 0;
    out->token_ids = place(out, out->n_tokens);
    out->positions = place(out, out->n_tokens);
    out->row_seqs = place(out, out->n_tokens);
    out->slots = place(out, out->n_seqs);
    out->history_lens = place(out, out->n_seqs);
    out->token_offsets = place(out, out->n_seqs + 1);
    out->block_offsets = place(out, out->n_seqs + 1);
    out->logits_rows = place(out, out->n_logits_rows);
    out->narrow = place(out, (int64_t)out->n_narrow * 2);
    out->wide = place(out, (int64_t)out->n_wide * 2);
    /* What follows has other lengths in each step of a bucket. */
    out->block_ids = place(out, n_block_ids);
    out->copies = place(out, (int64_t)out->n_copies * 2);
}

size_t lmd_cuda_plan_room(const lmd_workspace_config *config) {
    const int32_t group = heads_per_kv(config);
    const int64_t n_blocks = lmd_ceil_div(config->n_positions, config->block_len) + 1;
    const int64_t n_rows = (int64_t)config->max_tokens * group;
    lmd_cuda_packed most = {
        .n_tokens = config->max_tokens,
        .n_seqs = config->max_seqs,
        .n_logits_rows = config->max_tokens,
        .n_narrow = config->max_seqs,
        .n_wide = (int32_t)(n_rows / LMD_WIDE_ROWS) + config->max_seqs,
        .n_copies = config->max_seqs,
    };
    place_all(&most, n_blocks * config->max_seqs);
    return most.len;
}

static void put_tokens(const lmd_plan *plan, const lmd_cuda_packed *packed, int32_t *to) {
    const size_t n_bytes = (size_t)plan->n_tokens * sizeof *to;
    memcpy(to + packed->token_ids, plan->token_ids, n_bytes);
    memcpy(to + packed->positions, plan->positions, n_bytes);
    for (int32_t s = 0; s < plan->n_seqs; s++)
        for (int32_t r = plan->token_offsets[s]; r < plan->token_offsets[s + 1]; r++)
            to[packed->row_seqs + (size_t)r] = s;
    for (int32_t i = plan->n_tokens; i < packed->n_tokens; i++) { /* padding */
        to[packed->token_ids + (size_t)i] = 0;
        to[packed->positions + (size_t)i] = 0;
        to[packed->row_seqs + (size_t)i] = plan->n_seqs + i - plan->n_tokens;
    }
}

static void put_seqs(const lmd_plan *plan, const lmd_cuda_packed *packed, int32_t *to) {
    const size_t n_bytes = (size_t)plan->n_seqs * sizeof *to;
    memcpy(to + packed->slots, plan->slots, n_bytes);
    memcpy(to + packed->history_lens, plan->history_lens, n_bytes);
    memcpy(to + packed->token_offsets, plan->token_offsets, n_bytes + sizeof *to);
    memcpy(to + packed->block_offsets, plan->block_offsets, n_bytes + sizeof *to);
    for (int32_t i = plan->n_seqs; i < packed->n_seqs; i++) { /* padding: no block, one row */
        const size_t at = (size_t)i;
        to[packed->slots + at] = -1;
        to[packed->history_lens + at] = 0;
        to[packed->token_offsets + at + 1] = to[packed->token_offsets + at] + 1;
        to[packed->block_offsets + at + 1] = to[packed->block_offsets + at];
    }
}

void lmd_cuda_plan_pack(const lmd_plan *plan, const lmd_workspace_config *config,
                        int32_t n_padded, int32_t *to, lmd_cuda_packed *out) {
    const int32_t n_padding = n_padded - plan->n_seqs;
    const int32_t n_block_ids = plan->block_offsets[plan->n_seqs];
    *out = (lmd_cuda_packed){
        .n_tokens = plan->n_tokens + n_padding,
        .n_seqs = n_padded,
        .n_logits_rows = plan->n_logits_rows + n_padding,
        .n_copies = plan->n_copies,
    };
    count_units(plan, config, n_padding, out);
    place_all(out, n_block_ids);
    put_tokens(plan, out, to);
    put_seqs(plan, out, to);
    put_units(plan, config, out, to);
    for (int32_t i = 0; i < out->n_logits_rows; i++) /* a padding row's logits are its own */
        to[out->logits_rows + (size_t)i] = i < plan->n_logits_rows
                                               ? plan->logits_rows[i]
                                               : plan->n_tokens + i - plan->n_logits_rows;
    memcpy(to + out->block_ids, plan->block_ids, (size_t)n_block_ids * sizeof *to);
    memcpy(to + out->copies, plan->copies, (size_t)plan->n_copies * sizeof *plan->copies);
}

lmd_cuda_step lmd_cuda_plan_step(const lmd_cuda_packed *packed, int32_t *ints,
                                 int32_t *newest) {
    return (lmd_cuda_step){
        .n_tokens = packed->n_tokens,
        .n_seqs = packed->n_seqs,
        .token_ids = ints + packed->token_ids,
        .positions = ints + packed->positions,
        .row_seqs = ints + packed->row_seqs,
        .slots = ints + packed->slots,
        .history_lens = ints + packed->history_lens,
        .token_offsets = ints + packed->token_offsets,
        .block_offsets = ints + packed->block_offsets,
        .block_ids = ints + packed->block_ids,
        .newest = newest,
    };
}
