/* The kernel harness: compares every kernel of every usable ISA with the reference, bit for bit
 * because the arithmetic is fixed, and the reference with plain double arithmetic. Outputs are
 * poisoned first, sizes are odd, inputs extreme. Prints "ok" lines and speeds for each ISA, and
 * a line for each mismatch; exits 1 if there was one. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/half.h"
#include "base/memory.h"
#include "check_kernels.h"
#include "cpu/cpu_features.h"
#include "cpu/cpu_weight.h"
#include "quant/packed_check.h"

static uint64_t random_state = 88172645463325252u;

uint32_t random_u32(void) { /* xorshift64* */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)(random_state * 2685821657736338717u >> 32);
}

float random_float(void) { return (float)random_u32() / 2147483648.0f - 1.0f; }

static int failures;

void check(bool ok, const char *what, const char *isa, int a, int b, int c) {
    if (ok) return;
    printf("MISMATCH %s [%s] %d %d %d\n", what, isa, a, b, c);
    failures++;
}

/* ---- random weights in stored form, with ordinary or extreme scales ---- */

enum { MAX_K = 1056, MAX_N = 80, MAX_M = 70 };

static uint8_t stored[MAX_N * MAX_K * 4];

static void random_stored(lmd_dtype dtype, int n_rows, int n_cols, int extreme) {
    size_t n_bytes = (size_t)(lmd_dtype_row_bytes(dtype, n_cols) * n_rows);
    for (size_t i = 0; i < n_bytes; i++)
        stored[i] = extreme == 2 ? 0xff : (uint8_t)random_u32();
    if (lmd_dtype_block_len(dtype) == 1) {
        for (int i = 0; i < n_rows * n_cols; i++) {
            float x = random_float();
            uint16_t h = dtype == LMD_F16 ? lmd_float_to_half(x) : lmd_float_to_bf16(x);
            if (dtype == LMD_F32)
                memcpy(stored + i * 4, &x, 4);
            else
                memcpy(stored + i * 2, &h, 2);
        }
        return;
    }
    /* The half scales come first in each block; replace those of the formats with 32 values. */
    int bytes = lmd_dtype_block_bytes(dtype);
    int n_scales = dtype == LMD_Q4_1 || dtype == LMD_Q5_1 ? 2 : 1;
    for (size_t at = 0; at < n_bytes; at += (size_t)bytes)
        for (int s = 0; s < n_scales; s++) {
            float scale = extreme == 1 && random_u32() % 4 == 0 ? 0.0f : random_float() * 0.1f;
            uint16_t h = lmd_float_to_half(scale);
            memcpy(stored + at + 2 * s, &h, 2);
        }
}

static lmd_arena arena; /* holds the panels of all matrices */

typedef struct matrix {
    lmd_weight *weight;
    lmd_dtype dtype;
    int n, k;
} matrix;

static matrix pack_part(lmd_threads *threads, const lmd_weight_part *part, lmd_dtype dtype,
                        int k) {
    lmd_weight_source src = {.n_parts = 1, .n_cols = k, .parts = {*part}};
    matrix m = {NULL, dtype, part->n_rows, k};
    lmd_err err;
    if (lmd_cpu_weight_pack(&src, &lmd_cpu_kernels_ref, threads, &arena, &m.weight, &err) !=
        LMD_OK) {
        printf("pack failed: %s\n", err.message);
        exit(1);
    }
    return m;
}

/* Packs the rows in `stored`. */
static matrix pack_stored(lmd_threads *threads, lmd_dtype dtype, int n, int k) {
    lmd_tensor_view view = {
        .name = "w", .dtype = dtype, .n_dims = 2, .dims = {n, k, 1, 1}, .data = stored};
    lmd_weight_part part = {.tensor = &view, .n_rows = n};
    return pack_part(threads, &part, dtype, k);
}

static matrix make_matrix(lmd_threads *threads, lmd_dtype dtype, int n, int k, int extreme) {
    random_stored(dtype, n, k, extreme);
    return pack_stored(threads, dtype, n, k);
}

