/* sample: the row under test against ref, and ref against the definition written
 * out once more (tests/c/sampling_definition.h). Rows of a case differ in everything but the
 * vocabulary: the logits, the filters, the lists, what is wanted. */
#include "suite.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../c/sampling_definition.h"
#include "tolerances.h"

/* MANY_COUNTS: more than a block has threads. */
enum { MAX_VOCAB = DEFINED_MAX_VOCAB, MAX_BIASES = 8, SOME_COUNTS = 48, MANY_COUNTS = 1500 };

/* Rows of one call, and what the definition says of them. */
typedef struct sample_case {
    int32_t vocab_size, stride, n_rows, n_mask_words, max_counts;
    pair logits;                                        /* [n_rows, stride] */
    pair rows, results;                                 /* [n_rows] */
    pair tops;                                          /* [n_rows] */
    pair biases;                                        /* [n_rows, MAX_BIASES] */
    pair counts;                                        /* [n_rows, max_counts] */
    pair masks;                                         /* [n_rows, n_mask_words] */
    pair newest;                                        /* [n_rows] */
    pair defined_results, defined_tops, defined_newest; /* only the host's copies */
} sample_case;

#define ONE_OF(self, array) (array)[suite_below(self, sizeof(array) / sizeof *(array))]

/* ---- what the definition says ---- */

static lmd_sample_params params_of(const sample_case *self, const lmd_cuda_sample_row *row) {
    const uint32_t *mask = (const uint32_t *)self->masks.host + row->first_mask;
    return (lmd_sample_params){
        .greedy = row->greedy,
        .top_k = row->top_k,
        .top_p = row->top_p,
        .min_p = row->min_p,
        .temperature = row->temperature,
        .repetition_penalty = row->repetition_penalty,
        .presence_penalty = row->presence_penalty,
        .frequency_penalty = row->frequency_penalty,
        .n_biases = row->n_biases,
        .n_counts = row->n_counts,
        .biases = (const lmd_token_bias *)self->biases.host + row->first_bias,
        .counts = (const lmd_token_count *)self->counts.host + row->first_count,
        .mask = row->first_mask >= 0 ? mask : NULL,
        .seed = row->seed,
        .position = row->position,
        .sample_idx = row->sample_idx,
    };
}

/* Fills the tops, where they are wanted, and returns log(sum exp(logits)). */
static double define_scores(const float *logits, int32_t vocab_size, int32_t n_logprobs,
                            lmd_cuda_tops *tops) {
    if (!tops) return (double)defined_log_sum(logits, vocab_size, 0, NULL);
    tops->n = n_logprobs < vocab_size ? n_logprobs : vocab_size;
    const double log_sum = (double)defined_log_sum(logits, vocab_size, tops->n, tops->ids);
    for (int32_t i = 0; i < tops->n; i++)
        tops->logprobs[i] = (float)(logits[tops->ids[i]] - log_sum);
    return log_sum;
}

static void define_row(sample_case *self, int32_t r) {
    const lmd_cuda_sample_row *row = (const lmd_cuda_sample_row *)self->rows.host + r;
    const float *logits = (const float *)self->logits.host + (int64_t)r * self->stride;
    lmd_cuda_sample_result *out = (lmd_cuda_sample_result *)self->defined_results.host + r;
    lmd_cuda_tops *tops = (lmd_cuda_tops *)self->defined_tops.host + row->logprobs_at;
    if (row->logprobs_at < 0) tops = NULL;
    double log_sum = 0.0;
    *out = (lmd_cuda_sample_result){.token_id = -1};
    if (tops) tops->n = 0;
    for (int32_t id = 0; id < self->vocab_size; id++)
        if (!isfinite(logits[id])) out->not_finite = 1;
    if (out->not_finite) return;
    const bool is_scored = row->n_logprobs > 0 || row->target_id >= 0;
    if (is_scored) log_sum = define_scores(logits, self->vocab_size, row->n_logprobs, tops);
    if (row->target_id >= 0) out->target_logprob = (float)(logits[row->target_id] - log_sum);
    if (row->wants_token) {
        const lmd_sample_params params = params_of(self, row);
        out->token_id = defined_token(logits, self->vocab_size, &params);
    }
    if (out->token_id < 0) return;
    if (is_scored) out->token_logprob = (float)(logits[out->token_id] - log_sum);
    if (row->slot >= 0) ((int32_t *)self->defined_newest.host)[row->slot] = out->token_id;
}

