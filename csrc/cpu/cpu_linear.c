/* Linears: see cpu_linear.h. */
#include "cpu/cpu_linear.h"

#include <string.h>

#include "base/ints.h"
#include "cpu/cpu_rows.h"
#include "cpu/cpu_weight.h"
#include "cpu/cpu_workspace.h"

/* ---- cutting ---- */

/* Panels of the weight; of gate and up, whose panels meet in pairs, those of one. */
static int32_t count_panels(const lmd_cpu_op *op) {
    int32_t n = 0, n_segments = op->weight->n_segments;
    if (op->linear.epilogue == LMD_EPILOGUE_SILU_MUL) n_segments = 1;
    for (int32_t i = 0; i < n_segments; i++) n += op->weight->segments[i].n_panels;
    return n;
}

/* Panels of an item: several items for each thread, so that all threads end together. */
static int32_t panels_per_item(const lmd_workspace *workspace, const lmd_cpu_op *op,
                               int32_t n_panels) {
    enum { ITEMS_PER_THREAD = 8, MOST_PANELS = 64 };
    const bool is_gated = op->linear.epilogue == LMD_EPILOGUE_SILU_MUL;
    const int32_t n_items = ITEMS_PER_THREAD * lmd_threads_count(workspace->threads);
    int32_t n = lmd_min_i32(n_panels / n_items, is_gated ? LMD_GATED_PANELS : MOST_PANELS);
    if (n < 1) n = 1;
    if (!op->quantizes) return n;
    const int32_t group_panels = op->out_acts.group_size / LMD_PANEL_ROWS;
    return lmd_ceil_div(n, group_panels) * group_panels; /* whole groups of the output */
}

static void cut_linear(const lmd_workspace *workspace, lmd_cpu_op *op) {
    lmd_cpu_linear_op *linear = &op->linear;
    const int32_t n_panels = count_panels(op);
    const int32_t tile_rows = lmd_ceil_div(op->n_rows, linear->acts.n_tiles);
    linear->panels_per_item = panels_per_item(workspace, op, n_panels);
    linear->items_per_block = lmd_ceil_div(n_panels, linear->panels_per_item);
    linear->tiles_per_block = LMD_ROW_BLOCK / tile_rows;
    op->stage.n_items =
        linear->items_per_block * lmd_ceil_div(linear->acts.n_tiles, linear->tiles_per_block);
}

/* ---- running ---- */

/* Some tiles of rows. */
typedef struct row_block {
    const lmd_acts *acts;
    int32_t tile0, n_tiles, row0, n_rows;
} row_block;

static row_block block_at(const lmd_acts *acts, int32_t tile0, int32_t most_tiles) {
    const int32_t n_tiles = lmd_min_i32(most_tiles, acts->n_tiles - tile0);
    const int32_t row0 = lmd_tile_begin(acts, tile0);
    const int32_t end = lmd_tile_begin(acts, tile0 + n_tiles);
    return (row_block){acts, tile0, n_tiles, row0, end - row0};
}

/* Multiplies a panel of a segment by a block of rows and adds the bias; returns how many of the
 * panel's 16 rows the matrix has. */
static int32_t panel_times_rows(const lmd_workspace *workspace, const lmd_cpu_op *op,
                                const lmd_weight_segment *segment, int32_t panel_idx,
                                const row_block *block, float *tile, uint8_t *scratch) {
    int32_t first = panel_idx * LMD_PANEL_ROWS;
    int32_t n_valid = lmd_min_i32(segment->n_rows - first, LMD_PANEL_ROWS);
    workspace->kernels->panel(tile, segment->panels + panel_idx * segment->panel_bytes,
                              &segment->format, block->acts, block->tile0, block->n_tiles,
                              scratch);
    if (op->linear.bias) {
        const float *bias = op->linear.bias + segment->first_row + first;
        for (int32_t r = 0; r < block->n_rows; r++)
            for (int32_t i = 0; i < n_valid; i++) tile[r * LMD_PANEL_ROWS + i] += bias[i];
    }
    return n_valid;
}