/* ---- packed tensors (AWQ, GPTQ): random words in `stored`, `zeros` and `scales` ---- */

typedef struct packed_case {
    lmd_packing packing;
    int bits, group_size;
} packed_case;

static uint32_t zeros[MAX_N * MAX_K / 32];
static uint16_t scales[MAX_N * MAX_K / 32];

static uint32_t stored_word(int64_t i) {
    uint32_t word;
    memcpy(&word, stored + i * 4, sizeof word);
    return word;
}

static int words_of(int n_codes, int bits) { return (n_codes * bits + 31) / 32; }

/* extreme: 1 some scales are 0; 2 every code is the largest and every zero is 0, for the
 * largest sums there are. */
static matrix make_packed(lmd_threads *threads, packed_case c, int n, int k, int extreme) {
    const int n_groups = k / c.group_size, zero_words = words_of(n, c.bits);
    const bool awq = c.packing == LMD_PACKING_AWQ;
    for (int i = 0; i < n * k * c.bits / 8; i++)
        stored[i] = extreme == 2 ? 0xff : (uint8_t)random_u32();
    const uint32_t no_zero = c.packing == LMD_PACKING_GPTQ ? 0xffffffff : 0; /* -1, wrapping */
    for (int i = 0; i < zero_words * n_groups; i++) {
        zeros[i] = extreme == 2 ? no_zero : random_u32();
        if (c.bits == 8) zeros[i] = 0x7f7f7f7f;
    }
    for (int i = 0; i < n * n_groups; i++)
        scales[i] =
            lmd_float_to_half(extreme == 1 && i % 3 == 0 ? 0.0f : random_float() * 0.1f);
    lmd_tensor_view words = {.name = "qweight", .dtype = LMD_I32, .n_dims = 2, .data = stored};
    words.dims[0] = awq ? k : words_of(k, c.bits);
    words.dims[1] = awq ? n / 8 : n;
    lmd_tensor_view zero = {.name = "qzeros", .dtype = LMD_I32, .n_dims = 2, .data = zeros};
    zero.dims[0] = n_groups;
    zero.dims[1] = zero_words;
    lmd_tensor_view scale = {.name = "scales", .dtype = LMD_F16, .n_dims = 2, .data = scales};
    scale.dims[0] = n_groups;
    scale.dims[1] = n;
    lmd_weight_part part = {
        .packed = {.packing = c.packing, .qweight = &words, .scales = &scale, .qzeros = &zero},
        .n_rows = n};
    lmd_err err;
    if (lmd_packed_check(&part.packed, n, k, &err) != LMD_OK) {
        printf("packed check failed: %s\n", err.message);
        exit(1);
    }
    return pack_part(threads, &part, LMD_I32, k);
}

