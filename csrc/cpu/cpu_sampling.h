/* Sampling on the CPU: one row of raw logits becomes a token, exact log-probabilities and a
 * copy. Owns: the definition of the arithmetic, to which every backend is compared. Must not
 * know: requests, slots, engines. Any thread, with a scratch of its own.
 *
 * 1. A NaN or infinity among the raw logits gives not_finite and nothing else.
 * 2. logits_out, logprobs and target come from the raw logits: l - max - log(sum exp(l - max)),
 * terms in float, their sum and the logarithm in double. They are made only when n_logprobs > 0
 * or target_id >= 0; otherwise token_logprob and target_logprob are 0.
 * 3. Every bias is added; tokens of `counts` are penalised: repetition l > 0 ? l / r : l * r,
 * then
 *    - presence (n_output > 0) - frequency * n_output; what overflows stays at FLT_MAX; tokens
 * outside the mask become -infinity. Banned tokens (-infinity) are never drawn.
 * 4. greedy, or temperature <= 0: the largest value, the lowest id among equals.
 * 5. Otherwise tokens are ordered by value descending, equal values by id ascending; each
 * filter keeps a prefix of this order. top_k keeps k tokens. w = exp((l - max) / temperature),
 * in float. top_p (below 1), over what top_k kept, keeps the shortest prefix with sum(w) >=
 * top_p * total, one token at least. min_p keeps w >= min_p, the largest w being 1. Sums are in
 * double.
 * 6. u = lmd_philox_uniform(seed, position, sample_idx, 0); the token is the first in ascending
 * id whose running sum of w, over the kept tokens, exceeds u * total. A row that has every
 * token banned gives token_id -1 though a token was wanted. */
#ifndef LMD_CPU_SAMPLING_H
#define LMD_CPU_SAMPLING_H

#include "backend/plan.h"
#include "base/status.h"

/* Buffers of one thread; contents mean nothing between calls. */
typedef struct lmd_cpu_sample_scratch {
    float *values;  /* [vocab_size] */
    float *weights; /* [vocab_size] */
    int32_t *ids;   /* [vocab_size] */
    int32_t *order; /* [vocab_size] */
} lmd_cpu_sample_scratch;

lmd_status lmd_cpu_sample_scratch_init(lmd_cpu_sample_scratch *self, int32_t vocab_size,
                                       lmd_err *err);
void lmd_cpu_sample_scratch_clear(lmd_cpu_sample_scratch *self);

/* Scores and samples one row. Makes no malloc. */
void lmd_cpu_sample_row(const float *logits /* [vocab_size] raw */, int32_t vocab_size,
                        const lmd_sample_params *params, lmd_cpu_sample_scratch *scratch,
                        lmd_sample_result *out);

#endif
