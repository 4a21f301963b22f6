/* A poller: see poller.h. */
#define _GNU_SOURCE
#include "engine/poller.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"

struct lmd_poller {
    atomic_int refs;

    pthread_mutex_t lock; /* what follows */
    pthread_cond_t changed;
    lmd_poller_entry *first, *last; /* the list of those with output */
    int event_fd;                   /* -1: not asked for yet */
};

lmd_status lmd_poller_new(lmd_poller **out, lmd_err *err) {
    lmd_poller *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a poller");
    atomic_init(&self->refs, 1);
    pthread_mutex_init(&self->lock, NULL);
    lmd_cond_init(&self->changed);
    self->event_fd = -1;
    *out = self;
    return LMD_OK;
}

void lmd_poller_unref(lmd_poller *self) {
    if (!self || atomic_fetch_sub_explicit(&self->refs, 1, memory_order_acq_rel) != 1) return;
    if (self->event_fd >= 0) close(self->event_fd);
    pthread_mutex_destroy(&self->lock);
    pthread_cond_destroy(&self->changed);
    lmd_free(self);
}

/* ---- the list; the lock is held ---- */

/* Makes the descriptor readable, or unreadable. */
static void set_readable(lmd_poller *self, bool readable) {
    uint64_t count = 1;
    if (self->event_fd < 0) return;
    ssize_t n = readable ? write(self->event_fd, &count, sizeof count)
                         : read(self->event_fd, &count, sizeof count);
    (void)n; /* non-blocking: a full or an empty counter is what is wanted */
}

static void append(lmd_poller *self, lmd_poller_entry *entry) {
    entry->listed = true;
    entry->next = NULL;
    entry->prev = self->last;
    *(self->last ? &self->last->next : &self->first) = entry;
    self->last = entry;
    if (self->first == entry) set_readable(self, true);
    pthread_cond_signal(&self->changed);
}

static void unlist(lmd_poller *self, lmd_poller_entry *entry) {
    if (!entry->listed) return;
    *(entry->prev ? &entry->prev->next : &self->first) = entry->next;
    *(entry->next ? &entry->next->prev : &self->last) = entry->prev;
    entry->listed = false;
    if (!self->first) set_readable(self, false);
}

/* ---- the reader ---- */

bool lmd_poller_wait(lmd_poller *self, int64_t timeout_ms) {
    const struct timespec deadline = lmd_deadline_after(timeout_ms);
    pthread_mutex_lock(&self->lock);
    while (!self->first && timeout_ms > 0)
        if (pthread_cond_timedwait(&self->changed, &self->lock, &deadline) == ETIMEDOUT) break;
    const bool ready = self->first;
    pthread_mutex_unlock(&self->lock);
    return ready;
}

int32_t lmd_poller_look(lmd_poller *self, int64_t *keys, int32_t capacity) {
    int32_t n = 0;
    pthread_mutex_lock(&self->lock);
    for (lmd_poller_entry *entry = self->first; entry && n < capacity; entry = entry->next)
        keys[n++] = entry->key;
    pthread_mutex_unlock(&self->lock);
    return n;
}

void lmd_poller_take(lmd_poller *self, int32_t n) {
    pthread_mutex_lock(&self->lock);
    for (; self->first && n > 0; n--) {
        self->first->taken = true;
        unlist(self, self->first);
    }
    pthread_mutex_unlock(&self->lock);
}

lmd_status lmd_poller_fileno(lmd_poller *self, int *out, lmd_err *err) {
    lmd_status status = LMD_OK;
    pthread_mutex_lock(&self->lock);
    if (self->event_fd < 0) {
        self->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (self->event_fd < 0)
            status = lmd_fail(err, LMD_IO, "no descriptor to wait with: %s", strerror(errno));
        else if (self->first)
            set_readable(self, true);
    }
    if (status == LMD_OK) *out = self->event_fd;
    pthread_mutex_unlock(&self->lock);
    return status;
}

/* ---- requests ---- */

void lmd_poller_add(lmd_poller *self, lmd_poller_entry *entry, int64_t key) {
    atomic_fetch_add_explicit(&self->refs, 1, memory_order_relaxed);
    *entry = (lmd_poller_entry){.poller = self, .key = key};
}

void lmd_poller_entry_remove(lmd_poller_entry *entry) {
    lmd_poller *self = entry->poller;
    if (!self) return;
    pthread_mutex_lock(&self->lock);
    unlist(self, entry);
    pthread_mutex_unlock(&self->lock);
    entry->poller = NULL;
    lmd_poller_unref(self);
}

void lmd_poller_entry_ready(lmd_poller_entry *entry) {
    lmd_poller *self = entry->poller;
    if (!self) return;
    pthread_mutex_lock(&self->lock);
    if (!entry->listed && !entry->taken) append(self, entry);
    pthread_mutex_unlock(&self->lock);
}

void lmd_poller_entry_read(lmd_poller_entry *entry) {
    lmd_poller *self = entry->poller;
    if (!self) return;
    pthread_mutex_lock(&self->lock);
    entry->taken = false;
    unlist(self, entry);
    pthread_mutex_unlock(&self->lock);
}