/* One value, computed as the formats define it. */
static float packed_value(packed_case c, int n, int k, int row, int col) {
    static const int nibble_of_row[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    const int zero_words = words_of(n, c.bits), group = col / c.group_size;
    const int mask = (1 << c.bits) - 1;
    int code, zero;
    if (c.packing == LMD_PACKING_AWQ) {
        int shift = nibble_of_row[row % 8] * 4;
        code = (int)(stored_word(col * (n / 8) + row / 8) >> shift & 15);
        zero = (int)(zeros[group * (n / 8) + row / 8] >> shift & 15);
    } else {
        uint64_t word =
            0; /* two words: a code of 3 bits may begin in one and end in the next */
        const int bit = col * c.bits, zero_bit = row * c.bits;
        for (int i = 0; i < 2 && bit / 32 + i < words_of(k, c.bits); i++)
            word |= (uint64_t)stored_word((bit / 32 + i) * n + row) << i * 32;
        code = (int)(word >> bit % 32) & mask;
        word = zeros[group * zero_words + zero_bit / 32];
        if (zero_bit / 32 + 1 < zero_words)
            word |= (uint64_t)zeros[group * zero_words + zero_bit / 32 + 1] << 32;
        if (c.packing == LMD_PACKING_GPTQ_BORROW) word = (uint32_t)word + 0x11111111u;
        zero = (int)(word >> zero_bit % 32) & mask;
        if (c.packing == LMD_PACKING_GPTQ) zero = (zero + 1) & mask;
    }
    return lmd_half_to_float(scales[group * n + row]) * (float)(code - zero);
}

static const packed_case packed_cases[] = {
    {LMD_PACKING_AWQ, 4, 32},      {LMD_PACKING_AWQ, 4, 64},
    {LMD_PACKING_AWQ, 4, 128},     {LMD_PACKING_GPTQ, 4, 64},
    {LMD_PACKING_GPTQ, 4, 128},    {LMD_PACKING_GPTQ_V2, 4, 128},
    {LMD_PACKING_GPTQ_V2, 4, 384}, {LMD_PACKING_AWQ, 4, 192},
    {LMD_PACKING_GPTQ, 4, 96},     {LMD_PACKING_GPTQ, 8, 32},
    {LMD_PACKING_GPTQ, 8, 128},    {LMD_PACKING_GPTQ_BORROW, 4, 64},
    {LMD_PACKING_GPTQ, 3, 64},     {LMD_PACKING_GPTQ_V2, 3, 128},
};
enum { N_PACKED_CASES = sizeof packed_cases / sizeof *packed_cases };

/* Panels must hold exactly the values that the format defines. */
static void check_packed_values(lmd_threads *threads, packed_case c, int n, int k) {
    float row[MAX_K];
    matrix w = make_packed(threads, c, n, k, 0);
    for (int r = 0; r < n; r++) {
        lmd_cpu_weight_row(w.weight, r, row);
        for (int i = 0; i < k; i++)
            check(row[i] == packed_value(c, n, k, r, i), "packed value", "all", c.group_size, r,
                  i);
    }
    lmd_cpu_weight_free(w.weight);
}

/* ---- linear ---- */

static float x[MAX_M * MAX_K], out_ref[MAX_M * 16], out_new[MAX_M * 16];
static uint8_t scratch[MAX_K * 64];

/* Quantised activations of up to MAX_M rows. */
typedef struct acts_memory {
    _Alignas(64) uint8_t q[MAX_M * MAX_K * 2];
    float scales[MAX_M * MAX_K / 32], scaled_sums[MAX_M * MAX_K / 32];
    int32_t sums[MAX_M * MAX_K / 32];
} acts_memory;

static acts_memory memory_ref, memory_new, memory_alone;

static void fill_x(int n, int kind) {
    for (int i = 0; i < n; i++) {
        x[i] = random_float() * (kind == 1 ? 1e30f : kind == 2 ? 1e-20f : 3.0f);
        if (kind == 3) x[i] = i % 2 ? 1.0f : -1.0f; /* every integer is the largest */
        if (kind == 4 && random_u32() % 64 == 0) x[i] = random_u32() % 2 ? INFINITY : NAN;
        if (kind == 5) x[i] = 0.0f;
        if (kind == 6) x[i] = -1.0f;
    }
}

/* Quantises the m rows at `from`, each in two calls where it has several groups. */
static lmd_acts quantized(const lmd_cpu_kernels *kernels, acts_memory *memory, float *from,
                          int m, int k, int group, int bits) {
    lmd_acts acts = {.x = from,
                     .q = memory->q,
                     .scales = memory->scales,
                     .sums = memory->sums,
                     .scaled_sums = memory->scaled_sums,
                     .n_rows = m,
                     .n_cols = k,
                     .group_size = group,
                     .bits = bits};
    int tile_rows = kernels->tile_rows(bits, m);
    acts.n_tiles = (m + tile_rows - 1) / tile_rows;
    poison(memory, sizeof *memory);
    for (int r = 0; group && r < m; r++) {
        int middle = k / group / 2 * group;
        if (middle) kernels->quantize(&acts, r, 0, middle, from + r * k);
        kernels->quantize(&acts, r, middle, k - middle, from + r * k + middle);
    }
    return acts;
}

/* Compares with sums of products in double. The bound is the rounding of the activations: half
 * a step, which is the largest of a group, here at most 3, divided by q_max. */
static void check_against_double(const matrix *w, int m, int panel, int bits) {
    float row[MAX_K];
    double step = 3.0 / (bits == 8 ? LMD_ACT8_MAX : LMD_ACT16_MAX);
    for (int i = 0; i < 16 && panel * 16 + i < w->n; i++) {
        lmd_cpu_weight_row(w->weight, panel * 16 + i, row);
        for (int r = 0; r < m; r++) {
            double exact = 0.0, size = 0.0, weights = 0.0;
            for (int k = 0; k < w->k; k++) {
                exact += (double)row[k] * x[r * w->k + k];
                size += fabs((double)row[k] * x[r * w->k + k]);
                weights += fabs((double)row[k]);
            }
            double got = out_ref[r * 16 + i];
            check(fabs(got - exact) <= 0.51 * step * weights + 2e-5 * size + 1e-30,
                  "panel against double", "ref", w->dtype, w->k, r);
        }
    }
}

/* Makes a matrix of formats that no stored type has: groups of any size, zeros, 8-bit codes
 * with minima. `extreme`: 1 some scales are 0; 2 all codes are the largest; 3 all codes are 0.
 */
static matrix make_panels(lmd_weight_format format, int n, int k, int extreme) {
    matrix m = {lmd_calloc(1, sizeof(lmd_weight)), LMD_DTYPE_COUNT, n, k};
    lmd_weight_segment *segment = &m.weight->segments[0];
    segment->format = format;
    segment->n_rows = n;
    segment->n_panels = (n + 15) / 16;
    segment->panel_bytes = lmd_panel_bytes(&format, k);
    m.weight->n_rows = n;
    m.weight->n_cols = k;
    m.weight->n_segments = 1;
    m.weight->n_bytes = (size_t)(segment->panel_bytes * segment->n_panels);
    segment->panels = lmd_arena_alloc(&arena, m.weight->n_bytes);
    bool nibbles = format.kind == LMD_WEIGHT_U4 || format.kind == LMD_WEIGHT_I4;
    int max_zero = nibbles ? 15 : 255, n_lines = format.group_size * (nibbles ? 8 : 16);
    uint8_t *at = segment->panels;
    for (int g = 0; g < segment->n_panels * (k / format.group_size); g++) {
        for (int i = 0; i < (format.offset == LMD_OFFSET_NONE ? 16 : 32); i++, at += 2) {
            float value = random_float() * 0.1f;
            if (extreme == 1 && random_u32() % 4 == 0) value = 0.0f;
            if (i >= 16 && format.offset == LMD_OFFSET_ZERO)
                value = (float)(random_u32() % (uint32_t)(max_zero + 1));
            uint16_t half = lmd_float_to_half(value);
            memcpy(at, &half, 2);
        }
        for (int i = 0; i < n_lines; i++)
            *at++ = extreme == 2 ? 0xff : extreme == 3 ? 0 : (uint8_t)random_u32();
    }
    return m;
}

static void check_panels(const lmd_cpu_kernels *kernels, const matrix *w, int m, int bits,
                         int kind, bool exact) {
    const lmd_weight_segment *segment = &w->weight->segments[0];
    const int k = w->k, group = segment->format.group_size, name = (int)segment->format.kind;
    fill_x(m * k, kind);
    lmd_acts ref = quantized(&lmd_cpu_kernels_ref, &memory_ref, x, m, k, group, bits);
    lmd_acts new = quantized(kernels, &memory_new, x, m, k, group, bits);
    for (int p = 0; p < segment->n_panels; p++) {
        const uint8_t *panel = segment->panels + p * segment->panel_bytes;
        poison(out_ref, sizeof out_ref);
        poison(out_new, sizeof out_new);
        lmd_cpu_kernels_ref.panel(out_ref, panel, &segment->format, &ref, 0, ref.n_tiles, NULL);
        int middle = new.n_tiles / 2; /* the tiles, in two calls */
        kernels->panel(out_new + 16 * lmd_tile_begin(&new, middle), panel, &segment->format,
                       &new, middle, new.n_tiles - middle, scratch);
        if (middle) kernels->panel(out_new, panel, &segment->format, &new, 0, middle, scratch);
        check(same(out_ref, out_new, m * 16), "panel", kernels->isa, name * 1000 + group, k, m);
        if (exact && kind == 0) check_against_double(w, m, p, bits);
        for (int r = 0; r < m; r++) { /* one row alone has the same bits */
            float alone[16];
            lmd_acts one = quantized(kernels, &memory_alone, x + r * k, 1, k, group, bits);
            kernels->panel(alone, panel, &segment->format, &one, 0, 1, scratch);
            check(same(alone, out_new + r * 16, 16), "panel row alone", kernels->isa,
                  name * 1000 + group, k, r);
        }
        for (int i = 0; kind == 4 && group && i < m * 16; i++) {
            bool bad = false;
            for (int j = 0; j < k; j++) bad = bad || !isfinite(x[i / 16 * k + j]);
            check(!bad || isnan(out_new[i]), "non-finite reaches the row", kernels->isa, k, m,
                  i);
        }
    }
}

static void check_linear(lmd_threads *threads, const lmd_cpu_kernels *kernels, lmd_dtype dtype,
                         int n, int k, int m, int kind, int extreme) {
    matrix w = make_matrix(threads, dtype, n, k, extreme);
    check_panels(kernels, &w, m, 16, kind, extreme == 0);
    lmd_weight_kind code = w.weight->segments[0].format.kind;
    if (code == LMD_WEIGHT_U4 || code == LMD_WEIGHT_I4)
        check_panels(kernels, &w, m, 8, kind, extreme == 0);
    lmd_cpu_weight_free(w.weight);
}

/* Checks every group size, kind and offset, with codes that are all 0 or all the largest, and
 * with the largest activations of one sign and of both. */
static void check_formats(const lmd_cpu_kernels *kernels) {
    static const lmd_weight_format formats[] = {{LMD_WEIGHT_U4, LMD_OFFSET_MIN, 0, LMD_F32},
                                                {LMD_WEIGHT_U4, LMD_OFFSET_ZERO, 0, LMD_F32},
                                                {LMD_WEIGHT_I4, LMD_OFFSET_NONE, 0, LMD_F32},
                                                {LMD_WEIGHT_U8, LMD_OFFSET_MIN, 0, LMD_F32},
                                                {LMD_WEIGHT_U8, LMD_OFFSET_ZERO, 0, LMD_F32},
                                                {LMD_WEIGHT_I8, LMD_OFFSET_NONE, 0, LMD_F32}};
    static const int kinds[] = {0, 3, 6}, ms[] = {1, 7, 13, 19, 60};
    for (int f = 0; f < 6; f++)
        for (int group = 32; group <= 128; group *= 2)
            for (int extreme = 0; extreme < 4; extreme++)
                for (int i = 0; i < 3; i++)
                    for (int j = 0; j < 5; j++) {
                        if (ms[j] == 60 && i != extreme % 3) continue; /* long */
                        lmd_weight_format format = formats[f];
                        format.group_size = group;
                        matrix w = make_panels(format, 17, ms[j] < 48 ? 256 : 896, extreme);
                        check_panels(kernels, &w, ms[j], 16, kinds[i], extreme == 0);
                        if (format.kind == LMD_WEIGHT_U4 || format.kind == LMD_WEIGHT_I4)
                            check_panels(kernels, &w, ms[j], 8, kinds[i], extreme == 0);
                        lmd_cpu_weight_free(w.weight);
                    }
    printf("ok   %-23s groups of 32, 64, 128; zeros and minima\n", kernels->isa);
}

static void check_linears(lmd_threads *threads, const lmd_cpu_kernels *kernels) {
    static const int ks[] = {32, 64, 96, 160, 576, 1056};
    static const int ms[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 33, 50, 64, 70};
    static const lmd_dtype coded[] = {LMD_Q8_0, LMD_Q4_0, LMD_Q4_1};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < (int)(sizeof ms / sizeof *ms); j++)
            for (int d = 0; d < 3; d++)
                check_linear(threads, kernels, coded[d], ms[j] % 2 ? 17 : 1, ks[i], ms[j], 0,
                             0);
    for (int kind = 0; kind < 7; kind++)
        for (int extreme = 0; extreme < 3; extreme++)
            for (int d = 0; d < 3; d++)
                for (int m = 5; m <= 60; m += 55) /* many rows: tiles */
                    check_linear(threads, kernels, coded[d], 33, 96, m, kind, extreme);
    static const lmd_dtype k_quants[] = {LMD_Q2_K, LMD_Q3_K, LMD_Q4_K,
                                         LMD_Q5_K, LMD_Q6_K, LMD_IQ4_XS};
    for (int d = 0; d < 6; d++) /* random bits: scales may be infinite, so only bits count */
        check_linear(threads, kernels, k_quants[d], 19, 512, 5, 0, 1);
    static const int float_ks[] = {8, 9, 40, 33};
    for (int i = 0; i < 4; i++)
        for (lmd_dtype dtype = LMD_F32; dtype <= LMD_BF16; dtype++)
            check_linear(threads, kernels, dtype, 1 + i * 13, float_ks[i], 1 + i * 4, 0, 0);
    for (int i = 0; i < N_PACKED_CASES; i++)
        for (int kind = 0; kind < 7; kind++)
            for (int extreme = 0; extreme < 3; extreme++) {
                matrix w = make_packed(threads, packed_cases[i], 24, 384, extreme);
                check_panels(kernels, &w, 1 + kind + extreme, 16, kind, extreme == 0);
                lmd_cpu_weight_free(w.weight);
            }
    printf("ok   %-23s linear\n", kernels->isa);
}

