/* Packing weights into panels of 16 rows: see cpu_weight.h, and kernels.h for the layout. */
#include "cpu/cpu_weight.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/half.h"
#include "base/ints.h"
#include "base/memory.h"

enum {
    STRIP_PANELS = 32 /* panels of an item, of one group of columns: their packed words, which
                         run across rows, lie side by side */
};

int64_t lmd_panel_bytes(const lmd_weight_format *format, int32_t n_cols) {
    if (format->kind == LMD_WEIGHT_FLOAT)
        return (int64_t)n_cols * LMD_PANEL_ROWS * lmd_dtype_block_bytes(format->float_dtype);
    int64_t header = format->offset == LMD_OFFSET_NONE ? 32 : 64;
    int64_t lines = (int64_t)format->group_size * (lmd_kind_is_nibbles(format->kind) ? 8 : 16);
    return n_cols / format->group_size * (header + lines);
}

/* What the items of one packing share. */
typedef struct pack_job {
    const lmd_weight_part *part;
    const lmd_weight_segment *segment;
    int32_t n_cols;
    uint8_t *scratch; /* [n_threads][scratch_bytes] codes, scales and offsets of one row */
    size_t scratch_bytes;
} pack_job;

static const uint8_t *source_row(const lmd_weight_part *part, int32_t row, int32_t n_cols) {
    int64_t from = part->row_map ? part->row_map[row] : row;
    return (const uint8_t *)part->tensor->data +
           from * lmd_dtype_row_bytes(part->tensor->dtype, n_cols);
}

static void pack_float_row(uint8_t *panel, int32_t lane, const uint8_t *row, int32_t n_cols,
                           int32_t element_bytes) {
    for (int32_t k = 0; k < n_cols; k++)
        memcpy(panel + ((int64_t)k * LMD_PANEL_ROWS + lane) * element_bytes,
               row + (int64_t)k * element_bytes, (size_t)element_bytes);
}

static void pack_code_row(uint8_t *panel, int32_t lane, const lmd_weight_format *format,
                          int32_t n_cols, const uint8_t *codes, const uint16_t *scales,
                          const uint16_t *offsets) {
    const int32_t group_size = format->group_size;
    const bool nibbles = lmd_kind_is_nibbles(format->kind);
    /* Exclusive-or adds the bias to each byte. */
    const uint64_t flip = format->kind == LMD_WEIGHT_I8 ? LMD_I8_BIAS * 0x0101010101010101u : 0;
    for (int32_t g = 0; g < n_cols / group_size; g++) {
        uint16_t *header = (uint16_t *)(void *)panel;
        header[lane] = scales[g];
        panel += 32;
        if (format->offset != LMD_OFFSET_NONE) {
            header[LMD_PANEL_ROWS + lane] = offsets[g];
            panel += 32;
        }
        for (int32_t k = 0; k < group_size; k += 8, codes += 8) {
            uint64_t eight;
            memcpy(&eight, codes, sizeof eight); /* little-endian: code j is byte j */
            eight ^= flip;
            if (nibbles) eight |= eight >> 28; /* byte j: code j | code (4 + j) << 4 */
            memcpy(panel + lane * 4, &eight, 4);
            eight >>= 32;
            if (!nibbles) memcpy(panel + 64 + lane * 4, &eight, 4);
            panel += nibbles ? 64 : 128;
        }
    }
}

static void pack_panel(const pack_job *job, int32_t panel_idx, uint8_t *scratch) {
    const lmd_weight_segment *segment = job->segment;
    const lmd_dtype dtype = job->part->tensor->dtype;
    uint8_t *panel = job->segment->panels + panel_idx * segment->panel_bytes;
    size_t n_groups = segment->format.group_size ? (size_t)job->n_cols / 32 : 0;
    uint16_t *scales = (uint16_t *)(void *)scratch;
    uint16_t *offsets = scales + n_groups;
    uint8_t *codes = (uint8_t *)(offsets + n_groups);
    for (int32_t lane = 0; lane < LMD_PANEL_ROWS; lane++) {
        int32_t row = panel_idx * LMD_PANEL_ROWS + lane;
        if (row >= segment->n_rows) return; /* the arena has zeroed the rest */
        const uint8_t *from = source_row(job->part, row, job->n_cols);
        if (segment->format.kind == LMD_WEIGHT_FLOAT) {
            pack_float_row(panel, lane, from, job->n_cols, lmd_dtype_block_bytes(dtype));
        } else {
            lmd_weight_decode_row(dtype, from, job->n_cols, codes, scales, offsets);
            pack_code_row(panel, lane, &segment->format, job->n_cols, codes, scales, offsets);
        }
    }
}

