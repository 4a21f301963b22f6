/* A linear on the CPU: panels of 16 output rows, some at a time to each thread, times blocks of
 * rows, with the epilogue while a tile is in the first cache. */
#include <string.h>

#include "base/ints.h"
#include "cpu/cpu_workspace.h"

/* Panels of one row of work: gate and up come in pairs. */
static int32_t count_panels(const lmd_cpu_op *op) {
    int32_t n = 0, n_segments = op->weight->n_segments;
    if (op->epilogue == LMD_EPILOGUE_SILU_MUL) n_segments = 1;
    for (int32_t i = 0; i < n_segments; i++) n += op->weight->segments[i].n_panels;
    return n;
}

/* Panels that a thread takes at once: few enough that the last ones end together. */
static int32_t panels_taken(const lmd_workspace *workspace, const lmd_cpu_op *op,
                            int32_t n_panels) {
    enum { TAKES = 8 /* of a thread */, MOST = 64 };
    int32_t n_shares = TAKES * lmd_threads_count(workspace->threads);
    int32_t most = op->epilogue == LMD_EPILOGUE_SILU_MUL ? LMD_TAKE_PANELS : MOST;
    int32_t take = lmd_min_i32(n_panels / n_shares, most);
    return take < 1 ? 1 : take;
}

void lmd_cpu_linear_cut(const lmd_workspace *workspace, lmd_cpu_op *op) {
    const int32_t n_panels = count_panels(op);
    int32_t take = panels_taken(workspace, op, n_panels);
    if (op->quantizes) { /* whole groups of the output */
        int32_t group_panels = op->out_acts.group_size / LMD_PANEL_ROWS;
        take = lmd_ceil_div(take, group_panels) * group_panels;
    }
    op->take_panels = take;
    op->n_takes = lmd_ceil_div(n_panels, take);
    int32_t tile_rows = lmd_ceil_div(op->n_rows, op->acts.n_tiles);
    op->block_tiles = LMD_ROW_BLOCK / tile_rows;
    op->stage.n_items = op->n_takes * lmd_ceil_div(op->acts.n_tiles, op->block_tiles);
}

/* Some tiles of rows. */
typedef struct row_block {
    const lmd_acts *acts;
    int32_t tile0, n_tiles, row0, n_rows;
} row_block;

/* Computes a panel of a segment for a block of rows, and adds the bias; returns how many of its
 * 16 rows the matrix has. */
static int32_t panel_times_rows(const lmd_workspace *workspace, const lmd_cpu_op *op,
                                const lmd_weight_segment *segment, int32_t panel_idx,
                                const row_block *block, float *tile, uint8_t *scratch) {
    int32_t first = panel_idx * LMD_PANEL_ROWS;
    int32_t n_valid = lmd_min_i32(segment->n_rows - first, LMD_PANEL_ROWS);
    workspace->kernels->panel(tile, segment->panels + panel_idx * segment->panel_bytes,
                              &segment->format, block->acts, block->tile0, block->n_tiles,
                              scratch);
    if (op->bias) {
        const float *bias = op->bias + segment->first_row + first;
        for (int32_t r = 0; r < block->n_rows; r++)
            for (int32_t i = 0; i < n_valid; i++) tile[r * LMD_PANEL_ROWS + i] += bias[i];
    }
    return n_valid;
}

/* One panel, stored or added. */
static void run_panel(const lmd_workspace *workspace, const lmd_cpu_op *op, int32_t panel_idx,
                      const row_block *block, lmd_thread_scratch *scratch) {
    const lmd_weight_segment *segment = op->weight->segments;
    while (panel_idx >= segment->n_panels) panel_idx -= segment++->n_panels;
    int32_t n_valid = panel_times_rows(workspace, op, segment, panel_idx, block, scratch->tile,
                                       scratch->panel);
    float *out = op->to + (int64_t)block->row0 * op->n_to + segment->first_row +
                 panel_idx * LMD_PANEL_ROWS;
    const float *from = scratch->tile;
    for (int32_t r = 0; r < block->n_rows; r++, out += op->n_to, from += LMD_PANEL_ROWS) {
        if (op->epilogue == LMD_EPILOGUE_ADD)
            for (int32_t i = 0; i < n_valid; i++) out[i] += from[i];
        else
            memcpy(out, from, (size_t)n_valid * sizeof *out);
    }
}

/* Some panels of gate and up: silu(gate) * up, quantised when the reader wants it so. */
static void run_gated_panels(const lmd_workspace *workspace, const lmd_cpu_op *op,
                             int32_t begin, int32_t end, const row_block *block,
                             lmd_thread_scratch *scratch) {
    const lmd_weight_segment *gate = &op->weight->segments[0], *up = &op->weight->segments[1];
    const int32_t width = (end - begin) * LMD_PANEL_ROWS;
    const int32_t n_valid = lmd_min_i32(width, gate->n_rows - begin * LMD_PANEL_ROWS);
    for (int32_t p = begin; p < end; p++) {
        panel_times_rows(workspace, op, gate, p, block, scratch->tile, scratch->panel);
        panel_times_rows(workspace, op, up, p, block, scratch->up, scratch->panel);
        workspace->kernels->silu_mul(scratch->tile, scratch->tile, scratch->up,
                                     block->n_rows * LMD_PANEL_ROWS);
        for (int32_t r = 0; r < block->n_rows; r++)
            memcpy(scratch->wide + r * width + (p - begin) * LMD_PANEL_ROWS,
                   scratch->tile + r * LMD_PANEL_ROWS, LMD_PANEL_ROWS * sizeof(float));
    }
    for (int32_t r = 0; r < block->n_rows; r++) {
        int32_t row = block->row0 + r, col = begin * LMD_PANEL_ROWS;
        const float *from = scratch->wide + r * width;
        if (op->quantizes) workspace->kernels->quantize(&op->out_acts, row, col, n_valid, from);
        if (!op->quantizes || op->keeps_x)
            memcpy(op->to + (int64_t)row * op->n_to + col, from,
                   (size_t)n_valid * sizeof *from);
    }
}

void lmd_cpu_linear_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                         bool is_first) {
    const lmd_workspace *workspace = arg;
    const lmd_cpu_op *op = (const lmd_cpu_op *)stage;
    lmd_thread_scratch *scratch = workspace->scratch[thread_idx];
    lmd_acts acts = op->acts;
    if (op->norm) {
        acts = lmd_cpu_private_acts(workspace, &op->acts, thread_idx);
        if (is_first) lmd_cpu_private_norm(workspace, op->norm, &acts);
    }
    row_block block = {.acts = &acts, .tile0 = item / op->n_takes * op->block_tiles};
    block.n_tiles = lmd_min_i32(op->block_tiles, acts.n_tiles - block.tile0);
    block.row0 = lmd_tile_begin(&acts, block.tile0);
    block.n_rows = lmd_tile_begin(&acts, block.tile0 + block.n_tiles) - block.row0;
    int32_t begin = item % op->n_takes * op->take_panels;
    int32_t end = lmd_min_i32(begin + op->take_panels, count_panels(op));
    if (op->epilogue == LMD_EPILOGUE_SILU_MUL)
        run_gated_panels(workspace, op, begin, end, &block, scratch);
    else
        for (int32_t p = begin; p < end; p++) run_panel(workspace, op, p, &block, scratch);
}