/* ---- packing: panels hold the rows' values, within the errors that the codec states ---- */

/* The error that weight_codec.h allows one value; `max` is the largest of its group. */
static double codec_bound(lmd_dtype dtype, double value, double max) {
    if (dtype == LMD_Q6_K) return max / 253 + 0x1p-25;
    if (dtype == LMD_Q4_K || dtype == LMD_Q5_K) /* scale * code + |min| is at most 3 * max */
        return 0x1p-11 * 3 * max + 0x1p-25 * 33;
    if (dtype == LMD_IQ4_XS) return 0x1p-11 * fabs(value) + 0x1p-25 * 127;
    if (dtype == LMD_Q2_K) return 2 * max / 508 + 0x1p-11 * max + 0x1p-25;
    return 1e-7 * fabs(value); /* one rounding (an FMA) or two */
}

/* Gives K-quants ordinary super-block scales and minima; their sub-scales stay random. */
static void tame_scales(lmd_dtype dtype, int n_rows, int n_cols) {
    int bytes = lmd_dtype_block_bytes(dtype), n_blocks = n_rows * n_cols / 256;
    int at = dtype == LMD_Q6_K ? 208 : dtype == LMD_Q3_K ? 108 : dtype == LMD_Q2_K ? 80 : 0;
    bool has_min = dtype == LMD_Q2_K || dtype == LMD_Q4_K || dtype == LMD_Q5_K;
    uint16_t half = lmd_float_to_half(0.01f);
    for (int b = 0; b < n_blocks; b++) {
        memcpy(stored + b * bytes + at, &half, 2);
        if (has_min) memcpy(stored + b * bytes + at + 2, &half, 2);
    }
}

