/* The pace: how many tokens a step may have, so that sequences which decode get theirs in time.
 * Owns: how long a step of decodes took lately, and how much longer each token of a prompt made
 * it. A step without decodes is bounded by the engine's limit alone. What it decides changes
 * when tokens come, never which. Must not know: sequences, clocks. The engine's thread alone.
 */
#ifndef LMD_ENGINE_PACE_H
#define LMD_ENGINE_PACE_H

#include <stdint.h>

typedef struct lmd_pace {
    double target;    /* seconds that a step with decodes may take; 0: no bound */
    int32_t n_max;    /* tokens of a step at most */
    double decode;    /* seconds of a step of decodes alone */
    double per_token; /* seconds more for each token of a prompt; 0: not measured yet */
} lmd_pace;

void lmd_pace_init(lmd_pace *self, double target_seconds, int32_t n_max);
/* The token budget of a step in which n_decodes sequences decode. */
int32_t lmd_pace_budget(const lmd_pace *self, int32_t n_decodes);
/* Notes how long a step of n_decodes decodes and n_prompt tokens of prompts took. */
void lmd_pace_note(lmd_pace *self, int32_t n_decodes, int32_t n_prompt, double seconds);

#endif
