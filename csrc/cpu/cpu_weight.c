/* Packing weights into panels of 16 rows: see cpu_weight.h, and kernels.h for the layout. */
#include "cpu/cpu_weight.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "backend/part_rows.h"
#include "base/half.h"
#include "base/ints.h"
#include "base/memory.h"
#include "quant/packed_codec.h"
#include "quant/packed_read.h"

enum {
    READ_BYTES = 1 << 16, /* buffer that the read of several small panels may fill */
    MAX_READ_PANELS = 4
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
    const lmd_cpu_kernels *kernels;
    const lmd_weight_part *part;
    const lmd_weight_segment *segment;
    int32_t n_cols;
    int32_t n_read;   /* panels of an item, which are read at once */
    uint8_t *scratch; /* [n_threads][scratch_bytes] */
    size_t row_bytes; /* of scratch: floats, scales, offsets and codes of one row; then what is
                         read */
    size_t scratch_bytes;
    lmd_failure failure;
} pack_job;

/* Panels whose rows are read at once. */
static int32_t count_read(const lmd_weight_part *part, int32_t n_cols) {
    const size_t panel_bytes = lmd_part_rows_bytes(part, n_cols, LMD_PANEL_ROWS);
    if (panel_bytes == 0 || panel_bytes > READ_BYTES / 2) return 1;
    return lmd_min_i32((int32_t)(READ_BYTES / panel_bytes), MAX_READ_PANELS);
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

static lmd_status pack_panel(const pack_job *job, int32_t panel_idx, const uint8_t *const *rows,
                             uint8_t *scratch, lmd_err *err) {
    const lmd_weight_segment *segment = job->segment;
    const lmd_dtype dtype = job->part->tensor->dtype;
    uint8_t *panel = job->segment->panels + panel_idx * segment->panel_bytes;
    size_t n_groups = segment->format.group_size ? (size_t)job->n_cols / 32 : 0;
    const lmd_row_decoder decoder = {job->part, job->n_cols, job->kernels->data_free_codes,
                                     (float *)(void *)scratch};
    lmd_row_codes row_codes;
    row_codes.scales =
        (uint16_t *)(void *)(decoder.scratch + lmd_part_scratch_len(job->part, job->n_cols));
    row_codes.offsets = row_codes.scales + n_groups;
    row_codes.codes = (uint8_t *)(row_codes.offsets + n_groups);
    for (int32_t lane = 0; lane < LMD_PANEL_ROWS; lane++) {
        int32_t row = panel_idx * LMD_PANEL_ROWS + lane;
        if (row >= segment->n_rows) break; /* the arena has zeroed the rest */
        if (segment->format.kind == LMD_WEIGHT_FLOAT) {
            pack_float_row(panel, lane, rows[lane], job->n_cols, lmd_dtype_block_bytes(dtype));
        } else {
            LMD_TRY(lmd_part_decode_row(&decoder, rows[lane], &row_codes, err));
            pack_code_row(panel, lane, &segment->format, job->n_cols, row_codes.codes,
                          row_codes.scales, row_codes.offsets);
        }
    }
    return LMD_OK;
}

static void pack_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                      bool is_first) {
    pack_job *job = arg;
    (void)stage, (void)is_first;
    const int32_t first = item * job->n_read;
    const int32_t n_panels = lmd_min_i32(job->segment->n_panels - first, job->n_read);
    const int32_t n_left = job->segment->n_rows - first * LMD_PANEL_ROWS;
    const int32_t n_rows = lmd_min_i32(n_left, n_panels * LMD_PANEL_ROWS);
    uint8_t *scratch = job->scratch + (size_t)thread_idx * job->scratch_bytes;
    const uint8_t *rows[MAX_READ_PANELS * LMD_PANEL_ROWS];
    lmd_err err;
    lmd_status status = lmd_part_rows(job->part, job->n_cols, first * LMD_PANEL_ROWS, n_rows,
                                      scratch + job->row_bytes, rows, &err);
    for (int32_t i = 0; status == LMD_OK && i < n_panels; i++)
        status = pack_panel(job, first + i, rows + i * LMD_PANEL_ROWS, scratch, &err);
    if (status != LMD_OK) lmd_failure_note(&job->failure, &err);
}

/* ---- packed tensors: an item is a panel where words lie by rows, otherwise a group of columns
 * of all rows, so that words are read in order ---- */

/* Packs a group of the rows from `row` on, LMD_PACKED_ROWS of them, which are the window's from
 * from_row and from_col on. */
static void pack_packed_rows(const pack_job *job, const lmd_packed_weight *window,
                             int32_t from_row, int32_t from_col, int32_t group, int32_t row) {
    const lmd_weight_segment *segment = job->segment;
    const lmd_weight_format *format = &segment->format;
    const int32_t group_size = format->group_size;
    uint8_t codes[LMD_PACKED_ROWS * LMD_PACKED_COLS];
    uint16_t scales[LMD_PACKED_ROWS], zeros[LMD_PACKED_ROWS];
    lmd_packed_decode(window, from_row, from_col, group_size, codes, scales, zeros);
    uint8_t *panel = job->segment->panels + row / LMD_PANEL_ROWS * segment->panel_bytes +
                     group * lmd_panel_bytes(format, group_size);
    for (int32_t i = 0; i < LMD_PACKED_ROWS; i++)
        pack_code_row(panel, row % LMD_PANEL_ROWS + i, format, group_size,
                      codes + i * group_size, scales + i, zeros + i);
}

/* Whether the words of a group of columns, or of a run of rows, lie side by side. */
static bool has_windows(const lmd_packed_weight *packed) {
    return !packed->order || lmd_packed_by_rows(packed);
}

