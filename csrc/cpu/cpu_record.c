/* Recording a step and running it: see cpu_record.h. */
#include "cpu/cpu_record.h"

#include <string.h>

#include "cpu/cpu_workspace.h"

void lmd_cpu_record_clear(lmd_workspace *workspace) {
    workspace->n_ops = 0;
    for (lmd_buffer *b = workspace->buffers; b; b = b->next) b->writer = NULL;
}

void lmd_cpu_record_run(lmd_workspace *workspace) {
    lmd_threads_run(workspace->threads, &workspace->ops->stage, sizeof *workspace->ops,
                    workspace->n_ops, workspace);
    lmd_cpu_record_clear(workspace);
}

void lmd_cpu_record_reserve(lmd_workspace *workspace, int32_t n) {
    if (workspace->n_ops + n > workspace->max_ops) lmd_cpu_record_run(workspace);
}

lmd_cpu_op *lmd_cpu_record_add(lmd_workspace *workspace, lmd_cpu_item_fn run, lmd_buffer *out,
                               int32_t n_rows) {
    lmd_cpu_op *op = &workspace->ops[workspace->n_ops++];
    memset(op, 0, sizeof *op);
    op->stage.run = run;
    op->out = out;
    op->n_rows = n_rows;
    if (out) {
        op->out_acts = out->memory;
        out->writer = op;
    }
    return op;
}

/* ---- how the writer and the readers of a buffer agree ---- */

/* The norm was left for its only reader to compute privately. When a second operation reads it,
 * it becomes a stage of its own. */
static void make_stage(const lmd_workspace *workspace, lmd_cpu_op *op) {
    if (!op->is_private) return;
    op->is_private = false;
    op->cut(workspace, op);
}

void lmd_cpu_record_keep_x(lmd_workspace *workspace, lmd_buffer *buffer) {
    if (buffer->writer) make_stage(workspace, buffer->writer);
    for (lmd_cpu_op *op = buffer->writer; op; op = op->part) op->keeps_x = true;
}

static bool has_form(const lmd_cpu_op *op, const lmd_acts *wanted) {
    const lmd_acts *acts = &op->out_acts;
    return op->quantizes && acts->group_size == wanted->group_size &&
           acts->bits == wanted->bits && acts->n_rows == wanted->n_rows &&
           acts->order == wanted->order;
}

static bool can_quantize(const lmd_cpu_op *op, const lmd_acts *wanted) {
    return !op->quantizes && op->quantize_unit && op->quantize_unit % wanted->group_size == 0 &&
           !wanted->order;
}

bool lmd_cpu_record_quantized(lmd_workspace *workspace, lmd_buffer *buffer,
                              const lmd_acts *acts) {
    lmd_cpu_op *writer = buffer->writer;
    if (!writer) return false;
    make_stage(workspace, writer);
    if (has_form(writer, acts)) return true;
    if (!can_quantize(writer, acts)) {
        lmd_cpu_record_keep_x(workspace, buffer);
        return false;
    }
    for (lmd_cpu_op *op = writer; op; op = op->part) {
        op->quantizes = true;
        op->out_acts = *acts;
        if (op->cut) op->cut(workspace, op);
    }
    return true;
}

const lmd_cpu_op *lmd_cpu_record_private(lmd_workspace *workspace, const lmd_buffer *buffer) {
    lmd_cpu_op *writer = buffer->writer;
    const bool is_last = writer == &workspace->ops[workspace->n_ops - 1];
    if (!writer->write_all || !is_last ||
        (int64_t)writer->n_rows * buffer->n_cols > LMD_PRIVATE_COLS)
        return NULL;
    writer->is_private = true;
    writer->stage.n_items = 0;
    return writer;
}