static void check_packing(lmd_threads *threads, lmd_dtype dtype) {
    enum { N = 21, K = 512 };
    float packed[K], exact[K];
    random_stored(dtype, N, K, 0);
    if (lmd_dtype_block_len(dtype) == 256) tame_scales(dtype, N, K);
    matrix w = pack_stored(threads, dtype, N, K);
    for (int r = 0; r < N; r++) {
        lmd_cpu_weight_row(w.weight, r, packed);
        lmd_weight_row_to_float(dtype, stored + r * lmd_dtype_row_bytes(dtype, K), K, exact);
        for (int k = 0; k < K; k++) {
            double max = 0.0;
            for (int i = k / 32 * 32; i < k / 32 * 32 + 32; i++)
                max = fabs((double)exact[i]) > max ? fabs((double)exact[i]) : max;
            double off = fabs((double)packed[k] - exact[k]);
            check(off <= codec_bound(dtype, exact[k], max), "packing", "all", dtype, r, k);
        }
    }
    lmd_cpu_weight_free(w.weight);
}

/* ---- norm, RoPE, SiLU ---- */

static void check_small(const lmd_cpu_kernels *kernels) {
    static const int ns[] = {1, 7, 8, 9, 40, 576, 1000};
    float w[MAX_K], a[MAX_K], b[MAX_K], up[MAX_K];
    for (int i = 0; i < 7; i++) {
        int n = ns[i];
        fill_x(n, 0);
        double squares = 0.0;
        for (int j = 0; j < n; j++) {
            w[j] = random_float();
            up[j] = random_float();
            squares += (double)x[j] * x[j];
        }
        lmd_cpu_kernels_ref.rms_norm(a, x, w, n, 1e-5f);
        kernels->rms_norm(b, x, w, n, 1e-5f);
        check(same(a, b, n), "rms_norm", kernels->isa, n, 0, 0);
        double inverse = 1.0 / sqrt(squares / n + 1e-5);
        for (int j = 0; j < n; j++)
            check(fabs(a[j] - x[j] * inverse * w[j]) < 2e-6 * (1.0 + fabs(a[j])),
                  "norm vs double", "ref", n, j, 0);
        int n16 = n / 16 * 16;
        lmd_cpu_kernels_ref.silu_mul(a, x, up, n16);
        kernels->silu_mul(b, x, up, n16);
        check(same(a, b, n16), "silu_mul", kernels->isa, n, 0, 0);
        for (int j = 0; j < n16; j++)
            check(fabs(a[j] - x[j] / (1.0 + exp(-(double)x[j])) * up[j]) < 2e-6,
                  "silu vs double", "ref", n, j, 0);
    }
    float cos_sin[256], head[256], copy[256];
    for (int dim = 8; dim <= 256; dim += 8) {
        for (int i = 0; i < dim; i++) {
            cos_sin[i] = random_float();
            copy[i] = head[i] = random_float();
        }
        lmd_cpu_kernels_ref.rope(head, cos_sin, dim);
        kernels->rope(copy, cos_sin, dim);
        check(same(head, copy, dim), "rope", kernels->isa, dim, 0, 0);
    }
    printf("ok   %-23s norm, rope, silu\n", kernels->isa);
}

