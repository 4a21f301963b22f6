/* A matrix to codes.
 * Owns: how a matrix is cut into groups and shared among threads, and what is refused. Must not
 * know: files, how codes are packed. One thread, which has a pool's workers help. */
#ifndef LMD_LITE_QUANTIZE_MATRIX_H
#define LMD_LITE_QUANTIZE_MATRIX_H

#include "base/status.h"
#include "base/threads.h"
#include "quant/grid.h"

/* A matrix [n_rows, n_cols], row by row, whose rows are cut into groups of group_size columns.
 * importance: [n_cols] what a column's squared error counts, not negative and finite. NULL:
 * nothing is known of the inputs, and weights count by quant/data_free.h's rule. */
typedef struct lmd_matrix_job {
    const float *weights;
    const float *importance;
    int32_t n_rows, n_cols, group_size;
    lmd_grid_form form;
    bool search; /* the best grid of each group; false: from its smallest to its largest weight
                  */
} lmd_matrix_job;

/* Codes [n_rows, n_cols], a byte each; scales (halves) and zeros [n_rows, n_cols / group_size].
 */
typedef struct lmd_matrix_codes {
    uint8_t *codes;
    uint16_t *scales;
    uint8_t *zeros;
} lmd_matrix_codes;

/* LMD_INVALID for sizes or numbers that are not served; then out holds nothing of use. */
lmd_status lmd_quantize_matrix(const lmd_matrix_job *job, lmd_threads *threads,
                               lmd_matrix_codes out, lmd_err *err);

#endif