static void pack_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                      bool is_first) {
    const pack_job *job = arg;
    (void)stage, (void)is_first;
    pack_panel(job, item, job->scratch + (size_t)thread_idx * job->scratch_bytes);
}

/* ---- packed tensors, whose words run across rows: an item is one group of columns of a strip
 * of panels, so that the words are read in order ---- */

static void pack_packed_rows(const pack_job *job, int32_t group, int32_t row) {
    const lmd_weight_segment *segment = job->segment;
    const lmd_weight_format *format = &segment->format;
    const int32_t group_size = format->group_size;
    uint8_t codes[LMD_PACKED_ROWS * LMD_PACKED_COLS];
    uint16_t scales[LMD_PACKED_ROWS], zeros[LMD_PACKED_ROWS];
    int32_t from = job->part->row_map ? job->part->row_map[row] : row;
    lmd_packed_decode(&job->part->packed, from, group * group_size, group_size, codes, scales,
                      zeros);
    uint8_t *panel = job->segment->panels + row / LMD_PANEL_ROWS * segment->panel_bytes +
                     group * lmd_panel_bytes(format, group_size);
    for (int32_t i = 0; i < LMD_PACKED_ROWS; i++)
        pack_code_row(panel, row % LMD_PANEL_ROWS + i, format, group_size,
                      codes + i * group_size, scales + i, zeros + i);
}

static int32_t count_strips(const lmd_weight_segment *segment) {
    return lmd_ceil_div(segment->n_panels, STRIP_PANELS);
}

static void pack_packed_item(void *arg, const lmd_stage *stage, int32_t item,
                             int32_t thread_idx, bool is_first) {
    const pack_job *job = arg;
    (void)stage, (void)thread_idx, (void)is_first;
    const int32_t n_strips = count_strips(job->segment), n_rows = job->segment->n_rows;
    int32_t first = item % n_strips * STRIP_PANELS * LMD_PANEL_ROWS;
    int32_t end = first + lmd_min_i32(n_rows - first, STRIP_PANELS * LMD_PANEL_ROWS);
    for (int32_t row = first; row < end; row += LMD_PACKED_ROWS)
        pack_packed_rows(job, item / n_strips, row);
}

static size_t order_bytes(const lmd_weight_source *src) {
    return lmd_weight_order(src) ? (size_t)src->n_cols * sizeof *lmd_weight_order(src) : 0;
}

/* Sets the segments, one for each part of the source, and their sizes; no panels yet. */
static lmd_status set_segments(const lmd_weight_source *src, lmd_weight *weight, lmd_err *err) {
    lmd_weight_format formats[LMD_MAX_WEIGHT_PARTS];
    LMD_TRY(lmd_weight_source_check(src, formats, err));
    weight->n_cols = src->n_cols;
    weight->n_segments = src->n_parts;
    for (int32_t i = 0; i < src->n_parts; i++) {
        lmd_weight_segment *segment = &weight->segments[i];
        segment->format = formats[i];
        segment->n_rows = src->parts[i].n_rows;
        segment->n_panels = lmd_ceil_div(segment->n_rows, LMD_PANEL_ROWS);
        segment->first_row = weight->n_rows;
        segment->panel_bytes = lmd_panel_bytes(&segment->format, src->n_cols);
        weight->n_rows += segment->n_rows;
        if (formats[i].group_size) weight->group_size = formats[i].group_size;
        weight->n_bytes += (size_t)(segment->panel_bytes * segment->n_panels);
    }
    weight->n_bytes += order_bytes(src);
    return LMD_OK;
}

