/* Inputs of the cases of check_dev.h, and what plain C makes of them. Halves are computed on
 * exact integers, in no way like the emulator does it. Must not know: the emulator, devices. */
#include "check_dev.h"

#include <math.h>
#include <string.h>

#include "base/half.h"

static uint32_t state; /* of the random numbers; each case starts anew */

static uint32_t random_bits(void) {
    state = state * 1664525u + 1013904223u;
    uint32_t x = state ^ state >> 15;
    x *= 0x2c1b3c6du;
    return x ^ x >> 13;
}

static float random_float(float lo, float hi) {
    return lo + (hi - lo) * ((float)(random_bits() >> 8) * 0x1p-24f);
}

static uint32_t float_bits(float x) { return lmd_float_to_bits(x); }

/* Random words. */
static void fill_words(uint32_t *in, int32_t n, uint32_t seed) {
    state = seed;
    for (int32_t i = 0; i < n; i++) in[i] = random_bits();
}

/* ---- halves ---- */

/* Zero, the smallest and largest subnormal and normal numbers, 1, infinity and NaN, odd ones.
 */
static const uint16_t special_halves[] = {0x0000, 0x0001, 0x0002, 0x03ff, 0x0400, 0x0401,
                                          0x3bff, 0x3c00, 0x3c01, 0x4000, 0x63ff, 0x6400,
                                          0x7bfe, 0x7bff, 0x7c00, 0x7e00};

static uint32_t random_half(void) {
    const uint32_t bits = random_bits();
    if (bits >> 30) return bits & 0xffff;
    return special_halves[bits % 16] | (bits >> 8 & 0x8000);
}

static void fill_half_math(uint32_t *in) {
    state = 1;
    for (int32_t i = 0; i < 3 * N_HALF_MATH; i++) in[i] = random_half() | random_half() << 16;
    /* Sums that nearly cancel: c is about -a * b. */
    for (int32_t i = 0; i < N_HALF_MATH / 4; i++) {
        const float product = lmd_half_to_float((uint16_t)in[i]) *
                              lmd_half_to_float((uint16_t)in[N_HALF_MATH + i]);
        const uint32_t c = lmd_float_to_half(-product) ^ (random_bits() & 1);
        in[2 * N_HALF_MATH + i] = (in[2 * N_HALF_MATH + i] & 0xffff0000u) | c;
    }
}

static bool is_finite_half(uint16_t h) { return (h & 0x7c00) != 0x7c00; }

/* A finite half times 2^24, exactly. */
static int64_t half_to_integer(uint16_t h) {
    const int64_t mantissa = h & 0x3ff, exponent = h >> 10 & 31;
    const int64_t magnitude = exponent ? (mantissa | 0x400) << (exponent - 1) : mantissa;
    return h & 0x8000 ? -magnitude : magnitude;
}

/* The half nearest to x * 2^-48; ties go to even. is_negative: of a zero. */
static uint16_t integer_to_half(__int128 x, bool is_negative) {
    const uint16_t sign = (x == 0 ? is_negative : x < 0) ? 0x8000 : 0;
    const unsigned __int128 magnitude = (unsigned __int128)(x < 0 ? -x : x);
    int n_bits = 0;
    while (magnitude >> n_bits) n_bits++;
    /* The last place of the result: 11 bits remain, but never less than 2^-24. */
    const int place = n_bits > 35 ? n_bits - 11 : 24;
    unsigned __int128 kept = magnitude >> place;
    const unsigned __int128 rest = magnitude - (kept << place),
                            tie = (unsigned __int128)1 << (place - 1);
    if (rest > tie || (rest == tie && (kept & 1))) kept++;
    const uint32_t bits = (uint32_t)kept + ((uint32_t)(place - 24) << 10);
    return sign | (uint16_t)(bits >= 0x7c00 ? 0x7c00 : bits);
}

