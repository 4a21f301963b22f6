/* The sampler of one request: the parameters with which its rows of logits are processed.
 * Owns: checked parameters, counts of tokens, bans that depend on the tokens so far. The
 * arithmetic is the backend's. Must not know: devices, Python. Made by the client's thread,
 * then the engine's alone. */
#ifndef LMD_ENGINE_SAMPLER_H
#define LMD_ENGINE_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/plan.h"
#include "base/status.h"
#include "engine/token_match.h"

typedef struct lmd_sampler_params {
    bool do_sample;
    int64_t top_k; /* 0: off */
    double temperature, top_p, min_p;
    double repetition_penalty, presence_penalty, frequency_penalty;
    int32_t n_biases;
    const lmd_token_bias *biases; /* [n_biases] distinct tokens; -INFINITY bans */
    lmd_token_words bad_words;
    int64_t no_repeat_ngram_size; /* no n-gram of so many tokens comes twice, the prompt's
                                     included; 0: off */
    int64_t n_logprobs;
    uint64_t seed;
} lmd_sampler_params;

/* The numbers among the parameters, each with the range that the check holds it to. */
typedef struct lmd_sampler_range {
    const char *name;
    size_t offset;   /* of the parameter in lmd_sampler_params */
    bool is_integer; /* an int64_t; otherwise a double */
    double low, high;
} lmd_sampler_range;

extern const lmd_sampler_range lmd_sampler_ranges[]; /* the last one's name is NULL */

typedef struct lmd_sampler lmd_sampler;

/* Sets every parameter to "off": greedy. */
void lmd_sampler_params_init(lmd_sampler_params *params);

/* LMD_INVALID names the parameter, what was wanted and what was there. */
lmd_status lmd_sampler_params_check(const lmd_sampler_params *params, int32_t vocab_size,
                                    lmd_err *err);

/* Makes the state after a prompt, with room for n_new more tokens and n_bans more bans a row.
 */
typedef struct lmd_sampler_room {
    const int32_t *prompt; /* [n_prompt] */
    int32_t n_prompt, n_new, n_bans, vocab_size;
} lmd_sampler_room;

lmd_status lmd_sampler_new(const lmd_sampler_params *params, const lmd_sampler_room *room,
                           lmd_sampler **out, lmd_err *err);
void lmd_sampler_free(lmd_sampler *self);

/* Starts the next row's bans; lmd_sampler_ban adds one, at most n_bans. */
void lmd_sampler_begin(lmd_sampler *self);
void lmd_sampler_ban(lmd_sampler *self, int32_t token_id);

/* Whether no row depends on the tokens so far: no penalty, no bad word of several tokens, no
 * bound on n-grams. */
bool lmd_sampler_is_steady(const lmd_sampler *self);

/* Fills a row that wants the token at `position`. Arrays are valid until the next call. */
void lmd_sampler_fill(const lmd_sampler *self, int32_t position, lmd_sample_params *out);

/* Counts a generated token. O(1) amortised, no malloc. */
void lmd_sampler_push(lmd_sampler *self, int32_t token_id);

#endif
