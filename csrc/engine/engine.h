/* The engine: continuous batching over one executor, in a thread of its own.
 * Owns: the executor, the scheduler, the thread, the inbox of new requests, and every request's
 * running state. Clients submit from any thread and read from the request. A wrong request ends
 * as an error output and disturbs no other; a broken executor ends the engine. Must not know:
 * models, devices, Python. */
#ifndef LMD_ENGINE_ENGINE_H
#define LMD_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/executor.h"
#include "base/status.h"
#include "engine/metrics.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/trace.h"

typedef struct lmd_engine lmd_engine;

typedef struct lmd_engine_config {
    int32_t session_len;           /* most tokens of one sequence */
    int32_t max_batch_size;        /* slots */
    int32_t max_prefill_token_num; /* the token budget of a step */
    int32_t n_blocks, block_len;
    int32_t vocab_size;
    bool prefix_caching; /* sequences whose texts begin alike share full KV blocks */
    bool metrics_off;    /* no histograms */
    double step_seconds; /* time to aim at for a step in which sequences decode; 0: no bound */
    int32_t max_waiting; /* requests that may wait for a slot; 0: no bound */
    int32_t num_speculative_tokens; /* most tokens drafted for a sequence in a step; 0: none */
    bool adaptive_speculation;      /* fewer drafts where they are not worth their rows */
} lmd_engine_config;

typedef enum lmd_output_logits {
    LMD_LOGITS_NONE,
    LMD_LOGITS_ALL, /* rows of the prompt, then the rows that gave the tokens after the first */
    LMD_LOGITS_GENERATION /* the rows that gave the tokens */
} lmd_output_logits;

/* What a client asks for. Submit copies everything. */
typedef struct lmd_request_params {
    const int32_t *token_ids; /* [n_tokens] the prompt */
    int64_t n_tokens;
    int64_t max_new_tokens; /* session_len caps it; 0: only with what is said of the prompt:
                               output_logits, return_ppl or prompt_logprobs */
    int64_t min_new_tokens;
    lmd_token_words stop_words; /* a stop token is a word of one token */
    lmd_sampler_params sampler;
    lmd_output_logits output_logits;
    bool return_ppl;
    bool prompt_logprobs; /* of the prompt's tokens too, in the form of the answer's */
    int32_t priority;     /* see lmd_sequence_params */
    double timeout;       /* seconds after submit at which the request is aborted; 0: none */
    lmd_snapshot
        *snapshot; /* of this engine, or NULL: its KV serves as far as the two texts agree */
    bool keep_snapshot;  /* the request leaves a snapshot: lmd_request_snapshot */
    lmd_request *leader; /* an earlier request of this engine: see lmd_sequence_params; where it
                            has ended, what snapshot it left serves. NULL: none */
} lmd_request_params;

typedef struct lmd_engine_stats {
    lmd_scheduler_stats scheduler; /* after the last step; n_waiting: every request that was
                                      submitted, has not ended and does not run */
    int64_t n_steps, n_tokens_prefilled, n_tokens_generated;
    int64_t n_draft_tokens, n_accepted_tokens; /* computed as drafts; of these, accepted */
} lmd_engine_stats;

/* Everything that is counted, at one moment between two steps. */
typedef struct lmd_engine_metrics {
    lmd_engine_stats stats;
    lmd_metrics metrics; /* n_ended counts rejected requests too, as errors */
    int64_t n_submitted; /* n_ended of every reason, n_running and n_waiting together */
} lmd_engine_metrics;

/* Checks a config before anything is made from it: LMD_INVALID names the field. */
lmd_status lmd_engine_config_check(const lmd_engine_config *config, lmd_err *err);

/* Takes ownership of the executor, also on failure. Free with lmd_engine_free. */
lmd_status lmd_engine_new(const lmd_engine_config *config, lmd_executor *executor,
                          lmd_engine **out, lmd_err *err);

/* The bytes that an engine allocates besides its executor and its requests. */
size_t lmd_engine_bytes(const lmd_engine_config *config, bool runs_ahead);

/* Queues a request; *out is the client's reference. A request with a wrong parameter is a
 * success here, and has its error output at once. LMD_CLOSED after close or a broken executor;
 * LMD_NO_MEMORY. */
lmd_status lmd_engine_submit(lmd_engine *self, const lmd_request_params *params,
                             lmd_request **out, lmd_err *err);

/* Gives a request that failed before it could be submitted: `why` is its error. */
lmd_status lmd_engine_reject(lmd_engine *self, const lmd_err *why, lmd_request **out,
                             lmd_err *err);

void lmd_engine_get_stats(lmd_engine *self, lmd_engine_stats *out);
void lmd_engine_get_metrics(lmd_engine *self, lmd_engine_metrics *out);
/* The engine's trace, for clients to start and to stop. */
lmd_trace *lmd_engine_trace(lmd_engine *self);

/* Has the engine's thread call fn between two steps, and waits for that. LMD_CLOSED. */
typedef void (*lmd_between_steps_fn)(lmd_scheduler *scheduler, lmd_executor *executor,
                                     void *arg);
lmd_status lmd_engine_run_between_steps(lmd_engine *self, lmd_between_steps_fn fn, void *arg,
                                        lmd_err *err);

/* Aborts every request, joins the thread, frees executor and scheduler. Idempotent; any thread.
 * In a forked child it does nothing. */
void lmd_engine_close(lmd_engine *self);
/* Closes and frees; no other call may be running. In a forked child it frees nothing. */
void lmd_engine_free(lmd_engine *self);

#endif
