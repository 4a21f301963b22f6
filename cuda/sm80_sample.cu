/* sample of the row "sm80": backend/sampling.h is the definition; numbers in brackets are its
 * paragraphs.
 * A block makes a token of a row. Values replace the row's logits in place, and each filter is
 * the place in the order where it ends. Nothing is sorted or listed: passes over the row add up
 * integers, which is exact in any order, and narrow down where a sum is reached; among values
 * by digits of their keys, among ids by parts of the row. */
#include "dev.h"

#include <float.h>
#include <math.h>

#include "backend/sampling.h"
#include "cuda_kernels.h"

/* N_THREADS: the most there are, as one block has a whole row to read. DIGIT_BITS: three digits
 * make a key. */
enum {
    N_THREADS = 1024,
    LANES = 32,
    N_WARPS = N_THREADS / LANES,
    DIGIT_BITS = 11,
    N_DIGITS = 1 << DIGIT_BITS
};

static_assert(N_DIGITS == 2 * N_THREADS, "a thread has two digits");

/* What the threads of a block share. */
struct block_memory {
    uint64_t parts[N_WARPS];                /* what each warp found */
    uint32_t low[N_DIGITS], high[N_DIGITS]; /* halves of the sum of each digit */
    double log_sum;
    int32_t n_tops, top_ids[LMD_MAX_LOGPROBS];
    float top_logits[LMD_MAX_LOGPROBS];
    int32_t listed_at; /* an entry of the row's lists */
};

/* What a kept token adds to a sum: 1, its weight, or 1 only if it has the last value. */
enum measure { COUNT, WEIGHT, LAST_VALUE };

/* A row of values, and what the filters keep of it. All threads have the same. */
struct kept_tokens {
    float *values; /* [vocab_size] */
    int32_t vocab_size;
    int32_t n_quads, before; /* see quad */
    uint32_t last_key;       /* the last token of the order that is kept */
    int32_t last_id;
    uint64_t least_weight; /* of min_p */
    float max, temperature;
};

/* Four values that one 16-byte load reads. A row need not begin at a multiple of 16 bytes: then
 * `before` floats lie between such a place and the row, and quad q has the ids from 4 * q -
 * before on. Ids outside the vocabulary are banned. */
struct quad {
    int32_t id;
    float values[4];
};

/* ---- single values ---- */

