/* Kernels for products of bytes and 32 vector registers: everything on digits. Included by an
 * ISA's file, which has defined the wrappers of vector.h, WIDE_ROWS and FAST_ROWS (rows
 * of W4A16 and of fast activations whose sums fit the registers: 1, 2, 4, 6, 8 or 12), and
 * KERNELS_NAME and KERNELS_ISA; without a name there is no table, for another template builds
 * on these kernels. */
#include "cpu/kernels/kv.h"
#include "cpu/kernels/linear.h"

/* An ISA may have a tile of W4A16 of its own, on the same layout. */
#ifndef TILE_WIDE
#define TILE_WIDE(out, weights, format, acts, begin, n_rows, nibbles)                          \
    tile_digits(out, weights, format, acts, begin, n_rows, 2, nibbles)
#endif

#define PASTE_TOKENS(a, b)             a##b
#define DEFINE_TILES_OF(n, name, body) PASTE_TOKENS(DEFINE_TILES_, n)(name, body)
#define TILE_TABLE_OF(n, name)         PASTE_TOKENS(TILE_TABLE_, n)(name)

static int32_t digits_tile_rows(int32_t bits) { return bits == 16 ? WIDE_ROWS : FAST_ROWS; }

DEFINE_TILES_OF(WIDE_ROWS, wide_u4, TILE_WIDE(out, weights, format, acts, begin, N, true))
DEFINE_TILES_OF(WIDE_ROWS, wide_u8, TILE_WIDE(out, weights, format, acts, begin, N, false))
DEFINE_TILES_OF(FAST_ROWS, fast_u4, tile_digits(out, weights, format, acts, begin, N, 1, true))

/* A panel of codes; rows lie as emit_digits puts them. */
static void digits_panel(float *out, const uint8_t *weights, const lmd_weight_format *format,
                         const lmd_acts *acts, int32_t tile0, int32_t n_tiles) {
    static const tile_fn nibbles[] = TILE_TABLE_OF(WIDE_ROWS, wide_u4),
                         bytes[] = TILE_TABLE_OF(WIDE_ROWS, wide_u8),
                         fast[] = TILE_TABLE_OF(FAST_ROWS, fast_u4);
    run_tiles(out, weights, format, acts, tile0, n_tiles,
              acts->bits == 8                     ? fast
              : lmd_kind_is_nibbles(format->kind) ? nibbles
                                                  : bytes);
}

#ifdef KERNELS_NAME
static int32_t tile_rows(int32_t bits, int32_t n_rows) {
    (void)n_rows;
    return digits_tile_rows(bits);
}

static size_t scratch_bytes(int32_t n_cols) {
    (void)n_cols;
    return 0;
}

static void quantize(const lmd_acts *acts, int32_t row, int32_t col0, int32_t n,
                     const float *x) {
    quantize_row(acts, row, col0, n, x, emit_digits);
}

static void panel(float *out, const uint8_t *weights, const lmd_weight_format *format,
                  const lmd_acts *acts, int32_t tile0, int32_t n_tiles, void *scratch) {
    (void)scratch;
    if (format->kind == LMD_WEIGHT_FLOAT)
        panel_float(out, weights, format->float_dtype, acts, tile0, n_tiles);
    else
        digits_panel(out, weights, format, acts, tile0, n_tiles);
}

const lmd_cpu_kernels KERNELS_NAME = KERNEL_TABLE(KERNELS_ISA);
#endif
