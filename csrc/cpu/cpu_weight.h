/* Weights in the CPU's layout: panels of 16 rows, one segment for each part of the source. The
 * panels lie in an arena, which outlives the weights.
 * Owns: packing, and the sizes of what is packed. Must not know: workspaces, plans. One thread
 * at a time, which has the pool's workers help. */
#ifndef LMD_CPU_CPU_WEIGHT_H
#define LMD_CPU_CPU_WEIGHT_H

#include "backend/backend.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/kernels/kernels.h"

typedef struct lmd_weight_segment {
    lmd_weight_format format;
    int32_t n_rows, n_panels;
    int32_t first_row; /* of the whole matrix */
    int64_t panel_bytes;
    uint8_t *panels; /* in the arena */
} lmd_weight_segment;

struct lmd_weight {
    int32_t n_rows, n_cols, n_segments;
    lmd_weight_segment segments[LMD_MAX_WEIGHT_PARTS];
    int32_t group_size;   /* in which activations must be quantised; 0: no segment has codes */
    const int32_t *order; /* [n_cols] as lmd_weight_order says, in the arena; or NULL */
    size_t n_bytes;       /* of all panels, and of the order */
    float *vector;        /* [n_cols] of a vector; NULL for a matrix */
};

/* Bytes of one panel of n_cols columns. */
int64_t lmd_panel_bytes(const lmd_weight_format *format, int32_t n_cols);

/* Packs a source's rows. LMD_BAD_FILE and LMD_UNSUPPORTED as lmd_weight_source_check says,
 * LMD_NO_MEMORY. */
lmd_status lmd_cpu_weight_pack(const lmd_weight_source *src, const lmd_cpu_kernels *kernels,
                               lmd_threads *threads, lmd_arena *arena, lmd_weight **out,
                               lmd_err *err);
/* Says how many bytes of panels lmd_cpu_weight_pack would make. */
lmd_status lmd_cpu_weight_size(const lmd_weight_source *src, size_t *out, lmd_err *err);
/* Makes a weight as large, of made-up panels: small finite values, in memory that has been
 * written. */
lmd_status lmd_cpu_weight_blank(const lmd_weight_source *src, lmd_threads *threads,
                                lmd_arena *arena, lmd_weight **out, lmd_err *err);
/* Copies n values into a vector. */
lmd_status lmd_cpu_weight_vector(const float *values, int32_t n, lmd_weight **out,
                                 lmd_err *err);
void lmd_cpu_weight_free(lmd_weight *weight);

/* Writes one row of a matrix of one segment as fp32, as an embedding does. */
void lmd_cpu_weight_row(const lmd_weight *weight, int32_t row, float *out /* [n_cols] */);

#endif
