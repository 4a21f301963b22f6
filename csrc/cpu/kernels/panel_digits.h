/* The kernel that multiplies panels of codes by activations in digits, with as many rows at a
 * time as an ISA's registers hold. The file that includes it has defined WIDE_ROWS and
 * FAST_ROWS, the rows of W4A16 and of fast activations whose sums fit the registers: 1, 2, 4,
 * 6, 8 or 12. */
#ifndef LMD_CPU_KERNELS_PANEL_DIGITS_H
#define LMD_CPU_KERNELS_PANEL_DIGITS_H

#include "cpu/kernels/linear.h"

/* An ISA may define a tile of W4A16 of its own, on the same layout. */
#ifndef TILE_WIDE
#define TILE_WIDE(out, weights, format, acts, begin, n_rows, nibbles)                          \
    tile_digits(out, weights, format, acts, begin, n_rows, 2, nibbles)
#endif

#define DEFINE_TILES_OF(n, name, body) PASTE(DEFINE_TILES_, n)(name, body)
#define TILE_TABLE_OF(n, name)         PASTE(TILE_TABLE_, n)(name)

static int32_t digits_tile_rows(int32_t bits) { return bits == 16 ? WIDE_ROWS : FAST_ROWS; }

DEFINE_TILES_OF(WIDE_ROWS, wide_u4, TILE_WIDE(out, weights, format, acts, begin, N, true))
DEFINE_TILES_OF(WIDE_ROWS, wide_u8, TILE_WIDE(out, weights, format, acts, begin, N, false))
DEFINE_TILES_OF(FAST_ROWS, fast_u4, tile_digits(out, weights, format, acts, begin, N, 1, true))

/* The rows must lie as emit_digits puts them. */
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

#endif
