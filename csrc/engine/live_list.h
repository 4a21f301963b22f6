/* The requests that are live in an engine: a list, from admission to the end.
 * Owns: the order of what happens when a request is admitted or ends (scheduler, metrics,
 * trace, client). Must not know: plans, executors. The engine's thread alone. */
#ifndef LMD_ENGINE_LIVE_LIST_H
#define LMD_ENGINE_LIVE_LIST_H

#include "engine/engine_state.h"

/* Takes a new request over and hands it to the scheduler, which copies the prompt. */
void lmd_engine_admit(lmd_engine *self, lmd_live_request *request);

/* Ends a live request everywhere and frees it; *why belongs to LMD_FINISH_ERROR. */
void lmd_engine_end(lmd_engine *self, lmd_live_request *request, lmd_finish_reason reason,
                    const lmd_err *why);
void lmd_engine_end_all(lmd_engine *self, lmd_finish_reason reason, const lmd_err *why);
/* Aborts the requests that were cancelled, or whose time is up. */
void lmd_engine_end_cancelled(lmd_engine *self, int64_t now);

/* Adds an event of a request to the trace. */
void lmd_engine_note(lmd_engine *self, const lmd_live_request *request, lmd_trace_kind kind,
                     int64_t at, int32_t n_tokens, lmd_finish_reason reason);

/* Lets clients see the state of this moment; the lock is held. */
void lmd_engine_show(lmd_engine *self);

#endif