/* ---- random rows ---- */

typedef enum logits_kind {
    SPREAD,
    PEAKED,
    TIED,
    EQUAL,
    ZEROS, /* of both signs */
    TINY,  /* subnormal */
    LARGE,
    NOT_FINITE,
    N_LOGITS_KINDS
} logits_kind;

static float random_logit(suite *s, logits_kind kind) {
    const float x = suite_normal(s);
    switch (kind) {
    case PEAKED: return suite_below(s, 16) ? x : 6.0f + x;
    case TIED: return rintf(x * 2.0f) / 3.0f;
    case EQUAL: return -0.75f;
    case ZEROS: return suite_below(s, 3) == 0 ? -1.0f : suite_bits(s) & 1 ? 0.0f : -0.0f;
    case TINY: return x * 1e-40f;
    case LARGE: return fminf(fmaxf(x * 1.5e38f, -FLT_MAX), FLT_MAX);
    default: return x * 4.0f;
    }
}

static void fill_logits(suite *s, float *logits, int32_t n, logits_kind kind) {
    static const float strange[] = {NAN, INFINITY, -INFINITY};
    for (int32_t i = 0; i < n; i++) logits[i] = random_logit(s, kind);
    if (kind == NOT_FINITE) logits[suite_below(s, n)] = ONE_OF(s, strange);
}

/* Bits past the vocabulary mean nothing, and are random too. */
static void fill_mask(suite *s, uint32_t *mask, int32_t vocab_size) {
    const int32_t n_words = (vocab_size + 31) / 32, kind = suite_below(s, 6);
    const int32_t only = suite_below(s, vocab_size);
    for (int32_t i = 0; i < n_words; i++)
        mask[i] = kind < 2    ? 0 /* one token, or none */
                  : kind == 2 ? UINT32_MAX
                  : kind == 3 ? suite_bits(s) & suite_bits(s) & suite_bits(s)
                              : suite_bits(s);
    if (kind == 0) mask[only / 32] = 1u << only % 32;
    if (kind == 1 && vocab_size % 32) mask[n_words - 1] = UINT32_MAX << vocab_size % 32;
}

/* Biases of few tokens, so that some have more than one; counts of distinct tokens. */
static void fill_lists(suite *s, sample_case *self, lmd_cuda_sample_row *row) {
    static const float repetitions[] = {1.0f, 1.3f, 0.7f, 1e3f, 1e-3f};
    lmd_token_bias *biases = (lmd_token_bias *)self->biases.host + row->first_bias;
    lmd_token_count *counts = (lmd_token_count *)self->counts.host + row->first_count;
    const int32_t vocab_size = self->vocab_size, first = suite_below(s, vocab_size);
    const int32_t most = vocab_size < self->max_counts ? vocab_size : self->max_counts;
    row->repetition_penalty = ONE_OF(s, repetitions);
    row->presence_penalty = suite_uniform(s, -1.0f, 1.0f);
    row->frequency_penalty = suite_below(s, 4) ? suite_uniform(s, -1.0f, 1.0f) : 3e38f;
    row->n_biases = suite_below(s, MAX_BIASES + 1);
    row->n_counts = suite_bits(s) & 1 ? most : suite_below(s, most + 1);
    for (int32_t i = 0; i < row->n_biases; i++) {
        biases[i].token_id = (first + suite_below(s, 4)) % vocab_size;
        biases[i].bias = suite_below(s, 4) ? suite_uniform(s, -9.0f, 9.0f) : 3e38f;
    }
    if (row->n_biases && suite_bits(s) & 1) biases[0].bias = -INFINITY;
    for (int32_t i = 0; i < row->n_counts; i++)
        counts[i] = (lmd_token_count){(first + i) % vocab_size, suite_below(s, 4)};
}

