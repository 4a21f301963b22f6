/* Sampling parameters and results: see cuda_sampling.h. */
#include "cuda_sampling.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/ints.h"

enum { ENTRY = sizeof(lmd_token_bias), MAX_LISTED_BANS = 32 };

static_assert(sizeof(lmd_token_count) == ENTRY, "biases and counts share one array");

/* ---- lists ----
 *
 * Biases and counts are entries of 8 bytes, masks words of 4, all in one array. Many bans
 * travel as a mask, which bans as well: so a row's lists have a largest size. */

static int32_t n_mask_words(const lmd_workspace *self) {
    return (self->config.vocab_size + 31) / 32;
}

static bool is_ban(const lmd_token_bias *bias) { return bias->bias == -INFINITY; }

static int32_t count_bans(const lmd_sample_params *params) {
    int32_t n = 0;
    for (int32_t i = 0; i < params->n_biases; i++) n += is_ban(&params->biases[i]);
    return n;
}

static size_t mask_room(const lmd_workspace *self) {
    return ((size_t)n_mask_words(self) * sizeof(uint32_t) + ENTRY - 1) / ENTRY * ENTRY;
}

/* Bytes of a row's lists. */
static size_t lists_len(const lmd_workspace *self, const lmd_sample_params *params) {
    if (!params->wants_token) return 0;
    const int32_t n_bans = count_bans(params);
    const bool masks_bans = n_bans > MAX_LISTED_BANS;
    const int32_t n_biases = params->n_biases - (masks_bans ? n_bans : 0);
    const size_t mask = params->mask || masks_bans ? mask_room(self) : 0;
    return mask + (size_t)(n_biases + params->n_counts) * ENTRY;
}

static void put_mask(const lmd_workspace *self, const lmd_sample_params *params,
                     bool masks_bans, uint32_t *to) {
    const size_t n_bytes = (size_t)n_mask_words(self) * sizeof *to;
    if (params->mask)
        memcpy(to, params->mask, n_bytes);
    else
        memset(to, 0xff, n_bytes);
    for (int32_t i = 0; masks_bans && i < params->n_biases; i++) {
        const int32_t id = params->biases[i].token_id;
        if (is_ban(&params->biases[i])) to[id / 32] &= ~(UINT32_C(1) << id % 32);
    }
}

/* Appends a row's lists at *len of the flight's array, counted from `base`. */
static void put_lists(const lmd_workspace *self, lmd_cuda_flight *flight, size_t base,
                      const lmd_sample_params *params, lmd_cuda_sample_row *row) {
    const bool masks_bans = count_bans(params) > MAX_LISTED_BANS;
    uint8_t *at = flight->lists + flight->lists_len;
    row->first_mask = -1;
    if (params->mask || masks_bans) {
        row->first_mask = (int32_t)((flight->lists_len - base) / sizeof(uint32_t));
        put_mask(self, params, masks_bans, (uint32_t *)(void *)at);
        at += mask_room(self);
    }
    row->first_bias = (int32_t)((size_t)(at - flight->lists) - base) / ENTRY;
    for (int32_t i = 0; i < params->n_biases; i++) {
        if (masks_bans && is_ban(&params->biases[i])) continue;
        memcpy(at, &params->biases[i], ENTRY);
        at += ENTRY;
        row->n_biases++;
    }
    row->first_count = row->first_bias + row->n_biases;
    row->n_counts = params->n_counts;
    memcpy(at, params->counts, (size_t)params->n_counts * ENTRY);
    at += (size_t)params->n_counts * ENTRY;
    flight->lists_len = (size_t)(at - flight->lists);
}

/* ---- rows ---- */

/* Whose newest token a row gives: its sequence's, if no later row is of the same sequence. */
static int32_t slot_of(const lmd_plan *plan, int32_t idx) {
    const int32_t row = plan->logits_rows[idx];
    int32_t low = 0,
            high = plan->n_seqs; /* low: the last sequence that begins at or before row */
    while (high - low > 1) {
        const int32_t middle = low + (high - low) / 2;
        if (plan->token_offsets[middle] <= row)
            low = middle;
        else
            high = middle;
    }
    const bool is_last = idx + 1 == plan->n_logits_rows ||
                         plan->logits_rows[idx + 1] >= plan->token_offsets[low + 1];
    return is_last ? plan->slots[low] : -1;
}

static void put_row(const lmd_workspace *self, lmd_cuda_flight *flight, size_t base,
                    int32_t first_top, const lmd_sample_params *params, int32_t idx) {
    lmd_cuda_sample_row row = {
        .seed = params->seed,
        .top_p = params->top_p,
        .min_p = params->min_p,
        .temperature = params->temperature,
        .repetition_penalty = params->repetition_penalty,
        .presence_penalty = params->presence_penalty,
        .frequency_penalty = params->frequency_penalty,
        .top_k = params->top_k,
        .wants_token = params->wants_token,
        .greedy = params->greedy,
        .first_mask = -1,
        .position = params->position,
        .sample_idx = params->sample_idx,
        .target_id = params->target_id,
        .n_logprobs = params->n_logprobs,
        .logprobs_at = -1,
        .slot = params->wants_token ? slot_of(flight->plan, idx) : -1,
    };
    if (params->wants_token) put_lists(self, flight, base, params, &row);
    if (params->n_logprobs > 0) row.logprobs_at = flight->n_tops++ - first_top;
    flight->rows[idx] = row;
}

