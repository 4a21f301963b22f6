/* Attention: writing K and V, running the units that cpu_units.h cut, folding split contexts.
 * Owns: how a unit is run, and which operations attention is recorded as. Must not know: how
 * the cut was chosen, what codes of K and V look like. Recording: the engine's thread alone;
 * items: its workers too. */
#ifndef LMD_CPU_CPU_ATTENTION_H
#define LMD_CPU_CPU_ATTENTION_H

#include "backend/backend.h"

/* As the backend's operation of this name. */
void lmd_cpu_attention(lmd_workspace *workspace, const lmd_attention_args *args);

#endif
