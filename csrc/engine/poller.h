/* A poller: which of several requests have output, for one reader of them all.
 * Owns: the list of requests that have output, and one descriptor for an event loop, made when
 * it is asked for. A request that waits costs a list entry and no descriptor. Counted
 * references: the client has one, each request that was added another. Must not know: requests;
 * they bring their entries, and take a lock of their own before the poller's. Any thread. */
#ifndef LMD_ENGINE_POLLER_H
#define LMD_ENGINE_POLLER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct lmd_poller lmd_poller;

lmd_status lmd_poller_new(lmd_poller **out, lmd_err *err);
void lmd_poller_unref(lmd_poller *self);

/* Waits until a request has output, for at most timeout_ms; false: none has. */
bool lmd_poller_wait(lmd_poller *self, int64_t timeout_ms);
/* Writes the keys of at most `capacity` requests that have output, those that had it first
 * before others; returns how many. */
int32_t lmd_poller_look(lmd_poller *self, int64_t *keys, int32_t capacity);
/* Takes the first n of them: a key does not come again until its request is read. */
void lmd_poller_take(lmd_poller *self, int32_t n);
/* A descriptor that is readable while there are keys to take; closed with the poller. */
lmd_status lmd_poller_fileno(lmd_poller *self, int *out, lmd_err *err);

/* What a request has in a poller; all zero while it is in none. */
typedef struct lmd_poller_entry {
    lmd_poller *poller;
    int64_t key;
    struct lmd_poller_entry *next, *prev; /* in the list */
    bool listed;
    bool taken; /* the key was taken, and the request not read since */
} lmd_poller_entry;

/* Adds an entry that is in no poller. */
void lmd_poller_add(lmd_poller *self, lmd_poller_entry *entry, int64_t key);
/* Takes an entry out, if it is in a poller. */
void lmd_poller_entry_remove(lmd_poller_entry *entry);
/* The request has output. */
void lmd_poller_entry_ready(lmd_poller_entry *entry);
/* The request was read: it has no output any more. */
void lmd_poller_entry_read(lmd_poller_entry *entry);

#endif
