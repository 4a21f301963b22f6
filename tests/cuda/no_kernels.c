/* Stands in the place of the row "sm80" in a program that runs the row "ref" alone. */
#include "cuda_kernels.h"

static bool serves_nothing(int32_t head_dim) {
    (void)head_dim;
    return false;
}

const lmd_cuda_kernels lmd_cuda_sm80 = {
    .name = "sm80", .min_arch = 80, .serves_head_dim = serves_nothing};
