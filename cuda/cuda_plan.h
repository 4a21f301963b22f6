/* A plan as the device gets it: one array of integers that travels in one copy.
 * Owns: where each list lies in the array, the padding to a bucket, and the attention units.
 * The places depend on the numbers of tokens, sequences and units alone, so that a captured
 * graph finds them where they were. Must not know: streams, operations. Pure functions; any
 * thread. */
#ifndef LMD_CUDA_CUDA_PLAN_H
#define LMD_CUDA_CUDA_PLAN_H

#include "backend/backend.h"
#include "cuda_kernels.h"

/* A plan's lists, as offsets into the array, in integers. */
typedef struct lmd_cuda_packed {
    int32_t n_tokens, n_seqs, n_logits_rows; /* with padding */
    int32_t n_narrow, n_wide, n_copies;
    size_t token_ids, positions, row_seqs, slots, history_lens, token_offsets, block_offsets,
        logits_rows, narrow, wide, block_ids, copies;
    size_t len;
} lmd_cuda_packed;

/* The least bucket of at least n decoding sequences: 1 2 4 8 16 24 32 48 64 96 128 ..., at most
 * max_seqs. */
int32_t lmd_cuda_bucket(int32_t n, int32_t max_seqs);

/* Whether a plan is a decode step whose logits rows are its tokens: one that can be padded and
 * captured. */
bool lmd_cuda_plan_is_decode(const lmd_plan *plan);

/* Integers that the array of any plan of a workspace takes. */
size_t lmd_cuda_plan_room(const lmd_workspace_config *config);

/* Packs a plan into `to`; a decode plan is padded to n_padded sequences, any other is not
 * padded (n_padded is then its n_seqs). */
void lmd_cuda_plan_pack(const lmd_plan *plan, const lmd_workspace_config *config,
                        int32_t n_padded, int32_t *to, lmd_cuda_packed *out);

/* The step of a packed plan whose array is at `ints` on the device. */
lmd_cuda_step lmd_cuda_plan_step(const lmd_cuda_packed *packed, int32_t *ints, int32_t *newest);

#endif
