/* Sampling: the weights of every kernel table against backend/sampling.h bit for bit, and
 * whole rows against the definition written a second time. For check_kernels.c. */
#include <float.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend/sampling.h"
#include "base/half.h"
#include "check_kernels.h"
#include "cpu/cpu_sampling.h"
#include "sampling_definition.h"

enum { MAX_VOCAB = 20000, MAX_WEIGHTS = 1 << 18, N_ROWS = 1500 };

static float values[MAX_WEIGHTS], weights[MAX_WEIGHTS];

/* ---- weights ---- */

/* The kernel's exponentials have the definition's bits, and their sum is exact. */
static void check_weigh(const lmd_cpu_kernels *kernels, int n, float max, float temperature,
                        const char *what) {
    uint64_t total = 0;
    poison(weights, sizeof weights);
    uint64_t got = kernels->weigh(weights, values, n, max, temperature);
    for (int i = 0; i < n; i++) {
        float e = lmd_sample_exp(values[i], max, temperature);
        total += lmd_sample_weight(e);
        if (memcmp(&e, &weights[i], sizeof e) != 0)
            check(false, what, kernels->isa, n, i, (int)lmd_float_to_bits(values[i]));
    }
    check(got == total, what, kernels->isa, n, -1, 0);
    check(lmd_float_to_bits(weights[n]) == 0xffffffff, what, kernels->isa, n, n, 0);
}

static void check_weights_of_sizes(const lmd_cpu_kernels *kernels) {
    static const float temperatures[] = {1e-45f, 1e-38f, 1e-3f, 0.7f, 1.0f, 3.0f, 100.0f};
    for (int n = 1; n < 2200; n += n < 70 ? 1 : 97)
        for (int t = 0; t < 7; t++) {
            float max = -INFINITY;
            for (int i = 0; i < n; i++) {
                values[i] = random_float() * 15.0f;
                if (random_u32() % 16 == 0) values[i] = -INFINITY;
                if (values[i] > max) max = values[i];
            }
            if (max == -INFINITY) max = values[n - 1] = 1.0f;
            check_weigh(kernels, n, max, temperatures[t], "weights of a size");
        }
    for (int i = 0; i < MAX_WEIGHTS - 1; i++) values[i] = 3.0f; /* the largest sum there is */
    check_weigh(kernels, MAX_WEIGHTS - 1, 3.0f, 0.01f, "weights of equal values");
}

/* Every 2003rd float from -0 to -31, and what stands at the borders. */
static void check_weights_of_floats(const lmd_cpu_kernels *kernels) {
    static const float borders[] = {0.0f,     -0.0f, -1e-45f,  -FLT_MIN, -27.72f,
                                    -27.725f, -30.f, -86.99f,  -87.0f,   -87.01f,
                                    -1000.f,  -1e30, -FLT_MAX, -INFINITY};
    const int n_borders = sizeof borders / sizeof *borders;
    int n = 0;
    memcpy(values, borders, sizeof borders);
    check_weigh(kernels, n_borders, 0.0f, 1.0f, "weights at borders");
    values[0] = FLT_MAX;
    check_weigh(kernels, n_borders, FLT_MAX, 100.0f, "weights below the largest float");
    for (uint32_t bits = 0x80000000u; bits < lmd_float_to_bits(-31.0f); bits += 2003) {
        values[n++] = lmd_bits_to_float(bits);
        if (n == MAX_WEIGHTS - 1) {
            check_weigh(kernels, n, 0.0f, 1.0f, "weights of all floats");
            n = 0;
        }
    }
    check_weigh(kernels, n, 0.0f, 1.0f, "weights of all floats");
}

/* What the definition says of its exponential: close, never above 1, exactly 1 at 0. */
static void check_exponential(void) {
    for (uint32_t bits = 0x80000000u; bits < lmd_float_to_bits(-40.0f); bits += 1009) {
        float x = lmd_bits_to_float(bits), e = lmd_sample_exp(x, 0.0f, 1.0f);
        double exact = exp((double)x);
        check(e <= 1.0f && fabs(e - exact) < 2e-7 * exact, "exp", "definition", (int)bits, 0,
              0);
    }
    check(lmd_sample_weight(lmd_sample_exp(7.0f, 7.0f, 1e-45f)) == LMD_SAMPLE_ONE, "exp(0)",
          "definition", 0, 0, 0);
}

