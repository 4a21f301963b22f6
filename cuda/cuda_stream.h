/* The order of a step on a device: plans in a ring of two, decode steps as captured graphs.
 * Owns: when a plan travels, when operations are enqueued, captured or replayed, and when a
 * plan has ended. Nothing here can fail at once: the first error of a step stays in the queue,
 * and wait tells it. Must not know: what operations compute. The engine's thread. */
#ifndef LMD_CUDA_CUDA_STREAM_H
#define LMD_CUDA_CUDA_STREAM_H

#include "cuda_workspace.h"

/* Sends a plan and decides how its forward pass will run. */
void lmd_cuda_stream_begin(lmd_workspace *self, const lmd_plan *plan);
/* Ends the forward pass: a captured or replayed graph starts. Further calls do nothing. */
void lmd_cuda_stream_end_forward(lmd_workspace *self);
/* Marks the end of the plan begun last. */
void lmd_cuda_stream_end(lmd_workspace *self);
/* Waits for a plan. After an error the device has stopped, and every later plan fails too. */
lmd_status lmd_cuda_stream_wait(lmd_workspace *self, int64_t plan_id, lmd_err *err);

#endif