/* ---- half ---- */

static void check_half(void) {
    for (uint32_t h = 0; h < 65536; h++) {
        float f = lmd_half_to_float((uint16_t)h);
        bool nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff);
        check(nan ? isnan(f) : lmd_float_to_half(f) == h, "half round trip", "all", (int)h, 0,
              0);
    }
    for (int i = 0; i < 1000000; i++) { /* the nearest half: neither neighbour is closer */
        float f = lmd_bits_to_float(random_u32());
        if (!(fabsf(f) < 65504.0f)) continue;
        uint16_t h = lmd_float_to_half(f);
        double off = fabs((double)f - lmd_half_to_float(h));
        check(off <= fabs((double)f - lmd_half_to_float((uint16_t)(h + 1))), "half", "up", h, 0,
              0);
        if (h & 0x7fff)
            check(off <= fabs((double)f - lmd_half_to_float((uint16_t)(h - 1))), "half", "down",
                  h, 0, 0);
    }
    printf("ok   half\n");
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Billions of multiply-adds a second of one core, on a Q4_1 panel in its cache, for steps of m
 * rows. */
static double panel_speed(lmd_threads *threads, const lmd_cpu_kernels *kernels, int m,
                          int bits) {
    matrix w = make_matrix(threads, LMD_Q4_1, 16, 576, 0);
    const lmd_weight_segment *segment = &w.weight->segments[0];
    fill_x(m * 576, 0);
    lmd_acts acts = quantized(kernels, &memory_new, x, m, 576, 32, bits);
    double best = 1e9;
    for (int i = 0; i < 30; i++) {
        double begin = now();
        for (int j = 0; j < 64 / m; j++)
            kernels->panel(out_new, segment->panels, &segment->format, &acts, 0, acts.n_tiles,
                           scratch);
        double seconds = now() - begin;
        best = seconds < best ? seconds : best;
    }
    lmd_cpu_weight_free(w.weight);
    return 576.0 * 16 * m * (64 / m) / best * 1e-9;
}

