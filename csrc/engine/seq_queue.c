/* Waiting and running sequences: see seq_queue.h. */
#include "engine/seq_queue.h"

#include "base/memory.h"

lmd_status lmd_seq_queue_init(lmd_seq_queue *self, int32_t n_slots, lmd_err *err) {
    *self = (lmd_seq_queue){
        .running = lmd_calloc((size_t)n_slots, sizeof(lmd_sequence *)),
        .slot_taken = lmd_calloc((size_t)n_slots, sizeof *self->slot_taken),
        .n_slots = n_slots,
    };
    if (self->running && self->slot_taken) return LMD_OK;
    lmd_seq_queue_clear(self);
    return lmd_no_memory(err, "%d slots", n_slots);
}

void lmd_seq_queue_clear(lmd_seq_queue *self) {
    lmd_free(self->running);
    lmd_free(self->slot_taken);
    *self = (lmd_seq_queue){0};
}

size_t lmd_seq_queue_bytes(int32_t n_slots) {
    return (size_t)n_slots * (sizeof(lmd_sequence *) + sizeof(bool));
}

/* ---- waiting ---- */

/* New sequences mostly go last; preempted ones go before the younger. */
void lmd_seq_queue_wait(lmd_seq_queue *self, lmd_sequence *seq) {
    seq->state = LMD_SEQ_WAITING;
    self->n_waiting++;
    if (self->tail && lmd_sequence_is_before(self->tail, seq)) {
        self->tail = self->tail->next = seq;
        seq->next = NULL;
        return;
    }
    lmd_sequence **link = &self->head;
    while (*link && lmd_sequence_is_before(*link, seq)) link = &(*link)->next;
    seq->next = *link;
    *link = seq;
    if (!seq->next) self->tail = seq;
}

void lmd_seq_queue_unwait(lmd_seq_queue *self, lmd_sequence *seq) {
    lmd_sequence *before = NULL, **link = &self->head;
    while (*link != seq) {
        before = *link;
        link = &before->next;
    }
    *link = seq->next;
    if (self->tail == seq) self->tail = before;
    self->n_waiting--;
}

/* ---- running ---- */

static int32_t find_slot(const lmd_seq_queue *self) {
    int32_t slot = 0;
    while (slot < self->n_slots && self->slot_taken[slot]) slot++;
    return slot;
}

void lmd_seq_queue_pass_on_lead(lmd_seq_queue *self, int64_t leader) {
    lmd_sequence *first = NULL;
    for (lmd_sequence *seq = self->head; seq; seq = seq->next) {
        if (seq->leader != leader) continue;
        seq->leader = first ? first->seq_id : 0;
        if (first)
            first->has_followers = true;
        else
            first = seq;
    }
}

bool lmd_seq_queue_has_slot(const lmd_seq_queue *self) {
    return self->n_running < self->n_slots && find_slot(self) < self->n_slots;
}

void lmd_seq_queue_seat(lmd_seq_queue *self, lmd_sequence *seq) {
    lmd_seq_queue_unwait(self, seq);
    seq->slot = find_slot(self);
    self->slot_taken[seq->slot] = true;
    /* A preempted old sequence may come back late: it goes before the younger. */
    int32_t at = self->n_running++;
    for (; at > 0 && lmd_sequence_is_before(seq, self->running[at - 1]); at--)
        self->running[at] = self->running[at - 1];
    self->running[at] = seq;
    seq->state = LMD_SEQ_RUNNING; /* waiting -> running */
}

void lmd_seq_queue_stop(lmd_seq_queue *self, lmd_sequence *seq) {
    int32_t kept = 0;
    for (int32_t i = 0; i < self->n_running; i++)
        if (self->running[i] != seq) self->running[kept++] = self->running[i];
    self->n_running = kept;
}

void lmd_seq_queue_leave_slot(lmd_seq_queue *self, lmd_sequence *seq) {
    if (seq->slot >= 0) self->slot_taken[seq->slot] = false;
    seq->slot = -1;
}

/* ---- checks ---- */

static lmd_status check_waiting(const lmd_seq_queue *self, lmd_err *err) {
    int32_t n = 0;
    for (const lmd_sequence *seq = self->head; seq; seq = seq->next, n++)
        if (seq->state != LMD_SEQ_WAITING || seq->slot != -1 || seq->n_in_flight != 0 ||
            (seq->next && !lmd_sequence_is_before(seq, seq->next)))
            return lmd_fail(err, LMD_INTERNAL, "sequence %lld is wrong among the waiting",
                            (long long)seq->seq_id);
    if (n == self->n_waiting) return LMD_OK;
    return lmd_fail(err, LMD_INTERNAL, "%d sequences wait, %d are counted", n, self->n_waiting);
}

lmd_status lmd_seq_queue_check(const lmd_seq_queue *self, lmd_err *err) {
    LMD_TRY(check_waiting(self, err));
    int32_t n_taken = 0;
    for (int32_t i = 0; i < self->n_slots; i++) n_taken += self->slot_taken[i];
    if (n_taken < self->n_running)
        return lmd_fail(err, LMD_INTERNAL, "%d sequences run in %d slots", self->n_running,
                        n_taken);
    for (int32_t i = 0; i < self->n_running; i++) {
        const lmd_sequence *seq = self->running[i];
        if (seq->state != LMD_SEQ_RUNNING || seq->slot < 0 || !self->slot_taken[seq->slot] ||
            (i > 0 && !lmd_sequence_is_before(self->running[i - 1], seq)))
            return lmd_fail(err, LMD_INTERNAL, "sequence %lld is wrong among the running",
                            (long long)seq->seq_id);
    }
    return LMD_OK;
}
