/* A table for 32 vector registers and products of bytes: every panel of codes meets digits.
 * Included by an isa_<name>.c, which has defined ISA, the wrappers of vector.h, and what
 * panel_digits.h asks for. */
#include "cpu/kernels/kv.h"
#include "cpu/kernels/panel_digits.h"

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

static void panel_codes(float *out, const uint8_t *weights, const lmd_weight_format *format,
                        const lmd_acts *acts, int32_t tile0, int32_t n_tiles, void *scratch) {
    (void)scratch;
    digits_panel(out, weights, format, acts, tile0, n_tiles);
}

#include "cpu/kernels/table.h"
