/* The reference kernels, for any machine: the shared source with portable wrappers, and the
 * readable definition of a panel of codes. Every faster table is compared with them; they are
 * never optimised by hand. */
#define ISA ref

enum { LANES = 8, BYTE_FLIP = 0 };

#include "cpu/kernels/vector_portable.h"
#undef IS_PORTABLE /* this table is the engine's too */

#include "cpu/kernels/kv.h"
#include "cpu/kernels/linear.h"

static int32_t tile_rows(int32_t bits, int32_t n_rows) {
    (void)bits;
    (void)n_rows;
    return 1;
}

static size_t scratch_bytes(int32_t n_cols) {
    (void)n_cols;
    return 0;
}

/* A tile is one row, whose integers lie in order. */
static void emit_plain(uint8_t *tile, const i32v *q, int32_t k, int32_t row, int32_t n_rows,
                       int32_t bits) {
    (void)row; /* 0 of 1 */
    (void)n_rows;
    for (int32_t i = 0; i < 16; i++) {
        int16_t wide = (int16_t)q[i / LANES][i % LANES];
        int8_t narrow = (int8_t)wide;
        if (bits == 16)
            memcpy(tile + (int64_t)(k + i) * 2, &wide, 2);
        else
            memcpy(tile + k + i, &narrow, 1);
    }
}

static void quantize(const lmd_acts *acts, int32_t row, int32_t col0, int32_t n,
                     const float *x) {
    quantize_row(acts, row, col0, n, x, emit_plain);
}

static int32_t act_at(const lmd_acts *acts, int32_t row, int32_t k) {
    const uint8_t *q = acts->q + (int64_t)row * acts->n_cols * (acts->bits / 8);
    if (acts->bits == 8) return ((const int8_t *)q)[k];
    int16_t wide;
    memcpy(&wide, q + (int64_t)k * 2, sizeof wide);
    return wide;
}

/* The code of row n and column k of a group, as it is stored. */
static int32_t code_at(const uint8_t *lines, bool nibbles, int32_t n, int32_t k) {
    if (!nibbles) return lines[k / 4 * 64 + n * 4 + k % 4];
    uint8_t byte = lines[k / 8 * 64 + n * 4 + k % 4];
    return k / 4 % 2 ? byte >> 4 : byte & 15;
}

static float group_value(float f, int32_t dot, const uint16_t *header, int32_t n,
                         const lmd_weight_format *format, float act_scale, int32_t act_sum) {
    float scale = lmd_half_to_float(header[n]), offset = 0.0f;
    if (format->offset != LMD_OFFSET_NONE)
        offset = lmd_half_to_float(header[LMD_PANEL_ROWS + n]);
    dot -= lmd_kind_bias(format->kind) * act_sum;
    if (format->offset == LMD_OFFSET_ZERO) dot -= (int32_t)offset * act_sum;
    f = fmaf((float)dot, scale * act_scale, f);
    if (format->offset == LMD_OFFSET_MIN) f = fmaf(offset, act_scale * (float)act_sum, f);
    return f;
}

static void panel_times_row(float *out, const uint8_t *panel, const lmd_weight_format *format,
                            const lmd_acts *acts, int32_t row) {
    const bool nibbles = lmd_kind_is_nibbles(format->kind);
    const int32_t group_size = acts->group_size, n_groups = acts->n_cols / group_size;
    const int32_t n_lines = group_size * (nibbles ? 8 : 16); /* bytes */
    for (int32_t n = 0; n < LMD_PANEL_ROWS; n++) out[n] = 0.0f;
    for (int32_t g = 0; g < n_groups; g++) {
        const uint8_t *lines = panel + header_bytes(format->offset);
        int64_t at = (int64_t)row * n_groups + g;
        for (int32_t n = 0; n < LMD_PANEL_ROWS; n++) {
            int32_t dot = 0;
            for (int32_t k = 0; k < group_size; k++)
                dot += code_at(lines, nibbles, n, k) * act_at(acts, row, g * group_size + k);
            out[n] = group_value(out[n], dot, (const uint16_t *)(const void *)panel, n, format,
                                 acts->scales[at], acts->sums[at]);
        }
        panel = lines + n_lines;
    }
}

static void panel_codes(float *out, const uint8_t *weights, const lmd_weight_format *format,
                        const lmd_acts *acts, int32_t tile0, int32_t n_tiles, void *scratch) {
    (void)scratch;
    for (int32_t t = tile0; t < tile0 + n_tiles; t++, out += LMD_PANEL_ROWS)
        panel_times_row(out, weights, format, acts, t); /* a tile is one row */
}

#include "cpu/kernels/table.h"