static lmd_cuda_sample_row random_row(suite *s, int32_t vocab_size) {
    static const float temperatures[] = {0.0f, 1e-45f, 1e-3f, 0.3f, 1.0f, 1.0f, 5.0f, 100.0f};
    static const float top_ps[] = {1.0f, 1.0f, 0.9f, 0.5f, 0.1f, 1e-6f, 0.0f, 0x1.fffffep-1f};
    static const float min_ps[] = {0.0f, 0.0f, 0.05f, 0.5f, 1.0f, 1e-11f, 1e-13f};
    static const int32_t n_logprobs[] = {0, 0, 1, 5, LMD_MAX_LOGPROBS};
    const int32_t top_ks[] = {0, 0, 1, 2, 50, vocab_size, vocab_size + 5, INT32_MAX};
    return (lmd_cuda_sample_row){
        .seed = (uint64_t)suite_bits(s) << 32 | suite_bits(s),
        .position = suite_bits(s),
        .sample_idx = suite_bits(s) % 3,
        .temperature = ONE_OF(s, temperatures),
        .top_k = ONE_OF(s, top_ks),
        .top_p = ONE_OF(s, top_ps),
        .min_p = ONE_OF(s, min_ps),
        .repetition_penalty = 1.0f,
        .wants_token = suite_below(s, 8) > 0,
        .greedy = suite_below(s, 8) == 0,
        .first_mask = -1,
        .n_logprobs = ONE_OF(s, n_logprobs),
        .target_id = suite_bits(s) & 1 ? suite_below(s, vocab_size) : -1,
    };
}

/* Slots and tops are not in the order of the rows; some rows have none. What lies between rows
 * would always be drawn. */
static void fill_row(suite *s, sample_case *self, int32_t r, logits_kind kind) {
    lmd_cuda_sample_row *row = (lmd_cuda_sample_row *)self->rows.host + r;
    float *logits = (float *)self->logits.host + (int64_t)r * self->stride;
    fill_logits(s, logits, self->vocab_size, kind);
    for (int32_t i = self->vocab_size; i < self->stride; i++) logits[i] = FLT_MAX;
    *row = random_row(s, self->vocab_size);
    row->slot = suite_below(s, 4) ? self->n_rows - 1 - r : -1;
    row->logprobs_at =
        row->n_logprobs > 0 || suite_below(s, 4) == 0 ? (r + 1) % self->n_rows : -1;
    row->first_bias = r * MAX_BIASES;
    row->first_count = r * self->max_counts;
    if (suite_bits(s) & 1) fill_lists(s, self, row);
    if (suite_bits(s) & 1) {
        row->first_mask = r * self->n_mask_words;
        fill_mask(s, (uint32_t *)self->masks.host + row->first_mask, self->vocab_size);
    }
}

