/* The plan builder: see plan_builder.h. */
#include "engine/plan_builder.h"

#include "base/memory.h"

enum { PLACEHOLDER = -1 };

lmd_status lmd_plan_builder_init(lmd_plan_builder *self, int32_t max_seqs, int32_t max_tokens,
                                 int32_t seq_blocks, lmd_err *err) {
    size_t n_seqs = (size_t)max_seqs, n_tokens = (size_t)max_tokens;
    *self = (lmd_plan_builder){
        .entries = lmd_calloc(n_seqs, sizeof *self->entries),
        .copies = lmd_calloc(n_seqs, sizeof *self->copies),
        .seq_ids = lmd_calloc(n_seqs, sizeof *self->seq_ids),
        .slots = lmd_calloc(n_seqs, sizeof *self->slots),
        .history_lens = lmd_calloc(n_seqs, sizeof *self->history_lens),
        .input_lens = lmd_calloc(n_seqs, sizeof *self->input_lens),
        .token_offsets = lmd_calloc(n_seqs + 1, sizeof *self->token_offsets),
        .token_ids = lmd_calloc(n_tokens, sizeof *self->token_ids),
        .positions = lmd_calloc(n_tokens, sizeof *self->positions),
        .block_offsets = lmd_calloc(n_seqs + 1, sizeof *self->block_offsets),
        .block_ids = lmd_calloc(n_seqs * (size_t)seq_blocks, sizeof *self->block_ids),
        .logits_rows = lmd_calloc(n_tokens, sizeof *self->logits_rows),
    };
    if (self->entries && self->copies && self->seq_ids && self->slots && self->history_lens &&
        self->input_lens && self->token_offsets && self->token_ids && self->positions &&
        self->block_offsets && self->block_ids && self->logits_rows)
        return LMD_OK;
    lmd_plan_builder_clear(self);
    return lmd_no_memory(err, "plans of %d sequences, %d tokens", max_seqs, max_tokens);
}

void lmd_plan_builder_clear(lmd_plan_builder *self) {
    void *const arrays[] = {self->entries,      self->seq_ids,     self->slots,
                            self->history_lens, self->input_lens,  self->token_offsets,
                            self->token_ids,    self->positions,   self->block_offsets,
                            self->block_ids,    self->logits_rows, self->copies};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) lmd_free(arrays[i]);
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

/* The rows of an entry whose logits are wanted: those of prompt positions not yet given, when
 * the sequence asks for them, and the row behind which the next token stands, with those of the
 * guesses. */
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
        entry->logits_row_idx = -1; /* scored only: nothing may follow */
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
