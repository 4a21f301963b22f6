/* Linears: panels of 16 output rows times blocks of rows, with the epilogue done while the
 * results are in the first cache.
 * Owns: in which form a linear wants its input, and how it is cut into items. Must not know:
 * how panels and integers lie inside (the kernels). Recording: the engine's thread alone;
 * items: its workers too. */
#ifndef LMD_CPU_CPU_LINEAR_H
#define LMD_CPU_CPU_LINEAR_H

#include "backend/backend.h"

/* As the backend's operations of these names. */
void lmd_cpu_linear(lmd_workspace *workspace, const lmd_linear_args *args);
void lmd_cpu_logits(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *norm,
                    float eps, const lmd_weight *lm_head, int32_t first, int32_t n);

#endif
