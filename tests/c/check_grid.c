/* Grids: the errors and the codes of every kernel table against the definitions of
 * quant/grid.h and quant/data_free.h, bit for bit. For check_kernels.c. */
#include <string.h>

#include "check_kernels.h"
#include "quant/data_free.h"
#include "quant/grid.h"

enum { MAX_WEIGHTS = 512 };

static void check_data_free(const lmd_cpu_kernels *kernels) {
    float weights[MAX_WEIGHTS];
    uint8_t got[MAX_WEIGHTS], want[MAX_WEIGHTS];
    for (int n = LMD_GRID_UNIT; n <= MAX_WEIGHTS; n += LMD_GRID_UNIT)
        for (int kind = 0; kind < 4; kind++) /* around 0, zeros, huge, above 0 */
            for (int bits = 2; bits <= 8; bits++) {
                const lmd_grid_form form = {bits, n / LMD_GRID_UNIT % 2 == 1, false};
                static const float sizes[] = {0.02f, 0.0f, 1e30f, 3.0f};
                for (int k = 0; k < n; k++)
                    weights[k] = sizes[kind] * (random_float() + (kind == 3 ? 2.0f : 0.0f));
                const float square = lmd_row_square(weights, n);
                memset(got, 0xee, sizeof got);
                const lmd_grid a = kernels->data_free_codes(weights, n, square, form, got);
                const lmd_grid b = lmd_data_free_codes(weights, n, square, form, want);
                check(a.scale == b.scale && a.zero == b.zero &&
                          memcmp(got, want, (size_t)n) == 0 &&
                          (n == MAX_WEIGHTS || got[n] == 0xee),
                      "codes without data", kernels->isa, n, kind, bits);
            }
}

void check_grids(const lmd_cpu_kernels *kernels) {
    check_data_free(kernels);
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
