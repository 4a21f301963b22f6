/* A table of kernels for 32 vector registers and products of bytes: everything on digits.
 * Included by an ISA's file, which has defined the wrappers of kernels_vector.h, and
 * KERNELS_NAME and KERNELS_ISA. */
#include "cpu/kernels_attention.h"
#include "cpu/kernels_linear.h"

/* Two digits a row, or one: 12 vectors of sums either way. */
static int32_t tile_rows(int32_t bits, int32_t n_rows) {
    (void)n_rows;
    return bits == 16 ? 6 : 12;
}

static size_t scratch_bytes(int32_t n_cols) {
    (void)n_cols;
    return 0;
}

static void quantize(const lmd_acts *acts, int32_t row, int32_t col0, int32_t n,
                     const float *x) {
    quantize_row(acts, row, col0, n, x, emit_digits);
}

DEFINE_TILES_6(digits_u4, tile_digits(out, weights, format, acts, begin, N, 2, true))
DEFINE_TILES_6(digits_u8, tile_digits(out, weights, format, acts, begin, N, 2, false))
DEFINE_TILES_12(digit_u4, tile_digits(out, weights, format, acts, begin, N, 1, true))

static void panel(float *out, const uint8_t *weights, const lmd_weight_format *format,
                  const lmd_acts *acts, int32_t tile0, int32_t n_tiles, void *scratch) {
    static const tile_fn nibbles[] = TILE_TABLE_6(digits_u4),
                         bytes[] = TILE_TABLE_6(digits_u8), fast[] = TILE_TABLE_12(digit_u4);
    (void)scratch;
    if (format->kind == LMD_WEIGHT_FLOAT)
        panel_float(out, weights, format->float_dtype, acts, tile0, n_tiles);
    else
        run_tiles(out, weights, format, acts, tile0, n_tiles,
                  acts->bits == 8            ? fast
                  : is_nibbles(format->kind) ? nibbles
                                             : bytes);
}

const lmd_cpu_kernels KERNELS_NAME = {
    .isa = KERNELS_ISA,
    .tile_rows = tile_rows,
    .scratch_bytes = scratch_bytes,
    .panel = panel,
    .quantize = quantize,
    .rms_norm = rms_norm,
    .rope = rope,
    .silu_mul = silu_mul,
    .kv_write = kv_write,
    .attend_chunk = attend_chunk,
    .attend_fold = attend_fold,
};
