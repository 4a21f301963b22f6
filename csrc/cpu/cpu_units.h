/* Cutting a step's attention into units, the items that threads run.
 * The numeric contract fixes what a unit computes (chunks of 256 positions, folded left to
 * right); the cut decides only who computes it. A unit folds its own chunks; where decode rows
 * are too few to occupy all threads, long contexts are split into stretches of chunks, and the
 * chunks' partial results are folded afterwards.
 * Owns: the cut. Must not know: kernels, buffers, where K and V lie. The engine's thread
 * alone. */
#ifndef LMD_CPU_CPU_UNITS_H
#define LMD_CPU_CPU_UNITS_H

#include "backend/backend.h"

/* A unit covers some tokens and some query heads of one KV head. Unsplit (partial_idx < 0): all
 * chunks, written to the output. Split: a run of chunks; chunk c's result for its first head
 * goes to partial partial_idx + c * n_head, c counted from the unit's first chunk. */
typedef struct lmd_attend_unit {
    int32_t seq_idx, kv_head;
    int32_t head_begin, n_heads;   /* query heads */
    int32_t token_begin, n_tokens; /* rows of the step */
    int32_t begin, end;            /* positions */
    int32_t partial_idx;
    bool writes_kv; /* writes the K and V of its one token before it attends */
} lmd_attend_unit;

/* The cut of one step. The arrays are a workspace's. */
typedef struct lmd_cpu_units {
    lmd_attend_unit *units; /* [max_units] */
    int32_t n_units, max_units;
    int32_t n_partials, max_partials; /* results of chunks that wait to be folded, by head */
    int32_t *row_seqs;                /* [max_tokens] the sequence of each row of the step */
    int32_t *seq_partials; /* [max_seqs] first partial of a split sequence, whose chunk c and
                              head h have seq_partials + c * n_head + h; -1: not split */
    bool writes_kv_first;  /* some rows write K and V before any unit starts */
} lmd_cpu_units;

/* Sets max_units and max_partials, which no step exceeds. */
void lmd_cpu_units_bound(lmd_cpu_units *self, const lmd_workspace_config *config,
                         int32_t n_threads);
/* Cuts a plan's attention. Allocates nothing. */
void lmd_cpu_units_cut(lmd_cpu_units *self, const lmd_workspace_config *config,
                       int32_t n_threads, const lmd_plan *plan);
/* Whether the unit of a decode row writes its K and V: all its query heads then are in this one
 * unit, and nobody else reads them in this step. */
bool lmd_cpu_units_write_kv(const lmd_workspace_config *config);

#endif
