/* The part of the kernel harness for attention and the KV cache: compares every table with the
 * reference, bit for bit, and the reference with softmax in double. */
#include "check_kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/half.h"
#include "base/memory.h"
#include "cpu/cpu_features.h"
#include "quant/kv_quant.h"

enum { MAX_CONTEXT = 600 };

static float key[MAX_CONTEXT][LMD_MAX_HEAD_DIM], value[MAX_CONTEXT][LMD_MAX_HEAD_DIM];
static float query[LMD_ATTEND_ROWS][LMD_MAX_HEAD_DIM];
static lmd_attend_state state_ref, state_new;

/* Gives `vector` as it is read from the cache. */
static void stored_as(const float *vector, int dim, int bits, float *out) {
    uint8_t codes[LMD_MAX_HEAD_DIM];
    if (bits < 16) lmd_kv_decode(codes, dim, lmd_kv_encode(vector, dim, bits, codes), out);
    for (int d = 0; bits >= 16 && d < dim; d++)
        out[d] = bits == 32 ? vector[d] : lmd_half_to_float(lmd_float_to_half(vector[d]));
}

/* Computes softmax attention of one row over [0, end) in double. */
static void attend_double(int row, int end, const lmd_kv_format *format, double *o) {
    static double p[MAX_CONTEXT];
    const int dim = format->head_dim;
    double max = -INFINITY, sum = 0.0;
    float read[LMD_MAX_HEAD_DIM];
    for (int t = 0; t < end; t++) {
        p[t] = 0.0;
        stored_as(key[t], dim, format->k_bits, read);
        for (int d = 0; d < dim; d++) p[t] += (double)query[row][d] * read[d];
        max = p[t] > max ? p[t] : max;
    }
    memset(o, 0, (size_t)dim * sizeof *o);
    for (int t = 0; t < end; t++) {
        double e = exp(p[t] - max);
        sum += e;
        stored_as(value[t], dim, format->v_bits, read);
        for (int d = 0; d < dim; d++) o[d] += e * read[d];
    }
    for (int d = 0; d < dim; d++) o[d] /= sum;
}

static void run_chunks(const lmd_cpu_kernels *kernels, lmd_attend_state *state,
                       lmd_attend_args *args, int context, float (*o)[LMD_MAX_HEAD_DIM]) {
    float max[LMD_ATTEND_ROWS], sum[LMD_ATTEND_ROWS] = {0};
    for (args->begin = 0; args->begin < context; args->begin += LMD_CHUNK_LEN) {
        args->end =
            args->begin + LMD_CHUNK_LEN < context ? args->begin + LMD_CHUNK_LEN : context;
        poison(state, sizeof *state);
        kernels->attend_chunk(state, args);
        for (int r = 0; r < args->n_rows; r++)
            kernels->attend_fold(&max[r], &sum[r], o[r], state->max[r], state->sum[r],
                                 state->o[r], args->format.head_dim);
    }
    for (int r = 0; r < args->n_rows; r++)
        for (int d = 0; d < args->format.head_dim; d++) o[r][d] *= 1.0f / sum[r];
}

typedef enum kv_kind {
    PLAIN,   /* random values of two sizes, and some constant vectors */
    OUTLIER, /* in every fifth key, one column is 100 times as large */
    EXTREME  /* sums are as large as they can be */
} kv_kind;

static void random_kv(int t, int dim, kv_kind kind) {
    bool extreme = kind == EXTREME;
    float size = t % 7 == 3 ? 1e-3f : 1.0f;
    for (int d = 0; d < dim; d++) {
        key[t][d] = extreme ? d == 0 ? -1.0f : 1.0f : size * random_float();
        value[t][d] = extreme ? d == dim - 1 ? -1.0f : 1.0f : size * random_float();
        if (t % 11 == 5) key[t][d] = value[t][d] = 0.25f;
    }
    if (kind == OUTLIER && t % 5 == 2) key[t][t % dim] *= 100.0f;
}

/* Floats: a score is a sum of 16 chains, of at most 16 additions each and four more. Where an
 * outlier brings it to 100, an addition rounds by up to 4e-6, and the score by up to 8e-5.
 * Codes: conversion to integers rounds a query by up to half of 1/32639 of its largest element,
 * here 1. With a key that has an outlier of 100 that is an error of 1.5e-3 in the score, of
 * 3e-3 in the difference of two such scores, of a quarter of that in their weights, and
 * of 1.5e-3 in an output between two values that differ by 2. The error of other scores is
 * smaller than that of rounding the key to fp16. */
static double tolerance_of(const lmd_kv_format *format, kv_kind kind) {
    if (format->k_bits >= 16) return kind == OUTLIER ? 8e-5 : 2e-5;
    return kind == OUTLIER ? 2e-3 : 1e-3;
}

