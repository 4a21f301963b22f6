/* Operations on single rows of a step: embedding, norm, quantisation, sampling.
 * Owns: how such operations are recorded, cut into items and run. Must not know: matrices,
 * attention. Recording: the engine's thread alone; items: its workers too. */
#ifndef LMD_CPU_CPU_ROWS_H
#define LMD_CPU_CPU_ROWS_H

#include "cpu/cpu_record.h"

/* As the backend's operations of these names. */
void lmd_cpu_embed(lmd_workspace *workspace, const lmd_weight *table, lmd_buffer *out);
void lmd_cpu_add_norm(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *weight,
                      float eps, lmd_buffer *out);
void lmd_cpu_observe(lmd_workspace *workspace, lmd_buffer *buffer, int32_t layer, int32_t place,
                     const lmd_observer *observer);
void lmd_cpu_sample(lmd_workspace *workspace, const lmd_sample_params *params, int32_t n,
                    lmd_sample_result *results);

/* Norms n_rows rows of the residual: those that `rows` lists (NULL: the first ones). */
void lmd_cpu_norm_rows(lmd_workspace *workspace, lmd_buffer *residual, const lmd_weight *weight,
                       float eps, lmd_buffer *out, const int32_t *rows, int32_t n_rows);
/* Quantises a buffer's fp32 rows as `acts` says; the caller has reserved room. */
void lmd_cpu_quantize(lmd_workspace *workspace, lmd_buffer *buffer, const lmd_acts *acts);

#endif
