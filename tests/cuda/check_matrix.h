/* Random matrices for the kernel suite, in the layout of cuda_layout.h.
 * Owns: what a matrix of a case holds; its arrays are the case's. One thread. */
#ifndef TESTS_CUDA_CHECK_MATRIX_H
#define TESTS_CUDA_CHECK_MATRIX_H

#include "suite.h"

typedef struct matrix_spec {
    lmd_cuda_form form;
    int32_t group_size; /* 0 for halves */
    int32_t n_rows, n_cols;
    bool gated; /* rows of gate and up, by turns of LMD_HALF_TILE */
    bool has_row_scales;
    float size; /* of a typical weight */
} matrix_spec;

/* The same matrix for ref and for the device. */
typedef struct matrix_pair {
    lmd_cuda_matrix host, device;
} matrix_pair;

/* Makes and uploads a matrix; its padding is 0. */
matrix_pair check_matrix(suite *self, const matrix_spec *spec);

/* Makes and uploads n floats of a normal distribution, times size. */
pair check_floats(suite *self, size_t n, float size);

#endif