/* a * b + c, rounded once. */
static uint16_t fma_of_halves(uint16_t a, uint16_t b, uint16_t c) {
    if (!is_finite_half(a) || !is_finite_half(b) || !is_finite_half(c))
        return lmd_float_to_half(lmd_half_to_float(a) * lmd_half_to_float(b) +
                                 lmd_half_to_float(c));
    const __int128 product = (__int128)half_to_integer(a) * half_to_integer(b);
    const bool is_negative = ((a ^ b) & 0x8000) && (c & 0x8000); /* -0 + -0 */
    return integer_to_half(product + ((__int128)half_to_integer(c) << 24), is_negative);
}

static uint32_t fma_of_pairs(uint32_t a, uint32_t b, uint32_t c) {
    return fma_of_halves((uint16_t)a, (uint16_t)b, (uint16_t)c) |
           (uint32_t)fma_of_halves((uint16_t)(a >> 16), (uint16_t)(b >> 16),
                                   (uint16_t)(c >> 16))
               << 16;
}

static void want_half_math(const uint32_t *in, uint32_t *out) {
    const int32_t n = N_HALF_MATH;
    const uint32_t one = 0x3c003c00u, minus_zero = 0x80008000u;
    for (int32_t i = 0; i < n; i++) {
        const uint32_t a = in[i], b = in[n + i], c = in[2 * n + i];
        out[i] = fma_of_pairs(a, b, c);
        out[n + i] = fma_of_pairs(a, one, b);
        out[2 * n + i] = fma_of_pairs(a, one, b ^ minus_zero);
        out[3 * n + i] = fma_of_pairs(a, b, minus_zero); /* x + -0 is x, also of zeros */
    }
}

/* Floats around what halves can hold, halfway between two of them, and random ones. */
static void fill_to_half(uint32_t *in) {
    static const float special[] = {
        0.0f,         -0.0f,     65504.0f,   65519.996f, 65520.0f,   1e30f,    INFINITY,
        -INFINITY,    NAN,       0x1p-24f,   0x1p-25f,   0x1.8p-25f, 0x1p-26f, 0x1.ffcp-15f,
        0x1.ffep-15f, 1.000488f, 0x1.002p0f, 0x1.006p0f, 0x1p-149f,  -0x1p-14f};
    const int32_t n_special = (int32_t)(sizeof special / sizeof *special);
    state = 2;
    for (int32_t i = 0; i < N_CONVERT; i++) {
        const float scale = ldexpf(1.0f, (int)(random_bits() % 48) - 30);
        in[i] = float_bits(i < n_special ? special[i] : random_float(-1, 1) * scale);
        if (i % 4 == 3) in[i] = (in[i] & 0xffffe000u) | 0x1000; /* a tie */
    }
}

static void want_to_half(const uint32_t *in, uint32_t *out) {
    for (int32_t i = 0; i < N_CONVERT; i++) {
        const uint32_t x = lmd_float_to_half(lmd_bits_to_float(in[i]));
        const uint32_t y = lmd_float_to_half(lmd_bits_to_float(in[i ^ 1]));
        out[i] = x | y << 16;
        out[N_CONVERT + i] = x;
    }
}

static void fill_to_float(uint32_t *in) { fill_words(in, N_CONVERT, 3); }

static void want_to_float(const uint32_t *in, uint32_t *out) {
    for (int32_t i = 0; i < N_CONVERT; i++)
        for (int32_t part = 0; part < 3; part++) {
            const uint16_t h = (uint16_t)(part == 0   ? in[i]
                                          : part == 1 ? in[i] >> 16
                                                      : in[i] >> 8);
            float x = NAN;
            if (is_finite_half(h)) x = (float)half_to_integer(h) * 0x1p-24f;
            if ((h & 0x7fff) == 0x7c00) x = INFINITY;
            out[part * N_CONVERT + i] = float_bits(copysignf(x, h & 0x8000 ? -1.0f : 1.0f));
        }
}

/* ---- bits and numbers ---- */

