/* The AVX2 kernels (with FMA and F16C): the generic source with one-instruction wrappers, and
 * panels of codes by vpmaddwd on int16 activations. */
#include <immintrin.h>
#include <stdint.h>

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

#define fma1(a, b, c) __builtin_fmaf((a), (b), (c))

static inline f32x8 fma8(f32x8 a, f32x8 b, f32x8 c) { return _mm256_fmadd_ps(a, b, c); }

static inline f32x8 half8(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

#include "cpu/kernels_generic.h"

/* The 8 columns of a line of one vector of 8 rows, as four int16 pairs in the activations'
 * order: (0 2) (4 6) (1 3) (5 7). `line` is the U4 line; 8-bit kinds read a second line behind
 * it. */
static inline void unpack_pairs(__m256i pairs[4], const uint8_t *line, lmd_weight_kind kind) {
    __m256i first = _mm256_loadu_si256((const __m256i *)(const void *)line);
    if (kind == LMD_WEIGHT_U4) {
        const __m256i low = _mm256_set1_epi16(15);
        pairs[0] = _mm256_and_si256(first, low);
        pairs[1] = _mm256_and_si256(_mm256_srli_epi16(first, 4), low);
        pairs[2] = _mm256_and_si256(_mm256_srli_epi16(first, 8), low);
        pairs[3] = _mm256_srli_epi16(first, 12);
        return;
    }
    __m256i second = _mm256_loadu_si256((const __m256i *)(const void *)(line + 64));
    if (kind == LMD_WEIGHT_U8) {
        const __m256i low = _mm256_set1_epi16(255);
        pairs[0] = _mm256_and_si256(first, low);
        pairs[1] = _mm256_and_si256(second, low);
        pairs[2] = _mm256_srli_epi16(first, 8);
        pairs[3] = _mm256_srli_epi16(second, 8);
    } else {
        pairs[0] = _mm256_srai_epi16(_mm256_slli_epi16(first, 8), 8);
        pairs[1] = _mm256_srai_epi16(_mm256_slli_epi16(second, 8), 8);
        pairs[2] = _mm256_srai_epi16(first, 8);
        pairs[3] = _mm256_srai_epi16(second, 8);
    }
}

/* n_rows (a constant, at most 4) rows against one panel: weights are unpacked once for all of
 * them. */
static inline __attribute__((always_inline)) void
tile_codes(float *out, const uint8_t *panel, lmd_weight_kind kind, lmd_group_offset offset,
           int32_t group_size, const lmd_acts *acts, int32_t row0, const int32_t n_rows) {
    const int32_t line_bytes = kind == LMD_WEIGHT_U4 ? 64 : 128;
    f32x8 f[4][2];
    for (int32_t r = 0; r < n_rows; r++) f[r][0] = f[r][1] = all8(0.0f);
    const int16_t *q = acts->q + (int64_t)row0 * acts->n_cols;
    for (int32_t g = 0; g < acts->n_groups; g++) {
        const uint16_t *header = (const uint16_t *)(const void *)panel;
        panel += header_bytes(offset);
        __m256i dots[4][2];
        for (int32_t r = 0; r < n_rows; r++) dots[r][0] = dots[r][1] = _mm256_setzero_si256();
        for (int32_t k = 0; k < group_size; k += 8, q += 8, panel += line_bytes) {
            _mm_prefetch((const char *)panel + 2048, _MM_HINT_T0);
            for (int32_t h = 0; h < 2; h++) {
                __m256i w[4];
                unpack_pairs(w, panel + h * 32, kind);
                for (int32_t r = 0; r < n_rows; r++) {
                    const int32_t *a =
                        (const int32_t *)(const void *)(q + (int64_t)r * acts->n_cols);
                    for (int32_t i = 0; i < 4; i++)
                        dots[r][h] = _mm256_add_epi32(
                            dots[r][h], _mm256_madd_epi16(w[i], _mm256_set1_epi32(a[i])));
                }
            }
        }
        for (int32_t r = 0; r < n_rows; r++) {
            int64_t at = (int64_t)(row0 + r) * acts->n_groups + g;
            for (int32_t h = 0; h < 2; h++)
                f[r][h] = finish_group8(f[r][h], (i32x8)dots[r][h], header, h, offset,
                                        acts->scales[at], acts->sums[at]);
        }
    }
    for (int32_t r = 0; r < n_rows; r++) {
        store8(out + r * LMD_PANEL_ROWS, f[r][0]);
        store8(out + r * LMD_PANEL_ROWS + 8, f[r][1]);
    }
}

#define DEFINE_PANEL(name, kind, offset)                                                       \
    static void name(float *out, const uint8_t *panel, int32_t group_size,                     \
                     const lmd_acts *acts, int32_t row0, int32_t n_rows) {                     \
        for (int32_t r = 0; r < n_rows; r += 4) {                                              \
            float *at = out + (int64_t)r * LMD_PANEL_ROWS;                                     \
            FOR_ROWS(n_rows - r,                                                               \
                     tile_codes(at, panel, kind, offset, group_size, acts, row0 + r, N))       \
        }                                                                                      \
    }

DEFINE_PANEL(panel_u4_zero, LMD_WEIGHT_U4, LMD_OFFSET_ZERO)
DEFINE_PANEL(panel_u4_min, LMD_WEIGHT_U4, LMD_OFFSET_MIN)
DEFINE_PANEL(panel_i8, LMD_WEIGHT_I8, LMD_OFFSET_NONE)
DEFINE_PANEL(panel_u8_min, LMD_WEIGHT_U8, LMD_OFFSET_MIN)

static void panel_avx2(float *out, const uint8_t *panel, const lmd_weight_format *format,
                       const lmd_acts *acts, int32_t row0, int32_t n_rows) {
    const int32_t group_size = format->group_size;
    if (format->kind == LMD_WEIGHT_U4 && format->offset == LMD_OFFSET_MIN)
        panel_u4_min(out, panel, group_size, acts, row0, n_rows);
    else if (format->kind == LMD_WEIGHT_U4 && format->offset == LMD_OFFSET_ZERO)
        panel_u4_zero(out, panel, group_size, acts, row0, n_rows);
    else if (format->kind == LMD_WEIGHT_I8 && format->offset == LMD_OFFSET_NONE)
        panel_i8(out, panel, group_size, acts, row0, n_rows);
    else if (format->kind == LMD_WEIGHT_U8 && format->offset == LMD_OFFSET_MIN)
        panel_u8_min(out, panel, group_size, acts, row0, n_rows);
    else
        panel_any(out, panel, format, acts, row0, n_rows);
}

const lmd_cpu_kernels lmd_cpu_kernels_avx2 = {
    .isa = "avx2",
    .panel = panel_avx2,
    .quantize = quantize,
    .rms_norm = rms_norm,
    .rope = rope,
    .silu_mul = silu_mul,
    .kv_write = kv_write,
    .attend_chunk = attend_chunk,
    .attend_fold = attend_fold,
};
