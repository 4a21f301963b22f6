/* The sequences of a scheduler in order: those that wait for a slot, those that run, and the
 * slots (places in the batch). Both orders are by rank.
 * Owns: the two orders and which slots are used; not the sequences. Makes no malloc but init.
 * Must not know: plans, blocks. The engine's thread alone. */
#ifndef LMD_ENGINE_SEQ_QUEUE_H
#define LMD_ENGINE_SEQ_QUEUE_H

#include "engine/sequence.h"

typedef struct lmd_seq_queue {
    lmd_sequence *head, *tail; /* waiting, linked by `next` */
    int32_t n_waiting;
    lmd_sequence **running; /* [n_slots] */
    int32_t n_running;
    bool *slot_taken; /* [n_slots] a sequence that has ended may keep its slot for a while */
    int32_t n_slots;
} lmd_seq_queue;

lmd_status lmd_seq_queue_init(lmd_seq_queue *self, int32_t n_slots, lmd_err *err);
void lmd_seq_queue_clear(lmd_seq_queue *self);
/* The bytes that init allocates. */
size_t lmd_seq_queue_bytes(int32_t n_slots);

/* Adds a sequence to those that wait. */
void lmd_seq_queue_wait(lmd_seq_queue *self, lmd_sequence *seq);
/* Removes one that waits. */
void lmd_seq_queue_unwait(lmd_seq_queue *self, lmd_sequence *seq);

/* A sequence ends before its prompt is in KV: of those that wait for that, the first leads the
 * others. */
void lmd_seq_queue_pass_on_lead(lmd_seq_queue *self, int64_t leader);

bool lmd_seq_queue_has_slot(const lmd_seq_queue *self);
/* Waiting -> running: gives the sequence a slot, of which there must be one. */
void lmd_seq_queue_seat(lmd_seq_queue *self, lmd_sequence *seq);
/* Removes a sequence from those that run; it keeps its slot. */
void lmd_seq_queue_stop(lmd_seq_queue *self, lmd_sequence *seq);
/* Gives a sequence's slot back, if it has one. */
void lmd_seq_queue_leave_slot(lmd_seq_queue *self, lmd_sequence *seq);

/* Checks orders, states and counts; LMD_INTERNAL names what is wrong. */
lmd_status lmd_seq_queue_check(const lmd_seq_queue *self, lmd_err *err);

#endif