static void send(lmd_workspace *self, void *to, const void *from, size_t n_bytes) {
    if (n_bytes == 0) return;
    lmd_cuda_note(&self->queue,
                  cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDefault, self->queue.stream),
                  "copying for sampling");
}

/* Copies the raw logits of rows that want them to the caller's memory. */
static void send_logits(lmd_workspace *self, const lmd_sample_params *params, int32_t n,
                        int32_t first) {
    const size_t n_bytes = (size_t)self->config.vocab_size * sizeof(float);
    for (int32_t i = 0; i < n; i++)
        if (params[i].logits_out)
            send(self, params[i].logits_out,
                 self->logits + (size_t)(first + i) * (size_t)self->logits_stride, n_bytes);
}

/* Samples n rows of logits from `first` on, whose lists fit. */
static void sample_rows(lmd_workspace *self, const lmd_sample_params *params, int32_t n,
                        int32_t first) {
    lmd_cuda_flight *flight = self->current;
    const int32_t first_row = flight->n_rows, first_top = flight->n_tops;
    const size_t base = flight->lists_len;
    for (int32_t i = 0; i < n; i++)
        put_row(self, flight, base, first_top, &params[i], first_row + i);
    flight->n_rows += n;
    send_logits(self, params, n, first);
    send(self, self->rows, flight->rows + first_row, (size_t)n * sizeof *self->rows);
    send(self, self->lists, flight->lists + base, flight->lists_len - base);
    const lmd_cuda_sample_args args = {
        .logits = self->logits + (size_t)first * (size_t)self->logits_stride,
        .n_rows = n,
        .logits_stride = self->logits_stride,
        .vocab_size = self->config.vocab_size,
        .rows = self->rows,
        .biases = (lmd_token_bias *)(void *)self->lists,
        .counts = (lmd_token_count *)(void *)self->lists,
        .masks = (const uint32_t *)(const void *)self->lists,
        .newest = self->newest,
        .results = self->results,
        .tops = self->tops,
        .scratch = self->scratch,
        .scratch_bytes = self->scratch_bytes,
    };
    self->device->kernels->sample(&args, &self->queue);
    send(self, flight->results + first_row, self->results, (size_t)n * sizeof *self->results);
    send(self, flight->tops + first_top, self->tops,
         (size_t)(flight->n_tops - first_top) * sizeof *self->tops);
}

/* How many rows have lists that fit into what is left of the flight's array. */
static int32_t count_fitting(const lmd_workspace *self, const lmd_sample_params *params,
                             int32_t n) {
    size_t len = self->current->lists_len;
    int32_t i = 0;
    while (i < n && (len += lists_len(self, &params[i])) <= self->lists_room) i++;
    return i;
}

void lmd_cuda_sampling_run(lmd_workspace *self, const lmd_sample_params *params, int32_t n,
                           lmd_sample_result *results) {
    lmd_cuda_flight *flight = self->current;
    flight->tiles[flight->n_tiles++] = (lmd_cuda_tile){flight->n_rows, n, results};
    for (int32_t first = 0; first < n;) {
        const int32_t n_fitting = count_fitting(self, params + first, n - first);
        if (n_fitting == 0) { /* rare: what was listed has to be sent before there is room */
            lmd_cuda_note(&self->queue, cudaStreamSynchronize(self->queue.stream), "sampling");
            if (flight->lists_len == 0) { /* no sampler lists a token twice */
                lmd_cuda_note(&self->queue, cudaErrorInvalidValue, "sampling one row");
                return;
            }
            flight->lists_len = 0;
            continue;
        }
        sample_rows(self, params + first, n_fitting, first);
        first += n_fitting;
    }
}

/* ---- results ---- */

static void read_row(const lmd_cuda_flight *flight, int32_t idx, int32_t top,
                     lmd_sample_result *out) {
    const lmd_cuda_sample_result *result = &flight->results[idx];
    out->token_id = result->token_id;
    out->not_finite = result->not_finite != 0;
    out->token_logprob = result->token_logprob;
    out->target_logprob = result->target_logprob;
    out->n_top = 0;
    if (flight->rows[idx].logprobs_at < 0 || out->not_finite) return;
    const lmd_cuda_tops *tops = &flight->tops[top];
    out->n_top = tops->n;
    memcpy(out->top_ids, tops->ids, (size_t)tops->n * sizeof *tops->ids);
    memcpy(out->top_logprobs, tops->logprobs, (size_t)tops->n * sizeof *tops->logprobs);
}

void lmd_cuda_sampling_read(const lmd_cuda_flight *flight) {
    int32_t top = 0; /* rows that want log-probabilities have theirs in the order of rows */
    for (int32_t t = 0; t < flight->n_tiles; t++) {
        const lmd_cuda_tile *tile = &flight->tiles[t];
        for (int32_t i = 0; i < tile->n; i++) {
            const int32_t idx = tile->first + i;
            read_row(flight, idx, top, &tile->results[i]);
            if (flight->rows[idx].logprobs_at >= 0) top++;
        }
    }
}
