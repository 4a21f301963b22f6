/* Grids: see grid.h. Sums run in LMD_GRID_UNIT chains, which are added in one order, so that a
 * compiler that knows wider vectors changes no bit. */
#include "quant/grid.h"

#include <math.h>
#include <string.h>

#include "base/half.h"

/* Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, ties to even. */
#define ROUND_MAGIC 12582912.0f

typedef float chains __attribute__((vector_size(LMD_GRID_UNIT * 4)));
typedef int32_t masks __attribute__((vector_size(LMD_GRID_UNIT * 4)));

static inline chains load(const float *x) {
    chains v;
    memcpy(&v, x, sizeof v);
    return v;
}

static inline chains all(float x) { return x - (chains){0}; }

static inline chains select(masks mask, chains a, chains b) {
    return (chains)(((masks)a & mask) | ((masks)b & ~mask));
}

/* The second half of the chains is added to the first, and so on. */
static float sum(chains x) {
    float left[LMD_GRID_UNIT];
    memcpy(left, &x, sizeof left);
    for (int32_t n = LMD_GRID_UNIT / 2; n > 0; n /= 2)
        for (int32_t i = 0; i < n; i++) left[i] += left[i + n];
    return left[0];
}

/* ---- one grid ---- */

static float largest_code(lmd_grid_form form) { return (float)((1 << form.bits) - 1); }

static lmd_grid_steps steps_of(lmd_grid grid, lmd_grid_form form) {
    const float scale = lmd_half_to_float(grid.scale);
    const float zero = form.has_min ? -lmd_half_to_float(grid.min) / scale : (float)grid.zero;
    return (lmd_grid_steps){scale, zero, largest_code(form)};
}

/* The codes of LMD_GRID_UNIT weights. They are clamped before they are rounded, which the magic
 * number needs. */
static inline chains codes_of(chains weights, lmd_grid_steps steps, float inverse) {
    chains at = weights * inverse + steps.zero;
    at = select(at > 0.0f, at, all(0.0f));
    at = select(at < steps.most, at, all(steps.most));
    return at + ROUND_MAGIC - ROUND_MAGIC;
}

float lmd_grid_error(const float *weights, const float *importance, int32_t n,
                     lmd_grid_steps steps) {
    const float inverse = 1.0f / steps.scale;
    chains error = {0};
    for (int32_t i = 0; i < n; i += LMD_GRID_UNIT) {
        const chains w = load(weights + i);
        const chains off = (codes_of(w, steps, inverse) - steps.zero) * steps.scale - w;
        error += off * off * load(importance + i);
    }
    return sum(error);
}

void lmd_grid_encode(const float *weights, int32_t n, lmd_grid_form form, lmd_grid grid,
                     uint8_t *codes) {
    const lmd_grid_steps steps = steps_of(grid, form);
    for (int32_t i = 0; i < n; i += LMD_GRID_UNIT) {
        const chains code = codes_of(load(weights + i), steps, 1.0f / steps.scale);
        for (int32_t j = 0; j < LMD_GRID_UNIT; j++) codes[i + j] = (uint8_t)(int32_t)code[j];
    }
}

/* ---- choosing one ---- */

typedef struct range {
    float min, max; /* of the weights, and of 0 unless the form has minima */
} range;

static range range_of(const float *weights, int32_t n, lmd_grid_form form) {
    float min[LMD_GRID_UNIT], max[LMD_GRID_UNIT];
    for (int32_t j = 0; j < LMD_GRID_UNIT; j++)
        min[j] = max[j] = form.has_min ? weights[0] : 0.0f;
    for (int32_t i = 0; i < n; i += LMD_GRID_UNIT)
        for (int32_t j = 0; j < LMD_GRID_UNIT; j++) {
            const float w = weights[i + j];
            min[j] = w < min[j] ? w : min[j];
            max[j] = w > max[j] ? w : max[j];
        }
    range found = {min[0], max[0]};
    for (int32_t j = 0; j < LMD_GRID_UNIT; j++) {
        found.min = min[j] < found.min ? min[j] : found.min;
        found.max = max[j] > found.max ? max[j] : found.max;
    }
    return found;
}

/* A scale as a half. A group of zeros, or of weights below what a half can scale, gets the
 * smallest one that keeps all its bits. */
static uint16_t half_scale(float scale) {
    return lmd_float_to_half(scale > 0x1p-14f ? scale : 0x1p-14f);
}

static float full_scale(range found, lmd_grid_form form) {
    if (!form.is_symmetric)
        return found.max / largest_code(form) - found.min / largest_code(form);
    const float most = found.max > -found.min ? found.max : -found.min;
    return most / ((float)(1 << (form.bits - 1)) - 0.5f);
}