lmd_status lmd_cpu_weight_size(const lmd_weight_source *src, size_t *out, lmd_err *err) {
    lmd_weight weight = {0};
    LMD_TRY(set_segments(src, &weight, err));
    *out = weight.n_bytes;
    return LMD_OK;
}

/* Makes a weight for a source, without panels. */
static lmd_status new_weight(const lmd_weight_source *src, lmd_weight **out, lmd_err *err) {
    lmd_weight *weight = lmd_calloc(1, sizeof *weight);
    if (!weight) return lmd_no_memory(err, "a weight");
    lmd_status status = set_segments(src, weight, err);
    if (status == LMD_OK)
        *out = weight;
    else
        lmd_cpu_weight_free(weight);
    return status;
}

/* Gives a weight memory for its panels, of zeros, and its order. */
static lmd_status allocate_panels(const lmd_weight_source *src, lmd_weight *weight,
                                  lmd_arena *arena, lmd_err *err) {
    uint8_t *panels = lmd_arena_alloc(arena, weight->n_bytes);
    if (!panels) return lmd_no_memory(err, "a weight of %zu bytes", weight->n_bytes);
    for (int32_t i = 0; i < weight->n_segments; i++) {
        lmd_weight_segment *segment = &weight->segments[i];
        segment->panels = panels;
        panels += segment->panel_bytes * segment->n_panels;
    }
    if (!lmd_weight_order(src)) return LMD_OK;
    memcpy(panels, lmd_weight_order(src), order_bytes(src));
    weight->order = (const int32_t *)(const void *)panels;
    return LMD_OK;
}

/* Fills a panel with small finite numbers: halves, those that scale codes too, of 6e-4, and
 * other floats of 0.01. */
static void blank_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                       bool is_first) {
    const lmd_weight_segment *segment = ((const pack_job *)arg)->segment;
    const lmd_weight_format *format = &segment->format;
    const bool is_wide = format->kind == LMD_WEIGHT_FLOAT && format->float_dtype != LMD_F16;
    (void)stage, (void)thread_idx, (void)is_first;
    memset(segment->panels + item * segment->panel_bytes, is_wide ? 0x3c : 0x11,
           (size_t)segment->panel_bytes);
}

lmd_status lmd_cpu_weight_blank(const lmd_weight_source *src, lmd_threads *threads,
                                lmd_arena *arena, lmd_weight **out, lmd_err *err) {
    lmd_weight *weight = NULL;
    LMD_TRY(new_weight(src, &weight, err));
    lmd_status status = allocate_panels(src, weight, arena, err);
    if (status != LMD_OK) {
        lmd_cpu_weight_free(weight);
        return status;
    }
    for (int32_t i = 0; i < weight->n_segments; i++) {
        pack_job job = {.segment = &weight->segments[i]};
        lmd_stage stage = {.run = blank_item, .n_items = job.segment->n_panels};
        lmd_threads_run(threads, &stage, sizeof stage, 1, &job);
    }
    *out = weight;
    return LMD_OK;
}

