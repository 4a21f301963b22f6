/* A request as its client sees it: see request.h. */
#include "engine/request.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

struct lmd_request {
    atomic_int refs;
    atomic_bool cancelled;
    lmd_request_info info;
    int32_t *token_ids;           /* [max_new_tokens] */
    lmd_logprob *logprobs;        /* [max_new_tokens, n_logprobs] or NULL */
    lmd_logprob *scores;          /* [n_scores, n_logprobs] or NULL */
    int32_t n_appended, n_scored; /* the engine's thread alone */

    pthread_mutex_t lock; /* what follows */
    pthread_cond_t changed;
    int32_t n_published, n_read, cached_len;
    lmd_snapshot *snapshot;
    lmd_logits_chunk *chunks, **chunks_end; /* not read yet; n_tokens ascends */
    lmd_finish_reason finish_reason;
    bool has_ppl, done; /* done: the end was read */
    bool gave_scores;   /* they were read */
    double ppl;
    lmd_err why; /* of LMD_FINISH_ERROR */
    lmd_poller_entry entry;
    bool polls_alone; /* the poller was made for this request's descriptor */
};

lmd_status lmd_request_new(const lmd_request_info *info, lmd_request **out, lmd_err *err) {
    lmd_request *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a request");
    size_t n = (size_t)info->max_new_tokens;
    self->token_ids = lmd_calloc(n, sizeof *self->token_ids);
    if (info->n_logprobs)
        self->logprobs = lmd_calloc(n * (size_t)info->n_logprobs, sizeof *self->logprobs);
    const size_t n_scored = (size_t)info->n_scores * (size_t)info->n_logprobs;
    if (n_scored) self->scores = lmd_calloc(n_scored, sizeof *self->scores);
    if (!self->token_ids || (info->n_logprobs && !self->logprobs) ||
        (n_scored && !self->scores)) {
        lmd_free(self->token_ids);
        lmd_free(self->logprobs);
        lmd_free(self->scores);
        lmd_free(self);
        return lmd_no_memory(err, "%zu tokens of an answer", n);
    }
    atomic_init(&self->refs, 1);
    atomic_init(&self->cancelled, false);
    self->info = *info;
    self->chunks_end = &self->chunks;
    pthread_mutex_init(&self->lock, NULL);
    lmd_cond_init(&self->changed);
    *out = self;
    return LMD_OK;
}

void lmd_request_ref(lmd_request *self) {
    atomic_fetch_add_explicit(&self->refs, 1, memory_order_relaxed);
}

void lmd_request_unref(lmd_request *self) {
    if (!self || atomic_fetch_sub_explicit(&self->refs, 1, memory_order_acq_rel) != 1) return;
    lmd_logits_free(self->chunks);
    lmd_snapshot_unref(self->snapshot);
    lmd_poller_entry_remove(&self->entry);
    pthread_mutex_destroy(&self->lock);
    pthread_cond_destroy(&self->changed);
    lmd_free(self->token_ids);
    lmd_free(self->logprobs);
    lmd_free(self->scores);
    lmd_free(self);
}

void lmd_logits_free(lmd_logits_chunk *chunks) {
    while (chunks) {
        lmd_logits_chunk *next = chunks->next;
        lmd_free(chunks);
        chunks = next;
    }
}

const lmd_request_info *lmd_request_get_info(const lmd_request *self) { return &self->info; }

void lmd_request_cancel(lmd_request *self) { atomic_store(&self->cancelled, true); }

bool lmd_request_cancelled(const lmd_request *self) { return atomic_load(&self->cancelled); }

/* ---- the reader; the lock is held ---- */

static bool has_output(const lmd_request *self) {
    if (self->done) return false;
    return self->n_published > self->n_read || self->finish_reason != LMD_FINISH_NONE ||
           (self->chunks && self->chunks->n_tokens <= self->n_published);
}

