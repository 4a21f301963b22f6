/* Grids: the error of every kernel table against quant/grid.h's definition, bit for bit. For
 * check_kernels.c. */
#include "check_kernels.h"
#include "quant/grid.h"

enum { MAX_WEIGHTS = 512 };

void check_grids(const lmd_cpu_kernels *kernels) {
    static const float scales[] = {0x1p-14f, 0.01f, 0.3f, 1000.0f};
    float weights[MAX_WEIGHTS], importance[MAX_WEIGHTS];
    for (int n = LMD_GRID_UNIT; n <= MAX_WEIGHTS; n += LMD_GRID_UNIT)
        for (int i = 0; i < 4; i++)
            for (int bits = 2; bits <= 8; bits++) {
                const float most = (float)((1 << bits) - 1);
                const lmd_grid_steps steps = {scales[i], (float)(random_u32() % (1u << bits)),
                                              most};
                for (int k = 0; k < n; k++) {
                    weights[k] = random_float() * 3.0f * scales[i] * most;
                    importance[k] = random_u32() % 8 ? random_float() + 1.0f : 0.0f;
                }
                weights[n / 2] = scales[i] * 2.5f; /* a tie */
                const float got = kernels->grid_error(weights, importance, n, steps);
                const float want = lmd_grid_error(weights, importance, n, steps);
                check(same(&got, &want, 1), "the error of a grid", kernels->isa, n, i, bits);
            }
}
