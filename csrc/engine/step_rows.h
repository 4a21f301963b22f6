/* The logits rows of a step: their parameters before sampling, their results after it.
 * Owns nothing. Must not know: executors. The engine's thread alone. */
#ifndef LMD_ENGINE_STEP_ROWS_H
#define LMD_ENGINE_STEP_ROWS_H

#include "engine/engine_state.h"

/* Fills the parameters of every row, once the tokens of the plan before are known. Rows of a
 * request that has ended want nothing. */
void lmd_engine_fill_rows(lmd_engine *self, lmd_step *step);

/* Hands the rows' results to their requests, and ends those that are complete. */
void lmd_engine_hand_out(lmd_engine *self, lmd_step *step, const lmd_plan_result *result);

#endif
