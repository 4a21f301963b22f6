/* The quantizer's kernels: every table against plain loops that say what
 * quant/matrix_kernels.h does, bit for bit. For check_kernels.c. */
#include <math.h>
#include <string.h>

#include "check_kernels.h"
#include "quant/matrix_kernels.h"

enum { MAX_DEPTH = 97, N_GROUPS = 3, TILE = LMD_MAX_TILE_ROWS * LMD_MAX_TILE_COLS };

static void fill(float *x, int n) {
    for (int i = 0; i < n; i++) x[i] = random_float();
}

static void check_product(const lmd_cpu_kernels *kernels, int depth) {
    static float a[MAX_DEPTH * LMD_MAX_TILE_ROWS], b[MAX_DEPTH * LMD_MAX_TILE_COLS];
    float got[TILE], want[TILE];
    const int n_rows = kernels->matrix.tile_rows, n_cols = kernels->matrix.tile_cols;
    fill(a, depth * n_rows);
    fill(b, depth * n_cols);
    fill(got, TILE);
    memcpy(want, got, sizeof want);
    kernels->matrix.product(got, LMD_MAX_TILE_COLS, a, b, depth);
    for (int i = 0; i < n_rows; i++)
        for (int j = 0; j < n_cols; j++)
            for (int k = 0; k < depth; k++) {
                float *sum = &want[i * LMD_MAX_TILE_COLS + j];
                *sum = fmaf(a[k * n_rows + i], b[k * n_cols + j], *sum);
            }
    check(same(got, want, TILE), "a product", kernels->isa, depth, n_rows, n_cols);
}

typedef struct block {
    float start[LMD_ROUND_BLOCK * LMD_MAX_TILE_COLS], sums[LMD_ROUND_BLOCK * LMD_MAX_TILE_COLS];
    float feedback[LMD_ROUND_BLOCK * LMD_ROUND_BLOCK];
    float scale[N_GROUPS * LMD_MAX_TILE_COLS], offset[N_GROUPS * LMD_MAX_TILE_COLS];
    float inverse[N_GROUPS * LMD_MAX_TILE_COLS];
    int32_t group[LMD_ROUND_BLOCK];
    float change[LMD_ROUND_BLOCK * LMD_MAX_TILE_COLS],
        codes[LMD_ROUND_BLOCK * LMD_MAX_TILE_COLS];
} block;

/* One row of the block, which is a lane, as matrix_kernels.h says it. */
static void round_lane(block *of, int n, int n_lanes, int lane, float most) {
    for (int j = 0; j < n; j++) {
        float chains[2] = {0.0f, 0.0f};
        for (int i = 0; i < j; i++)
            chains[i % 2] = fmaf(of->feedback[j * LMD_ROUND_BLOCK + i],
                                 of->change[i * n_lanes + lane], chains[i % 2]);
        const int at = j * n_lanes + lane, grid = of->group[j] * n_lanes + lane;
        const float wanted = of->start[at] + of->sums[at] + (chains[0] + chains[1]);
        float code = (wanted - of->offset[grid]) * of->inverse[grid];
        code = rintf(code > 0.0f ? code < most ? code : most : 0.0f);
        of->codes[at] = code;
        of->change[at] = of->start[at] - fmaf(code, of->scale[grid], of->offset[grid]);
    }
}

static void check_round(const lmd_cpu_kernels *kernels, int n, int bits) {
    static block got, want;
    const int n_lanes = kernels->matrix.tile_cols;
    const float most = (float)((1 << bits) - 1);
    memset(&got, 0, sizeof got);
    fill(got.start, n * n_lanes);
    fill(got.sums, n * n_lanes);
    fill(got.feedback, LMD_ROUND_BLOCK * LMD_ROUND_BLOCK);
    for (int i = 0; i < N_GROUPS * n_lanes; i++) {
        got.scale[i] = 0.01f + fabsf(random_float());
        got.inverse[i] = 1.0f / got.scale[i];
        got.offset[i] = -got.scale[i] * (float)(random_u32() % (1u << bits));
    }
    for (int j = 0; j < n; j++) got.group[j] = (int32_t)(random_u32() % N_GROUPS);
    want = got;
    const lmd_round_args args = {n,         got.start,  got.sums,   got.feedback,
                                 got.group, got.scale,  got.offset, got.inverse,
                                 most,      got.change, got.codes};
    kernels->matrix.round_block(&args);
    for (int lane = 0; lane < n_lanes; lane++) round_lane(&want, n, n_lanes, lane, most);
    check(same(got.codes, want.codes, n * n_lanes), "rounded codes", kernels->isa, n, bits, 0);
    check(same(got.change, want.change, n * n_lanes), "their changes", kernels->isa, n, bits,
          0);
}

void check_solver_kernels(const lmd_cpu_kernels *kernels) {
    for (int depth = 0; depth <= MAX_DEPTH; depth += depth < 4 ? 1 : 31)
        check_product(kernels, depth);
    for (int n = 1; n <= LMD_ROUND_BLOCK; n++) check_round(kernels, n, 2 + n % 7);
}
