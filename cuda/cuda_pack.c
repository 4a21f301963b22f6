/* Packing weights into the device's layout: see cuda_pack.h. */
#include "cuda_pack.h"

#include <math.h>
#include <string.h>

#include "backend/part_rows.h"
#include "base/half.h"
#include "base/ints.h"
#include "quant/packed_codec.h"

enum { ROWS = LMD_TILE_ROWS };

/* ---- what becomes of a source ---- */

static lmd_cuda_form form_of(const lmd_weight_format *format) {
    const bool is_min = format->offset == LMD_OFFSET_MIN;
    const int32_t g = format->group_size;
    if (g != 32 && g != 64 && g != 128) return LMD_FORM_F16;
    switch (format->kind) {
    case LMD_WEIGHT_U4:
    case LMD_WEIGHT_I4: return is_min ? LMD_FORM_U4_MIN : LMD_FORM_U4_ZERO;
    case LMD_WEIGHT_I8:
    case LMD_WEIGHT_U8: return is_min ? LMD_FORM_U8_MIN : LMD_FORM_U8_ZERO;
    case LMD_WEIGHT_FLOAT: break;
    }
    return LMD_FORM_F16;
}

/* A half holds every value of the types that are quantised, with the halves that scale them,
 * but for those that are not finite anyway. */
static bool may_need_row_scales(const lmd_weight_format *format) {
    return format->kind == LMD_WEIGHT_FLOAT && format->float_dtype != LMD_F16;
}

static bool are_alike(const lmd_weight_format *a, const lmd_weight_format *b) {
    return form_of(a) == form_of(b) &&
           (form_of(a) == LMD_FORM_F16 || a->group_size == b->group_size);
}

/* Sets the sizes that follow from form, parts and columns. */
static void set_sizes(lmd_pack_plan *plan) {
    plan->n_cols = plan->src->n_cols;
    plan->padded_cols = lmd_pad_cols(plan->n_cols);
    plan->n_rows = 0;
    plan->has_row_scales = false;
    for (int32_t i = plan->first_part; i < plan->first_part + plan->n_parts; i++) {
        plan->n_rows += plan->src->parts[i].n_rows;
        if (may_need_row_scales(&plan->formats[i])) plan->has_row_scales = true;
    }
    plan->n_tiles = plan->src->is_gated ? lmd_ceil_div(plan->n_rows / 2, LMD_HALF_TILE)
                                        : lmd_ceil_div(plan->n_rows, ROWS);
    plan->tile_codes =
        (size_t)ROWS * (size_t)plan->padded_cols * (size_t)lmd_form_bits(plan->form) / 8;
    plan->n_groups = plan->group_size ? lmd_ceil_div(plan->padded_cols, plan->group_size) : 0;
    plan->tile_groups = (size_t)plan->n_groups * ROWS * sizeof(lmd_cuda_group);
    plan->tile_scales = plan->has_row_scales ? ROWS * sizeof(float) : 0;
}

/* Gate and up share tiles, so they share a form: where theirs differ, that of halves. */
static void plan_gated(lmd_pack_plan *plan) {
    plan->n_parts = plan->src->n_parts;
    const bool same = are_alike(&plan->formats[0], &plan->formats[1]);
    plan->form = same ? form_of(&plan->formats[0]) : LMD_FORM_F16;
    plan->group_size = lmd_form_is_codes(plan->form) ? plan->formats[0].group_size : 0;
}

lmd_status lmd_pack_plans(const lmd_weight_source *src,
                          lmd_pack_plan plans[LMD_MAX_WEIGHT_PARTS], int32_t *n, lmd_err *err) {
    lmd_pack_plan plan = {.src = src};
    LMD_TRY(lmd_weight_source_check(src, plan.formats, err));
    if (src->is_gated && (src->n_parts != 2 || src->parts[0].n_rows != src->parts[1].n_rows))
        return lmd_fail(err, LMD_INTERNAL, "gate and up must have equally many rows");
    *n = 0;
    int32_t first_row = 0;
    for (int32_t i = 0; i < src->n_parts; i += plan.n_parts) {
        plan.first_part = i;
        plan.first_row = first_row;
        plan.n_parts = 1;
        plan.form = form_of(&plan.formats[i]);
        plan.group_size = lmd_form_is_codes(plan.form) ? plan.formats[i].group_size : 0;
        if (src->is_gated) plan_gated(&plan);
        while (i + plan.n_parts < src->n_parts &&
               are_alike(&plan.formats[i], &plan.formats[i + plan.n_parts]))
            plan.n_parts++;
        set_sizes(&plan);
        first_row += plan.n_rows;
        plans[(*n)++] = plan;
    }
    return LMD_OK;
}

