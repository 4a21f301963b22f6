/* The engine's state, for the files that are the engine: engine.c has the thread, its lifetime
 * and the clients' side; engine_step.c has the requests that live, and the step they share.
 * Who may touch what stands beside the fields. */
#ifndef LMD_ENGINE_ENGINE_STATE_H
#define LMD_ENGINE_ENGINE_STATE_H

#include <pthread.h>
#include <sys/types.h>

#include "engine/live_request.h"
#include "engine/pace.h"

enum { LMD_ENGINE_BUCKETS = 1024 };

/* What a client has the thread do between two steps, and waits for. */
typedef struct lmd_engine_job {
    lmd_between_steps_fn fn;
    void *arg;
    struct lmd_engine_job *next;
    bool ended, ran; /* ended without having run: the engine closed first */
} lmd_engine_job;

struct lmd_engine {
    lmd_engine_config config;
    pid_t pid; /* the process that has the thread */
    pthread_t thread;

    pthread_mutex_t lock; /* clients and the thread: what follows */
    pthread_cond_t wake, job_ended;
    lmd_engine_job *jobs;
    lmd_live_request *inbox, **inbox_end;
    int32_t n_inbox;
    int32_t n_open; /* requests that were submitted and have not ended */
    int64_t next_request_id;
    bool closing, joined;
    bool broken; /* the executor failed: why stands in broken_err */
    lmd_err broken_err;
    lmd_engine_stats stats;
    lmd_metrics shown; /* the thread's metrics, as they were when they were last copied */
    int64_t n_submitted, n_rejected;

    lmd_trace trace; /* has its own lock */

    /* The thread's own. */
    lmd_metrics metrics;
    int64_t step_start, tokens_at; /* of this step: its start, when its tokens came; ns */
    lmd_executor *executor;
    lmd_scheduler *scheduler;
    lmd_live_request *living; /* list */
    lmd_live_request *buckets[LMD_ENGINE_BUCKETS];
    lmd_sample_params *samples;   /* [max_prefill_token_num] of the plan's logits rows */
    lmd_live_request **row_lives; /* [max_prefill_token_num]; NULL once it has ended */
    int32_t *row_tokens;          /* [max_prefill_token_num] for the scheduler */
    lmd_speculation speculation;
    lmd_pace pace;
};

/* Takes a new request in and hands it to the scheduler; the prompt lives on there. */
void lmd_engine_admit(lmd_engine *self, lmd_live_request *live);
/* Ends every living request. */
void lmd_engine_end_all(lmd_engine *self, lmd_finish_reason reason, const lmd_err *why);
/* One step of the engine: who was cancelled ends, a plan is made and run, and its tokens are
 * handed out. An error means that the executor is broken. */
lmd_status lmd_engine_step(lmd_engine *self, lmd_err *err);
/* Lets clients see the state of now; the lock is held. */
void lmd_engine_show(lmd_engine *self);

#endif