static void fill_bit_math(uint32_t *in) {
    fill_words(in, 3 * N_BIT_MATH, 4);
    in[N_BIT_MATH] = 0; /* for __ffs */
}

static uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t s = selector >> 4 * i & 15;
        const uint32_t byte = (s & 4 ? b : a) >> (s & 3) * 8 & 255;
        out |= (s & 8 ? (byte >> 7) * 255 : byte) << 8 * i;
    }
    return out;
}

/* Bit by bit, from the table. */
static uint32_t looked_up(uint32_t table, uint32_t a, uint32_t b, uint32_t c) {
    uint32_t out = 0;
    for (int i = 0; i < 32; i++)
        out |= (table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i;
    return out;
}

static uint32_t dot_of_bytes(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 4; i++) c += (uint32_t)((int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i));
    return c;
}

static void want_bit_math(const uint32_t *in, uint32_t *out) {
    const int32_t n = N_BIT_MATH;
    for (int32_t i = 0; i < n; i++) {
        const uint32_t a = in[i], b = in[n + i], c = in[2 * n + i], shifted = c >> (a & 31);
        uint32_t n_set = 0, first_set = 0, n_leading = 0;
        for (int bit = 0; bit < 32; bit++) n_set += a >> bit & 1;
        while (first_set < 32 && !(b >> first_set & 1)) first_set++;
        while (n_leading < 32 && !(shifted >> (31 - n_leading) & 1)) n_leading++;
        out[i] = (a & b) | c;
        out[n + i] = a ^ b ^ c;
        out[2 * n + i] = looked_up(0x1b, a, b, c);
        out[3 * n + i] = permuted(a, b, c);
        out[4 * n + i] = (uint32_t)((uint64_t)a * b >> 32);
        out[5 * n + i] = n_set + 64 * (b ? first_set + 1 : 0) + 4096 * n_leading;
        out[6 * n + i] = dot_of_bytes(a, b, c);
        out[7 * n + i] = (uint32_t)(int32_t)nearbyint((double)(a >> 8) * 0.5);
        out[8 * n + i] =
            (uint32_t)((int32_t)a < (int32_t)b ? (int32_t)a : (int32_t)b) ^ (a > b ? a : b);
    }
}

/* All exponents that matter; the results below 2^-126 are 0. */
static void fill_exp2(uint32_t *in) {
    state = 5;
    for (int32_t i = 0; i < N_APPROX; i++) in[i] = float_bits(random_float(-20, 4));
    for (int32_t i = 0; i < 64; i++) in[i] = float_bits((float)(i - 60));
    in[64] = float_bits(-INFINITY);
    in[65] = float_bits(-200.0f);
    in[66] = float_bits(-126.0f);
    in[67] = float_bits(NAN);
    in[68] = float_bits(INFINITY);
    in[69] = float_bits(-127.5f);
}

static void want_exp2(const uint32_t *in, uint32_t *out) {
    for (int32_t i = 0; i < N_APPROX; i++) {
        const double y = exp2((double)lmd_bits_to_float(in[i]));
        out[i] = float_bits(y < 0x1p-126 ? 0.0f : (float)y);
    }
}

static void fill_approx(uint32_t *in) {
    state = 6;
    for (int32_t i = 0; i < N_APPROX; i++) in[i] = float_bits(random_float(-12, 3));
}

static void want_approx(const uint32_t *in, uint32_t *out) {
    for (int32_t i = 0; i < N_APPROX; i++) {
        const double x = (double)lmd_bits_to_float(in[i]), y = fabs(x) + 0.25;
        out[i] = out[N_APPROX + i] = float_bits((float)exp(x));
        out[2 * N_APPROX + i] = float_bits((float)(1.0 / sqrt(y)));
        out[3 * N_APPROX + i] = float_bits((float)log(y));
    }
}

/* ---- matrices ---- */