/* ---- one row ---- */

/* Where a row of a tile comes from. */
typedef struct row_origin {
    const lmd_weight_part *part; /* NULL: the row is padding */
    const lmd_weight_format *format;
    int32_t row; /* of the part, before its row_map */
} row_origin;

static row_origin find_row(const lmd_pack_plan *plan, int32_t row) {
    int32_t i = plan->first_part;
    const int32_t end = plan->first_part + plan->n_parts;
    if (plan->src->is_gated) {
        i = row % ROWS / LMD_HALF_TILE;
        row = row / ROWS * LMD_HALF_TILE + row % LMD_HALF_TILE;
        if (row >= plan->src->parts[i].n_rows) i = end;
    }
    while (i < end && row >= plan->src->parts[i].n_rows) row -= plan->src->parts[i++].n_rows;
    if (i == end) return (row_origin){NULL, NULL, 0};
    return (row_origin){&plan->src->parts[i], &plan->formats[i], row};
}

/* The bytes of a row of a tensor; where they were read, they are in `buffer`. */
static lmd_status row_bytes(const row_origin *origin, int32_t n_cols, uint8_t *buffer,
                            const uint8_t **out, lmd_err *err) {
    return lmd_part_rows(origin->part, n_cols, origin->row, 1, buffer, out, err);
}

/* A tile's rows as bytes, before they are packed. */
typedef struct tile_rows {
    uint8_t *codes;             /* [16][padded_cols] unsigned */
    uint16_t *scales, *offsets; /* [16][n_groups] halves: the offset of cuda_layout.h */
    float *values;              /* [padded_cols] one row, of form F16 or before it is codes */
    uint8_t *stored;            /* one row of a tensor, as it was read */
} tile_rows;

/* One row as its format has it: codes as they are, groups of the format. */
static lmd_status read_row(const row_origin *origin, int32_t n_cols, const tile_rows *scratch,
                           const lmd_row_codes *out, lmd_err *err) {
    const lmd_weight_part *part = origin->part;
    if (!part->packed.packing) {
        const uint8_t *bytes;
        LMD_TRY(row_bytes(origin, n_cols, scratch->stored, &bytes, err));
        const lmd_row_decoder decoder = {part, n_cols, lmd_data_free_codes, scratch->values};
        return lmd_part_decode_row(&decoder, bytes, out, err);
    }
    const int32_t row = part->row_map ? part->row_map[origin->row] : origin->row;
    const int32_t g = origin->format->group_size;
    /* Packed rows come in runs of 8; the other 7 are read again for their own turn. */
    uint8_t run[LMD_PACKED_ROWS * LMD_PACKED_COLS];
    uint16_t run_scales[LMD_PACKED_ROWS], run_zeros[LMD_PACKED_ROWS] = {0};
    const int32_t in_run = row % LMD_PACKED_ROWS;
    for (int32_t col = 0; col < n_cols; col += g) {
        lmd_packed_decode(&part->packed, row - in_run, col, g, run, run_scales, run_zeros);
        memcpy(out->codes + col, run + in_run * g, (size_t)g);
        out->scales[col / g] = run_scales[in_run];
        out->offsets[col / g] = run_zeros[in_run];
    }
    return LMD_OK;
}

/* ---- codes ---- */

static uint16_t offset_of(const lmd_weight_format *format, uint16_t offset) {
    if (format->offset == LMD_OFFSET_MIN) return offset;
    float zero = 0.0f; /* of the unsigned code */
    if (format->offset == LMD_OFFSET_ZERO) zero = lmd_half_to_float(offset);
    if (format->kind == LMD_WEIGHT_I4) zero = LMD_I4_BIAS;
    if (format->kind == LMD_WEIGHT_I8) zero = 128.0f;
    return lmd_float_to_half(1024.0f + zero);
}

