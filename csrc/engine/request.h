/* A request as its client sees it: what comes out, and how to wait for it.
 * Owns: the output (tokens, logprobs, logits, the end), reserved at submit, and the ways to
 * wait. Counted references: the client has one, the engine another while the request is live.
 * Must not know: how tokens are made, Python. Any thread, but for the functions of the engine's
 * thread. */
#ifndef LMD_ENGINE_REQUEST_H
#define LMD_ENGINE_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/poller.h"
#include "engine/snapshot.h"

typedef struct lmd_request lmd_request;

typedef enum lmd_finish_reason {
    LMD_FINISH_NONE = 0, /* it goes on */
    LMD_FINISH_STOP,
    LMD_FINISH_LENGTH,
    LMD_FINISH_ERROR,
    LMD_FINISH_ABORT
} lmd_finish_reason;

typedef struct lmd_logprob {
    int32_t token_id; /* -1: this entry is empty */
    float logprob;    /* natural log */
} lmd_logprob;

/* Rows of logits of one step. The reader gets and frees them. */
typedef struct lmd_logits_chunk {
    struct lmd_logits_chunk *next;
    int32_t n_rows;
    int32_t n_tokens; /* visible to the reader once this many tokens of the answer are */
    float data[];     /* [n_rows, vocab_size] */
} lmd_logits_chunk;

/* What one read gives. Pointers into the request live as long as the caller's reference. */
typedef struct lmd_output {
    int32_t n_tokens, n_logprobs; /* n_logprobs: entries for each token; 0: not asked for */
    const int32_t *token_ids;     /* [n_tokens] */
    const lmd_logprob *logprobs;  /* [n_tokens, n_logprobs] the token itself first */
    int32_t n_scores;          /* prompt tokens scored: in the output with the first token, or
                                  with the end */
    const lmd_logprob *scores; /* [n_scores, n_logprobs] of the prompt's second token on */
    int32_t n_logits_rows;     /* of all chunks */
    lmd_logits_chunk *logits;  /* the reader's own: lmd_logits_free */
    lmd_finish_reason finish_reason;
    int32_t cached_len; /* prompt tokens that were found in KV */
    const lmd_err *why; /* NULL unless finish_reason is LMD_FINISH_ERROR */
    bool has_ppl;
    double ppl; /* mean cross-entropy of the prompt; in the last output */
} lmd_output;

typedef struct lmd_request_info {
    int64_t request_id;
    uint64_t seed;
    int32_t n_prompt;       /* tokens */
    int32_t max_new_tokens; /* room to reserve */
    int32_t n_logprobs;     /* entries for each token */
    int32_t n_scores;       /* prompt tokens that are scored */
} lmd_request_info;

lmd_status lmd_request_new(const lmd_request_info *info, lmd_request **out, lmd_err *err);
void lmd_request_ref(lmd_request *self);
void lmd_request_unref(lmd_request *self);
void lmd_logits_free(lmd_logits_chunk *chunks);

const lmd_request_info *lmd_request_get_info(const lmd_request *self);

/* Asks the engine to end it within one step. */
void lmd_request_cancel(lmd_request *self);
bool lmd_request_cancelled(const lmd_request *self);

/* Waits until there is output to read, for at most timeout_ms (0: does not wait); false when
 * there is none. */
bool lmd_request_wait(lmd_request *self, int64_t timeout_ms);
/* Reads the output since the last read; false: there is none, or the end was read before. */
bool lmd_request_read(lmd_request *self, lmd_output *out);
/* Undoes the last read, whose output could not be used: the next one gives it again, and takes
 * its logits back. By the same reader. */
void lmd_request_unread(lmd_request *self, const lmd_output *output);
/* True once the output that ends the request was read. */
bool lmd_request_done(lmd_request *self);
/* The snapshot that an ended request left, as a new reference; NULL: it left none. */
lmd_snapshot *lmd_request_snapshot(lmd_request *self);
/* Adds it to a poller, which gives `key` once there is output. A request is in one poller at a
 * time; LMD_INVALID where it has one. */
lmd_status lmd_request_poll(lmd_request *self, lmd_poller *poller, int64_t key, lmd_err *err);
/* Takes it out of that poller, if it is in there. */
void lmd_request_unpoll(lmd_request *self, const lmd_poller *poller);
/* A descriptor that is readable while output waits, for a request that is in no poller; made at
 * the first call, closed with the request. LMD_INVALID, LMD_IO. */
lmd_status lmd_request_fileno(lmd_request *self, int *out, lmd_err *err);

/* The engine's thread (or, before the request is known to another, its maker). */

/* Notes how many prompt tokens were found in KV; before the first token is published. */
void lmd_request_set_cached_len(lmd_request *self, int32_t cached_len);
/* Sets the snapshot that the request leaves, before its end; takes the reference over. NULL:
 * none. */
void lmd_request_set_snapshot(lmd_request *self, lmd_snapshot *snapshot);
/* Appends a token that the reader does not see yet; entries: [info.n_logprobs] or NULL. */
void lmd_request_append(lmd_request *self, int32_t token_id, const lmd_logprob *entries);
/* Appends a prompt token's entries: [info.n_logprobs]; before the first token is published. */
void lmd_request_append_score(lmd_request *self, const lmd_logprob *entries);
/* Makes the first n_tokens visible to the reader, and adds a chunk (NULL: none), visible once
 * its n_tokens are. */
void lmd_request_publish(lmd_request *self, int32_t n_tokens, lmd_logits_chunk *chunk);
/* Ends the request, with *why where reason is LMD_FINISH_ERROR. Later calls are ignored, and
 * tokens that were not published are dropped. */
void lmd_request_finish(lmd_request *self, lmd_finish_reason reason, const lmd_err *why,
                        const double *ppl);

#endif
