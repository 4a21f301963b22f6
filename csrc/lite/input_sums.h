/* What a linear reads, summed over tokens: by it the quantizer weighs errors.
 * Owns: the sums. One thread, which has a pool's workers help. Must not know: models. */
#ifndef LMD_LITE_INPUT_SUMS_H
#define LMD_LITE_INPUT_SUMS_H

#include <stdbool.h>

#include "quant/product.h"

typedef struct lmd_input_sums {
    int32_t n_cols;
    int64_t n_tokens;
    double *squares;     /* [n_cols] of weighted rows: the diagonal of gram */
    double *absolute;    /* [n_cols] of |x|, not weighted */
    float *least, *most; /* [n_cols] x, not weighted; an infinity where there is no row */
    double total, first; /* of x^2, not weighted: of all rows; of each text's first row */
    float *gram; /* [n_cols, n_cols] of weighted rows X^T X, the lower triangle; NULL: not kept
                  */
    bool is_mirrored; /* what is above it is, too */
    /* What is wanted of each row, such as the output that the linear should have: */
    int32_t n_wanted; /* columns of it; 0: nothing */
    float *wanted;    /* [n_wanted, n_cols] of weighted rows Y^T X */
} lmd_input_sums;

/* LMD_INVALID for less than one column, LMD_NO_MEMORY. */
lmd_status lmd_input_sums_new(int32_t n_cols, bool has_gram, int32_t n_wanted,
                              lmd_input_sums **out, lmd_err *err);
void lmd_input_sums_free(lmd_input_sums *self);

/* Adds rows [n, n_cols], which are weighted in place: row t by the root of weights[t], NULL: 1.
 * positions: of the rows in their texts; NULL: 0 .. n - 1.
 * LMD_INVALID for a number that is not finite, LMD_NO_MEMORY; then the sums are of no use. */
lmd_status lmd_input_sums_add(lmd_input_sums *self, const lmd_compute *compute, float *rows,
                              const double *weights, const int32_t *positions, int32_t n,
                              lmd_err *err);

/* Adds what is wanted [n, n_wanted] of rows [n, n_cols], both weighted already. */
lmd_status lmd_input_sums_add_wanted(lmd_input_sums *self, const lmd_compute *compute,
                                     const float *wanted, const float *rows, int32_t n,
                                     lmd_err *err);

/* New sums of the same rows with their columns in another order: the new column i is the old
 * order[i]; nothing is wanted of them. LMD_INVALID where order [n_cols] does not have each
 * column once, LMD_NO_MEMORY. */
lmd_status lmd_input_sums_in_order(lmd_input_sums *self, const int32_t *order,
                                   lmd_input_sums **out, lmd_err *err);

/* The whole symmetric matrix; NULL where it is not kept. */
const float *lmd_input_sums_gram(lmd_input_sums *self);

/* What differences [n, n_cols] of a weight's rows change in the outputs: out[r] is the row's
 * d gram d^T. Where the gram is kept. LMD_NO_MEMORY. */
lmd_status lmd_input_sums_errors(lmd_input_sums *self, const lmd_compute *compute,
                                 const float *differences, int32_t n, double *out,
                                 lmd_err *err);

/* Replaces products [n, n_cols], Y X^T of outputs Y and these inputs X, by the weight V with
 * the least |Y - V X|^2 + d |V|^2, d being damp times the mean of the gram's diagonal. Where
 * the gram is kept. LMD_INVALID for damp outside 0 .. 10 and where the matrix is not positive
 * definite, LMD_NO_MEMORY. */
lmd_status lmd_input_sums_regress(const lmd_input_sums *self, const lmd_compute *compute,
                                  float *products, int32_t n, double damp, lmd_err *err);

/* How much of this gram's off-diagonal is chance, judged by another text's: 0 .. 1. As
 * correlations, (1 - shrink) times this one's are the nearest to the other's. Where both keep
 * grams of as many columns. */
double lmd_input_sums_shrink(const lmd_input_sums *self, const lmd_input_sums *other);

#endif
