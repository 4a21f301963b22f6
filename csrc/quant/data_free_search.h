/* The search of data_free.h, which data_free.c compiles for every machine, and each table of
 * kernels for its own. Whoever includes it has defined INLINE and LANES, the lanes of 32 bits
 * of a vector. Sums run in LMD_GRID_UNIT chains, LANES at a time, and are added in one order,
 * so that LANES changes no bit. */
#ifndef LMD_QUANT_DATA_FREE_SEARCH_H
#define LMD_QUANT_DATA_FREE_SEARCH_H

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "quant/data_free.h"

typedef float lanes __attribute__((vector_size(LANES * 4)));
typedef int32_t lane_masks __attribute__((vector_size(LANES * 4)));

/* Sums, or largest values, in chains. */
typedef struct chains {
    float at[LMD_GRID_UNIT];
} chains;

INLINE lanes load_lanes(const float *x) {
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE void store_lanes(float *x, lanes v) { memcpy(x, &v, sizeof v); }

INLINE lanes all_lanes(float x) { return x - (lanes){0}; }

/* Compilers make an instruction of each of these loops. */
INLINE lanes larger_lanes(lanes a, lanes b) {
    for (int32_t i = 0; i < LANES; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}

INLINE lanes smaller_lanes(lanes a, lanes b) {
    for (int32_t i = 0; i < LANES; i++) a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
}

/* Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, ties to even. */
INLINE lanes round_lanes(lanes x) { return x + 12582912.0f - 12582912.0f; }
INLINE float round_even(float x) { return x + 12582912.0f - 12582912.0f; }

/* The second half of the chains is added to the first, and so on. */
INLINE float chains_sum(chains x) {
    for (int32_t n = LMD_GRID_UNIT / 2; n > 0; n /= 2)
        for (int32_t i = 0; i < n; i++) x.at[i] += x.at[i + n];
    return x.at[0];
}

/* ---- grids ---- */

/* Grids whose errors are found in one pass over the weights. Codes count from the zero. */
enum { MOST_TRIED = 6 };
typedef struct tried_grids {
    int32_t n;
    lmd_grid grids[MOST_TRIED];
    float scales[MOST_TRIED], inverses[MOST_TRIED], lows[MOST_TRIED], highs[MOST_TRIED];
} tried_grids;

typedef struct best_grid {
    lmd_grid grid;
    float scale, error;
} best_grid;

typedef struct searched_group {
    const float *weights;
    int32_t n;
    float row_square;
    lmd_grid_form form;
    float most; /* the largest code */
} searched_group;

/* A scale as a half. A group of zeros, or of weights below what a half can scale, gets the
 * smallest one that keeps all its bits. */
INLINE uint16_t scale_to_half(float scale) {
    return lmd_float_to_half(scale > 0x1p-14f ? scale : 0x1p-14f);
}

INLINE void add_grid(tried_grids *self, const searched_group *of, uint16_t half, float scale,
                     float zero) {
    const int32_t i = self->n++;
    zero = zero > 0.0f ? zero : 0.0f; /* NaN becomes 0 */
    zero = round_even(zero < of->most ? zero : of->most);
    if (of->form.is_symmetric) zero = (of->most + 1.0f) / 2.0f;
    self->grids[i] = (lmd_grid){half, (uint8_t)(int32_t)zero, 0};
    self->scales[i] = scale;
    self->inverses[i] = 1.0f / scale;
    self->lows[i] = -zero;
    self->highs[i] = of->most - zero;
}

/* The codes of weights, counted from the zero of grid i. */
INLINE lanes codes_from_zero(const tried_grids *self, int32_t i, lanes weights) {
    lanes at = weights * self->inverses[i];
    at = larger_lanes(at, all_lanes(self->lows[i]));
    return round_lanes(smaller_lanes(at, all_lanes(self->highs[i])));
}

/* Finds the errors of the first n of the grids, and keeps the best one. */
INLINE void try_grids(const tried_grids *tried, int32_t n, const searched_group *of,
                      best_grid *best) {
    chains errors[MOST_TRIED];
    for (int32_t lane = 0; lane < LMD_GRID_UNIT; lane += LANES) {
        lanes sums[MOST_TRIED] = {{0}};
        for (int32_t k = lane; k < of->n; k += LMD_GRID_UNIT) {
            const lanes w = load_lanes(of->weights + k);
            const lanes counts = w * w + of->row_square;
#pragma GCC unroll 6
            for (int32_t i = 0; i < n; i++) {
                const lanes off = codes_from_zero(tried, i, w) * tried->scales[i] - w;
                sums[i] += off * off * counts;
            }
        }
        for (int32_t i = 0; i < n; i++) store_lanes(errors[i].at + lane, sums[i]);
    }
    for (int32_t i = 0; i < n; i++) {
        const float error = chains_sum(errors[i]);
        if (error < best->error) *best = (best_grid){tried->grids[i], tried->scales[i], error};
    }
}

/* ---- fits ---- */

/* Sums over a group, each weight counting as it does: of the codes from the zero and their
 * squares, of the weights, of the products of both. */
typedef struct fit_sums {
    double ones, codes, squares, weights, products;
} fit_sums;

INLINE fit_sums sum_codes(const searched_group *of, const tried_grids *at) {
    chains all[5];
    for (int32_t lane = 0; lane < LMD_GRID_UNIT; lane += LANES) {
        lanes sums[5] = {{0}};
        for (int32_t k = lane; k < of->n; k += LMD_GRID_UNIT) {
            const lanes w = load_lanes(of->weights + k);
            const lanes code = codes_from_zero(at, 0, w);
            const lanes counts = w * w + of->row_square, counted = code * counts;
            sums[0] += counts;
            sums[1] += counted;
            sums[2] += counted * code;
            sums[3] += counts * w;
            sums[4] += counted * w;
        }
        for (int32_t i = 0; i < 5; i++) store_lanes(all[i].at + lane, sums[i]);
    }
    return (fit_sums){chains_sum(all[0]), chains_sum(all[1]), chains_sum(all[2]),
                      chains_sum(all[3]), chains_sum(all[4])};
}

/* Tries the scale, or the scale and the zero, with the least error for the best grid's codes.
 */
INLINE void fit_grid(const searched_group *of, bool fit_zero, best_grid *best) {
    tried_grids at = {0};
    const float zero = best->grid.zero;
    add_grid(&at, of, best->grid.scale, best->scale, zero);
    const fit_sums sums = sum_codes(of, &at);
    double scale = sums.squares > 0.0 ? sums.products / sums.squares : 0.0, min = 0.0;
    if (fit_zero) {
        const double divisor = sums.ones * sums.squares - sums.codes * sums.codes;
        if (!(divisor > 0.0)) return;
        scale = (sums.ones * sums.products - sums.codes * sums.weights) / divisor;
        min = (sums.weights - scale * sums.codes) / sums.ones;
    }
    if (!(scale > 0.0 && scale < 1e30)) return;
    const uint16_t half = scale_to_half((float)scale);
    const float rounded = lmd_half_to_float(half);
    at.n = 0;
    add_grid(&at, of, half, rounded, zero - (float)min / rounded);
    try_grids(&at, 1, of, best);
}

/* ---- the search ---- */

INLINE void find_range(const searched_group *of, float *min, float *max) {
    lanes mins = {0}, maxs = {0};
    for (int32_t k = 0; k < of->n; k += LANES) {
        const lanes w = load_lanes(of->weights + k);
        mins = smaller_lanes(w, mins);
        maxs = larger_lanes(w, maxs);
    }
    float low[LANES], high[LANES];
    store_lanes(low, mins);
    store_lanes(high, maxs);
    for (int32_t i = 1; i < LANES; i++) {
        low[0] = low[i] < low[0] ? low[i] : low[0];
        high[0] = high[i] > high[0] ? high[i] : high[0];
    }
    *min = low[0];
    *max = high[0];
}

/* The grid from the smallest to the largest weight, and narrower and wider ones whose middle is
 * that of the weights. */
INLINE void first_grids(const searched_group *of, tried_grids *out) {
    static const float widths[MOST_TRIED] = {1.0f, 0.6f, 0.72f, 0.84f, 0.96f, 1.08f};
    float min, max;
    find_range(of, &min, &max);
    const float middle = 0.5f * max + 0.5f * min;
    float full = max / of->most - min / of->most;
    if (of->form.is_symmetric)
        full = (max > -min ? max : -min) / (0.5f * (of->most + 1.0f) - 0.5f);
    out->n = 0;
    for (int32_t i = 0; i < MOST_TRIED; i++) {
        const uint16_t half = scale_to_half(full * widths[i]);
        const float scale = lmd_half_to_float(half);
        add_grid(out, of, half, scale,
                 i == 0 ? -min / scale : 0.5f * of->most - middle / scale);
    }
}

INLINE void write_codes(const searched_group *of, const best_grid *best, uint8_t *codes) {
    tried_grids at = {0};
    add_grid(&at, of, best->grid.scale, best->scale, best->grid.zero);
    typedef uint8_t lane_bytes __attribute__((vector_size(LANES)));
    for (int32_t k = 0; k < of->n; k += LANES) {
        const lanes code = codes_from_zero(&at, 0, load_lanes(of->weights + k)) - at.lows[0];
        const lane_bytes narrow =
            __builtin_convertvector(__builtin_convertvector(code, lane_masks), lane_bytes);
        memcpy(codes + k, &narrow, sizeof narrow);
    }
}

static lmd_grid data_free_codes(const float *weights, int32_t n, float row_square,
                                lmd_grid_form form, uint8_t *codes) {
    const searched_group of = {weights, n, row_square, form, (float)((1 << form.bits) - 1)};
    tried_grids tried;
    first_grids(&of, &tried);
    best_grid best = {tried.grids[0], tried.scales[0], INFINITY};
    try_grids(&tried, MOST_TRIED, &of, &best);
    if (!form.is_symmetric) fit_grid(&of, true, &best);
    fit_grid(&of, false, &best);
    write_codes(&of, &best, codes);
    return best.grid;
}

#endif
