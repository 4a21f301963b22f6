/* What the shapes of a packed weight's tensors say, and whether they may be decoded.
 * Owns: the shapes that they must have, and what follows from these: bits, groups, the order of
 * columns. Pure functions of tensors in memory: no state, no allocation. Any thread. */
#ifndef LMD_QUANT_PACKED_CHECK_H
#define LMD_QUANT_PACKED_CHECK_H

#include "quant/packed_weight.h"

/* Reads bits and group_size from the shapes, and checks types, shapes and groups against n_rows
 * and n_cols, so that decoding stays inside the tensors; a g_idx that says nothing becomes
 * NULL. qzeros and g_idx are in memory. LMD_BAD_FILE and LMD_UNSUPPORTED name the tensor. */
lmd_status lmd_packed_check(lmd_packed_weight *self, int64_t n_rows, int64_t n_cols,
                            lmd_err *err);

/* Brings the columns that g_idx puts into groups (desc_act) into the order of their groups,
 * those of a group as they come. False where groups are not of one size. */
bool lmd_packed_order(const lmd_packed_weight *self, int32_t n_cols,
                      int32_t *n_placed, /* [n_cols / group_size] scratch */
                      int32_t *order);   /* [n_cols] */

/* The canonical form of a checked weight that has_groups, exact but for scales, which become
 * halves:
 *   3 and 4 bits  U4 ZERO    8 bits  I8 NONE (code - 128)
 * in groups of `cut`: of g; if g exceeds 128, of the largest of 128, 64 and 32 that divides g,
 * because activations are never quantised in larger groups. A multiple of 32 that divides this
 * may take its place, for a matrix whose parts have different groups. */
lmd_weight_format lmd_packed_format(const lmd_packed_weight *self);

#endif
