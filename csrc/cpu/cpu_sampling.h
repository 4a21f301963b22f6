/* Sampling on the CPU: one row of raw logits becomes a token, log-probabilities and a copy, as
 * backend/sampling.h defines them. Owns: the search for the tokens that filters keep. Must not
 * know: requests, slots, engines. Any thread, with a scratch of its own. */
#ifndef LMD_CPU_SAMPLING_H
#define LMD_CPU_SAMPLING_H

#include "backend/plan.h"
#include "base/status.h"
#include "cpu/kernels/kernels.h"

/* Buffers of one thread; contents mean nothing between calls. */
typedef struct lmd_cpu_sample_scratch {
    float *values;  /* [vocab_size] */
    float *weights; /* [vocab_size] exponentials: lmd_sample_weight makes integers of them */
    int32_t *ids;   /* [vocab_size] */
    int32_t *order; /* [vocab_size] */
} lmd_cpu_sample_scratch;

lmd_status lmd_cpu_sample_scratch_init(lmd_cpu_sample_scratch *self, int32_t vocab_size,
                                       lmd_err *err);
void lmd_cpu_sample_scratch_clear(lmd_cpu_sample_scratch *self);
/* The bytes that init allocates. */
size_t lmd_cpu_sample_scratch_bytes(int32_t vocab_size);

/* Scores and samples one row. Makes no malloc. */
void lmd_cpu_sample_row(const lmd_cpu_kernels *kernels,
                        const float *logits /* [vocab_size] raw */, int32_t vocab_size,
                        const lmd_sample_params *params, lmd_cpu_sample_scratch *scratch,
                        lmd_sample_result *out);

#endif