/* ---- random numbers and thresholds ---- */

/* The vectors published with Random123. */
static void check_philox(void) {
    static const struct {
        uint32_t counter;
        uint64_t key;
        uint32_t out[4];
    } known[] = {
        {0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT32_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    };
    for (int i = 0; i < 2; i++) {
        const uint32_t c = known[i].counter;
        uint32_t words[4] = {c, c, c, c};
        lmd_philox4x32_10(words, known[i].key);
        check(memcmp(words, known[i].out, sizeof words) == 0, "Philox", "definition", i, 0, 0);
    }
}

typedef unsigned __int128 u128;

static uint64_t random_u64(void) { return (uint64_t)random_u32() << 32 | random_u32(); }

static void check_share(void) {
    for (int i = 0; i < 200000; i++) {
        uint64_t a = random_u64() >> random_u32() % 64, b = random_u64() >> random_u32() % 64;
        if (i % 5 == 0) a = ~a;
        if (i % 7 == 0) b = ~b;
        check(lmd_sample_share(a, b) == (uint64_t)((u128)a * b >> 64), "share", "definition", i,
              0, 0);
    }
}

/* ---- random rows ---- */

static lmd_token_bias biases[8];
static lmd_token_count counts[64];
static uint32_t mask[MAX_VOCAB / 32 + 1];

static int32_t random_below(int32_t n) { return (int32_t)(random_u32() % (uint32_t)n); }

#define ONE_OF(array) (array)[random_u32() % (sizeof(array) / sizeof *(array))]

static void random_logits(float *logits, int32_t n) {
    static const float scales[] = {0.0f, 1e-40f, 1.0f, 6.0f, 30.0f, 1.5e38f};
    const float scale = ONE_OF(scales);
    const bool ties = random_u32() % 3 == 0;
    for (int32_t i = 0; i < n; i++) {
        float sum = random_float() + random_float() + random_float();
        logits[i] = (ties ? rintf(sum * 3.0f) / 9.0f : sum / 3.0f) * scale;
    }
    if (scale == 6.0f) logits[random_below(n)] = 9.0f;
}

static const uint32_t *random_mask(int32_t vocab_size) {
    const uint32_t kind = random_u32() % 8;
    const int32_t only = random_below(vocab_size);
    for (int i = 0; i < vocab_size / 32 + 1; i++)
        mask[i] = kind == 0   ? 0
                  : kind == 1 ? UINT32_MAX
                  : kind == 2 ? random_u32() & random_u32() & random_u32() & random_u32()
                              : random_u32();
    if (kind == 3) memset(mask, 0, sizeof mask);
    if (kind == 3) mask[only / 32] = 1u << (only % 32);
    /* Bits past the vocabulary mean nothing. */
    if (kind == 0 && vocab_size % 32) mask[vocab_size / 32] = UINT32_MAX << (vocab_size % 32);
    return random_u32() % 2 ? mask : NULL;
}

static void random_penalties(lmd_sample_params *p, int32_t vocab_size) {
    static const float repetitions[] = {1.0f, 1.3f, 0.7f, 1e3f, 1e-3f};
    p->repetition_penalty = ONE_OF(repetitions);
    p->presence_penalty = random_float();
    p->frequency_penalty = random_u32() % 4 ? random_float() : 1e3f;
    p->n_biases = random_below(9);
    p->n_counts = random_below(vocab_size < 64 ? vocab_size + 1 : 64);
    for (int i = 0; i < p->n_biases; i++)
        biases[i] = (lmd_token_bias){random_below(vocab_size), random_float() * 5.0f};
    if (p->n_biases) biases[0].bias = -INFINITY;
    const int32_t first = random_below(vocab_size); /* distinct tokens */
    for (int i = 0; i < p->n_counts; i++)
        counts[i] = (lmd_token_count){(first + i) % vocab_size, random_below(4)};
    p->biases = biases;
    p->counts = counts;
}

static lmd_sample_params random_params(int32_t vocab_size) {
    static const float temperatures[] = {0.0f, 1e-45f, 1e-3f, 0.3f, 1.0f, 1.0f, 5.0f, 100.0f};
    static const float top_ps[] = {1.0f, 1.0f, 0.9f, 0.5f, 0.1f, 0.0f, 1e-12f, 0x1.fffffep-1f};
    static const float min_ps[] = {0.0f, 0.0f, 0.05f, 0.5f, 1.0f, 1e-11f, 1e-13f};
    const int32_t top_ks[] = {0, 0, 1, 2, 40, vocab_size, vocab_size + 5};
    lmd_sample_params p = {.wants_token = true,
                           .greedy = random_u32() % 8 == 0,
                           .temperature = ONE_OF(temperatures),
                           .top_k = ONE_OF(top_ks),
                           .top_p = ONE_OF(top_ps),
                           .min_p = ONE_OF(min_ps),
                           .repetition_penalty = 1.0f,
                           .seed = random_u64(),
                           .position = random_u32(),
                           .sample_idx = random_u32() % 3,
                           .target_id = random_below(vocab_size + 1) - 1,
                           .n_logprobs = random_below(6)};
    p.mask = random_mask(vocab_size);
    if (random_u32() % 2) random_penalties(&p, vocab_size);
    return p;
}

/* Log-probabilities against long double: the weights' rounding costs 2^-40 a token. */
static void check_scores(const lmd_cpu_kernels *kernels, const float *logits, int32_t n,
                         const lmd_sample_params *p, const lmd_sample_result *result) {
    int32_t top_ids[LMD_MAX_LOGPROBS];
    const int32_t n_top = p->n_logprobs < n ? p->n_logprobs : n;
    const long double log_sum = defined_log_sum(logits, n, n_top, top_ids);
    const long double size = 1.0L + fabsl(log_sum);
    check(result->n_top == n_top, "n_top", kernels->isa, n, result->n_top, 0);
    for (int i = 0; i < n_top; i++) {
        long double exact = logits[top_ids[i]] - log_sum;
        check(result->top_ids[i] == top_ids[i], "top id", kernels->isa, n, i, 0);
        check(fabsl(result->top_logprobs[i] - exact) < 1e-6L * (size + fabsl(exact)),
              "top logprob", kernels->isa, n, i, 0);
    }
    const long double exact = p->target_id >= 0 ? logits[p->target_id] - log_sum : 0.0L;
    check(fabsl(result->target_logprob - exact) < 1e-6L * (size + fabsl(exact)),
          "target logprob", kernels->isa, n, p->target_id, 0);
}

static void check_row(const lmd_cpu_kernels *kernels, lmd_cpu_sample_scratch *scratch,
                      int32_t vocab_size, int row) {
    static float logits[MAX_VOCAB], copy[MAX_VOCAB];
    lmd_sample_result result;
    random_logits(logits, vocab_size);
    lmd_sample_params p = random_params(vocab_size);
    p.logits_out = row % 2 ? copy : NULL;
    poison(&result, sizeof result);
    lmd_cpu_sample_row(kernels, logits, vocab_size, &p, scratch, &result);
    int32_t expected = defined_token(logits, vocab_size, &p);
    check(!result.not_finite && result.token_id == expected, "token", kernels->isa, row,
          result.token_id, expected);
    check_scores(kernels, logits, vocab_size, &p, &result);
    if (row % 2)
        check(memcmp(copy, logits, (size_t)vocab_size * sizeof *logits) == 0, "copy",
              kernels->isa, row, 0, 0);
    logits[random_below(vocab_size)] = row % 3 ? NAN : row % 2 ? INFINITY : -INFINITY;
    lmd_cpu_sample_row(kernels, logits, vocab_size, &p, scratch, &result);
    check(result.not_finite && result.token_id == -1, "not finite", kernels->isa, row, 0, 0);
}

void check_sampling(const lmd_cpu_kernels *kernels) {
    static const int32_t sizes[] = {1, 2, 31, 32, 33, 64, 100, 257, 800, 3000};
    lmd_cpu_sample_scratch scratch;
    lmd_err err;
    check_exponential();
    check_philox();
    check_share();
    check_weights_of_sizes(kernels);
    check_weights_of_floats(kernels);
    if (lmd_cpu_sample_scratch_init(&scratch, MAX_VOCAB, &err) != LMD_OK) exit(1);
    for (int row = 0; row < N_ROWS; row++) {
        int32_t size = ONE_OF(sizes);
        check_row(kernels, &scratch, row % 500 == 0 ? MAX_VOCAB : size, row);
    }
    lmd_cpu_sample_scratch_clear(&scratch);
    printf("ok   %-23s sampling\n", kernels->isa);
}
