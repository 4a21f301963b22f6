/* begin, embed, norm and reorder of the row "ref": see ref.h.
 * Owns: what a step does before its layers, and to rows before a linear. A thread of CUDA's. */
#include "ref.h"

#include <math.h>
#include <string.h>

#include "base/half.h"

/* ---- begin ---- */

/* The token that a -1 stands for. Where there is none, because the row is padding or sampling
 * gave its sequence none, any will do: nobody reads what becomes of it. */
static int32_t newest_token(const lmd_cuda_step *step, int32_t row) {
    const int32_t slot = step->slots[step->row_seqs[row]];
    const int32_t token = slot < 0 ? 0 : step->newest[slot];
    return token < 0 ? 0 : token;
}

static void run_begin(void *run_args) {
    const lmd_cuda_begin_args *args = run_args;
    const lmd_cuda_step *step = &args->step;
    for (int32_t r = 0; r < step->n_tokens; r++)
        if (step->token_ids[r] < 0) step->token_ids[r] = newest_token(step, r);
    for (int32_t i = 0; i < args->n_copies; i++) {
        const uint8_t *from = args->kv + args->copies[i].from_block * args->block_stride;
        uint8_t *to = args->kv + args->copies[i].to_block * args->block_stride;
        memcpy(to, from, (size_t)args->block_stride);
    }
}

void lmd_ref_begin(const lmd_cuda_begin_args *args, lmd_cuda_queue *queue) {
    lmd_ref_enqueue(queue, run_begin, args, sizeof *args, "begin");
}

/* ---- embed ---- */

/* A value of the table, which unlike a linear's weight is not rounded to a half. */
static float table_value(const lmd_cuda_matrix *table, int32_t row, int32_t col) {
    const int32_t padded_cols = lmd_pad_cols(table->n_cols);
    if (!lmd_form_is_codes(table->form)) {
        const uint16_t *halves = (const uint16_t *)table->codes;
        return lmd_half_to_float(halves[(int64_t)row * padded_cols + col]);
    }
    const int32_t n_groups = padded_cols / table->group_size;
    const lmd_cuda_group *group =
        &table->groups[lmd_group_at(n_groups, row, col / table->group_size)];
    const float scale = lmd_half_to_float(group->scale);
    const float offset = lmd_half_to_float(group->offset);
    const float code = (float)lmd_ref_code(table, row, col);
    if (table->form == LMD_FORM_U4_ZERO || table->form == LMD_FORM_U8_ZERO)
        return scale * (code - (offset - 1024.0f));
    return fmaf(scale, code, offset);
}

static void run_embed(void *run_args) {
    const lmd_cuda_embed_args *args = run_args;
    const lmd_cuda_matrix *table = &args->table;
    for (int32_t r = 0; r < args->n_rows; r++) {
        const int32_t id = args->token_ids[r];
        const float row_scale = table->row_scales ? table->row_scales[id] : 1.0f;
        float *out = args->out + (int64_t)r * args->out_stride;
        for (int32_t c = 0; c < table->n_cols; c++)
            out[c] = row_scale * table_value(table, id, c);
    }
}

void lmd_ref_embed(const lmd_cuda_embed_args *args, lmd_cuda_queue *queue) {
    lmd_ref_enqueue(queue, run_embed, args, sizeof *args, "embed");
}

/* ---- norm ---- */

static void run_norm(void *run_args) {
    const lmd_cuda_norm_args *args = run_args;
    for (int32_t r = 0; r < args->n_rows; r++) {
        const float *x = args->x + (int64_t)(args->rows ? args->rows[r] : r) * args->x_stride;
        uint16_t *out = args->out + (int64_t)r * args->out_stride;
        double sum = 0.0;
        for (int32_t c = 0; c < args->n_cols; c++) sum += (double)x[c] * x[c];
        const double rms = sqrt(sum / args->n_cols + args->eps);
        for (int32_t c = 0; c < args->n_cols; c++)
            out[c] = lmd_float_to_half((float)(x[c] / rms * args->weight[c]));
    }
}

void lmd_ref_norm(const lmd_cuda_norm_args *args, lmd_cuda_queue *queue) {
    lmd_ref_enqueue(queue, run_norm, args, sizeof *args, "norm");
}

/* ---- reorder ---- */

static void run_reorder(void *run_args) {
    const lmd_cuda_reorder_args *args = run_args;
    uint16_t row[LMD_REORDER_COLS];
    for (int32_t r = 0; r < args->n_rows; r++) {
        uint16_t *x = args->x + (int64_t)r * args->x_stride;
        memcpy(row, x, (size_t)args->n_cols * sizeof *x);
        for (int32_t c = 0; c < args->n_cols; c++) x[c] = row[args->order[c]];
    }
}

void lmd_ref_reorder(const lmd_cuda_reorder_args *args, lmd_cuda_queue *queue) {
    lmd_ref_enqueue(queue, run_reorder, args, sizeof *args, "reorder");
}