static sample_case new_case(suite *s, int32_t vocab_size, int32_t stride, int32_t n_rows) {
    const size_t n = (size_t)n_rows;
    sample_case self = {.vocab_size = vocab_size,
                        .stride = stride,
                        .n_rows = n_rows,
                        .n_mask_words = (vocab_size + 31) / 32,
                        .max_counts = vocab_size < 30000 ? SOME_COUNTS : MANY_COUNTS};
    self.logits = suite_array(s, n * (size_t)stride * sizeof(float));
    self.rows = suite_array(s, n * sizeof(lmd_cuda_sample_row));
    self.biases = suite_array(s, n * MAX_BIASES * sizeof(lmd_token_bias));
    self.counts = suite_array(s, n * (size_t)self.max_counts * sizeof(lmd_token_count));
    self.masks = suite_array(s, n * (size_t)self.n_mask_words * sizeof(uint32_t));
    self.newest = suite_array(s, n * sizeof(int32_t));
    self.results = suite_array(s, n * sizeof(lmd_cuda_sample_result));
    self.tops = suite_array(s, n * sizeof(lmd_cuda_tops));
    self.defined_newest = suite_array(s, self.newest.n_bytes);
    self.defined_results = suite_array(s, self.results.n_bytes);
    self.defined_tops = suite_array(s, self.tops.n_bytes);
    return self;
}

/* ---- comparing ---- */

/* Words of each struct of an array. */
typedef struct field {
    size_t struct_bytes, offset, n_words;
    bool is_logprob;
} field;

#define FIELD(type, name, n_words, is_logprob)                                                 \
    ((field){sizeof(type), offsetof(type, name), n_words, is_logprob})

static void gather(void *out, const void *structs, size_t n, field which) {
    const size_t n_bytes = which.n_words * sizeof(int32_t);
    for (size_t i = 0; i < n; i++)
        memcpy((uint8_t *)out + i * n_bytes,
               (const uint8_t *)structs + i * which.struct_bytes + which.offset, n_bytes);
}

/* Divides both by the size of the good one, so that each has the tolerance of its own size and
 * not that of the largest. */
static void scale(float *good, float *other, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const float size = fmaxf(1.0f, fabsf(good[i]));
        if (isfinite(good[i])) {
            good[i] /= size;
            other[i] /= size;
        }
    }
}

static void copy(void *to, const void *from, size_t n_bytes) {
    if (cudaMemcpy(to, from, n_bytes, cudaMemcpyDefault) == cudaSuccess) return;
    fprintf(stderr, "sample: a copy failed\n");
    exit(1);
}

/* Compares a field of n structs; `good` has what it should be. */
static void compare_field(suite *s, const char *name, const void *good, const void *other,
                          size_t n, field which) {
    const size_t n_words = n * which.n_words, n_bytes = n_words * sizeof(int32_t);
    pair both = suite_array(s, n_bytes);
    void *others = malloc(n_bytes);
    if (!others) abort();
    gather(both.host, good, n, which);
    gather(others, other, n, which);
    if (which.is_logprob) scale(both.host, others, n_words);
    copy(both.device, others, n_bytes);
    free(others);
    if (which.is_logprob)
        suite_compare_float(s, name, both, n_words, TOLERANCE_LOGPROB);
    else
        suite_compare_bytes(s, name, both, n_bytes);
}

/* What one side made of a case. */
typedef struct outcome {
    const lmd_cuda_sample_result *results;
    const lmd_cuda_tops *tops;
    const int32_t *newest;
} outcome;

static void compare_outcomes(suite *s, const char *name, outcome good, outcome other,
                             int32_t n_rows) {
    const size_t n = (size_t)n_rows;
    compare_field(s, name, good.results, other.results, n,
                  FIELD(lmd_cuda_sample_result, token_id, 2, false)); /* and not_finite */
    compare_field(
        s, name, good.results, other.results, n,
        FIELD(lmd_cuda_sample_result, token_logprob, 2, true)); /* of the target too */
    compare_field(s, name, good.tops, other.tops, n,
                  FIELD(lmd_cuda_tops, n, 1 + LMD_MAX_LOGPROBS, false)); /* and ids */
    compare_field(s, name, good.tops, other.tops, n,
                  FIELD(lmd_cuda_tops, logprobs, LMD_MAX_LOGPROBS, true));
    compare_field(s, name, good.newest, other.newest, n, (field){sizeof(int32_t), 0, 1, false});
}

static const void *fetched(suite *s, pair array) {
    pair fresh = suite_array(s, array.n_bytes);
    copy(fresh.host, array.device, array.n_bytes);
    return fresh.host;
}

