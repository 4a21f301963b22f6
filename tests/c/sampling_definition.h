/* The definition of backend/sampling.h written out a second time, for tests: a sort, a loop for
 * each rule, sums in 128 bits. Nothing of the product's is called but its random numbers. One
 * thread. */
#ifndef TESTS_SAMPLING_DEFINITION_H
#define TESTS_SAMPLING_DEFINITION_H

#include <stdint.h>

#include "backend/plan.h"

enum { DEFINED_MAX_VOCAB = 151936 };

/* The token of finite logits; -1 where every token is banned. */
int32_t defined_token(const float *logits, int32_t vocab_size, const lmd_sample_params *params);

/* log(sum exp(logit)), and the ids of the n_top most likely tokens, in their order. */
long double defined_log_sum(const float *logits, int32_t vocab_size, int32_t n_top,
                            int32_t *top_ids);

#endif
