/* The engine's state, for the files that are the engine: engine (the thread, its lifetime and
 * the clients' side), live_list (the requests that are live), engine_step (the step that they
 * share) and step_rows (its logits rows). The fields say who may touch them. */
#ifndef LMD_ENGINE_ENGINE_STATE_H
#define LMD_ENGINE_ENGINE_STATE_H

#include <pthread.h>
#include <sys/types.h>

#include "engine/engine.h"
#include "engine/live_request.h"
#include "engine/pace.h"
#include "engine/step.h"

/* What a client has the thread do between two steps, and waits for. */
typedef struct lmd_engine_job {
    lmd_between_steps_fn fn;
    void *arg;
    struct lmd_engine_job *next;
    bool ended, ran; /* a job that ended and did not run: the engine closed first */
} lmd_engine_job;

enum { LMD_MAX_STEPS = 2 }; /* one that is waited for, and one that runs ahead */

struct lmd_engine {
    lmd_engine_config config;
    pid_t pid; /* the process that has the thread */
    pthread_t thread;

    pthread_mutex_t lock; /* clients and the thread: what follows */
    pthread_cond_t wake, job_ended;
    lmd_engine_job *jobs;
    lmd_live_request *inbox, **inbox_end;
    int32_t n_open; /* requests that were submitted and have not ended */
    int64_t next_request_id;
    bool closing, joined;
    bool broken; /* the executor failed: broken_err says why */
    lmd_err broken_err;
    lmd_engine_stats stats;
    lmd_metrics shown; /* the thread's metrics when they were last copied */
    int64_t n_submitted, n_rejected;

    lmd_trace trace; /* has its own lock */

    /* The thread's own. */
    lmd_metrics metrics;
    int64_t tokens_at; /* when the last step's tokens came, ns */
    lmd_executor *executor;
    lmd_scheduler *scheduler;
    lmd_live_request *live;        /* list */
    lmd_step steps[LMD_MAX_STEPS]; /* plan p is at p % n_steps */
    int32_t n_steps;
    lmd_step *ahead; /* submitted, and not sampled yet; NULL: none */
    lmd_speculation speculation;
    lmd_pace pace;
};

#endif
