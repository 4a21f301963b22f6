/* Packing weights into the device's layout, a tile of 16 rows at a time.
 * Owns: which form a source takes, how large it becomes, and the packing of one tile in host
 * memory. Must not know: devices, copies. No state; any thread. */
#ifndef LMD_CUDA_CUDA_PACK_H
#define LMD_CUDA_CUDA_PACK_H

#include "backend/backend.h"
#include "cuda_layout.h"

/* Neighbouring parts of a source that become one matrix. */
typedef struct lmd_pack_plan {
    const lmd_weight_source *src;
    lmd_weight_format formats[LMD_MAX_WEIGHT_PARTS]; /* of all parts of the source */
    int32_t first_part, n_parts;
    lmd_cuda_form form;
    int32_t group_size; /* 0: form F16 */
    int32_t n_rows, n_cols, padded_cols, n_tiles, n_groups;
    int32_t first_row;                           /* of the whole weight */
    bool has_row_scales;                         /* floats that a half may not hold */
    size_t tile_codes, tile_groups, tile_scales; /* bytes of one tile's codes, groups, scales */
} lmd_pack_plan;

/* Cuts a source into matrices: *n plans. Errors as lmd_weight_source_check. */
lmd_status lmd_pack_plans(const lmd_weight_source *src,
                          lmd_pack_plan plans[LMD_MAX_WEIGHT_PARTS], int32_t *n, lmd_err *err);

/* Bytes of scratch that packing one tile takes. */
size_t lmd_pack_scratch_bytes(const lmd_pack_plan *plan);

/* Packs a tile: codes (or halves), groups [n_groups][16], scales [16]; the latter two where the
 * form has them. Packed tensors of the source are in memory; others are read here. Errors as
 * lmd_file_read. */
lmd_status lmd_pack_tile(const lmd_pack_plan *plan, int32_t tile, uint8_t *scratch,
                         uint8_t *codes, lmd_cuda_group *groups, float *scales, lmd_err *err);

/* Fills a tile with small made-up values, for measuring. */
void lmd_pack_blank_tile(const lmd_pack_plan *plan, uint8_t *codes, lmd_cuda_group *groups,
                         float *scales);

#endif
