/* A table of kernels for a processor that multiplies tiles: up to 16 rows of 64 bytes each.
 * Panels of codes meet 8 rows and more in tiles, and fewer rows, like everything else, in the
 * kernels of kernels_digits.h. Included by an ISA's file, which has defined the wrappers of
 * kernels_vector.h; TABLE_NAME and TABLE_ISA; and, with tile_file as the registers:
 *   tile_configure(tiles, const tile_shapes *)   sets every register's shape, zeroes them
 *   tile_zero(tiles, n)
 *   tile_load(tiles, n, from, stride)            stride: bytes from row to row
 *   tile_store(tiles, n, to, stride)
 *   tile_dot(tiles, sums, acts, codes)           sums[r][n] += acts[r][4k + j] (signed bytes)
 *                                                * codes[k][4n + j] (unsigned), over k and j
 *   tile_release(tiles)                          leaves nothing for the system to save
 * The numbers of registers are literals, for they stand in the instruction. */
#include <assert.h>

#include "cpu/kernels_digits.h"

#define SUMS_HIGH 0
#define SUMS_LOW  1
#define ACTS_HIGH 2
#define ACTS_LOW  3
#define CODES     4

/* By a count of instructions, tiles multiply 8 rows in a quarter of the time that vectors take,
 * which pays for unpacking the panel; with 4 rows it would be even. Tiles of rows are cut
 * evenly, so that none has fewer than 8. */
enum { TILE_ROWS = 16, TILES_FROM = 8 };

static int32_t tile_rows(int32_t bits, int32_t n_rows) {
    return n_rows >= TILES_FROM ? TILE_ROWS : digits_tile_rows(bits);
}

/* Nibbles as bytes, for 16 rows. */
static size_t scratch_bytes(int32_t n_cols) { return (size_t)n_cols * LMD_PANEL_ROWS; }

/* ---- activations: for each step of 32 or 64 columns, high digits of all rows, then low ----
 */

INLINE int32_t step_cols(int32_t group_size) { return group_size % 64 == 0 ? 64 : 32; }

INLINE void emit_step(uint8_t *tile, const i32v *q, int32_t k, int32_t row, int32_t n_rows,
                      int32_t bits, const int32_t n_cols) {
    const int32_t digit_bytes = n_rows * n_cols; /* of a step */
    uint8_t *out =
        tile + (int64_t)(k / n_cols) * (bits / 8) * digit_bytes + row * n_cols + k % n_cols;
    if (bits == 16) {
        i32v high[HALVES], low[HALVES];
        split_digits(high, low, q);
        narrow_to_bytes(out, high);
        narrow_to_bytes(out + digit_bytes, low);
    } else {
        narrow_to_bytes(out, q);
    }
}

static void emit_step_32(uint8_t *tile, const i32v *q, int32_t k, int32_t row, int32_t n_rows,
                         int32_t bits) {
    emit_step(tile, q, k, row, n_rows, bits, 32);
}

static void emit_step_64(uint8_t *tile, const i32v *q, int32_t k, int32_t row, int32_t n_rows,
                         int32_t bits) {
    emit_step(tile, q, k, row, n_rows, bits, 64);
}

static void quantize(const lmd_acts *acts, int32_t row, int32_t col0, int32_t n,
                     const float *x) {
    if (acts->n_rows < TILES_FROM)
        quantize_row(acts, row, col0, n, x, emit_digits);
    else if (step_cols(acts->group_size) == 64)
        quantize_row(acts, row, col0, n, x, emit_step_64);
    else
        quantize_row(acts, row, col0, n, x, emit_step_32);
}

/* ---- a panel as tiles: the codes of 4 columns are a row of 64 bytes ---- */

typedef struct tiled_panel {
    const uint8_t *header, *codes;       /* of the first group */
    int64_t header_stride, codes_stride; /* bytes from group to group */
} tiled_panel;

/* Lines of bytes are rows of tiles as they stand; a line of nibbles becomes two. */
static tiled_panel panel_as_tiles(const uint8_t *panel, const lmd_weight_format *format,
                                  int32_t n_cols, uint8_t *scratch) {
    const bool nibbles = lmd_kind_is_nibbles(format->kind);
    const int32_t n_header = header_bytes(format->offset);
    const int64_t stride = n_header + format->group_size * (nibbles ? 8 : 16);
    if (!nibbles) return (tiled_panel){panel, panel + n_header, stride, stride};
    uint8_t *out = scratch;
    for (int32_t g = 0; g < n_cols / format->group_size; g++) {
        const uint8_t *line = panel + g * stride + n_header;
        for (int32_t k = 0; k < format->group_size; k += 8, line += 64, out += 128) {
            u8v first[HALVES], second[HALVES];
            load_codes(first, second, line, true);
            memcpy(out, first, sizeof first);
            memcpy(out + 64, second, sizeof second);
        }
    }
    return (tiled_panel){panel, scratch, stride, format->group_size * LMD_PANEL_ROWS};
}

