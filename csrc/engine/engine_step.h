/* One step of an engine: a plan is made and run, and its tokens are handed out; where the
 * executor runs ahead, the next plan starts meanwhile. The engine's thread alone. */
#ifndef LMD_ENGINE_ENGINE_STEP_H
#define LMD_ENGINE_ENGINE_STEP_H

#include "engine/engine_state.h"

/* Runs one step. An error means that the executor is broken. */
lmd_status lmd_engine_step(lmd_engine *self, lmd_err *err);

#endif