/* Stores one panel's results, or adds them to what is there. */
static void run_panel(const lmd_workspace *workspace, const lmd_cpu_op *op, int32_t panel_idx,
                      const row_block *block, lmd_thread_scratch *scratch) {
    const lmd_cpu_linear_op *linear = &op->linear;
    const lmd_weight_segment *segment = op->weight->segments;
    while (panel_idx >= segment->n_panels) panel_idx -= segment++->n_panels;
    int32_t n_valid = panel_times_rows(workspace, op, segment, panel_idx, block, scratch->tile,
                                       scratch->kernel);
    float *out = linear->to + (int64_t)block->row0 * linear->n_to + segment->first_row +
                 panel_idx * LMD_PANEL_ROWS;
    const float *from = scratch->tile;
    for (int32_t r = 0; r < block->n_rows; r++, out += linear->n_to, from += LMD_PANEL_ROWS) {
        if (linear->epilogue == LMD_EPILOGUE_ADD)
            for (int32_t i = 0; i < n_valid; i++) out[i] += from[i];
        else
            memcpy(out, from, (size_t)n_valid * sizeof *out);
    }
}

/* Hands on n columns of a row, from `col` on, in the form that the reader wants. */
static void write_gated(const lmd_workspace *workspace, const lmd_cpu_op *op, int32_t row,
                        int32_t col, int32_t n, const float *from) {
    if (op->quantizes) workspace->kernels->quantize(&op->out_acts, row, col, n, from);
    if (!op->quantizes || op->keeps_x)
        memcpy(op->linear.to + (int64_t)row * op->linear.n_to + col, from,
               (size_t)n * sizeof *from);
}

/* Computes silu(gate) * up for the panels [begin, end). */
static void run_gated_panels(const lmd_workspace *workspace, const lmd_cpu_op *op,
                             int32_t begin, int32_t end, const row_block *block,
                             lmd_thread_scratch *scratch) {
    const lmd_weight_segment *gate = &op->weight->segments[0], *up = &op->weight->segments[1];
    const int32_t width = (end - begin) * LMD_PANEL_ROWS, col = begin * LMD_PANEL_ROWS;
    const int32_t n_valid = lmd_min_i32(width, gate->n_rows - col);
    for (int32_t p = begin; p < end; p++) {
        panel_times_rows(workspace, op, gate, p, block, scratch->tile, scratch->kernel);
        panel_times_rows(workspace, op, up, p, block, scratch->up, scratch->kernel);
        workspace->kernels->silu_mul(scratch->tile, scratch->tile, scratch->up,
                                     block->n_rows * LMD_PANEL_ROWS);
        for (int32_t r = 0; r < block->n_rows; r++)
            memcpy(scratch->wide + r * width + (p - begin) * LMD_PANEL_ROWS,
                   scratch->tile + r * LMD_PANEL_ROWS, LMD_PANEL_ROWS * sizeof(float));
    }
    for (int32_t r = 0; r < block->n_rows; r++)
        write_gated(workspace, op, block->row0 + r, col, n_valid, scratch->wide + r * width);
}

/* The thread's own copy of an input. Thread 0 has the buffer itself. */
static lmd_acts private_acts(const lmd_workspace *workspace, const lmd_acts *shared,
                             int32_t thread_idx) {
    lmd_acts acts = *shared;
    if (thread_idx == 0) return acts;
    lmd_thread_scratch *scratch = &workspace->scratch[thread_idx];
    acts.x = scratch->private_x;
    acts.q = scratch->private_q;
    acts.scales = scratch->private_scales;
    acts.sums = scratch->private_sums;
    acts.scaled_sums = scratch->private_scaled_sums;
    return acts;
}

static void linear_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                        bool is_first) {
    const lmd_workspace *workspace = arg;
    const lmd_cpu_op *op = (const lmd_cpu_op *)stage;
    const lmd_cpu_linear_op *linear = &op->linear;
    lmd_thread_scratch *scratch = &workspace->scratch[thread_idx];
    lmd_acts acts = linear->acts;
    if (linear->input) {
        acts = private_acts(workspace, &linear->acts, thread_idx);
        if (is_first) linear->input->write_all(workspace, linear->input, &acts);
    }
    const row_block block =
        block_at(&acts, item / linear->items_per_block * linear->tiles_per_block,
                 linear->tiles_per_block);
    const int32_t begin = item % linear->items_per_block * linear->panels_per_item;
    const int32_t end = lmd_min_i32(begin + linear->panels_per_item, count_panels(op));
    if (linear->epilogue == LMD_EPILOGUE_SILU_MUL)
        run_gated_panels(workspace, op, begin, end, &block, scratch);
    else
        for (int32_t p = begin; p < end; p++) run_panel(workspace, op, p, &block, scratch);
}

