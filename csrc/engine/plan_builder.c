/* The plan builder: see plan_builder.h. */
#include "engine/plan_builder.h"

#include <string.h>

#include "base/memory.h"

enum { PLACEHOLDER = -1 };

/* Every array of a builder, and how many bytes it takes. */
enum { N_ARRAYS = 13 };

typedef struct array_spec {
    void **array;
    size_t n, size;
} array_spec;

static void list_arrays(lmd_plan_builder *self, size_t n_seqs, size_t n_tokens,
                        size_t n_block_ids, array_spec out[N_ARRAYS]) {
    const array_spec arrays[N_ARRAYS] = {
        {(void **)&self->entries, n_seqs, sizeof *self->entries},
        {(void **)&self->copies, n_seqs, sizeof *self->copies},
        {(void **)&self->owners, n_seqs, sizeof *self->owners},
        {(void **)&self->seq_ids, n_seqs, sizeof *self->seq_ids},
        {(void **)&self->slots, n_seqs, sizeof *self->slots},
        {(void **)&self->history_lens, n_seqs, sizeof *self->history_lens},
        {(void **)&self->input_lens, n_seqs, sizeof *self->input_lens},
        {(void **)&self->token_offsets, n_seqs + 1, sizeof *self->token_offsets},
        {(void **)&self->token_ids, n_tokens, sizeof *self->token_ids},
        {(void **)&self->positions, n_tokens, sizeof *self->positions},
        {(void **)&self->block_offsets, n_seqs + 1, sizeof *self->block_offsets},
        {(void **)&self->block_ids, n_block_ids, sizeof *self->block_ids},
        {(void **)&self->logits_rows, n_tokens, sizeof *self->logits_rows},
    };
    memcpy(out, arrays, sizeof arrays);
}

lmd_status lmd_plan_builder_init(lmd_plan_builder *self, int32_t max_seqs, int32_t max_tokens,
                                 int32_t seq_blocks, lmd_err *err) {
    array_spec arrays[N_ARRAYS];
    bool complete = true;
    *self = (lmd_plan_builder){0};
    list_arrays(self, (size_t)max_seqs, (size_t)max_tokens,
                (size_t)max_seqs * (size_t)seq_blocks, arrays);
    for (int32_t i = 0; i < N_ARRAYS; i++) {
        *arrays[i].array = lmd_calloc(arrays[i].n, arrays[i].size);
        complete = complete && *arrays[i].array;
    }
    if (complete) return LMD_OK;
    lmd_plan_builder_clear(self);
    return lmd_no_memory(err, "plans of %d sequences, %d tokens", max_seqs, max_tokens);
}

size_t lmd_plan_builder_bytes(int32_t max_seqs, int32_t max_tokens, int32_t seq_blocks) {
    lmd_plan_builder none = {0};
    array_spec arrays[N_ARRAYS];
    size_t n_bytes = 0;
    list_arrays(&none, (size_t)max_seqs, (size_t)max_tokens,
                (size_t)max_seqs * (size_t)seq_blocks, arrays);
    for (int32_t i = 0; i < N_ARRAYS; i++) n_bytes += arrays[i].n * arrays[i].size;
    return n_bytes;
}

void lmd_plan_builder_clear(lmd_plan_builder *self) {
    array_spec arrays[N_ARRAYS];
    list_arrays(self, 0, 0, 0, arrays);
    for (int32_t i = 0; i < N_ARRAYS; i++) lmd_free(*arrays[i].array);
    *self = (lmd_plan_builder){0};
}

void lmd_plan_builder_begin(lmd_plan_builder *self) { self->n_entries = self->n_copies = 0; }

void lmd_plan_builder_copy(lmd_plan_builder *self, lmd_block_copy copy) {
    self->copies[self->n_copies++] = copy;
}

void lmd_plan_builder_add(lmd_plan_builder *self, lmd_sequence *seq, int32_t n) {
    self->entries[self->n_entries++] = (lmd_plan_entry){seq, seq->history_len, n, 0, -1};
}

void lmd_plan_builder_draft(lmd_plan_entry *entry, int32_t n) {
    entry->n_draft = n;
    entry->input_len += n;
}

static bool is_decode(const lmd_plan_entry *entry) {
    return entry->input_len == 1 && entry->history_len > 0;
}

