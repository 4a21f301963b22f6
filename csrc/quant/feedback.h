/* What rounding one column of a weight should change in the others: the matrix H of a linear's
 * inputs, ordered, shrunk and factored, as the kernels read it.
 * Owns: its panels. Immutable once made; any thread may read it. Must not know: weights, grids.
 */
#ifndef LMD_QUANT_FEEDBACK_H
#define LMD_QUANT_FEEDBACK_H

#include <stdbool.h>

#include "quant/product.h"

typedef struct lmd_feedback_config {
    int32_t group_size; /* divides n_cols */
    bool is_ordered; /* groups by their largest diagonal, and columns inside a group likewise,
                        both descending (GPTQModel's group-aware reordering); false: as they
                        are */
    float shrink;    /* 0 .. 1: this part of H is replaced by its diagonal */
    float damp;      /* times the mean of the diagonal is added to the diagonal */
} lmd_feedback_config;

/* Position p of the order stands for column order[p]. H is the ordered, shrunk, damped one. */
typedef struct lmd_feedback {
    int32_t n_cols, n_blocks; /* of LMD_ROUND_BLOCK columns */
    int32_t *order;           /* [n_cols] */
    int32_t *group;           /* [n_cols] the group of column order[p] */
    float *diagonal;          /* [n_cols] of H */
    /* H = R R^T, R upper. greedy(i, j) = R[i][j] / R[j][j] for i < j: rounding column j to its
     * value plus the sum over i < j of error_i greedy(i, j) makes the error least that columns
     * up to j can have (GPTQ, as Babai's nearest plane). For block b and each tile_rows of its
     * columns a panel [48 b][tile_rows]; and inside a block [j][i]. */
    float *greedy, *greedy_inside;
    /* mutual(i, j) = H[i][j] / H[j][j]: for all blocks the panels [n_cols][tile_rows]. */
    float *mutual, *mutual_inside;
    size_t n_greedy, n_mutual, n_inside; /* floats */
    int32_t tile_rows;
} lmd_feedback;

/* gram: H [n_cols, n_cols], symmetric. scales: [n_cols] the columns' of the weight, whose H is
 * that divided by scales[i] * scales[j]; NULL: 1. LMD_INVALID where H is not positive definite,
 * LMD_NO_MEMORY. */
lmd_status lmd_feedback_new(const lmd_compute *compute, const float *gram, int32_t n_cols,
                            const float *scales, const lmd_feedback_config *config,
                            lmd_feedback **out, lmd_err *err);
void lmd_feedback_free(lmd_feedback *self);

static inline const float *lmd_greedy_panel(const lmd_feedback *self, int32_t block) {
    const int64_t size = LMD_ROUND_BLOCK * LMD_ROUND_BLOCK;
    return self->greedy + size * block * (block - 1) / 2;
}

static inline const float *lmd_mutual_panel(const lmd_feedback *self, int32_t col) {
    return self->mutual + (int64_t)col * self->n_cols; /* col: a multiple of tile_rows */
}

#endif