static void fill_ldmatrix(uint32_t *in) {
    fill_words(in, N_ROWS * 4 + 32, 7);
    for (int32_t i = 0; i < 32; i++) in[N_ROWS * 4 + i] = (uint32_t)(i * 37 + 11) % N_ROWS;
}

/* Row `row` of matrix `matrix`, column `col`. */
static uint32_t matrix_half(const uint32_t *in, int32_t matrix, int32_t row, int32_t col) {
    const uint32_t line = in[N_ROWS * 4 + matrix * 8 + row];
    return in[line * 4 + (uint32_t)col / 2] >> (col % 2 * 16) & 0xffff;
}

static void want_ldmatrix(const uint32_t *in, uint32_t *out) {
    for (int32_t lane = 0; lane < 32; lane++)
        for (int32_t m = 0; m < 4; m++) {
            const int32_t g = lane / 4, t = lane % 4;
            const uint32_t straight =
                matrix_half(in, m, g, t * 2) | matrix_half(in, m, g, t * 2 + 1) << 16;
            const uint32_t transposed =
                matrix_half(in, m, t * 2, g) | matrix_half(in, m, t * 2 + 1, g) << 16;
            out[m * 32 + lane] = straight;
            out[128 + m * 32 + lane] = transposed;
            if (m >= 2) continue;
            out[256 + m * 32 + lane] = straight;
            out[320 + m * 32 + lane] = transposed;
        }
}

/* The first products are of small integers, which no rounding touches; one is of large and tiny
 * numbers. */
static void fill_mma(uint32_t *in) {
    state = 8;
    for (int32_t p = 0; p < N_MMA; p++) {
        uint32_t *const operands = in + p * MMA_IN;
        for (int32_t i = 0; i < 128 + 64; i++) {
            uint32_t pair = 0;
            for (int32_t j = 0; j < 2; j++) {
                const float small = (float)(random_bits() % 17) - 8.0f;
                const float any = random_float(-2, 2) * (p == 3 ? 0x1p-10f : 1.0f);
                pair = pair << 16 | lmd_float_to_half(p < 2 ? small : any);
            }
            operands[i] = pair;
        }
        for (int32_t i = 0; i < 128; i++)
            operands[192 + i] =
                float_bits(p < 2 ? (float)(random_bits() % 101) - 50.0f : random_float(-1, 1));
    }
}

static float half_in(const uint32_t *m, int32_t i) {
    return lmd_half_to_float((uint16_t)(m[i / 2] >> (i % 2 * 16)));
}

static void want_mma(const uint32_t *in, uint32_t *out) {
    for (int32_t p = 0; p < N_MMA; p++) {
        const uint32_t *const a = in + p * MMA_IN, *const b = a + 128, *const c = b + 64;
        for (int32_t i = 0; i < 128; i++) {
            double sum = (double)lmd_bits_to_float(c[i]);
            for (int32_t k = 0; k < 16; k++)
                sum += (double)half_in(a, i / 8 * 16 + k) * (double)half_in(b, k * 8 + i % 8);
            out[p * 128 + i] = float_bits((float)sum);
        }
    }
}

/* ---- warps and blocks ---- */

static void fill_shuffles(uint32_t *in) { fill_words(in, 64, 9); }

static uint32_t xor_in(const uint32_t *x, uint32_t lane, uint32_t mask, uint32_t width) {
    const uint32_t end = lane / width * width + width, from = lane ^ mask;
    return x[from < end ? from : lane];
}

