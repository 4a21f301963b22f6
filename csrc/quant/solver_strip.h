/* A strip of a weight: as many rows as a tile has columns, one in each lane. The steps of the
 * solver on it; for solver.c alone.
 * Owns: nothing: its arrays are the solver's. One thread each. */
#ifndef LMD_QUANT_SOLVER_STRIP_H
#define LMD_QUANT_SOLVER_STRIP_H

#include "base/memory.h"
#include "quant/solver.h"

/* Columns are in the feedback's order; groups in the weight's. All arrays have n_lanes lanes.
 */
typedef struct lmd_strip {
    const lmd_matrix_kernels *kernels;
    int32_t n_lanes, n_cols, n_groups;
    float most;                      /* the largest code */
    float *weights;                  /* [n_cols] times the columns' scales */
    float *residual;                 /* [n_cols] weight - value */
    float *codes;                    /* [n_cols] */
    float *reach;                    /* [n_cols] the sum over i of weight_i H[i][j] */
    float *basis;                    /* [n_cols] what a group's scale is multiplied by */
    float *scale, *offset, *inverse; /* [n_groups] value = code * scale + offset */
    float *zero;                     /* [n_groups] of forms without minima: -offset / scale */
    float *normal, *wanted;          /* the normal equations of a refit: [n][n], [n] */
    float *row;                      /* [n_cols] a row's weights in their own order */
    float *start, *sums, *change, *rounded; /* [LMD_ROUND_BLOCK] */
} lmd_strip;

lmd_status lmd_strip_init(lmd_strip *self, const lmd_matrix_kernels *kernels,
                          const lmd_solver_job *job, lmd_arena *arena, lmd_err *err);

/* Copies rows of the weight; lanes after the last row are 0. */
void lmd_strip_load(lmd_strip *self, const lmd_solver_job *job, int32_t first_row);
/* LMD_INVALID names a row whose weights a half cannot scale. */
lmd_status lmd_strip_choose_grids(lmd_strip *self, const lmd_solver_job *job,
                                  const float *importance, int32_t first_row, lmd_err *err);
/* GPTQ. */
void lmd_strip_round(lmd_strip *self, const lmd_feedback *feedback);
/* Before the first refit. */
void lmd_strip_prepare(lmd_strip *self, const lmd_feedback *feedback);
/* The best scales (and minima) for the codes. */
void lmd_strip_refit(lmd_strip *self, const lmd_solver_job *job);
/* The best code of one column after the other. */
void lmd_strip_sweep(lmd_strip *self, const lmd_feedback *feedback);
void lmd_strip_store(const lmd_strip *self, const lmd_solver_job *job, int32_t first_row,
                     lmd_solver_codes out);

#endif