/* Removes the visible chunks from the front of the list, and counts their rows. */
static lmd_logits_chunk *pop_chunks(lmd_request *self, int32_t *n_rows) {
    lmd_logits_chunk *first = self->chunks, **link = &self->chunks;
    for (; *link && (*link)->n_tokens <= self->n_published; link = &(*link)->next)
        *n_rows += (*link)->n_rows;
    if (link == &self->chunks) return NULL;
    self->chunks = *link;
    *link = NULL;
    if (!self->chunks) self->chunks_end = &self->chunks;
    return first;
}

bool lmd_request_wait(lmd_request *self, int64_t timeout_ms) {
    struct timespec deadline = lmd_deadline_after(timeout_ms);
    pthread_mutex_lock(&self->lock);
    while (!has_output(self) && !self->done && timeout_ms > 0)
        if (pthread_cond_timedwait(&self->changed, &self->lock, &deadline) == ETIMEDOUT) break;
    bool ready = has_output(self);
    pthread_mutex_unlock(&self->lock);
    return ready;
}

bool lmd_request_read(lmd_request *self, lmd_output *out) {
    pthread_mutex_lock(&self->lock);
    bool ready = has_output(self);
    if (ready) {
        int32_t n_logprobs = self->info.n_logprobs;
        *out = (lmd_output){
            .n_tokens = self->n_published - self->n_read,
            .n_logprobs = n_logprobs,
            .token_ids = self->token_ids + self->n_read,
            .logprobs =
                self->logprobs ? self->logprobs + (int64_t)self->n_read * n_logprobs : NULL,
            .finish_reason = self->finish_reason,
            .cached_len = self->cached_len,
            .why = self->finish_reason == LMD_FINISH_ERROR ? &self->why : NULL,
            .has_ppl = self->has_ppl,
            .ppl = self->ppl,
        };
        out->logits = pop_chunks(self, &out->n_logits_rows);
        const bool is_computed =
            self->n_published > 0 || self->finish_reason != LMD_FINISH_NONE;
        if (is_computed && !self->gave_scores) { /* nothing is appended any more */
            out->n_scores = self->n_scored;
            out->scores = self->scores;
            self->gave_scores = true;
        }
        self->n_read = self->n_published;
        self->done = self->finish_reason != LMD_FINISH_NONE;
        lmd_poller_entry_read(&self->entry);
    }
    pthread_mutex_unlock(&self->lock);
    return ready;
}

void lmd_request_unread(lmd_request *self, const lmd_output *output) {
    pthread_mutex_lock(&self->lock);
    lmd_logits_chunk *last = output->logits;
    while (last && last->next) last = last->next;
    if (last) { /* in front of what has come since */
        last->next = self->chunks;
        if (!self->chunks) self->chunks_end = &last->next;
        self->chunks = output->logits;
    }
    self->n_read -= output->n_tokens;
    if (output->scores) self->gave_scores = false;
    self->done = false;
    lmd_poller_entry_ready(&self->entry);
    pthread_mutex_unlock(&self->lock);
}

bool lmd_request_done(lmd_request *self) {
    pthread_mutex_lock(&self->lock);
    bool done = self->done;
    pthread_mutex_unlock(&self->lock);
    return done;
}

lmd_snapshot *lmd_request_snapshot(lmd_request *self) {
    pthread_mutex_lock(&self->lock);
    lmd_snapshot *snapshot = self->snapshot;
    lmd_snapshot_ref(snapshot);
    pthread_mutex_unlock(&self->lock);
    return snapshot;
}

/* Adds it to a poller; the lock is held. */
static void join(lmd_request *self, lmd_poller *poller, int64_t key) {
    lmd_poller_add(poller, &self->entry, key);
    if (has_output(self)) lmd_poller_entry_ready(&self->entry);
}

lmd_status lmd_request_poll(lmd_request *self, lmd_poller *poller, int64_t key, lmd_err *err) {
    lmd_status status = LMD_OK;
    pthread_mutex_lock(&self->lock);
    if (self->entry.poller)
        status = lmd_fail(err, LMD_INVALID,
                          "the request is in a poller already, or has a "
                          "descriptor of its own: wait there");
    else
        join(self, poller, key);
    pthread_mutex_unlock(&self->lock);
    return status;
}

