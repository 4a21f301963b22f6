/* A table for a processor that multiplies tiles, which are up to 16 rows of 64 bytes. Panels of
 * codes meet many rows in tiles; everything else is done by the kernels of panel_digits.h.
 * Included by an isa_<name>.c, which has defined ISA, the wrappers of vector.h, what
 * panel_digits.h asks for, and, with tile_file as the registers:
 *   tile_configure(tiles, const tile_shapes *)   sets every register's shape and zeroes it
 *   tile_barrier(tiles)                          later loads see what was written before
 *   tile_zero(tiles, n)
 *   tile_load(tiles, n, from, stride)            stride: bytes from row to row
 *   tile_store(tiles, n, to, stride)
 *   tile_dot(tiles, sums, acts, codes)           sums[r][n] += acts[r][4k + j] (signed bytes)
 *                                                * codes[k][4n + j] (unsigned), over k and j
 *   tile_release(tiles)                          leaves nothing for the system to save
 * Register numbers are literals, because they are part of the instructions. */
#include <assert.h>

#include "base/ints.h"
#include "cpu/kernels/kv.h"
#include "cpu/kernels/panel_digits.h"
#include "quant/packed_weight.h"

/* Sums of two groups, one with an even number and one with an odd number, by digit. */
#define EVEN_HIGH 0
#define EVEN_LOW  1
#define ODD_HIGH  2
#define ODD_LOW   3
#define ACTS_HIGH 4
#define ACTS_LOW  5
/* Codes of one step of such a group. */
#define EVEN_CODES 6
#define ODD_CODES  7

static_assert(HALVES == 1, "a row of a tile of sums is one vector");

enum { TILE_ROWS = 16 };

/* A panel is unpacked before its first tile, and storing a tile of sums takes as long with few
 * rows as with many. So vectors are faster with fewer rows in a step than TILES_FROM, and, with
 * fast activations, with fewer than LEAST_FAST rows in the smallest tile of an even cut. On
 * Emerald Rapids, in groups of 32, tiles were slower in steps of 16 rows and faster in steps of
 * 512; the threshold between them is calculated from what unpacking takes. */
enum { TILES_FROM = 48, LEAST_FAST = 14 };

static bool is_for_tiles(int32_t bits, int32_t n_rows) {
    if (n_rows < TILES_FROM) return false;
    return bits == 16 || n_rows >= LEAST_FAST * lmd_ceil_div(n_rows, TILE_ROWS);
}

static int32_t tile_rows(int32_t bits, int32_t n_rows) {
    return is_for_tiles(bits, n_rows) ? TILE_ROWS : digits_tile_rows(bits);
}

/* Most columns of a part, whose unpacked codes share the first cache with the rows that they
 * are multiplied by. */
enum { PART_COLS = 640 };

static_assert((int)PART_COLS >= (int)LMD_PACKED_COLS, "a part has a group at least");

/* A part's nibbles as bytes. */
static size_t scratch_bytes(int32_t n_cols) {
    return (size_t)lmd_min_i32(n_cols, PART_COLS) * LMD_PANEL_ROWS;
}

/* ---- activations: for each step of 32 or 64 columns, the high digits of all rows, where there
 * are two, then the low digits ---- */

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
    if (!is_for_tiles(acts->bits, acts->n_rows))
        quantize_row(acts, row, col0, n, x, emit_digits);
    else if (step_cols(acts->group_size) == 64)
        quantize_row(acts, row, col0, n, x, emit_step_64);
    else
        quantize_row(acts, row, col0, n, x, emit_step_32);
}

/* ---- a panel's codes as tiles: the codes of 4 columns are a row of 64 bytes ---- */

/* Some groups of a panel. A line of 8-bit codes is a row of a tile already; a line of nibbles
 * is unpacked to two. */
typedef struct panel_part {
    const uint8_t *header, *codes;       /* of the first group */
    int64_t header_stride, codes_stride; /* bytes from group to group */
    int32_t group0, n_groups;
    int64_t next_bytes; /* of what follows in the panel, prefetched with every group; 0 after
                           the part's first tile of rows has done so */
} panel_part;

