/* Groups of weights to codes without data: nothing is known of what a linear reads.
 * Owns: the rule by which weights count then, and a quick search for a group's grid. Must not
 * know: matrices, files, how codes are packed. Pure functions: no state, no allocation. Any
 * thread. */
#ifndef LMD_QUANT_DATA_FREE_H
#define LMD_QUANT_DATA_FREE_H

#include "quant/grid.h"

/* The mean square of a row of n_cols weights, a multiple of LMD_GRID_UNIT; NaN where one of
 * them is not finite. */
float lmd_row_square(const float *weights, int32_t n_cols);

/* Writes the codes [n] of a group of finite weights on a good grid, and returns the grid. The
 * error of a weight counts its square and row_square, the mean square of its row, because what
 * is large is seldom so for nothing (llama.cpp's rule). Tried are lmd_grid_min_max's grid, five
 * widths around it, and two grids that are fitted to codes: a fifth of lmd_grid_search's, with
 * an error that is a few percent above its. The form has no minima. */
lmd_grid lmd_data_free_codes(const float *weights, int32_t n, float row_square,
                             lmd_grid_form form, uint8_t *codes);
/* A function of the kernels' table has its bits. */
typedef lmd_grid (*lmd_data_free_fn)(const float *weights, int32_t n, float row_square,
                                     lmd_grid_form form, uint8_t *codes);

#endif
