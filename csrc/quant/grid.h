/* Uniform grids for groups of weights: how wide the steps of a grid are, and which code is 0.
 * Owns: what a weight becomes on a grid, and the search for a group's best one. Must not know:
 * matrices, files, how codes are packed. Pure functions: no state, no allocation. Any thread.
 */
#ifndef LMD_QUANT_GRID_H
#define LMD_QUANT_GRID_H

#include <stdbool.h>
#include <stdint.h>

/* value = scale * (code - zero), code and zero being 0 .. 2^bits - 1; or, of a form with
 * minima, scale * code + min. */
typedef struct lmd_grid {
    uint16_t scale; /* half, above 0; infinite where weights are too large for a half */
    uint8_t zero;   /* of a symmetric grid 2^(bits - 1) */
    uint16_t min;   /* half; of forms with minima */
} lmd_grid;

typedef struct lmd_grid_form {
    int32_t bits; /* 2 to 8 */
    bool is_symmetric;
    bool has_min; /* GGUF's Q4_1; then not symmetric */
} lmd_grid_form;

enum { LMD_GRID_UNIT = 16 }; /* groups have a multiple of so many weights */

/* A grid as numbers: codes are 0 .. most. */
typedef struct lmd_grid_steps {
    float scale, zero, most;
} lmd_grid_steps;

/* The sum of importance[i] * (value - weight)^2, value being that of the nearest code (ties to
 * even, clamped) of a weight; in 16 chains. A function of the kernels' table has the same bits.
 */
typedef float (*lmd_grid_error_fn)(const float *weights, const float *importance, int32_t n,
                                   lmd_grid_steps steps);
float lmd_grid_error(const float *weights, const float *importance, int32_t n,
                     lmd_grid_steps steps);

/* The grid from the smallest to the largest of n finite weights, and of 0 unless the form has
 * minima: steps of (max - min) / (2^bits - 1), or of a symmetric one
 * max|w| / (2^(bits - 1) - 1/2), as compressed-tensors has it. The scale is rounded to a half
 * before the zero is chosen. */
lmd_grid lmd_grid_min_max(const float *weights, int32_t n, lmd_grid_form form);

/* The grid with the least error among those of LMD_GRID_WIDTHS widths, of two more around the
 * best of these, and of three zeros each; after which the scale (and minimum) is fitted to the
 * codes twice. importance: [n], not negative. */
lmd_grid lmd_grid_search(const float *weights, const float *importance, int32_t n,
                         lmd_grid_form form, lmd_grid_error_fn error);

enum { LMD_GRID_WIDTHS = 12 };

/* The nearest code of each weight, ties to even, clamped. */
void lmd_grid_encode(const float *weights, int32_t n, lmd_grid_form form, lmd_grid grid,
                     uint8_t *codes);

#endif
