/* Finds tensors by an architecture's names, and checks them against the config.
 * Owns: which tensors of a checkpoint a matrix is kept in, packed or not, and those of them
 * that had to be read to know it. Must not know: backends, what a layer is made of. One thread.
 */
#ifndef LMD_MODEL_WEIGHT_FINDER_H
#define LMD_MODEL_WEIGHT_FINDER_H

#include "backend/backend.h"
#include "io/checkpoint.h"
#include "model/arch.h"

typedef struct lmd_weight_finder {
    const lmd_model_config *config;
    const lmd_arch *arch;
    const lmd_checkpoint *checkpoint;
    lmd_upload_codes codes; /* that floats of the layers' linears become; of 0 bits: none */
    lmd_loaded_tensor loaded[2 * LMD_MAX_WEIGHT_PARTS]; /* qzeros and g_idx of a source's parts,
                                                           as they were checked */
    int32_t n_loaded;
} lmd_weight_finder;

/* Finds a tensor and checks its shape; n_cols 0 asks for a vector of n_rows values.
 * LMD_BAD_FILE names the tensor. */
lmd_status lmd_weight_finder_tensor(const lmd_weight_finder *self, lmd_tensor_role role,
                                    int32_t layer, int64_t n_rows, int64_t n_cols,
                                    const lmd_tensor_view **out, lmd_err *err);

/* Finds a matrix, packed or not: all of its n_rows rows in their order. *out points to what was
 * read, until lmd_weight_finder_forget; of LMD_MAX_WEIGHT_PARTS matrices at most. Errors:
 * lmd_weight_finder_tensor's, lmd_packed_check's, and LMD_INVALID for codes that shall become
 * other codes. */
lmd_status lmd_weight_finder_part(lmd_weight_finder *self, lmd_tensor_role role, int32_t layer,
                                  int32_t n_rows, int32_t n_cols, lmd_weight_part *out,
                                  lmd_err *err);

/* Frees what was read for the parts that were found. */
void lmd_weight_finder_forget(lmd_weight_finder *self);

#endif
