/* Codes for a linear's weight W that change its outputs little: the least
 * tr((W - V) H (W - V)^T), V being what the codes stand for and H the matrix of the inputs.
 * First GPTQ (arXiv 2210.17323) on a grid for each group; then rounds of scales refitted in
 * closed form, jointly for the groups of a row, and of coordinate descent (QuantEase, arXiv
 * 2309.01885). Owns: how rows are cut into strips for threads. The result has the same bits for
 * every number of threads and every instruction set. Must not know: models, files. One thread,
 * which has the pool's workers help. */
#ifndef LMD_QUANT_SOLVER_H
#define LMD_QUANT_SOLVER_H

#include "quant/feedback.h"
#include "quant/grid.h"

typedef struct lmd_solver_config {
    lmd_grid_form form;
    bool searches;    /* the grids with the least error; false: from the smallest to the largest
                         weight */
    int32_t n_rounds; /* each refits the scales and sweeps LMD_SWEEPS times; after the last the
                         scales are refitted once more */
} lmd_solver_config;

enum { LMD_SWEEPS = 2 };

/* weights: [n_rows, n_cols], finite. scales: [n_cols] what columns are multiplied by first, the
 * same that made `feedback`; NULL: 1. The group size is feedback's. */
typedef struct lmd_solver_job {
    const float *weights, *scales;
    int32_t n_rows;
    const lmd_feedback *feedback;
    int32_t group_size;
    lmd_grid_error_fn grid_error;
    lmd_solver_config config;
} lmd_solver_job;

/* codes [n_rows, n_cols], a byte each; scales (halves) [n_rows, n_groups]; zeros of the same
 * shape, or mins (halves) where the form has minima; the other is NULL. */
typedef struct lmd_solver_codes {
    uint8_t *codes;
    uint16_t *scales;
    uint8_t *zeros;
    uint16_t *mins;
} lmd_solver_codes;

/* Called between strips of rows with how many rows are done; not LMD_OK stops the work. */
typedef struct lmd_solver_progress {
    lmd_status (*report)(void *user, int32_t n_done, lmd_err *err);
    void *user;
} lmd_solver_progress;

/* LMD_INVALID for a weight that a scale of fp16 cannot reach, LMD_NO_MEMORY, or what the report
 * gave; then out holds nothing of use. */
lmd_status lmd_solve(const lmd_compute *compute, const lmd_solver_job *job,
                     const lmd_solver_progress *progress, lmd_solver_codes out, lmd_err *err);

#endif