static lmd_status read_code_row(const lmd_pack_plan *plan, const row_origin *origin,
                                int32_t lane, tile_rows *to, lmd_err *err) {
    const lmd_weight_format *format = origin->format;
    uint8_t *codes = to->codes + lane * plan->padded_cols;
    uint16_t *offsets = to->offsets + lane * plan->n_groups;
    const lmd_row_codes row = {codes, to->scales + lane * plan->n_groups, offsets};
    LMD_TRY(read_row(origin, plan->n_cols, to, &row, err));
    for (int32_t g = 0; g < plan->n_cols / plan->group_size; g++)
        offsets[g] = offset_of(format, offsets[g]);
    if (format->kind != LMD_WEIGHT_I8) return LMD_OK;
    for (int32_t k = 0; k < plan->n_cols; k++) codes[k] ^= 0x80; /* code + 128 */
    return LMD_OK;
}

/* Writes a row's codes to the lanes that hold them: cuda_layout.h. */
static void pack_row4(const uint8_t *codes, int32_t padded_cols, int32_t lane_row,
                      uint8_t *tile) {
    const int32_t upper = lane_row / 8; /* of the rows of the tile: nibbles 1, 3, 5, 7 */
    for (int32_t col = 0; col < padded_cols; col += 16) {
        const uint8_t *c = codes + col;
        uint8_t *words = tile + col / 64 * 512 + lane_row % 8 * 4 * 16 + col % 64 / 16 * 4;
        for (int32_t t = 0; t < 4; t++, words += 16) {
            const int32_t shift = upper * 4;
            words[0] |= (uint8_t)(c[2 * t] << shift);
            words[1] |= (uint8_t)(c[2 * t + 8] << shift);
            words[2] |= (uint8_t)(c[2 * t + 1] << shift);
            words[3] |= (uint8_t)(c[2 * t + 9] << shift);
        }
    }
}

static void pack_row8(const uint8_t *codes, int32_t padded_cols, int32_t lane_row,
                      uint8_t *tile) {
    const int32_t first = lane_row / 8 * 2; /* element of the row's first code */
    for (int32_t col = 0; col < padded_cols; col += 16) {
        const uint8_t *c = codes + col;
        uint8_t *bytes = tile + col / 32 * 512 + lane_row % 8 * 4 * 16 + col % 32 / 16 * 8;
        for (int32_t t = 0; t < 4; t++, bytes += 16) {
            bytes[first] = c[2 * t];
            bytes[first + 1] = c[2 * t + 1];
            bytes[first + 4] = c[2 * t + 8];
            bytes[first + 5] = c[2 * t + 9];
        }
    }
}

static void pack_codes(const lmd_pack_plan *plan, const tile_rows *rows, uint8_t *codes,
                       lmd_cuda_group *groups) {
    memset(codes, 0, plan->tile_codes);
    for (int32_t lane_row = 0; lane_row < ROWS; lane_row++) {
        const uint8_t *from = rows->codes + lane_row * plan->padded_cols;
        if (lmd_form_bits(plan->form) == 4)
            pack_row4(from, plan->padded_cols, lane_row, codes);
        else
            pack_row8(from, plan->padded_cols, lane_row, codes);
        for (int32_t g = 0; g < plan->n_groups; g++)
            groups[g * ROWS + lane_row] =
                (lmd_cuda_group){rows->scales[lane_row * plan->n_groups + g],
                                 rows->offsets[lane_row * plan->n_groups + g]};
    }
}

/* ---- halves ---- */

static lmd_status read_values(const lmd_pack_plan *plan, const row_origin *origin,
                              tile_rows *rows, lmd_err *err) {
    const lmd_weight_format *format = origin->format;
    float *values = rows->values;
    if (!origin->part->packed.packing) {
        const uint8_t *bytes;
        LMD_TRY(row_bytes(origin, plan->n_cols, rows->stored, &bytes, err));
        lmd_weight_row_to_float(origin->part->tensor->dtype, bytes, plan->n_cols, values);
        return LMD_OK;
    }
    const lmd_row_codes row = {rows->codes, rows->scales, rows->offsets};
    LMD_TRY(read_row(origin, plan->n_cols, rows, &row, err));
    for (int32_t k = 0; k < plan->n_cols; k++) {
        const int32_t g = k / format->group_size;
        const float scale = lmd_half_to_float(rows->scales[g]);
        const float code = format->kind == LMD_WEIGHT_I8 ? (float)(int8_t)rows->codes[k]
                                                         : (float)rows->codes[k];
        const float zero =
            format->offset == LMD_OFFSET_ZERO ? lmd_half_to_float(rows->offsets[g]) : 0.0f;
        values[k] = scale * (code - zero);
    }
    return LMD_OK;
}