static void check_attention(const lmd_cpu_kernels *kernels, lmd_kv_format format, int context,
                            int n_rows, kv_kind kind) {
    static float o_ref[LMD_ATTEND_ROWS][LMD_MAX_HEAD_DIM],
        o_new[LMD_ATTEND_ROWS][LMD_MAX_HEAD_DIM];
    static float o_alone[LMD_ATTEND_ROWS][LMD_MAX_HEAD_DIM];
    const int dim = format.head_dim, block_len = format.block_len;
    int n_blocks = (context + block_len - 1) / block_len;
    int64_t stride = lmd_kv_head_bytes(&format);
    size_t pool_bytes = (size_t)(stride * n_blocks) + LMD_KV_PADDING;
    uint8_t *pool = lmd_alloc_large(pool_bytes);
    poison(pool, pool_bytes); /* positions that are never written are NaN */
    int32_t ids[MAX_CONTEXT], ends[LMD_ATTEND_ROWS];
    for (int b = 0; b < n_blocks; b++) ids[b] = n_blocks - 1 - b;
    for (int t = 0; t < context; t++) {
        random_kv(t, dim, kind);
        kernels->kv_write(pool + ids[t / block_len] * stride, key[t], value[t], t % block_len,
                          &format);
    }
    for (int r = 0; r < n_rows; r++) {
        ends[r] = context - n_rows + 1 + r < 1 ? 1 : context - n_rows + 1 + r;
        for (int d = 0; d < dim; d++) query[r][d] = kind == EXTREME ? 1.0f : random_float();
    }
    lmd_attend_args args = {.q = query[0],
                            .n_rows = n_rows,
                            .row_ends = ends,
                            .last = context,
                            .format = format,
                            .kv = pool,
                            .block_stride = stride,
                            .block_ids = ids};
    run_chunks(&lmd_cpu_kernels_ref, &state_ref, &args, context, o_ref);
    run_chunks(kernels, &state_new, &args, context, o_new);
    for (int r = 0; r < n_rows; r++) {
        double exact[LMD_MAX_HEAD_DIM];
        check(same(o_ref[r], o_new[r], dim), "attention", kernels->isa, dim, context, r);
        attend_double(r, ends[r], &format, exact);
        for (int d = 0; d < dim; d++)
            check(fabs(exact[d] - o_ref[r][d]) < tolerance_of(&format, kind),
                  "attention vs double", "ref", dim, context, r);
        lmd_attend_args alone = args; /* this row by itself, up to its own end */
        alone.q = query[r];
        alone.n_rows = 1;
        alone.row_ends = &ends[r];
        run_chunks(kernels, &state_new, &alone, ends[r], o_alone);
        check(same(o_new[r], o_alone[0], dim), "attention row alone", kernels->isa, dim,
              context, r);
    }
    lmd_free_large(pool, pool_bytes);
}

/* Writing one position must change the same bytes as with the reference, and none that another
 * position changes. */
static void check_kv_write(const lmd_cpu_kernels *kernels, lmd_kv_format format) {
    const int64_t n_bytes = lmd_kv_head_bytes(&format);
    uint8_t *block = malloc((size_t)n_bytes), *expected = malloc((size_t)n_bytes);
    int *owner = calloc((size_t)n_bytes, sizeof *owner);
    if (!block || !expected || !owner) exit(1);
    for (int t = 0; t < format.block_len; t++) {
        random_kv(t, format.head_dim, PLAIN);
        for (int byte = 0; byte < 256; byte += 255) { /* into a block of zeros, and of ones */
            memset(block, byte, (size_t)n_bytes);
            memset(expected, byte, (size_t)n_bytes);
            kernels->kv_write(block, key[t], value[t], t, &format);
            lmd_cpu_kernels_ref.kv_write(expected, key[t], value[t], t, &format);
            check(memcmp(block, expected, (size_t)n_bytes) == 0, "kv_write", kernels->isa,
                  format.head_dim, format.k_bits, format.v_bits);
            for (int64_t i = 0; i < n_bytes; i++)
                if (block[i] != byte) {
                    check(owner[i] == 0 || owner[i] == t + 1, "kv_write's neighbour",
                          kernels->isa, format.head_dim, t, (int)i);
                    owner[i] = t + 1;
                }
        }
    }
    free(block);
    free(expected);
    free(owner);
}

void check_attentions(const lmd_cpu_kernels *kernels) {
    static const int dims[] = {8, 40, 64, 72, 80, 88, 128, 256};
    static const int contexts[] = {1, 2, 15, 17, 63, 64, 65, 127, 255, 256, 257, 320, 513, 600};
    static const int bits[][2] = {{32, 32}, {16, 16}, {8, 8}, {4, 4}, {8, 4}, {4, 8}};
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 14; j++)
            for (int b = 0; b < 6; b++) {
                lmd_kv_format format = {64, dims[i], bits[b][0], bits[b][1]};
                int rows = (i * 5 + j * 3 + b) % LMD_ATTEND_ROWS + 1;
                if ((i + j) % 2 == b % 2 || b > 1)
                    check_attention(kernels, format, contexts[j], rows < contexts[j] ? rows : 1,
                                    PLAIN);
            }
    for (int b = 1; b < 6; b++) {
        for (int block_len = 16; block_len <= 256; block_len *= 2)
            check_attention(kernels, (lmd_kv_format){block_len, 64, bits[b][0], bits[b][1]},
                            300, 7, PLAIN);
        check_attention(kernels, (lmd_kv_format){256, 256, bits[b][0], bits[b][1]}, 300, 3,
                        EXTREME);
        check_attention(kernels, (lmd_kv_format){64, 128, bits[b][0], bits[b][1]}, 300, 4,
                        OUTLIER);
        for (int i = 0; i < 8; i++)
            check_kv_write(kernels, (lmd_kv_format){32, dims[i], bits[b][0], bits[b][1]});
    }
    printf("ok   %-23s attention\n", kernels->isa);
}
