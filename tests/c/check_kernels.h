/* Functions that the files of the kernel harness share. */
#ifndef LMD_CHECK_KERNELS_H
#define LMD_CHECK_KERNELS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "cpu/kernels/kernels.h"

uint32_t random_u32(void);
float random_float(void); /* in [-1, 1) */

/* Unless ok, counts and prints a failure; a, b and c say which case it was. */
void check(bool ok, const char *what, const char *isa, int a, int b, int c);

static inline void poison(void *data, size_t n_bytes) { memset(data, 0xff, n_bytes); }

/* Whether the bits are the same, or both are NaN: NaNs may differ between ISAs. */
static inline bool same(const float *a, const float *b, int n) {
    for (int i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

/* Checks attention and the KV cache; in check_attention.c. */
void check_attentions(const lmd_cpu_kernels *kernels);

/* Sampling, in check_sampling.c. */
void check_sampling(const lmd_cpu_kernels *kernels);

/* Grids of groups of weights, in check_grid.c. */
void check_grids(const lmd_cpu_kernels *kernels);

/* The quantizer's products and rounding, in check_solve.c. */
void check_solver_kernels(const lmd_cpu_kernels *kernels);

#endif