/* ---- recording ---- */

static bool has_floats(const lmd_weight *weight) {
    for (int32_t i = 0; i < weight->n_segments; i++)
        if (weight->segments[i].format.kind == LMD_WEIGHT_FLOAT) return true;
    return false;
}

static bool has_4_bits(const lmd_weight *weight) {
    for (int32_t i = 0; i < weight->n_segments; i++)
        if (!lmd_kind_is_nibbles(weight->segments[i].format.kind)) return false;
    return true;
}

/* The form in which a weight's kernel wants its input. */
static lmd_acts wanted_acts(const lmd_workspace *workspace, const lmd_buffer *in,
                            const lmd_weight *weight, int32_t n_rows) {
    lmd_acts acts = in->memory;
    acts.n_rows = n_rows;
    acts.n_cols = in->n_cols;
    acts.group_size = weight->group_size;
    acts.order = weight->order;
    acts.bits = workspace->config.fast_activations && has_4_bits(weight) ? 8 : 16;
    acts.n_tiles = lmd_ceil_div(n_rows, workspace->kernels->tile_rows(acts.bits, n_rows));
    return acts;
}

/* Makes sure that the input comes as `acts` says. Returns the operation by which every thread
 * makes its own copy of it, or NULL. */
static const lmd_cpu_op *prepare_input(lmd_workspace *workspace, const lmd_weight *weight,
                                       lmd_buffer *in, const lmd_acts *acts) {
    if (has_floats(weight)) lmd_cpu_record_keep_x(workspace, in);
    if (!weight->group_size) return NULL;
    if (lmd_cpu_record_quantized(workspace, in, acts))
        return lmd_cpu_record_private(workspace, in);
    lmd_cpu_quantize(workspace, in, acts);
    return NULL;
}

/* Records a linear; the caller fills in the output. */
static lmd_cpu_op *add_linear(lmd_workspace *workspace, const lmd_weight *weight,
                              lmd_buffer *in, lmd_buffer *out, int32_t n_rows) {
    lmd_cpu_record_reserve(workspace, 2); /* before it looks at who wrote its input */
    const lmd_acts acts = wanted_acts(workspace, in, weight, n_rows);
    const lmd_cpu_op *input = prepare_input(workspace, weight, in, &acts);
    lmd_cpu_op *op = lmd_cpu_record_add(workspace, linear_item, out, n_rows);
    op->in = in;
    op->weight = weight;
    op->linear = (lmd_cpu_linear_op){.acts = acts, .input = input};
    op->cut = cut_linear;
    return op;
}

void lmd_cpu_linear(lmd_workspace *workspace, const lmd_linear_args *args) {
    lmd_cpu_op *op =
        add_linear(workspace, args->weight, args->in, args->out, workspace->plan->n_tokens);
    op->linear.bias = args->bias ? args->bias->vector : NULL;
    op->linear.to = args->out->memory.x;
    op->linear.n_to = args->out->n_cols;
    op->linear.epilogue = args->epilogue;
    if (args->epilogue == LMD_EPILOGUE_SILU_MUL) op->quantize_unit = args->out->n_cols;
    cut_linear(workspace, op);
}

void lmd_cpu_logits(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *norm,
                    float eps, const lmd_weight *lm_head, int32_t first, int32_t n) {
    lmd_cpu_norm_rows(workspace, residual, norm, eps, workspace->final,
                      workspace->plan->logits_rows + first, n);
    lmd_cpu_op *op = add_linear(workspace, lm_head, workspace->final, NULL, n);
    op->linear.to = workspace->logits;
    op->linear.n_to = workspace->config.vocab_size;
    op->linear.epilogue = LMD_EPILOGUE_STORE;
    cut_linear(workspace, op);
}
