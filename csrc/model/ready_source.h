/* A matrix of parts as every backend takes it: its columns have one order, its groups one size,
 * and packed parts that have no groups are dense matrices of fp32.
 * Owns: those matrices and the order. Must not know: backends, names of tensors. One thread. */
#ifndef LMD_MODEL_READY_SOURCE_H
#define LMD_MODEL_READY_SOURCE_H

#include <stdbool.h>

#include "backend/backend.h"

typedef struct lmd_ready_source {
    lmd_weight_source source; /* points into this struct */
    lmd_tensor_view dense[LMD_MAX_WEIGHT_PARTS];
    float *values[LMD_MAX_WEIGHT_PARTS]; /* of `dense`, or NULL */
    int32_t *order;                      /* [n_cols] or NULL */
} lmd_ready_source;

/* Makes a source ready. sizes_alone: dense matrices have no values. Ended with
 * lmd_ready_source_clear, on failure too. Errors as lmd_packed_load, and LMD_NO_MEMORY. */
lmd_status lmd_ready_source_init(lmd_ready_source *self, const lmd_weight_source *src,
                                 bool sizes_alone, lmd_err *err);
void lmd_ready_source_clear(lmd_ready_source *self);

#endif