static void check_table(lmd_threads *threads, const lmd_cpu_kernels *kernels) {
    check_linears(threads, kernels);
    check_formats(kernels);
    check_small(kernels);
    check_attentions(kernels);
    check_sampling(kernels);
    check_grids(kernels);
    check_solver_kernels(kernels);
    printf("     %-23s G multiply-adds/s on a Q4_1 panel of 576 columns, W4A16: %.1f (1 row), "
           "%.1f (64 rows); fast: %.1f, %.1f\n",
           kernels->isa, panel_speed(threads, kernels, 1, 16),
           panel_speed(threads, kernels, 64, 16), panel_speed(threads, kernels, 1, 8),
           panel_speed(threads, kernels, 64, 8));
}

/* The tables of every ISA with portable wrappers, so that layout and indexing are tested on any
 * machine. CHECK_NO_PORTABLE: this build links none of them. Where there is NEON, its source is
 * never portable. */
#if defined(CHECK_NO_PORTABLE)
static const lmd_cpu_kernels *const portable[] = {NULL};
#else
extern const lmd_cpu_kernels lmd_portable_kernels_avx2, lmd_portable_kernels_avxvnni,
    lmd_portable_kernels_avx512, lmd_portable_kernels_amx, lmd_portable_kernels_neon,
    lmd_portable_kernels_neon_dotprod, lmd_portable_kernels_neon_i8mm;