static lmd_status pack_packed_group(const pack_job *job, int32_t group, uint8_t *buffer,
                                    lmd_err *err) {
    const lmd_weight_part *part = job->part;
    const lmd_packed_weight *packed = &part->packed;
    int32_t from_col = group * packed->cut;
    lmd_packed_window window;
    if (has_windows(packed)) {
        LMD_TRY(lmd_packed_read_window(packed, from_col, buffer, &window, err));
        packed = &window.weight;
        from_col = 0;
    }
    for (int32_t row = 0; row < job->segment->n_rows; row += LMD_PACKED_ROWS)
        pack_packed_rows(job, packed, part->row_map ? part->row_map[row] : row, from_col, group,
                         row);
    return LMD_OK;
}

static lmd_status pack_packed_panel(const pack_job *job, int32_t panel, uint8_t *buffer,
                                    lmd_err *err) {
    const lmd_weight_part *part = job->part;
    const int32_t group_size = job->segment->format.group_size;
    const int32_t first = panel * LMD_PANEL_ROWS;
    const int32_t end = first + lmd_min_i32(job->segment->n_rows - first, LMD_PANEL_ROWS);
    for (int32_t row = first; row < end; row += LMD_PACKED_ROWS) {
        lmd_packed_window window;
        LMD_TRY(lmd_packed_read_window(&part->packed, part->row_map ? part->row_map[row] : row,
                                       buffer, &window, err));
        for (int32_t group = 0; group < job->n_cols / group_size; group++)
            pack_packed_rows(job, &window.weight, 0, group * group_size, group, row);
    }
    return LMD_OK;
}

static void pack_packed_item(void *arg, const lmd_stage *stage, int32_t item,
                             int32_t thread_idx, bool is_first) {
    pack_job *job = arg;
    uint8_t *buffer = job->scratch + (size_t)thread_idx * job->scratch_bytes;
    lmd_err err;
    (void)stage, (void)is_first;
    const lmd_status status = lmd_packed_by_rows(&job->part->packed)
                                  ? pack_packed_panel(job, item, buffer, &err)
                                  : pack_packed_group(job, item, buffer, &err);
    if (status != LMD_OK) lmd_failure_note(&job->failure, &err);
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

/* Bytes, in whole cache lines, so that threads do not share one. */
static size_t whole_lines(size_t n_bytes) {
    return (n_bytes + LMD_CACHE_LINE - 1) / LMD_CACHE_LINE * LMD_CACHE_LINE;
}

/* Sets how much is read at once, and the scratch of one thread. */
static void set_scratch(pack_job *job) {
    const lmd_weight_part *part = job->part;
    job->n_read = 1;
    job->scratch_bytes = whole_lines(lmd_packed_window_bytes(&part->packed));
    if (part->packed.packing) return;
    job->n_read = count_read(part, job->n_cols);
    job->row_bytes = whole_lines((size_t)lmd_part_scratch_len(part, job->n_cols) * 4 +
                                 (size_t)job->n_cols + (size_t)job->n_cols / 32 * 4);
    job->scratch_bytes =
        job->row_bytes +
        whole_lines(lmd_part_rows_bytes(part, job->n_cols, job->n_read * LMD_PANEL_ROWS));
}

/* Packs one part into its segment, whose panels are zeros. */
static lmd_status pack_part(pack_job job, lmd_threads *threads, lmd_err *err) {
    const lmd_weight_part *part = job.part;
    const lmd_weight_segment *segment = job.segment;
    set_scratch(&job);
    const size_t all_scratch = job.scratch_bytes * (size_t)lmd_threads_count(threads);
    job.scratch = lmd_realloc(NULL, all_scratch, 1);
    if (!job.scratch) return lmd_no_memory(err, "the packing of weights");
    lmd_stage stage = {.run = pack_item,
                       .n_items = lmd_ceil_div(segment->n_panels, job.n_read)};
    if (part->packed.packing) {
        stage.run = pack_packed_item;
        if (!lmd_packed_by_rows(&part->packed))
            stage.n_items = job.n_cols / segment->format.group_size;
    }
    lmd_threads_run(threads, &stage, sizeof stage, 1, &job);
    lmd_free(job.scratch);
    return lmd_failure_get(&job.failure, err);
}

/* The same; packed tensors whose groups take words from all over are read whole. */
static lmd_status load_and_pack(pack_job job, lmd_threads *threads, lmd_err *err) {
    lmd_weight_part part = *job.part;
    lmd_packed_in_memory tensors = {0};
    lmd_status status = LMD_OK;
    job.part = &part;
    if (!has_windows(&part.packed)) status = lmd_packed_load(&part.packed, &tensors, err);
    if (status == LMD_OK) status = pack_part(job, threads, err);
    lmd_packed_free(&tensors);
    return status;
}

lmd_status lmd_cpu_weight_pack(const lmd_weight_source *src, const lmd_cpu_kernels *kernels,
                               lmd_threads *threads, lmd_arena *arena, lmd_weight **out,
                               lmd_err *err) {
    lmd_status status = LMD_OK;
    lmd_weight *weight = NULL;
    LMD_TRY(new_weight(src, &weight, err));
    LMD_TRY_OUT(allocate_panels(src, weight, arena, err));
    for (int32_t i = 0; i < src->n_parts; i++) {
        const pack_job job = {.kernels = kernels,
                              .part = &src->parts[i],
                              .segment = &weight->segments[i],
                              .n_cols = src->n_cols};
        LMD_TRY_OUT(load_and_pack(job, threads, err));
    }
    *out = weight;
    weight = NULL;
out:
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