static panel_part part_as_tiles(const uint8_t *panel, const lmd_weight_format *format,
                                int32_t group0, int32_t n_groups, uint8_t *scratch) {
    const bool nibbles = lmd_kind_is_nibbles(format->kind);
    const int32_t n_header = header_bytes(format->offset);
    const int64_t stride = n_header + (int64_t)format->group_size * (nibbles ? 8 : 16);
    const uint8_t *start = panel + group0 * stride;
    if (!nibbles)
        return (panel_part){start, start + n_header, stride, stride, group0, n_groups, stride};
    uint8_t *out = scratch;
    for (int32_t g = 0; g < n_groups; g++) {
        const uint8_t *line = start + g * stride + n_header;
        for (int32_t k = 0; k < format->group_size; k += 8, line += 64, out += 128) {
            u8v first[HALVES], second[HALVES];
            load_codes(first, second, line, true);
            memcpy(out, first, sizeof first);
            memcpy(out + 64, second, sizeof second);
        }
    }
    const int64_t unpacked = (int64_t)format->group_size * LMD_PANEL_ROWS;
    return (panel_part){start, scratch, stride, unpacked, group0, n_groups, stride};
}

/* The operand of ldtilecfg, in the processor's layout. */
typedef struct tile_shapes {
    uint8_t palette, start_row, zero[14];
    uint16_t row_bytes[16];
    uint8_t n_rows[16];
} tile_shapes;

static_assert(sizeof(tile_shapes) == 64, "as ldtilecfg reads it");

static void configure(tile_file *tiles, int32_t n_rows, int32_t n_cols) {
    tile_shapes shapes = {.palette = 1};
    for (int32_t i = EVEN_HIGH; i <= ODD_CODES; i++) {
        bool is_codes = i >= EVEN_CODES, is_acts = i == ACTS_HIGH || i == ACTS_LOW;
        shapes.n_rows[i] = (uint8_t)(is_codes ? n_cols / 4 : n_rows);
        shapes.row_bytes[i] = (uint16_t)(is_acts ? n_cols : LMD_PANEL_ROWS * 4);
    }
    tile_configure(tiles, &shapes);
}

/* ---- rows times a part of a panel ----
 * A tile's sums are ready 52 cycles after a multiplication began, and an instruction that
 * stores them delays those after it. So the sums of group g + 2 are multiplied and those of
 * group g + 1 stored before the vectors of group g are finished, and each step is loaded while
 * the one before it is multiplied. */

/* Where the next step is loaded from, and what is prefetched. */
typedef struct tile_reader {
    const uint8_t *codes, *acts;
    int64_t codes_skipped; /* bytes from the end of a group's codes to the next group's */
    int32_t n_cols;        /* of a step */
    int32_t digit_bytes;   /* of one digit of a step, of all rows */
    int32_t n_steps;       /* of a group */
    int32_t n_left;        /* steps not loaded yet */
    const uint8_t *next;   /* of the panel, after this part: prefetched, */
    int64_t next_bytes;    /* so many bytes with every group */
} tile_reader;

INLINE void load_step(tile_file *tiles, const bool odd, tile_reader *reader,
                      const int32_t n_digits) {
    (void)tiles;
    if (reader->n_left-- <= 0) return;
    if (odd)
        tile_load(tiles, ODD_CODES, reader->codes, 64);
    else
        tile_load(tiles, EVEN_CODES, reader->codes, 64);
    if (n_digits == 2) {
        tile_load(tiles, ACTS_HIGH, reader->acts, reader->n_cols);
        reader->acts += reader->digit_bytes;
    }
    tile_load(tiles, ACTS_LOW, reader->acts, reader->n_cols);
    reader->acts += reader->digit_bytes;
    reader->codes += reader->n_cols * LMD_PANEL_ROWS;
}

INLINE void multiply_step(tile_file *tiles, const bool odd, const int32_t n_digits) {
    (void)tiles;
    if (odd) {
        if (n_digits == 2) tile_dot(tiles, ODD_HIGH, ACTS_HIGH, ODD_CODES);
        tile_dot(tiles, ODD_LOW, ACTS_LOW, ODD_CODES);
    } else {
        if (n_digits == 2) tile_dot(tiles, EVEN_HIGH, ACTS_HIGH, EVEN_CODES);
        tile_dot(tiles, EVEN_LOW, ACTS_LOW, EVEN_CODES);
    }
}