static const lmd_cpu_kernels *const portable[] = {&lmd_portable_kernels_avx2,
                                                  &lmd_portable_kernels_avxvnni,
                                                  &lmd_portable_kernels_avx512,
                                                  &lmd_portable_kernels_amx,
#if !defined(__ARM_NEON)
                                                  &lmd_portable_kernels_neon,
#endif
                                                  &lmd_portable_kernels_neon_dotprod,
                                                  &lmd_portable_kernels_neon_i8mm,
                                                  NULL};
#endif

/* Checks all tables, or the one that the argument names. */
int main(int argc, char **argv) {
    lmd_threads *threads;
    lmd_err err;
    if (lmd_threads_new(1, &threads, &err) != LMD_OK) return 1;
    check_half();
    for (lmd_dtype dtype = LMD_F32; dtype < LMD_I32; dtype++) check_packing(threads, dtype);
    for (int i = 0; i < N_PACKED_CASES; i++)
        check_packed_values(threads, packed_cases[i], 40, 384);
    printf("ok   packing\n");
    lmd_isa isas[LMD_MAX_ISAS];
    int n = lmd_cpu_isas(isas);
    for (int i = 0; i < n; i++)
        if (argc > 1 && strcmp(argv[1], isas[i].kernels->isa) != 0)
            continue;
        else if (!isas[i].usable)
            printf("     %-23s is not usable on this machine\n", isas[i].kernels->isa);
        else
            check_table(threads, isas[i].kernels);
    for (int i = 0; portable[i]; i++)
        if (argc == 1 || strcmp(argv[1], portable[i]->isa) == 0)
            check_table(threads, portable[i]);
    lmd_threads_free(threads);
    lmd_arena_free(&arena);
    printf("%s\n", failures ? "FAILED" : "all kernels agree");
    return failures != 0;
}