static void want_shuffles(const uint32_t *in, uint32_t *out) {
    for (uint32_t t = 0; t < 32; t++) {
        const uint32_t by = in[32 + t];
        out[t] = in[by % 32];
        out[32 + t] = in[t / 8 * 8 + by % 8];
        out[64 + t] = in[t >= 3 ? t - 3 : t];
        out[96 + t] = in[t % 16 >= 5 ? t - 5 : t];
        out[128 + t] = in[t + 7 < 32 ? t + 7 : t];
        out[160 + t] = in[t % 4 + 1 < 4 ? t + 1 : t];
        out[192 + t] = in[t ^ 16];
        out[224 + t] = xor_in(in, t, 5, 8);
        out[256 + t] = xor_in(in, t, 9, 8);
        out[288 + t] = float_bits((float)(in[t ^ 1] & 1023));
        out[320 + t] = (uint32_t)(((uint64_t)in[t ^ 2] << 32 | in[32 + (t ^ 2)]) >> 24);
        out[352 + t] = t < 16 ? in[t ^ 1] : in[t];
    }
}

static void fill_votes(uint32_t *in) {
    fill_words(in, 32, 10);
    for (int32_t i = 0; i < 32; i += 2) in[i] |= 8; /* all even lanes vote so */
}

static void want_votes(const uint32_t *in, uint32_t *out) {
    uint32_t ballot = 0, odd = 0, any = 0, all = 1, zero = 0;
    uint32_t sum = 0, low = 0xffffffffu, high = 0, mixed = 0;
    int32_t signed_low = INT32_MAX, signed_high = INT32_MIN;
    for (int32_t i = 0; i < 32; i++) {
        const uint32_t x = in[i];
        ballot |= (x & 1) << i;
        if (i % 2) odd |= (x >> 1 & 1) << i;
        if (i % 2 == 0 && (x & 4)) any = 1;
        if (i % 2 == 0 && !(x & 8)) all = 0;
        if (x == 0) zero = 1;
        sum += x;
        mixed ^= x;
        if (x < low) low = x;
        if (x > high) high = x;
        if ((int32_t)x < signed_low) signed_low = (int32_t)x;
        if ((int32_t)x > signed_high) signed_high = (int32_t)x;
    }
    const uint32_t results[] = {
        ballot, 0,    zero + 2 * !zero, sum, low, (uint32_t)signed_low, (uint32_t)signed_high,
        high,   mixed};
    for (int32_t i = 0; i < N_VOTES; i++)
        for (int32_t lane = 0; lane < 32; lane++) out[i * 32 + lane] = results[i];
    for (int32_t lane = 0; lane < 32; lane++) out[32 + lane] = lane % 2 ? odd : any + 2 * all;
}

static void fill_barriers(uint32_t *in) {
    fill_words(in, 96, 11);
    for (int32_t i = 0; i < 96; i++) in[i] |= 4;
    in[50] &= ~4u; /* one thread of the second warp is against it */
}

static void want_barriers(const uint32_t *in, uint32_t *out) {
    uint32_t n = 0, any = 0, all = 1;
    for (int32_t i = 0; i < 96; i++) {
        n += in[i] & 1;
        if (in[i] & 2) any = 1;
        if (!(in[i] & 4)) all = 0;
    }
    for (int32_t i = 0; i < 96; i++) {
        out[i] = n;
        out[96 + i] = any;
        out[192 + i] = all;
        out[288 + i] = 2;
    }
}

static void fill_atomics(uint32_t *in) { fill_words(in, 64, 12); }

static void want_atomics(const uint32_t *in, uint32_t *out) {
    uint32_t at = 0;
    int32_t signed_high = INT32_MIN;
    memset(out, 0, N_ATOMICS * sizeof *out);
    out[2] = 0xffffffffu;
    for (uint32_t i = 0; i < 64; i++) {
        out[0] += in[i];
        if (in[i] >= out[1]) at = i;
        if (in[i] > out[1]) out[1] = in[i];
        if (in[i] < out[2]) out[2] = in[i];
        out[3] |= in[i];
        if ((int32_t)in[i] > signed_high) signed_high = (int32_t)in[i];
    }
    out[4] = (uint32_t)signed_high;
    out[5] = at;
    out[6] = out[1];
    out[7] = 77;
}

/* ---- memory ---- */

static void fill_moves(uint32_t *in) { fill_words(in, 256, 13); }