/* Multiplies a group, whose first step is loaded already, and loads the next group's first. */
INLINE void multiply_group(tile_file *tiles, const bool odd, tile_reader *reader,
                           const int32_t n_digits) {
    if (odd) {
        if (n_digits == 2) tile_zero(tiles, ODD_HIGH);
        tile_zero(tiles, ODD_LOW);
    } else {
        if (n_digits == 2) tile_zero(tiles, EVEN_HIGH);
        tile_zero(tiles, EVEN_LOW);
    }
    for (int64_t at = 0; at < reader->next_bytes; at += 64) lmd_prefetch(reader->next + at);
    reader->next += reader->next_bytes;
    for (int32_t step = 1; step < reader->n_steps; step++) {
        multiply_step(tiles, odd, n_digits);
        load_step(tiles, odd, reader, n_digits);
    }
    multiply_step(tiles, odd, n_digits);
    reader->codes += reader->codes_skipped;
    load_step(tiles, !odd, reader, n_digits);
}

/* A group's sums, by digit. */
typedef struct tile_sums {
    i32v high[TILE_ROWS], low[TILE_ROWS];
} tile_sums;

INLINE void store_sums(tile_sums *sums, const tile_file *tiles, const bool odd,
                       const int32_t n_digits) {
    (void)tiles;
    if (odd) {
        if (n_digits == 2) tile_store(tiles, ODD_HIGH, sums->high, 64);
        tile_store(tiles, ODD_LOW, sums->low, 64);
    } else {
        if (n_digits == 2) tile_store(tiles, EVEN_HIGH, sums->high, 64);
        tile_store(tiles, EVEN_LOW, sums->low, 64);
    }
}

/* Adds a group's sums to the running sums, as finish_group does, without copying them first. */
INLINE void finish_sums(f32v *f, const tile_sums *sums, const uint8_t *header,
                        const lmd_group_offset offset, int32_t bias, tile_acts *acts,
                        const int32_t n_rows, const int32_t n_digits) {
    f32v scales = header_v(header, 0, false), offsets = scales;
    if (offset != LMD_OFFSET_NONE) offsets = header_v(header, LMD_PANEL_ROWS, false);
#pragma GCC unroll 16
    for (int32_t r = 0; r < n_rows; r++) {
        i32v dot = n_digits == 2 ? join_digits(sums->high[r], sums->low[r]) : sums->low[r];
        f[r] = finish_row(f[r], dot, scales, offsets, offset, bias, acts, r);
    }
    next_group(acts, n_rows);
}

/* Multiplies one tile of rows by a part of a panel and adds the results to out. */
INLINE void rows_times_part(float *out, tile_file *tiles, const panel_part *part, int32_t bias,
                            const lmd_acts *all_acts, int32_t begin, const int32_t n_rows,
                            const int32_t n_digits, const lmd_group_offset offset) {
    tile_acts acts = tile_at(all_acts, begin);
    const int32_t n_cols = step_cols(acts.group_size), n = part->n_groups;
    tile_reader reader = {
        .codes = part->codes,
        .acts = acts.q + (int64_t)part->group0 * acts.group_size * n_rows * n_digits,
        .codes_skipped = part->codes_stride - acts.group_size * LMD_PANEL_ROWS,
        .n_cols = n_cols,
        .digit_bytes = n_cols * n_rows,
        .n_steps = acts.group_size / n_cols,
        .n_left = acts.group_size / n_cols * n,
        .next = part->header + n * part->header_stride,
        .next_bytes = part->next_bytes};
    next_group(&acts, part->group0 * n_rows);
    f32v f[TILE_ROWS];
#pragma GCC unroll 16
    for (int32_t r = 0; r < TILE_ROWS; r++)
        f[r] = r < n_rows ? load_v(out + r * LMD_PANEL_ROWS) : all_v(0.0f);
    tile_sums even, odd;
    tile_barrier(tiles);
    load_step(tiles, false, &reader, n_digits);
    multiply_group(tiles, false, &reader, n_digits);
    if (n > 1) multiply_group(tiles, true, &reader, n_digits);
    store_sums(&even, tiles, false, n_digits);
    const uint8_t *header = part->header;
    int32_t g = 0;
    for (; g + 3 < n; g += 2) {
        multiply_group(tiles, false, &reader, n_digits);
        store_sums(&odd, tiles, true, n_digits);
        finish_sums(f, &even, header, offset, bias, &acts, n_rows, n_digits);
        header += part->header_stride;
        multiply_group(tiles, true, &reader, n_digits);
        store_sums(&even, tiles, false, n_digits);
        finish_sums(f, &odd, header, offset, bias, &acts, n_rows, n_digits);
        header += part->header_stride;
    }
    /* One to three groups are left. */
    if (g + 2 < n) multiply_group(tiles, false, &reader, n_digits);
    if (g + 1 < n) store_sums(&odd, tiles, true, n_digits);
    finish_sums(f, &even, header, offset, bias, &acts, n_rows, n_digits);
    header += part->header_stride;
    if (g + 2 < n) store_sums(&even, tiles, false, n_digits);
    if (g + 1 < n) finish_sums(f, &odd, header, offset, bias, &acts, n_rows, n_digits);
    header += part->header_stride;
    if (g + 2 < n) finish_sums(f, &even, header, offset, bias, &acts, n_rows, n_digits);
#pragma GCC unroll 16
    for (int32_t r = 0; r < n_rows; r++) store_v(out + r * LMD_PANEL_ROWS, f[r]);
}

