/* sample of the row "ref": see ref.h. backend/sampling.h is the definition; numbers in brackets
 * are its paragraphs.
 * Owns: how a row of logits becomes a token without memory beside it: values replace the
 * logits, and each filter is the place in the order where it ends, found by sums of integers,
 * never by sorting. A thread of CUDA's. */
#include "ref.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "backend/sampling.h"

/* Tokens are measured by number or by weight. */
typedef enum measure { COUNT, WEIGHT } measure;

/* A row of values, and what the filters keep of it. */
typedef struct kept_tokens {
    const float *values; /* [vocab_size] */
    int32_t vocab_size;
    uint32_t last_key; /* the last token of the order that is kept */
    int32_t last_id;
    uint64_t least_weight; /* of min_p */
    float max, temperature;
} kept_tokens;

/* A key that orders values: it ascends with them, and is the same for -0 and 0. */
static uint32_t key_of(float value) {
    uint32_t bits;
    if (value == 0.0f) value = 0.0f;
    memcpy(&bits, &value, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* Keeps all that is not banned. */
static kept_tokens keep_all(const float *values, int32_t vocab_size, float max,
                            float temperature) {
    return (kept_tokens){.values = values,
                         .vocab_size = vocab_size,
                         .last_key = key_of(-FLT_MAX),
                         .last_id = vocab_size,
                         .max = max,
                         .temperature = temperature};
}

/* What a token adds to a sum: nothing if it is not kept. */
static uint64_t measured(const kept_tokens *self, int32_t id, measure by) {
    const float value = self->values[id];
    const uint32_t key = key_of(value);
    if (key < self->last_key || (key == self->last_key && id > self->last_id)) return 0;
    if (by == COUNT) return 1;
    const uint64_t weight =
        lmd_sample_weight(lmd_sample_exp(value, self->max, self->temperature));
    return weight >= self->least_weight ? weight : 0;
}

static uint64_t total_of(const kept_tokens *self, measure by) {
    uint64_t total = 0;
    for (int32_t id = 0; id < self->vocab_size; id++) total += measured(self, id, by);
    return total;
}

/* Keeps the shortest beginning of the order that measures `wanted`, which is from 1 to the
 * total. Its last value is found one byte of the key at a time, the highest first; `wanted`
 * becomes what those of that value must measure, of whom the lowest ids stay. */
static void keep_beginning(kept_tokens *self, measure by, uint64_t wanted) {
    uint32_t key = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        uint64_t sums[256] = {0};
        uint32_t digit = 255;
        for (int32_t id = 0; id < self->vocab_size; id++) {
            const uint32_t other = key_of(self->values[id]);
            if ((uint64_t)(other ^ key) >> (shift + 8)) continue; /* a higher byte differs */
            sums[other >> shift & 255] += measured(self, id, by);
        }
        for (; sums[digit] < wanted; digit--) wanted -= sums[digit];
        key |= digit << shift;
    }
    for (int32_t id = 0;; id++) {
        if (key_of(self->values[id]) != key) continue;
        const uint64_t each = measured(self, id, by);
        if (each >= wanted) {
            self->last_key = key;
            self->last_id = id;
            return;
        }
        wanted -= each;
    }
}

/* ---- the raw logits ---- */

static bool all_finite(const float *x, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* The largest, the lowest index among equals. */
static int32_t argmax(const float *x, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* log(sum exp(logits)) [3]. */
static double log_sum_of(const float *logits, int32_t vocab_size) {
    const float max = logits[argmax(logits, vocab_size)];
    const kept_tokens all = keep_all(logits, vocab_size, max, 1.0f);
    return (double)max + log((double)total_of(&all, WEIGHT) * 0x1p-40);
}

/* The n most likely tokens [3], by insertion into a short sorted list. */
static void find_tops(const float *logits, int32_t vocab_size, int32_t n_tops, double log_sum,
                      lmd_cuda_tops *out) {
    int32_t n = 0;
    for (int32_t id = 0; id < vocab_size; id++) {
        if (n == n_tops && (n == 0 || logits[id] <= logits[out->ids[n - 1]])) continue;
        int32_t at = n < n_tops ? n++ : n - 1;
        for (; at > 0 && logits[id] > logits[out->ids[at - 1]]; at--)
            out->ids[at] = out->ids[at - 1];
        out->ids[at] = id;
    }
    for (int32_t i = 0; i < n; i++) out->logprobs[i] = (float)(logits[out->ids[i]] - log_sum);
    out->n = n;
}

/* ---- values ---- */

/* Makes values of the logits [4]. Each list keeps what it replaces: a bias becomes the value
 * that it was added to, a count the bits of the value that was penalised. */
static void process(const lmd_cuda_sample_args *args, const lmd_cuda_sample_row *row,
                    float *values) {
    const lmd_sample_params penalties = {.repetition_penalty = row->repetition_penalty,
                                         .presence_penalty = row->presence_penalty,
                                         .frequency_penalty = row->frequency_penalty};
    for (int32_t i = 0; i < row->n_biases; i++) {
        lmd_token_bias *bias = &args->biases[row->first_bias + i];
        const float before = values[bias->token_id];
        values[bias->token_id] = lmd_sample_add_bias(before, bias->bias);
        bias->bias = before;
    }
    for (int32_t i = 0; i < row->n_counts; i++) {
        lmd_token_count *count = &args->counts[row->first_count + i];
        const float before = values[count->token_id];
        values[count->token_id] = lmd_sample_penalise(before, &penalties, count->n_output);
        memcpy(&count->n_output, &before, sizeof before);
    }
    if (row->first_mask < 0) return;
    const uint32_t *mask = args->masks + row->first_mask;
    for (int32_t id = 0; id < args->vocab_size; id++)
        if (!(mask[id / 32] >> (id % 32) & 1)) values[id] = -INFINITY;
}

/* The raw logit of a token that is not banned, after `process`: what its first entry in a list
 * replaced. */
static float raw_logit(const lmd_cuda_sample_args *args, const lmd_cuda_sample_row *row,
                       const float *values, int32_t token_id) {
    for (int32_t i = 0; i < row->n_biases; i++) {
        const lmd_token_bias *bias = &args->biases[row->first_bias + i];
        if (bias->token_id == token_id) return bias->bias;
    }
    for (int32_t i = 0; i < row->n_counts; i++) {
        const lmd_token_count *count = &args->counts[row->first_count + i];
        float before;
        memcpy(&before, &count->n_output, sizeof before);
        if (count->token_id == token_id) return before;
    }
    return values[token_id];
}

/* ---- drawing ---- */

/* Draws among the kept tokens [11]. */
static int32_t draw(const kept_tokens *self, uint64_t random) {
    const uint64_t wanted = lmd_sample_share(total_of(self, WEIGHT), random);
    uint64_t sum = 0;
    int32_t id = 0;
    while ((sum += measured(self, id, WEIGHT)) <= wanted) id++;
    return id;
}

/* Applies the filters in turn [7, 9, 10], and draws. top_p wants 1 at least, so that it keeps
 * the first token, whatever its fraction. */
static int32_t sample(const float *values, int32_t vocab_size, float max,
                      const lmd_cuda_sample_row *row) {
    kept_tokens kept = keep_all(values, vocab_size, max, row->temperature);
    if (row->top_k > 0 && (uint64_t)row->top_k < total_of(&kept, COUNT))
        keep_beginning(&kept, COUNT, (uint64_t)row->top_k);
    if (row->top_p < 1.0f) {
        const uint64_t fraction = lmd_sample_fraction(row->top_p);
        const uint64_t wanted = lmd_sample_share(total_of(&kept, WEIGHT), fraction);
        keep_beginning(&kept, WEIGHT, wanted > 0 ? wanted : 1);
    }
    kept.least_weight = lmd_sample_weight(row->min_p);
    return draw(&kept, lmd_sample_random(row->seed, row->position, row->sample_idx, 0));
}

static void sample_row(const lmd_cuda_sample_args *args, const lmd_cuda_sample_row *row,
                       float *logits, lmd_cuda_sample_result *out) {
    const bool scored = row->n_logprobs > 0 || row->target_id >= 0;
    const int32_t vocab_size = args->vocab_size;
    lmd_cuda_tops *tops = row->logprobs_at < 0 ? NULL : &args->tops[row->logprobs_at];
    double log_sum = 0.0;
    *out = (lmd_cuda_sample_result){.token_id = -1};
    if (tops) tops->n = 0;
    out->not_finite = !all_finite(logits, vocab_size);
    if (out->not_finite) return;
    if (scored) log_sum = log_sum_of(logits, vocab_size);
    if (row->target_id >= 0) out->target_logprob = (float)(logits[row->target_id] - log_sum);
    if (tops) find_tops(logits, vocab_size, row->n_logprobs, log_sum, tops);
    if (!row->wants_token) return;
    process(args, row, logits);
    const int32_t best = argmax(logits, vocab_size);
    if (logits[best] == -INFINITY) return; /* everything is banned */
    out->token_id = row->greedy || row->temperature <= 0.0f
                        ? best
                        : sample(logits, vocab_size, logits[best], row);
    if (scored)
        out->token_logprob = (float)(raw_logit(args, row, logits, out->token_id) - log_sum);
    if (row->slot >= 0) args->newest[row->slot] = out->token_id;
}

static void run_sample(void *run_args) {
    const lmd_cuda_sample_args *args = run_args;
    for (int32_t i = 0; i < args->n_rows; i++) {
        float *logits = args->logits + (int64_t)i * args->logits_stride;
        sample_row(args, &args->rows[i], logits, &args->results[i]);
    }
}

void lmd_ref_sample(const lmd_cuda_sample_args *args, lmd_cuda_queue *queue) {
    lmd_ref_enqueue(queue, run_sample, args, sizeof *args, "sample");
}