static void want_moves(const uint32_t *in, uint32_t *out) {
    for (int32_t t = 0; t < 64; t++) {
        memcpy(out + 4 * t, in + 4 * (t ^ 5), 16);
        memcpy(out + 256 + 4 * t, in + 4 * (63 - (t ^ 9)), 16);
    }
}

static void fill_copies(uint32_t *in) { fill_words(in, 512 + N_COPY_THREADS, 14); }

static void want_copies(const uint32_t *in, uint32_t *out) {
    memset(out, 0, 512 * sizeof *out);
    for (int32_t t = 0; t < N_COPY_THREADS; t++) {
        if (in[512 + (t ^ 33)] & 1) memcpy(out + 4 * t, in + 4 * (t ^ 33), 16);
        if (in[512 + (t ^ 34)] & 2) memcpy(out + 256 + 4 * t, in + 256 + 4 * (t ^ 34), 16);
    }
}

static void fill_bulk_copies(uint32_t *in) { fill_words(in, N_BULK_LINES * BULK_LINE, 15); }

static void want_bulk_copies(const uint32_t *in, uint32_t *out) {
    for (int32_t i = 0; i < N_BULK_LINES * BULK_LINE; i++)
        out[i] = in[i / BULK_LINE * BULK_LINE + BULK_LINE - 1 - i % BULK_LINE];
}

static void fill_geometry(uint32_t *in) { fill_words(in, 1, 16); }

static void want_geometry(const uint32_t *in, uint32_t *out) {
    for (uint32_t i = 0; i < 12 * 32; i++) {
        const uint32_t block = i / 32;
        out[i] = in[0] + block % 3 + 16 * (block / 3 % 2) + 256 * (block / 6) + 4096 * 32 +
                 (3u << 20) + (2u << 24) + (2u << 28) + i % 32 * 7;
    }
}

/* ---- the table ---- */

#define CASE(name, kind, tolerance, n_in, n_out, arch)                                         \
    { #name, kind, tolerance, n_in, n_out, arch, fill_##name, want_##name, run_##name }

const dev_case dev_cases[] = {
    CASE(half_math, HALVES, 0, 3 * N_HALF_MATH, 4 * N_HALF_MATH, 0),
    CASE(to_half, HALVES, 0, N_CONVERT, 2 * N_CONVERT, 0),
    CASE(to_float, FLOATS, 0, N_CONVERT, 3 * N_CONVERT, 0),
    CASE(bit_math, BITS, 0, 3 * N_BIT_MATH, 9 * N_BIT_MATH, 0),
    /* 2 units in the last place. */
    CASE(exp2, FLOATS, 0x1p-22, N_APPROX, N_APPROX, 0),
    /* __expf errs by the rounding of its argument times log2(e), too: 12 * 2^-24. */
    CASE(approx, FLOATS, 1e-6, N_APPROX, 4 * N_APPROX, 0),
    CASE(ldmatrix, BITS, 0, N_ROWS * 4 + 32, 384, 0),
    /* A tensor core may cut off what it adds to a larger number; sums here are below 64. */
    CASE(mma, FLOATS, 1e-5, N_MMA *MMA_IN, N_MMA * 128, 0),
    CASE(shuffles, BITS, 0, 64, N_SHUFFLES * 32, 0),
    CASE(votes, BITS, 0, 32, N_VOTES * 32, 0),
    CASE(barriers, BITS, 0, 96, 4 * 96, 0),
    CASE(atomics, BITS, 0, 64, N_ATOMICS, 0),
    CASE(moves, BITS, 0, 256, 512, 0),
    CASE(copies, BITS, 0, 512 + N_COPY_THREADS, 512, 0),
    CASE(bulk_copies, BITS, 0, N_BULK_LINES *BULK_LINE, N_BULK_LINES *BULK_LINE, 90),
    CASE(geometry, BITS, 0, 1, 12 * 32, 0),
};
const int32_t n_dev_cases = sizeof dev_cases / sizeof *dev_cases;