lmd_status lmd_cpu_weight_pack(const lmd_weight_source *src, lmd_threads *threads,
                               lmd_arena *arena, lmd_weight **out, lmd_err *err) {
    lmd_status status = LMD_OK;
    size_t scratch_bytes = (size_t)src->n_cols + (size_t)src->n_cols / 32 * 4 + LMD_CACHE_LINE;
    scratch_bytes = scratch_bytes / LMD_CACHE_LINE * LMD_CACHE_LINE;
    size_t all_scratch = scratch_bytes * (size_t)lmd_threads_count(threads);
    uint8_t *scratch = lmd_alloc_large(all_scratch);
    lmd_weight *weight = NULL;
    if (!scratch) return lmd_no_memory(err, "the packing of weights");
    LMD_TRY_OUT(new_weight(src, &weight, err));
    LMD_TRY_OUT(allocate_panels(src, weight, arena, err));
    for (int32_t i = 0; i < src->n_parts; i++) {
        lmd_weight_segment *segment = &weight->segments[i];
        pack_job job = {&src->parts[i], segment, src->n_cols, scratch, scratch_bytes};
        lmd_stage stage = {.run = pack_item, .n_items = segment->n_panels};
        if (src->parts[i].packed.packing != LMD_PACKING_NONE) {
            stage.run = pack_packed_item; /* 2^31 items would be 16 TB of words */
            stage.n_items = src->n_cols / segment->format.group_size * count_strips(segment);
        }
        lmd_threads_run(threads, &stage, sizeof stage, 1, &job);
    }
    *out = weight;
    weight = NULL;
out:
    lmd_free_large(scratch, all_scratch);
    lmd_cpu_weight_free(weight);
    return status;
}

lmd_status lmd_cpu_weight_vector(const float *values, int32_t n, lmd_weight **out,
                                 lmd_err *err) {
    lmd_weight *weight = lmd_calloc(1, sizeof *weight);
    float *vector = lmd_calloc((size_t)n, sizeof *vector);
    if (!weight || !vector) {
        lmd_free(weight);
        lmd_free(vector);
        return lmd_no_memory(err, "a vector of %d values", n);
    }
    memcpy(vector, values, (size_t)n * sizeof *vector);
    weight->vector = vector;
    weight->n_rows = 1;
    weight->n_cols = n;
    *out = weight;
    return LMD_OK;
}

void lmd_cpu_weight_free(lmd_weight *weight) {
    if (!weight) return;
    lmd_free(weight->vector);
    lmd_free(weight);
}

static float float_at(const uint8_t *at, lmd_dtype dtype) {
    float x;
    lmd_weight_row_to_float(dtype, at, 1, &x);
    return x;
}

static void code_row(const lmd_weight_format *format, const uint8_t *panel, int32_t lane,
                     int32_t n_cols, float *out) {
    const int32_t group_size = format->group_size;
    const bool nibbles = lmd_kind_is_nibbles(format->kind);
    for (int32_t g = 0; g < n_cols / group_size; g++, out += group_size) {
        const uint16_t *header = (const uint16_t *)(const void *)panel;
        float scale = lmd_half_to_float(header[lane]), offset = 0.0f;
        panel += 32;
        if (format->offset != LMD_OFFSET_NONE) {
            offset = lmd_half_to_float(header[LMD_PANEL_ROWS + lane]);
            panel += 32;
        }
        for (int32_t k = 0; k < group_size; k++) {
            const uint8_t *line = panel + k / 8 * (nibbles ? 64 : 128);
            int32_t j = k % 4, second = k / 4 % 2, code;
            if (nibbles)
                code = second ? line[lane * 4 + j] >> 4 : line[lane * 4 + j] & 15;
            else
                code = line[second * 64 + lane * 4 + j];
            code -= lmd_kind_bias(format->kind);
            out[k] = format->offset == LMD_OFFSET_ZERO ? scale * ((float)code - offset)
                                                       : fmaf(scale, (float)code, offset);
        }
        panel += group_size * (nibbles ? 8 : 16);
    }
}

void lmd_cpu_weight_row(const lmd_weight *weight, int32_t row, float *out) {
    const lmd_weight_segment *segment = &weight->segments[0];
    const uint8_t *panel = segment->panels + row / LMD_PANEL_ROWS * segment->panel_bytes;
    int32_t lane = row % LMD_PANEL_ROWS;
    if (segment->format.kind != LMD_WEIGHT_FLOAT) {
        code_row(&segment->format, panel, lane, weight->n_cols, out);
        return;
    }
    lmd_dtype dtype = segment->format.float_dtype;
    int64_t bytes = lmd_dtype_block_bytes(dtype);
    for (int32_t k = 0; k < weight->n_cols; k++)
        out[k] = float_at(panel + ((int64_t)k * LMD_PANEL_ROWS + lane) * bytes, dtype);
}