void lmd_request_unpoll(lmd_request *self, const lmd_poller *poller) {
    pthread_mutex_lock(&self->lock);
    if (self->entry.poller == poller) lmd_poller_entry_remove(&self->entry);
    pthread_mutex_unlock(&self->lock);
}

/* Gives it a poller of its own, unless it has one; the lock is held. */
static lmd_status poll_alone(lmd_request *self, lmd_err *err) {
    if (self->polls_alone) return LMD_OK;
    if (self->entry.poller)
        return lmd_fail(err, LMD_INVALID,
                        "the request is in a poller: wait with its descriptor");
    lmd_poller *poller;
    LMD_TRY(lmd_poller_new(&poller, err));
    join(self, poller, 0);
    lmd_poller_unref(poller); /* the entry has a reference */
    self->polls_alone = true;
    return LMD_OK;
}

lmd_status lmd_request_fileno(lmd_request *self, int *out, lmd_err *err) {
    pthread_mutex_lock(&self->lock);
    lmd_status status = poll_alone(self, err);
    if (status == LMD_OK) status = lmd_poller_fileno(self->entry.poller, out, err);
    pthread_mutex_unlock(&self->lock);
    return status;
}

/* ---- the engine's thread ---- */

void lmd_request_set_cached_len(lmd_request *self, int32_t cached_len) {
    pthread_mutex_lock(&self->lock);
    self->cached_len = cached_len;
    pthread_mutex_unlock(&self->lock);
}

void lmd_request_set_snapshot(lmd_request *self, lmd_snapshot *snapshot) {
    pthread_mutex_lock(&self->lock);
    lmd_snapshot_unref(self->snapshot);
    self->snapshot = snapshot;
    pthread_mutex_unlock(&self->lock);
}

void lmd_request_append(lmd_request *self, int32_t token_id, const lmd_logprob *entries) {
    int32_t n_logprobs = self->info.n_logprobs;
    if (self->n_appended >= self->info.max_new_tokens) return;
    self->token_ids[self->n_appended] = token_id;
    if (entries && self->logprobs)
        memcpy(self->logprobs + (int64_t)self->n_appended * n_logprobs, entries,
               (size_t)n_logprobs * sizeof *entries);
    self->n_appended++;
}

void lmd_request_append_score(lmd_request *self, const lmd_logprob *entries) {
    const size_t n = (size_t)self->info.n_logprobs;
    if (self->n_scored >= self->info.n_scores) return;
    memcpy(self->scores + (size_t)self->n_scored * n, entries, n * sizeof *entries);
    self->n_scored++;
}

void lmd_request_publish(lmd_request *self, int32_t n_tokens, lmd_logits_chunk *chunk) {
    pthread_mutex_lock(&self->lock);
    self->n_published = n_tokens < self->n_appended ? n_tokens : self->n_appended;
    if (chunk) {
        *self->chunks_end = chunk;
        self->chunks_end = &chunk->next;
    }
    if (has_output(self)) {
        lmd_poller_entry_ready(&self->entry);
        pthread_cond_broadcast(&self->changed);
    }
    pthread_mutex_unlock(&self->lock);
}

void lmd_request_finish(lmd_request *self, lmd_finish_reason reason, const lmd_err *why,
                        const double *ppl) {
    pthread_mutex_lock(&self->lock);
    if (self->finish_reason == LMD_FINISH_NONE) {
        self->finish_reason = reason;
        if (reason == LMD_FINISH_ERROR) self->why = *why;
        if (ppl) {
            self->has_ppl = true;
            self->ppl = *ppl;
        }
        lmd_poller_entry_ready(&self->entry);
        pthread_cond_broadcast(&self->changed);
    }
    pthread_mutex_unlock(&self->lock);
}