/* The processor's own layout. */
typedef struct tile_shapes {
    uint8_t palette, start_row, zero[14];
    uint16_t row_bytes[16];
    uint8_t n_rows[16];
} tile_shapes;

static_assert(sizeof(tile_shapes) == 64, "the operand of ldtilecfg");

static tile_shapes shapes_for(int32_t n_rows, int32_t n_cols) {
    tile_shapes shapes = {.palette = 1};
    for (int32_t i = SUMS_HIGH; i <= ACTS_LOW; i++) {
        shapes.n_rows[i] = (uint8_t)n_rows;
        shapes.row_bytes[i] = (uint16_t)(i <= SUMS_LOW ? LMD_PANEL_ROWS * 4 : n_cols);
    }
    shapes.n_rows[CODES] = (uint8_t)(n_cols / 4);
    shapes.row_bytes[CODES] = LMD_PANEL_ROWS * 4;
    return shapes;
}

/* One tile of up to 16 rows. */
INLINE void rows_times_panel(float *out, tile_file *tiles, const tiled_panel *panel,
                             const lmd_weight_format *format, const lmd_acts *all_acts,
                             int32_t begin, int32_t n_rows, const int32_t n_digits) {
    const int32_t n_cols = step_cols(all_acts->group_size);
    const tile_shapes shapes = shapes_for(n_rows, n_cols);
    tile_acts acts = tile_at(all_acts, begin);
    f32v f[TILE_ROWS][HALVES];
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t h = 0; h < HALVES; h++) f[r][h] = all_v(0.0f);
    tile_configure(tiles, &shapes);
    for (int32_t g = 0; g < acts.n_groups; g++) {
        const uint8_t *codes = panel->codes + g * panel->codes_stride;
        i32v dots[TILE_ROWS][HALVES], high[TILE_ROWS][HALVES];
        tile_zero(tiles, SUMS_LOW);
        if (n_digits == 2) tile_zero(tiles, SUMS_HIGH);
        for (int32_t k = 0; k < acts.group_size; k += n_cols, codes += n_cols * 16) {
            tile_load(tiles, CODES, codes, 64);
            if (n_digits == 2) {
                tile_load(tiles, ACTS_HIGH, acts.q, n_cols);
                tile_dot(tiles, SUMS_HIGH, ACTS_HIGH, CODES);
                acts.q += n_rows * n_cols;
            }
            tile_load(tiles, ACTS_LOW, acts.q, n_cols);
            tile_dot(tiles, SUMS_LOW, ACTS_LOW, CODES);
            acts.q += n_rows * n_cols;
        }
        tile_store(tiles, SUMS_LOW, dots, 64);
        if (n_digits == 2) {
            tile_store(tiles, SUMS_HIGH, high, 64);
            for (int32_t r = 0; r < n_rows; r++)
                for (int32_t h = 0; h < HALVES; h++)
                    dots[r][h] = join_digits(high[r][h], dots[r][h]);
        }
        finish_group(f, dots, panel->header + g * panel->header_stride, false, format, &acts,
                     n_rows);
    }
    store_rows(out, f, n_rows);
}

static void wide_rows(float *out, tile_file *tiles, const tiled_panel *panel,
                      const lmd_weight_format *format, const lmd_acts *acts, int32_t begin,
                      int32_t n_rows) {
    rows_times_panel(out, tiles, panel, format, acts, begin, n_rows, 2);
}

static void fast_rows(float *out, tile_file *tiles, const tiled_panel *panel,
                      const lmd_weight_format *format, const lmd_acts *acts, int32_t begin,
                      int32_t n_rows) {
    rows_times_panel(out, tiles, panel, format, acts, begin, n_rows, 1);
}

static void panel(float *out, const uint8_t *weights, const lmd_weight_format *format,
                  const lmd_acts *acts, int32_t tile0, int32_t n_tiles, void *scratch) {
    if (format->kind == LMD_WEIGHT_FLOAT) {
        panel_float(out, weights, format->float_dtype, acts, tile0, n_tiles);
        return;
    }
    if (acts->n_rows < TILES_FROM) {
        digits_panel(out, weights, format, acts, tile0, n_tiles);
        return;
    }
    const tiled_panel tiled = panel_as_tiles(weights, format, acts->n_cols, scratch);
    tile_file tiles;
    for (int32_t t = tile0; t < tile0 + n_tiles; t++) {
        int32_t begin = lmd_tile_begin(acts, t), n_rows = lmd_tile_begin(acts, t + 1) - begin;
        if (acts->bits == 8)
            fast_rows(out, &tiles, &tiled, format, acts, begin, n_rows);
        else
            wide_rows(out, &tiles, &tiled, format, acts, begin, n_rows);
        out += n_rows * LMD_PANEL_ROWS;
    }
    tile_release(&tiles);
}

const lmd_cpu_kernels TABLE_NAME = KERNEL_TABLE(TABLE_ISA);