/* ---- cases ---- */

static sample_case random_case(suite *s, int32_t vocab_size, int32_t stride, int32_t n_rows,
                               int32_t first_kind) {
    sample_case self = new_case(s, vocab_size, stride, n_rows);
    for (int32_t r = 0; r < n_rows; r++) {
        fill_row(s, &self, r, (logits_kind)((first_kind + r) % N_LOGITS_KINDS));
        ((int32_t *)self.newest.host)[r] = -7 - r;
    }
    const pair inputs[] = {self.logits, self.rows,  self.biases,
                           self.counts, self.masks, self.newest};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) suite_upload(s, inputs[i]);
    memcpy(self.defined_newest.host, self.newest.host, self.newest.n_bytes);
    for (int32_t r = 0; r < n_rows; r++) define_row(&self, r);
    return self;
}

static lmd_cuda_sample_args args_of(const sample_case *self, bool on_device) {
    const pair *arrays[] = {&self->logits, &self->rows,   &self->biases,  &self->counts,
                            &self->masks,  &self->newest, &self->results, &self->tops};
    void *p[8];
    for (int i = 0; i < 8; i++) p[i] = on_device ? arrays[i]->device : arrays[i]->host;
    return (lmd_cuda_sample_args){.logits = p[0],
                                  .n_rows = self->n_rows,
                                  .logits_stride = self->stride,
                                  .vocab_size = self->vocab_size,
                                  .rows = p[1],
                                  .biases = p[2],
                                  .counts = p[3],
                                  .masks = p[4],
                                  .newest = p[5],
                                  .results = p[6],
                                  .tops = p[7]};
}

static void check_case(suite *s, int32_t vocab_size, int32_t stride, int32_t n_rows,
                       int32_t first_kind) {
    char name[64], ref_name[64];
    const sample_case self = random_case(s, vocab_size, stride, n_rows, first_kind);
    const lmd_cuda_sample_args host = args_of(&self, false), device = args_of(&self, true);
    snprintf(name, sizeof name, "sample of %d", vocab_size);
    snprintf(ref_name, sizeof ref_name, "sample of %d: ref and the definition", vocab_size);
    lmd_cuda_ref.sample(&host, &s->host_queue);
    s->kernels->sample(&device, &s->device_queue);
    suite_run(s, name);
    const outcome defined = {self.defined_results.host, self.defined_tops.host,
                             self.defined_newest.host};
    const outcome ref = {self.results.host, self.tops.host, self.newest.host};
    const outcome tested = {fetched(s, self.results), fetched(s, self.tops),
                            fetched(s, self.newest)};
    compare_outcomes(s, ref_name, defined, ref, n_rows);
    compare_outcomes(s, name, ref, tested, n_rows);
    /* The processed values, and what lies between and behind rows. */
    suite_compare_bytes(s, name, self.logits, self.logits.n_bytes);
    const pair outputs[] = {self.results, self.tops, self.newest, self.biases, self.counts};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++)
        suite_compare_bytes(s, name, outputs[i], 0);
    suite_end_case(s, name);
}

void check_sample(suite *s) {
    /* Rows begin at every alignment, and some follow each other without a gap. */
    static const struct {
        int32_t vocab_size, stride, n_rows, n_cases;
    } shapes[] = {{1, 1, 16, 2},         {2, 3, 16, 3},        {31, 33, 16, 3},
                  {32, 32, 16, 2},       {33, 33, 16, 3},      {1000, 1001, 16, 8},
                  {4097, 4097, 16, 2},   {32003, 32005, 8, 2}, {49152, 49152, 8, 1},
                  {151936, 151937, 4, 1}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int32_t j = 0; j < shapes[i].n_cases; j++)
            check_case(s, shapes[i].vocab_size, shapes[i].stride, shapes[i].n_rows, j);
}