typedef void (*rows_fn)(float *out, tile_file *tiles, const panel_part *part, int32_t bias,
                        const lmd_acts *acts, int32_t begin, int32_t n_rows);

/* 16 rows, the most common number, are a constant, so that their loops are unrolled without a
 * test for each row. */
#define DEFINE_ROWS(name, n_digits, offset)                                                    \
    static void name(float *out, tile_file *tiles, const panel_part *part, int32_t bias,       \
                     const lmd_acts *acts, int32_t begin, int32_t n_rows) {                    \
        if (n_rows == TILE_ROWS)                                                               \
            rows_times_part(out, tiles, part, bias, acts, begin, TILE_ROWS, n_digits, offset); \
        else                                                                                   \
            rows_times_part(out, tiles, part, bias, acts, begin, n_rows, n_digits, offset);    \
    }

DEFINE_ROWS(wide_none, 2, LMD_OFFSET_NONE)
DEFINE_ROWS(wide_zero, 2, LMD_OFFSET_ZERO)
DEFINE_ROWS(wide_min, 2, LMD_OFFSET_MIN)
DEFINE_ROWS(fast_none, 1, LMD_OFFSET_NONE)
DEFINE_ROWS(fast_zero, 1, LMD_OFFSET_ZERO)
DEFINE_ROWS(fast_min, 1, LMD_OFFSET_MIN)

static void tiled_panel(float *out, const uint8_t *weights, const lmd_weight_format *format,
                        const lmd_acts *acts, int32_t tile0, int32_t n_tiles,
                        uint8_t *scratch) {
    static const rows_fn fns[2][3] = {{[LMD_OFFSET_NONE] = wide_none,
                                       [LMD_OFFSET_ZERO] = wide_zero,
                                       [LMD_OFFSET_MIN] = wide_min},
                                      {[LMD_OFFSET_NONE] = fast_none,
                                       [LMD_OFFSET_ZERO] = fast_zero,
                                       [LMD_OFFSET_MIN] = fast_min}};
    const rows_fn rows = fns[acts->bits == 8][format->offset];
    const int32_t n_groups = acts->n_cols / acts->group_size,
                  bias = lmd_kind_bias(format->kind);
    const int32_t n_parts = lmd_ceil_div(n_groups, PART_COLS / acts->group_size);
    const int32_t row0 = lmd_tile_begin(acts, tile0);
    const int32_t end = lmd_tile_begin(acts, tile0 + n_tiles);
    memset(out, 0, (size_t)(end - row0) * LMD_PANEL_ROWS * sizeof *out);
    tile_file tiles;
    int32_t n_configured = 0; /* rows */
    for (int32_t p = 0; p < n_parts; p++) {
        const int32_t g = n_groups * p / n_parts;
        panel_part part =
            part_as_tiles(weights, format, g, n_groups * (p + 1) / n_parts - g, scratch);
        for (int32_t t = tile0; t < tile0 + n_tiles; t++) {
            int32_t begin = lmd_tile_begin(acts, t);
            int32_t n_rows = lmd_tile_begin(acts, t + 1) - begin;
            if (n_rows != n_configured) configure(&tiles, n_rows, step_cols(acts->group_size));
            n_configured = n_rows;
            rows(out + (int64_t)(begin - row0) * LMD_PANEL_ROWS, &tiles, &part, bias, acts,
                 begin, n_rows);
            part.next_bytes = 0;
        }
    }
    tile_release(&tiles);
}

static void panel_codes(float *out, const uint8_t *weights, const lmd_weight_format *format,
                        const lmd_acts *acts, int32_t tile0, int32_t n_tiles, void *scratch) {
    if (is_for_tiles(acts->bits, acts->n_rows))
        tiled_panel(out, weights, format, acts, tile0, n_tiles, scratch);
    else
        digits_panel(out, weights, format, acts, tile0, n_tiles);
}

#include "cpu/kernels/table.h"
