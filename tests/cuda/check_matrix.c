/* Random matrices: see check_matrix.h. */
#include "check_matrix.h"

#include <math.h>

#include "base/half.h"

static bool is_padding(const matrix_spec *spec, int32_t row) {
    if (!spec->gated) return row >= spec->n_rows;
    return row / LMD_TILE_ROWS * LMD_HALF_TILE + row % LMD_HALF_TILE >= spec->n_rows / 2;
}

static void fill_halves(suite *self, const matrix_spec *spec, uint16_t *halves) {
    const int32_t n_cols = lmd_pad_cols(spec->n_cols);
    for (int32_t row = 0; row < lmd_pad_rows(spec->n_rows); row++)
        for (int32_t col = 0; col < n_cols; col++) {
            const bool padding = is_padding(spec, row) || col >= spec->n_cols;
            const float value = padding ? 0.0f : suite_normal(self) * spec->size;
            halves[(int64_t)row * n_cols + col] = lmd_float_to_half(value);
        }
}

/* Codes are any bits: a padding weight is 0 by its group. */
static void fill_groups(suite *self, const matrix_spec *spec, lmd_cuda_group *groups) {
    const int32_t n_codes = 1 << lmd_form_bits(spec->form);
    const int32_t n_groups = lmd_pad_cols(spec->n_cols) / spec->group_size;
    const bool has_zero = spec->form == LMD_FORM_U4_ZERO || spec->form == LMD_FORM_U8_ZERO;
    for (int32_t row = 0; row < lmd_pad_rows(spec->n_rows); row++)
        for (int32_t i = 0; i < n_groups; i++) {
            const bool padding = is_padding(spec, row) || i * spec->group_size >= spec->n_cols;
            const float scale =
                padding ? 0.0f : spec->size * suite_uniform(self, 1.0f, 5.0f) / (float)n_codes;
            const float zero = (float)suite_below(self, n_codes);
            const float min = padding ? 0.0f : -scale * zero * suite_uniform(self, 0.9f, 1.1f);
            groups[lmd_group_at(n_groups, row, i)] = (lmd_cuda_group){
                lmd_float_to_half(scale), lmd_float_to_half(has_zero ? 1024.0f + zero : min)};
        }
}

static void add_codes(suite *self, const matrix_spec *spec, matrix_pair *out) {
    const size_t n_values =
        (size_t)lmd_pad_rows(spec->n_rows) * (size_t)lmd_pad_cols(spec->n_cols);
    const pair codes = suite_array(self, n_values * (size_t)lmd_form_bits(spec->form) / 8);
    if (!lmd_form_is_codes(spec->form)) {
        fill_halves(self, spec, codes.host);
    } else {
        const pair groups =
            suite_array(self, n_values / (size_t)spec->group_size * sizeof(lmd_cuda_group));
        for (size_t i = 0; i < codes.n_bytes; i++)
            ((uint8_t *)codes.host)[i] = (uint8_t)(suite_bits(self) >> 24);
        fill_groups(self, spec, groups.host);
        suite_upload(self, groups);
        out->host.groups = groups.host;
        out->device.groups = groups.device;
    }
    suite_upload(self, codes);
    out->host.codes = codes.host;
    out->device.codes = codes.device;
}

static void add_row_scales(suite *self, const matrix_spec *spec, matrix_pair *out) {
    const int32_t n = lmd_pad_rows(spec->n_rows);
    const pair scales = suite_array(self, (size_t)n * sizeof(float));
    for (int32_t i = 0; i < n; i++)
        ((float *)scales.host)[i] = ldexpf(1.0f, suite_below(self, 7) - 3);
    suite_upload(self, scales);
    out->host.row_scales = scales.host;
    out->device.row_scales = scales.device;
}

matrix_pair check_matrix(suite *self, const matrix_spec *spec) {
    matrix_pair matrices = {.host = {.form = spec->form,
                                     .n_rows = spec->n_rows,
                                     .n_cols = spec->n_cols,
                                     .group_size = spec->group_size}};
    matrices.device = matrices.host;
    add_codes(self, spec, &matrices);
    if (spec->has_row_scales) add_row_scales(self, spec, &matrices);
    return matrices;
}

pair check_floats(suite *self, size_t n, float size) {
    const pair floats = suite_array(self, n * sizeof(float));
    for (size_t i = 0; i < n; i++) ((float *)floats.host)[i] = suite_normal(self) * size;
    suite_upload(self, floats);
    return floats;
}