/* A key that orders values: it ascends with them, and is the same for -0 and 0. */
LMD_DEVICE uint32_t key_of(float value) {
    const uint32_t bits = value == 0.0f ? 0 : __float_as_uint(value);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

LMD_DEVICE float value_of(uint32_t key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

LMD_DEVICE uint64_t weight_of(const kept_tokens *self, float value) {
    return lmd_sample_weight(lmd_sample_exp(value, self->max, self->temperature));
}

/* What a token adds to a sum: nothing if it is not kept. */
template <measure BY>
LMD_DEVICE uint64_t measured(const kept_tokens *self, float value, int32_t id) {
    const uint32_t key = key_of(value);
    const bool is_last = key == self->last_key && id <= self->last_id;
    if (BY == LAST_VALUE) return is_last;
    if (key <= self->last_key && !is_last) return 0;
    if (BY == COUNT) return 1;
    const uint64_t weight = weight_of(self, value);
    return weight >= self->least_weight ? weight : 0;
}

LMD_DEVICE quad load_quad(const kept_tokens *self, int32_t q) {
    quad out;
    out.id = 4 * q - self->before;
    if (out.id >= 0 && out.id + 4 <= self->vocab_size) {
        const uint4 bits = ldg16(self->values + out.id);
        out.values[0] = __uint_as_float(bits.x);
        out.values[1] = __uint_as_float(bits.y);
        out.values[2] = __uint_as_float(bits.z);
        out.values[3] = __uint_as_float(bits.w);
        return out;
    }
    for (int32_t i = 0; i < 4; i++) {
        const int32_t id = out.id + i;
        out.values[i] = id >= 0 && id < self->vocab_size ? self->values[id] : -LMD_INFINITY;
    }
    return out;
}

/* ---- sums over the row ---- */

LMD_DEVICE uint64_t warp_sum(uint64_t x) {
    for (int32_t step = LANES / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* Leaves one number of each warp in memory->parts; lane 0 has it. */
LMD_DEVICE void share_parts(block_memory *memory, uint64_t x) {
    __syncthreads(); /* the parts of before have been read */
    if (threadIdx.x % LANES == 0) memory->parts[threadIdx.x / LANES] = x;
    __syncthreads(); /* every part is there */
}

/* Cuts quads [first, end) into a part for each warp; all but the last have this length. */
LMD_DEVICE int32_t part_len(int32_t first, int32_t end) {
    return (end - first + N_WARPS - 1) / N_WARPS;
}

/* Measures each part of quads [first, end): memory->parts. */
template <measure BY>
LMD_DEVICE void measure_parts(const kept_tokens *self, int32_t first, int32_t end,
                              block_memory *memory) {
    const int32_t len = part_len(first, end), warp = threadIdx.x / LANES;
    const int32_t part_end = min(first + (warp + 1) * len, end);
    uint64_t sum = 0;
    for (int32_t q = first + warp * len + threadIdx.x % LANES; q < part_end; q += LANES) {
        const quad four = load_quad(self, q);
        for (int32_t i = 0; i < 4; i++) sum += measured<BY>(self, four.values[i], four.id + i);
    }
    share_parts(memory, warp_sum(sum));
}

LMD_DEVICE uint64_t total_of_parts(const block_memory *memory) {
    uint64_t total = 0;
    for (int32_t i = 0; i < N_WARPS; i++) total += memory->parts[i];
    return total;
}

/* Finds the first token, in ascending id, at which the running sum reaches `wanted`, which is
 * from 1 to the total. The parts of the whole row have been measured; the one in which the sum
 * is reached is cut in parts again, until one quad is left. */
template <measure BY>
LMD_DEVICE int32_t find_id(const kept_tokens *self, uint64_t wanted, block_memory *memory) {
    int32_t first = 0, end = self->n_quads;
    for (;;) {
        const int32_t len = part_len(first, end);
        for (int32_t part = 0; memory->parts[part] < wanted; part++) {
            wanted -= memory->parts[part];
            first += len;
        }
        end = min(first + len, end);
        if (end - first == 1) break;
        measure_parts<BY>(self, first, end, memory);
    }
    int32_t id = max(4 * first - self->before, 0);
    for (;; id++) {
        const uint64_t each = measured<BY>(self, self->values[id], id);
        if (each >= wanted) return id;
        wanted -= each;
    }
}

/* ---- the order ---- */

/* Adds to the sum of a digit. Two additions of 32 bits: one of 64 in shared memory would be a
 * loop of compare-and-swap, in which threads that add to the same digit wait for each other. A
 * carry may come late, but each comes. */
LMD_DEVICE void add_to_digit(block_memory *memory, uint32_t digit, uint64_t x) {
    const uint32_t low = (uint32_t)x;
    const uint32_t carry = atomicAdd(&memory->low[digit], low) > ~low;
    const uint32_t high = (uint32_t)(x >> 32) + carry;
    if (high > 0) atomicAdd(&memory->high[digit], high);
}

LMD_DEVICE uint64_t digit_sum(const block_memory *memory, uint32_t digit) {
    return (uint64_t)memory->high[digit] << 32 | memory->low[digit];
}

/* Sums each value of the digit that begins at bit `shift`, over the tokens whose keys have the
 * bits of `key` from bit `known` on. A part is what a warp's 2 * LANES digits sum to; the first
 * warp has the highest. */
template <measure BY>
LMD_DEVICE void sum_digits(const kept_tokens *self, uint32_t key, int32_t known, int32_t shift,
                           block_memory *memory) {
    __syncthreads(); /* the sums of before have been read */
    for (int32_t i = threadIdx.x; i < N_DIGITS; i += N_THREADS)
        memory->low[i] = memory->high[i] = 0;
    __syncthreads(); /* every sum is 0 */
    for (int32_t q = threadIdx.x; q < self->n_quads; q += N_THREADS) {
        const quad four = load_quad(self, q);
        for (int32_t i = 0; i < 4; i++) {
            const uint32_t other = key_of(four.values[i]);
            if ((uint64_t)(other ^ key) >> known) continue;
            const uint64_t each = measured<BY>(self, four.values[i], four.id + i);
            if (each > 0) add_to_digit(memory, other >> shift & (N_DIGITS - 1), each);
        }
    }
    __syncthreads(); /* the sums are complete */
    const uint32_t digit = N_DIGITS - 1 - 2 * threadIdx.x;
    share_parts(memory, warp_sum(digit_sum(memory, digit) + digit_sum(memory, digit - 1)));
}

/* Where a running sum over digits, from the highest down, reaches what is wanted. */
struct digit_place {
    uint32_t digit;
    uint64_t wanted; /* of this digit */
    uint64_t sum;    /* of all that this digit has */
};

/* Finds the place where `wanted` is reached, which is from 1 to the total. Each warp measured
 * its 2 * LANES digits, the first warp the highest: memory->parts. */
LMD_DEVICE digit_place find_digit(uint64_t wanted, const block_memory *memory) {
    const uint32_t lane = threadIdx.x % LANES;
    uint32_t top = N_DIGITS - 1;
    for (int32_t part = 0; memory->parts[part] < wanted; part++) {
        wanted -= memory->parts[part];
        top -= 2 * LANES;
    }
    /* Every warp does the same here: a lane has two digits, and the sum of all down to them. */
    uint64_t upper = digit_sum(memory, top - 2 * lane);
    uint64_t lower = digit_sum(memory, top - 2 * lane - 1), sum = upper + lower;
    for (uint32_t step = 1; step < LANES; step *= 2) {
        const uint64_t above = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += above;
    }
    const int32_t reached_by = __ffs(__ballot_sync(0xffffffffu, sum >= wanted)) - 1;
    upper = __shfl_sync(0xffffffffu, upper, reached_by);
    lower = __shfl_sync(0xffffffffu, lower, reached_by);
    wanted -= __shfl_sync(0xffffffffu, sum, reached_by) - upper - lower;
    top -= 2 * reached_by;
    return upper >= wanted ? digit_place{top, wanted, upper}
                           : digit_place{top - 1, wanted - upper, lower};
}

/* What a filter keeps of a total. top_k: so many tokens. top_p: a fraction, but 1 at least, so
 * that the first token stays. */
template <measure BY> LMD_DEVICE uint64_t wanted_of(uint64_t total, uint64_t amount) {
    if (BY == COUNT) return amount;
    const uint64_t share = lmd_sample_share(total, amount);
    return share > 0 ? share : 1;
}

/* Keeps the shortest beginning of the order that has an amount, see wanted_of; all that is kept
 * if it has no more. */
template <measure BY>
LMD_DEVICE void keep_beginning(kept_tokens *self, uint64_t amount, block_memory *memory) {
    uint32_t key = 0;
    digit_place place = {0, 0, 0};
    for (int32_t known = 32; known > 0;) { /* the last two digits share a bit */
        const int32_t shift = max(known - DIGIT_BITS, 0);
        sum_digits<BY>(self, key, known, shift, memory);
        if (known == 32) {
            const uint64_t total = total_of_parts(memory);
            place.wanted = wanted_of<BY>(total, amount);
            if (place.wanted >= total) return;
        }
        place = find_digit(place.wanted, memory);
        key |= place.digit << shift;
        known = shift;
    }
    if (key > self->last_key) self->last_id = self->vocab_size;
    self->last_key = key;
    const uint64_t each = BY == COUNT ? 1 : weight_of(self, value_of(key));
    if (place.sum - place.wanted < each) return; /* all of this value */
    measure_parts<LAST_VALUE>(self, 0, self->n_quads, memory);
    self->last_id = find_id<LAST_VALUE>(self, (place.wanted + each - 1) / each, memory);
}

/* ---- the raw logits, and values ---- */

/* All that is not banned. */
LMD_DEVICE kept_tokens keep_all(float *values, int32_t vocab_size, float max,
                                float temperature) {
    kept_tokens all;
    all.values = values;
    all.vocab_size = vocab_size;
    all.before = (int32_t)((uintptr_t)values / sizeof *values % 4);
    all.n_quads = (vocab_size + all.before + 3) / 4;
    all.last_key = key_of(-FLT_MAX);
    all.last_id = vocab_size;
    all.least_weight = 0;
    all.max = max;
    all.temperature = temperature;
    return all;
}

/* A token's rank, the higher the earlier it comes in the order: its key, and below it the
 * complement of its id. */
LMD_DEVICE uint64_t rank_of(float value, int32_t id) {
    return (uint64_t)key_of(value) << 32 | ~(uint32_t)id;
}

LMD_DEVICE uint32_t key_of_rank(uint64_t rank) { return (uint32_t)(rank >> 32); }
LMD_DEVICE int32_t id_of_rank(uint64_t rank) { return (int32_t) ~(uint32_t)rank; }

/* What no finite value ranks. */
#define RANK_NOT_FINITE UINT64_MAX

/* Finds the rank of the first token; of raw values, RANK_NOT_FINITE if one is a NaN or
 * infinite. */
LMD_DEVICE uint64_t first_rank(const kept_tokens *self, bool are_raw, block_memory *memory) {
    uint64_t first = 0;
    for (int32_t q = threadIdx.x; q < self->n_quads; q += N_THREADS) {
        const quad four = load_quad(self, q);
        for (int32_t i = 0; i < 4; i++) {
            const int32_t id = four.id + i;
            const bool is_finite =
                (__float_as_uint(four.values[i]) & 0x7fffffffu) < 0x7f800000u;
            if (is_finite || !are_raw)
                first = max(first, rank_of(four.values[i], id));
            else if (id >= 0 && id < self->vocab_size)
                first = RANK_NOT_FINITE;
        }
    }
    for (int32_t step = LANES / 2; step > 0; step /= 2)
        first = max(first, __shfl_xor_sync(0xffffffffu, first, step));
    share_parts(memory, first);
    for (int32_t i = 0; i < N_WARPS; i++) first = max(first, memory->parts[i]);
    return first;
}

/* ---- log-probabilities [3] ---- */

/* Writes the n most likely tokens: each finds its place among the others. */
LMD_DEVICE void write_tops(kept_tokens raw, int32_t n, double log_sum, block_memory *memory,
                           lmd_cuda_tops *out) {
    keep_beginning<COUNT>(&raw, (uint64_t)n, memory);
    if (threadIdx.x == 0) memory->n_tops = 0;
    __syncthreads(); /* the list is empty */
    for (int32_t q = threadIdx.x; q < raw.n_quads; q += N_THREADS) {
        const quad four = load_quad(&raw, q);
        for (int32_t i = 0; i < 4; i++) {
            if (!measured<COUNT>(&raw, four.values[i], four.id + i)) continue;
            const int32_t at = atomicAdd(&memory->n_tops, 1);
            memory->top_ids[at] = four.id + i;
            memory->top_logits[at] = four.values[i];
        }
    }
    __syncthreads(); /* the list is complete */
    const int32_t n_tops = memory->n_tops, t = threadIdx.x;
    if (t == 0) out->n = n_tops;
    if (t >= n_tops) return;
    const int32_t id = memory->top_ids[t];
    const float logit = memory->top_logits[t];
    int32_t place = 0;
    for (int32_t i = 0; i < n_tops; i++)
        place += rank_of(memory->top_logits[i], memory->top_ids[i]) > rank_of(logit, id);
    out->ids[place] = id;
    out->logprobs[place] = (float)(logit - log_sum);
}

/* Finds log(sum exp(logits)). One thread computes the logarithm: doubles are slow. */
LMD_DEVICE double log_sum_of(const kept_tokens *raw, block_memory *memory) {
    measure_parts<WEIGHT>(raw, 0, raw->n_quads, memory);
    if (threadIdx.x == 0)
        memory->log_sum = (double)raw->max + log((double)total_of_parts(memory) * 0x1p-40);
    __syncthreads(); /* everyone reads it */
    return memory->log_sum;
}

/* ---- processing [4] ---- */

/* Makes values of the logits. Each list keeps what it replaces: a bias becomes the value that
 * it was added to, a count the bits of the value that was penalised. */
LMD_DEVICE void process(const lmd_cuda_sample_args *args, const lmd_cuda_sample_row *row,
                        float *values) {
    /* A token may have several biases, whose order counts: a thread walks over the whole list,
     * and adds those of its own tokens. */
    lmd_token_bias *biases = args->biases + row->first_bias;
    for (int32_t i = 0; i < row->n_biases; i++) {
        const int32_t id = biases[i].token_id;
        if (id % N_THREADS != (int32_t)threadIdx.x) continue;
        const float before = values[id];
        values[id] = lmd_sample_add_bias(before, biases[i].bias);
        biases[i].bias = before;
    }
    __syncthreads(); /* penalties are for biased values; their tokens are distinct */
    lmd_token_count *counts = args->counts + row->first_count;
    lmd_sample_params penalties = {};
    penalties.repetition_penalty = row->repetition_penalty;
    penalties.presence_penalty = row->presence_penalty;
    penalties.frequency_penalty = row->frequency_penalty;
    for (int32_t i = threadIdx.x; i < row->n_counts; i += N_THREADS) {
        const int32_t id = counts[i].token_id;
        const float before = values[id];
        values[id] = lmd_sample_penalise(before, &penalties, counts[i].n_output);
        counts[i].n_output = __float_as_int(before);
    }
    __syncthreads(); /* other threads ban, and read the values */
    if (row->first_mask < 0) return;
    const uint32_t *mask = args->masks + row->first_mask;
    for (int32_t id = threadIdx.x; id < args->vocab_size; id += N_THREADS)
        if (!(mask[id / 32] >> (id % 32) & 1)) values[id] = -LMD_INFINITY;
    __syncthreads(); /* other threads read the values */
}

/* Finds the raw logit of a token that is not banned, after `process`: what the token's first
 * entry in a list replaced. */
LMD_DEVICE float raw_logit(const lmd_cuda_sample_args *args, const lmd_cuda_sample_row *row,
                           const float *values, int32_t token_id, block_memory *memory) {
    const lmd_token_bias *biases = args->biases + row->first_bias;
    const lmd_token_count *counts = args->counts + row->first_count;
    const int32_t n_biases = row->n_biases, n_entries = n_biases + row->n_counts;
    if (threadIdx.x == 0) memory->listed_at = n_entries;
    __syncthreads(); /* before anyone lowers it */
    for (int32_t i = threadIdx.x; i < n_entries; i += N_THREADS) {
        const int32_t id = i < n_biases ? biases[i].token_id : counts[i - n_biases].token_id;
        if (id == token_id) atomicMin(&memory->listed_at, i);
    }
    __syncthreads(); /* every entry was seen */
    const int32_t at = memory->listed_at;
    return at < n_biases    ? biases[at].bias
           : at < n_entries ? __int_as_float(counts[at - n_biases].n_output)
                            : values[token_id];
}

/* ---- tokens ---- */

/* Applies the filters in turn [7, 9, 10], and draws [11]. */
LMD_DEVICE int32_t draw(kept_tokens kept, const lmd_cuda_sample_row *row,
                        block_memory *memory) {
    if (row->top_k > 0) keep_beginning<COUNT>(&kept, (uint64_t)row->top_k, memory);
    if (row->top_p < 1.0f)
        keep_beginning<WEIGHT>(&kept, lmd_sample_fraction(row->top_p), memory);
    kept.least_weight = lmd_sample_weight(row->min_p);
    measure_parts<WEIGHT>(&kept, 0, kept.n_quads, memory);
    const uint64_t random = lmd_sample_random(row->seed, row->position, row->sample_idx, 0);
    const uint64_t share = lmd_sample_share(total_of_parts(memory), random);
    return find_id<WEIGHT>(&kept, share + 1, memory);
}

/* Makes a token of a row; all threads return the same. */
LMD_DEVICE lmd_cuda_sample_result sample_row(const lmd_cuda_sample_args *args,
                                             const lmd_cuda_sample_row *row, float *logits,
                                             lmd_cuda_tops *tops, block_memory *memory) {
    const bool is_scored = row->n_logprobs > 0 || row->target_id >= 0;
    const bool is_processed = row->n_biases > 0 || row->n_counts > 0 || row->first_mask >= 0;
    lmd_cuda_sample_result out = {-1, 0, 0.0f, 0.0f};
    double log_sum = 0.0;
    kept_tokens tokens = keep_all(logits, args->vocab_size, 0.0f, 1.0f);
    uint64_t first = first_rank(&tokens, true, memory);
    out.not_finite = first == RANK_NOT_FINITE;
    if (tops && threadIdx.x == 0) tops->n = 0;
    if (out.not_finite) return out;
    tokens.max = value_of(key_of_rank(first));
    if (is_scored) log_sum = log_sum_of(&tokens, memory);
    if (row->target_id >= 0) out.target_logprob = (float)(logits[row->target_id] - log_sum);
    if (tops && row->n_logprobs > 0) write_tops(tokens, row->n_logprobs, log_sum, memory, tops);
    if (!row->wants_token) return out;
    if (is_processed) {
        __syncthreads(); /* every thread has read the raw logits */
        process(args, row, logits);
        first = first_rank(&tokens, false, memory);
        tokens.max = value_of(key_of_rank(first));
    }
    if (tokens.max == -LMD_INFINITY) return out; /* everything is banned */
    tokens.temperature = row->temperature;
    out.token_id =
        row->greedy || row->temperature <= 0.0f ? id_of_rank(first) : draw(tokens, row, memory);
    if (is_scored)
        out.token_logprob =
            (float)(raw_logit(args, row, logits, out.token_id, memory) - log_sum);
    return out;
}

LMD_KERNEL(N_THREADS) sample_rows(lmd_cuda_sample_args args) {
    __shared__ block_memory memory;
    const lmd_cuda_sample_row *row = &args.rows[blockIdx.x];
    float *logits = args.logits + (int64_t)blockIdx.x * args.logits_stride; /* [vocab_size] */
    lmd_cuda_tops *tops = row->logprobs_at < 0 ? NULL : &args.tops[row->logprobs_at];
    const lmd_cuda_sample_result result = sample_row(&args, row, logits, tops, &memory);
    if (threadIdx.x > 0) return;
    args.results[blockIdx.x] = result;
    if (row->slot >= 0 && result.token_id >= 0) args.newest[row->slot] = result.token_id;
}

void lmd_sm80_sample(const lmd_cuda_sample_args *args, lmd_cuda_queue *queue) {
    if (args->n_rows > 0)
        LMD_LAUNCH(queue, sample_rows, dim3(args->n_rows), N_THREADS, 0, *args);
}

/* Everything happens in place. */
size_t lmd_sm80_sample_scratch(const lmd_cuda_limits *limits) {
    (void)limits;
    return 0;
}

cudaError_t lmd_sm80_sample_prepare(void) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, (const void *)sample_rows);
}