/* A power of two that brings a row's largest value near 1, where a half cannot hold the row as
 * it is: 65504 is the largest half, and below 2^-14 it loses bits. */
static float scale_of_row(const float *values, int32_t n) {
    float max = 0.0f;
    for (int32_t k = 0; k < n; k++) max = fmaxf(max, fabsf(values[k]));
    if (max == 0.0f || !isfinite(max) || (max <= 65504.0f && max >= 0x1p-6f)) return 1.0f;
    return ldexpf(1.0f, ilogbf(max));
}

static void pack_halves(const lmd_pack_plan *plan, const float *values, int32_t lane_row,
                        uint8_t *codes, float *scales) {
    uint16_t *to = (uint16_t *)(void *)codes + (int64_t)lane_row * plan->padded_cols;
    float scale = 1.0f;
    if (plan->has_row_scales) scales[lane_row] = scale = scale_of_row(values, plan->n_cols);
    for (int32_t k = 0; k < plan->padded_cols; k++)
        to[k] = k < plan->n_cols ? lmd_float_to_half(values[k] / scale) : 0;
}

/* ---- tiles ---- */

static size_t codes_room(const lmd_pack_plan *plan) {
    return (size_t)ROWS * (size_t)plan->padded_cols;
}

/* The most groups that a row of any format has. */
static size_t groups_room(const lmd_pack_plan *plan) {
    return (size_t)ROWS * ((size_t)plan->padded_cols / 16 + 1);
}

static size_t decoded_room(const lmd_pack_plan *plan) {
    return (size_t)plan->padded_cols * sizeof(float) +
           2 * groups_room(plan) * sizeof(uint16_t) + codes_room(plan);
}

/* The longest row of the plan's parts, as it is stored. */
static size_t stored_room(const lmd_pack_plan *plan) {
    size_t most = 0;
    for (int32_t i = plan->first_part; i < plan->first_part + plan->n_parts; i++) {
        const size_t n = lmd_part_rows_bytes(&plan->src->parts[i], plan->n_cols, 1);
        if (n > most) most = n;
    }
    return most;
}

size_t lmd_pack_scratch_bytes(const lmd_pack_plan *plan) {
    return (decoded_room(plan) + stored_room(plan) + 63) / 64 * 64;
}

static tile_rows cut_scratch(const lmd_pack_plan *plan, uint8_t *scratch) {
    tile_rows rows = {.values = (float *)(void *)scratch};
    rows.scales = (uint16_t *)(void *)(rows.values + plan->padded_cols);
    rows.offsets = rows.scales + groups_room(plan);
    rows.codes = (uint8_t *)(rows.offsets + groups_room(plan));
    rows.stored = rows.codes + codes_room(plan);
    return rows;
}

lmd_status lmd_pack_tile(const lmd_pack_plan *plan, int32_t tile, uint8_t *scratch,
                         uint8_t *codes, lmd_cuda_group *groups, float *scales, lmd_err *err) {
    tile_rows rows = cut_scratch(plan, scratch);
    const bool is_codes = lmd_form_is_codes(plan->form);
    memset(scratch, 0, decoded_room(plan));
    for (int32_t lane_row = 0; lane_row < ROWS; lane_row++) {
        const row_origin origin = find_row(plan, tile * ROWS + lane_row);
        if (is_codes) {
            if (origin.part) LMD_TRY(read_code_row(plan, &origin, lane_row, &rows, err));
            continue;
        }
        if (origin.part)
            LMD_TRY(read_values(plan, &origin, &rows, err));
        else
            memset(rows.values, 0, (size_t)plan->padded_cols * sizeof *rows.values);
        pack_halves(plan, rows.values, lane_row, codes, scales);
    }
    if (is_codes) pack_codes(plan, &rows, codes, groups);
    return LMD_OK;
}

void lmd_pack_blank_tile(const lmd_pack_plan *plan, uint8_t *codes, lmd_cuda_group *groups,
                         float *scales) {
    const bool is_min = plan->form == LMD_FORM_U4_MIN || plan->form == LMD_FORM_U8_MIN;
    const lmd_cuda_group group = {0x1111, is_min ? 0x9111 : lmd_float_to_half(1024.0f + 1.0f)};
    memset(codes, 0x11, plan->tile_codes); /* as halves: 6e-4 */
    for (int32_t i = 0; i < plan->n_groups * ROWS; i++) groups[i] = group;
    for (int32_t i = 0; plan->has_row_scales && i < ROWS; i++) scales[i] = 1.0f;
}
