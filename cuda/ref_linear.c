/* The linear of the row "ref", and what a weight is: see ref.h.
 * Owns: the value of a code, and the epilogues. A thread of CUDA's. */
#include "ref.h"

#include <math.h>

#include "base/half.h"

enum { ROWS_AT_ONCE = 16 }; /* of x: so many share the reading of a weight */

/* ---- weights ---- */

int32_t lmd_ref_code(const lmd_cuda_matrix *matrix, int32_t row, int32_t col) {
    const int32_t mask = lmd_form_bits(matrix->form) == 4 ? 0xf : 0xff;
    const lmd_code_place place =
        lmd_code_at(matrix->form, lmd_pad_cols(matrix->n_cols), row, col);
    return matrix->codes[place.byte] >> place.shift & mask;
}

/* Rounds once. A float between may be the middle of two halves where x is not, so it is made
 * odd: of the two floats around x the one whose last bit is 1, which is never such a middle. */
static uint16_t double_to_half(double x) {
    float near = (float)x;
    if (near != x && (lmd_float_to_bits(near) & 1) == 0)
        near = nextafterf(near, x > near ? INFINITY : -INFINITY);
    return lmd_float_to_half(near);
}

float lmd_ref_weight(const lmd_cuda_matrix *matrix, int32_t row, int32_t col) {
    const int32_t padded_cols = lmd_pad_cols(matrix->n_cols);
    if (!lmd_form_is_codes(matrix->form)) {
        const uint16_t *halves = (const uint16_t *)matrix->codes;
        return lmd_half_to_float(halves[(int64_t)row * padded_cols + col]);
    }
    const int32_t n_groups = padded_cols / matrix->group_size;
    const lmd_cuda_group *group =
        &matrix->groups[lmd_group_at(n_groups, row, col / matrix->group_size)];
    const double scale = lmd_half_to_float(group->scale);
    const double offset = lmd_half_to_float(group->offset);
    const double code = lmd_ref_code(matrix, row, col);
    /* Either is exact in double. */
    if (matrix->form == LMD_FORM_U4_ZERO || matrix->form == LMD_FORM_U8_ZERO)
        return lmd_half_to_float(double_to_half((code - (offset - 1024.0)) * scale));
    return lmd_half_to_float(double_to_half(code * scale + offset));
}

/* ---- linear ---- */

/* Computes y of one row of the weight for rows first to first + n - 1 of x; bias may be NULL.
 */
static void multiply(const lmd_cuda_linear_args *args, int32_t weight_row, const float *bias,
                     int32_t first, int32_t n, double y[ROWS_AT_ONCE]) {
    const lmd_cuda_matrix *weight = &args->weight;
    const double row_scale = weight->row_scales ? weight->row_scales[weight_row] : 1.0;
    double sums[ROWS_AT_ONCE] = {0};
    for (int32_t c = 0; c < weight->n_cols; c++) {
        const double w = lmd_ref_weight(weight, weight_row, c);
        const uint16_t *x = args->x + (int64_t)first * args->x_stride + c;
        for (int32_t r = 0; r < n; r++)
            sums[r] += w * lmd_half_to_float(x[(int64_t)r * args->x_stride]);
    }
    for (int32_t r = 0; r < n; r++)
        y[r] = args->scale * row_scale * sums[r] + (bias ? *bias : 0.0);
}

/* Computes column i of the output. */
static void store_column(const lmd_cuda_linear_args *args, int32_t i, int32_t first,
                         int32_t n) {
    const bool gated = args->epilogue == LMD_CUDA_SILU_MUL;
    const int32_t n_out = gated ? args->weight.n_rows / 2 : args->weight.n_rows;
    const float *bias = args->bias ? args->bias + i : NULL;
    double y[ROWS_AT_ONCE], up[ROWS_AT_ONCE];
    if (gated) {
        multiply(args, lmd_gated_row(0, i), bias, first, n, y);
        multiply(args, lmd_gated_row(1, i), bias ? bias + n_out : NULL, first, n, up);
    } else {
        multiply(args, i, bias, first, n, y);
    }
    for (int32_t r = 0; r < n; r++) {
        const int64_t at = (int64_t)(first + r) * args->out_stride + i;
        float *floats = args->out;
        uint16_t *halves = args->out;
        switch (args->epilogue) {
        case LMD_CUDA_STORE: halves[at] = double_to_half(y[r]); break;
        case LMD_CUDA_ADD: floats[at] = (float)(floats[at] + y[r]); break;
        case LMD_CUDA_SILU_MUL:
            halves[at] = double_to_half(y[r] / (1.0 + exp(-y[r])) * up[r] * LMD_FFN_SCALE);
            break;
        case LMD_CUDA_STORE_F32: floats[at] = (float)y[r]; break;
        case LMD_CUDA_EPILOGUE_COUNT: break;
        }
    }
}

static void run_linear(void *run_args) {
    const lmd_cuda_linear_args *args = run_args;
    const bool gated = args->epilogue == LMD_CUDA_SILU_MUL;
    const int32_t n_out = gated ? args->weight.n_rows / 2 : args->weight.n_rows;
    for (int32_t first = 0; first < args->n_rows; first += ROWS_AT_ONCE) {
        const int32_t left = args->n_rows - first;
        const int32_t n = left < ROWS_AT_ONCE ? left : ROWS_AT_ONCE;
        for (int32_t i = 0; i < n_out; i++) store_column(args, i, first, n);
    }
}

void lmd_ref_linear(const lmd_cuda_linear_args *args, lmd_cuda_queue *queue) {
    lmd_ref_enqueue(queue, run_linear, args, sizeof *args, "linear");
}