static uint8_t clamped_zero(float zero, lmd_grid_form form) {
    if (form.is_symmetric) return (uint8_t)(1 << (form.bits - 1));
    const float most = largest_code(form);
    return (uint8_t)(int32_t)rintf(zero < 0.0f ? 0.0f : zero > most ? most : zero);
}

/* The grid of a scale on which the value 0 lies `zero` steps above the smallest code's. */
static lmd_grid grid_with_zero(uint16_t scale, float zero, lmd_grid_form form) {
    if (form.has_min)
        return (lmd_grid){scale, 0, lmd_float_to_half(-zero * lmd_half_to_float(scale))};
    return (lmd_grid){scale, clamped_zero(zero, form), 0};
}

/* The grid from one end of the range to the other. */
static lmd_grid widest_grid(range found, lmd_grid_form form) {
    const uint16_t scale = half_scale(full_scale(found, form));
    return grid_with_zero(scale, -found.min / lmd_half_to_float(scale), form);
}

lmd_grid lmd_grid_min_max(const float *weights, int32_t n, lmd_grid_form form) {
    return widest_grid(range_of(weights, n, form), form);
}

/* What a group is searched for. */
typedef struct group {
    const float *weights, *importance;
    int32_t n;
    lmd_grid_form form;
    lmd_grid_error_fn error;
} group;

typedef struct candidate {
    lmd_grid grid;
    float error;
} candidate;

static void try_grid(candidate *best, const group *of, lmd_grid grid) {
    const float error = of->error(of->weights, of->importance, of->n, steps_of(grid, of->form));
    if (error < best->error) *best = (candidate){grid, error};
}

/* A grid with the least error for the codes that `grid` gives: the line through the weights,
 * through 0 unless the form has minima. It may have a scale of 0 or below. */
typedef struct line {
    float scale, min;
} line;

static line fitted_line(const group *of, lmd_grid grid) {
    const lmd_grid_steps steps = steps_of(grid, of->form);
    const float origin = of->form.has_min ? 0.0f : steps.zero;
    chains xy = {0}, xx = {0}, x = {0}, y = {0}, one = {0};
    for (int32_t i = 0; i < of->n; i += LMD_GRID_UNIT) {
        const chains w = load(of->weights + i), importance = load(of->importance + i);
        const chains code = codes_of(w, steps, 1.0f / steps.scale) - origin;
        const chains weighted = code * importance;
        xy += weighted * w;
        xx += weighted * code;
        x += weighted;
        y += importance * w;
        one += importance;
    }
    if (!of->form.has_min) return (line){sum(xx) > 0.0f ? sum(xy) / sum(xx) : 0.0f, 0.0f};
    const float divisor = sum(xx) * sum(one) - sum(x) * sum(x);
    if (!(divisor > 0.0f)) return (line){0.0f, 0.0f};
    const float scale = (sum(xy) * sum(one) - sum(x) * sum(y)) / divisor;
    return (line){scale, (sum(y) - scale * sum(x)) / sum(one)};
}

/* The grids of a width, a part of the widest grid's, with zeros around the one that puts the
 * weights into the middle. */
static void try_width(candidate *best, float *best_width, const group *of, range found,
                      float width) {
    const float apart = of->form.has_min ? 0.6f : 1.0f; /* of two zeros, in steps */
    const uint16_t scale = half_scale(full_scale(found, of->form) * width);
    const float middle = 0.5f * found.max + 0.5f * found.min;
    const float centred = 0.5f * largest_code(of->form) - middle / lmd_half_to_float(scale);
    const float before = best->error;
    for (int32_t j = -1; j <= 1; j++) {
        if (of->form.is_symmetric && j != 0) continue;
        try_grid(best, of, grid_with_zero(scale, centred + apart * (float)j, of->form));
    }
    if (best->error < before) *best_width = width;
}

lmd_grid lmd_grid_search(const float *weights, const float *importance, int32_t n,
                         lmd_grid_form form, lmd_grid_error_fn error) {
    enum { FITS = 2 };
    const float step = 0.05f;
    const group of = {weights, importance, n, form, error};
    const range found = range_of(weights, n, form);
    candidate best = {widest_grid(found, form), INFINITY};
    float width = 1.0f;
    try_grid(&best, &of, best.grid);
    for (int32_t i = 0; i < LMD_GRID_WIDTHS; i++)
        try_width(&best, &width, &of, found, 0.55f + step * (float)i); /* up to 1.1 */
    const float coarse = width;
    try_width(&best, &width, &of, found, coarse - 0.5f * step);
    try_width(&best, &width, &of, found, coarse + 0.5f * step);
    for (int32_t i = 0; i < FITS; i++) {
        const line fit = fitted_line(&of, best.grid);
        lmd_grid grid = {half_scale(fit.scale), best.grid.zero, lmd_float_to_half(fit.min)};
        if (fit.scale > 0.0f) try_grid(&best, &of, grid);
    }
    return best.grid;
}
