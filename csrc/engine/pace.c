/* The pace: see pace.h. */
#include "engine/pace.h"

/* A step leaves a prompt at least this many tokens, however slow the machine. */
enum { LEAST_CHUNK = 16 };
/* Tokens of a prompt in the first step beside decodes, before anything is measured. */
enum { FIRST_CHUNK = 64 };
/* Aims below the target: step times vary, and users notice the longest. */
static const double AIM = 0.85;
/* The weight of a new measurement. A longer step counts for more: decodes wait for it. */
static const double WEIGHT = 0.25, WEIGHT_IF_LONGER = 0.5;

void lmd_pace_init(lmd_pace *self, double target_seconds, int32_t n_max) {
    *self = (lmd_pace){.target = target_seconds, .n_max = n_max};
}

int32_t lmd_pace_budget(const lmd_pace *self, int32_t n_decodes) {
    if (self->target <= 0.0 || n_decodes == 0) return self->n_max;
    double chunk = FIRST_CHUNK;
    if (self->per_token > 0.0) chunk = (AIM * self->target - self->decode) / self->per_token;
    if (chunk < LEAST_CHUNK) chunk = LEAST_CHUNK;
    const double budget = n_decodes + chunk;
    return budget < self->n_max ? (int32_t)budget : self->n_max;
}

static double moved(double from, double to) {
    if (from == 0.0) return to;
    return from + (to > from ? WEIGHT_IF_LONGER : WEIGHT) * (to - from);
}

void lmd_pace_note(lmd_pace *self, int32_t n_decodes, int32_t n_prompt, double seconds) {
    if (n_prompt == 0) {
        if (n_decodes > 0) self->decode = moved(self->decode, seconds);
        return;
    }
    if (n_decodes == 0) return; /* a chunk of another size, by itself */
    double rest = seconds - self->decode;
    /* Never nothing: a step that was as short as its decodes says little of a token's cost. */
    if (rest < 0.1 * seconds) rest = 0.1 * seconds;
    self->per_token = moved(self->per_token, rest / n_prompt);
}
