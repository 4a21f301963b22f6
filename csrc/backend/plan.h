/* The plan: one step's work, ragged, as the scheduler makes it and an executor runs it.
 * Owns: the layout of plans and of their results; no memory: arrays belong to the code
 * that filled them and stay valid until the plan is collected. Must not know: models, devices,
 * Python. C for C++ too. */
#ifndef LMD_BACKEND_PLAN_H
#define LMD_BACKEND_PLAN_H

#include <stdbool.h>
#include <stdint.h>

typedef struct lmd_token_bias {
    int32_t token_id;
    float bias; /* added to the logit; -INFINITY bans the token */
} lmd_token_bias;

typedef struct lmd_token_count {
    int32_t token_id;
    int32_t n_output; /* times in the answer; 0: in the prompt only */
} lmd_token_count;

/* How one row of logits becomes a token: backend/sampling.h says what each field does. */
typedef struct lmd_sample_params {
    bool wants_token; /* false: the row is only scored or copied */
    bool greedy;
    int32_t top_k; /* 0: off */
    float top_p, min_p, temperature;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t n_biases, n_counts;
    const lmd_token_bias *biases;  /* [n_biases] one token may occur more than once */
    const lmd_token_count *counts; /* [n_counts] distinct tokens of prompt and answer */
    const uint32_t *mask; /* [(vocab_size + 31) / 32] bit set: allowed; NULL: no grammar */
    uint64_t seed;        /* Philox key */
    uint32_t position;    /* Philox counter word 0: the token's position */
    uint32_t sample_idx;  /* Philox counter word 1 */
    int32_t target_id;    /* >= 0: report this token's log-probability; -1: none */
    int32_t n_logprobs;   /* report the n most likely tokens of the raw logits */
    float *logits_out;    /* [vocab_size] gets the raw logits; NULL: not wanted */
} lmd_sample_params;

enum { LMD_MAX_LOGPROBS = 64 };

typedef struct lmd_sample_result {
    int32_t token_id;     /* -1 where no token was wanted */
    bool not_finite;      /* the raw logits hold a NaN or infinity: the request fails */
    float token_logprob;  /* natural log, from the raw logits */
    float target_logprob; /* the same for target_id */
    int32_t n_top;
    int32_t top_ids[LMD_MAX_LOGPROBS]; /* most likely first, ties by id */
    float top_logprobs[LMD_MAX_LOGPROBS];
} lmd_sample_result;

typedef struct lmd_block_copy {
    int32_t from_block, to_block;
} lmd_block_copy;

typedef struct lmd_plan {
    int64_t plan_id;
    int32_t n_seqs, n_tokens, n_logits_rows, n_copies;
    const int64_t *seq_ids; /* [n_seqs] */
    const int32_t *slots;   /* [n_seqs] place in the batch; -1: padding that writes nothing */
    const int32_t *history_lens;  /* [n_seqs] tokens already in KV */
    const int32_t *input_lens;    /* [n_seqs] tokens of this step, at least 1 */
    const int32_t *token_offsets; /* [n_seqs + 1] first row of each sequence */
    const int32_t
        *token_ids; /* [n_tokens]; -1: the token that the plan before gives this slot */
    const int32_t *positions;     /* [n_tokens] */
    const int32_t *block_offsets; /* [n_seqs + 1] into block_ids */
    const int32_t *block_ids;   /* block i of a sequence holds positions i * block_len and on */
    const int32_t *logits_rows; /* [n_logits_rows] ascending rows of the step */
    const lmd_sample_params *samples; /* [n_logits_rows], set before the plan is sampled */
    const lmd_block_copy *copies;     /* [n_copies] done before the step's own writes */
} lmd_plan;

typedef struct lmd_plan_result {
    int64_t plan_id;
    int32_t n_rows;                /* the plan's n_logits_rows */
    const lmd_sample_result *rows; /* valid until the next collect, whatever is submitted */
} lmd_plan_result;

#endif
