/* A table for 16 vector registers: W4A16 meets pairs of int16, fast activations meet digits.
 * Included by an isa_<name>.c, which has defined ISA and the wrappers of vector.h. */
#include "cpu/kernels/kv.h"
#include "cpu/kernels/linear.h"

enum {
    FEW_ROWS = 4,   /* at most, in a tile that unpacks the weights itself */
    MANY_ROWS = 6,  /* at most, in a tile on an unpacked panel */
    UNPACK_FROM = 8 /* rows of a step from which on unpacking a panel first is faster */
};

static int32_t tile_rows(int32_t bits, int32_t n_rows) {
    return bits == 16 && n_rows >= UNPACK_FROM ? MANY_ROWS : FEW_ROWS;
}

/* An unpacked panel: 32 bytes for each column, and 128 bytes of scales and offsets for each
 * group, which has at least 32 columns. */
static size_t scratch_bytes(int32_t n_cols) { return (size_t)n_cols * (32 + 4); }

static void quantize(const lmd_acts *acts, int32_t row, int32_t col0, int32_t n,
                     const float *x) {
    quantize_row(acts, row, col0, n, x, acts->bits == 16 ? emit_pairs : emit_digits);
}

DEFINE_TILES_4(pairs_u4, tile_pairs(out, weights, format, acts, begin, N, true))
DEFINE_TILES_4(pairs_u8, tile_pairs(out, weights, format, acts, begin, N, false))
DEFINE_TILES_4(digit_u4, tile_digits(out, weights, format, acts, begin, N, 1, true))
DEFINE_TILES_6(unpacked, tile_unpacked(out, weights, format, acts, begin, N))

static void panel_codes(float *out, const uint8_t *weights, const lmd_weight_format *format,
                        const lmd_acts *acts, int32_t tile0, int32_t n_tiles, void *scratch) {
    static const tile_fn pairs_of_nibbles[] = TILE_TABLE_4(pairs_u4),
                         pairs_of_bytes[] = TILE_TABLE_4(pairs_u8),
                         digits[] = TILE_TABLE_4(digit_u4), many[] = TILE_TABLE_6(unpacked);
    const tile_fn *tiles;
    if (acts->bits == 8) {
        tiles = digits;
    } else if (acts->n_rows >= UNPACK_FROM) {
        unpack_panel(scratch, weights, format, acts->n_cols);
        weights = scratch;
        tiles = many;
    } else {
        tiles = lmd_kind_is_nibbles(format->kind) ? pairs_of_nibbles : pairs_of_bytes;
    }
    run_tiles(out, weights, format, acts, tile0, n_tiles, tiles);
}

#include "cpu/kernels/table.h"