/* Moves the decodes to the front; both kinds keep their order. */
static void put_decodes_first(lmd_plan_builder *self) {
    int32_t n_decodes = 0;
    for (int32_t i = 0; i < self->n_entries; i++) {
        if (!is_decode(&self->entries[i])) continue;
        lmd_plan_entry entry = self->entries[i];
        for (int32_t j = i; j > n_decodes; j--) self->entries[j] = self->entries[j - 1];
        self->entries[n_decodes++] = entry;
    }
}

/* Lists the rows that need logits: prompt positions still to be reported (if all_logits), the
 * last known token, and each draft token. */
static void write_logits_rows(lmd_plan_builder *self, lmd_plan_entry *entry) {
    lmd_sequence *seq = entry->seq;
    const int32_t end = entry->history_len + entry->input_len;
    const int32_t known = end - entry->n_draft;
    const bool covers_all = known == seq->n_tokens + seq->n_pending;
    for (int32_t p = entry->history_len; p < end; p++) {
        bool scored = seq->all_logits && p < seq->n_prompt && p >= seq->n_logits_done;
        bool gives_token = covers_all && p >= known - 1;
        if (!scored && !gives_token) continue;
        if (gives_token && p == known - 1) entry->logits_row_idx = self->n_logits_rows;
        self->logits_rows[self->n_logits_rows++] = self->n_tokens + p - entry->history_len;
    }
    if (seq->all_logits && end > seq->n_logits_done)
        seq->n_logits_done = end < seq->n_prompt ? end : seq->n_prompt;
}

static void write_entry(lmd_plan_builder *self, int32_t i, int32_t block_len) {
    lmd_plan_entry *entry = &self->entries[i];
    lmd_sequence *seq = entry->seq;
    const int32_t end = entry->history_len + entry->input_len;
    self->owners[i] = seq->owner;
    self->seq_ids[i] = seq->seq_id;
    self->slots[i] = seq->slot;
    self->history_lens[i] = entry->history_len;
    self->input_lens[i] = entry->input_len;
    self->token_offsets[i] = self->n_tokens;
    self->block_offsets[i] = self->n_block_ids;
    write_logits_rows(self, entry);
    for (int32_t p = entry->history_len; p < end; p++, self->n_tokens++) {
        const bool has_id = p < seq->n_tokens + entry->n_draft;
        self->token_ids[self->n_tokens] = has_id ? seq->tokens[p] : PLACEHOLDER;
        self->positions[self->n_tokens] = p;
    }
    for (int32_t b = 0; (int64_t)b * block_len < end; b++)
        self->block_ids[self->n_block_ids++] = seq->blocks[b].block_id;
    seq->history_len = end;
    seq->n_in_flight++;
    if (entry->logits_row_idx >= 0 && seq->n_tokens + seq->n_pending < seq->max_len)
        seq->n_pending += 1 + entry->n_draft;
    else if (entry->logits_row_idx >= 0)
        entry->logits_row_idx = -1; /* at max_len: the row may be scored, but gives no token */
}

void lmd_plan_builder_finish(lmd_plan_builder *self, int64_t plan_id, int32_t block_len,
                             lmd_plan *plan) {
    self->plan_id = plan_id;
    self->n_tokens = self->n_logits_rows = self->n_block_ids = 0;
    put_decodes_first(self);
    for (int32_t i = 0; i < self->n_entries; i++) write_entry(self, i, block_len);
    self->token_offsets[self->n_entries] = self->n_tokens;
    self->block_offsets[self->n_entries] = self->n_block_ids;
    *plan = (lmd_plan){
        .plan_id = plan_id,
        .n_seqs = self->n_entries,
        .n_tokens = self->n_tokens,
        .n_logits_rows = self->n_logits_rows,
        .n_copies = self->n_copies,
        .copies = self->copies,
        .seq_ids = self->seq_ids,
        .slots = self->slots,
        .history_lens = self->history_lens,
        .input_lens = self->input_lens,
        .token_offsets = self->token_offsets,
        .token_ids = self->token_ids,
        .positions = self->positions,
        .block_offsets = self->block_offsets,
        .block_ids = self->block_ids,
        .logits_rows = self->logits_rows,
    };
}
