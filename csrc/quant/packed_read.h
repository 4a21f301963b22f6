/* Reading packed weights whose tensors are in files still: as a whole, or what a part of the
 * matrix needs. Owns: which bytes of the tensors that is. Callers own the memory. Any thread.
 */
#ifndef LMD_QUANT_PACKED_READ_H
#define LMD_QUANT_PACKED_READ_H

#include "quant/packed_weight.h"

/* Tensors of a packed weight that were read into memory. */
typedef struct lmd_packed_in_memory {
    lmd_loaded_tensor tensors[4];
} lmd_packed_in_memory;

/* Reads those tensors of a packed weight that are in files still, and points `self` at them;
 * of one with LMD_PACKING_NONE there are none. The caller ends *out with lmd_packed_free, on
 * failure too. Errors as lmd_view_load. */
lmd_status lmd_packed_load(lmd_packed_weight *self, lmd_packed_in_memory *out, lmd_err *err);
void lmd_packed_free(lmd_packed_in_memory *self);

/* A part of a packed weight in memory: what lies side by side in each of its tensors. That is
 * LMD_PACKED_ROWS rows where words lie by rows, otherwise `cut` columns of all rows. */
typedef struct lmd_packed_window {
    lmd_packed_weight weight; /* points to the views below; rows and columns count from the
                                 window's first */
    lmd_tensor_view qweight, scales, qzeros;
} lmd_packed_window;

/* Bytes of the buffer that a window may fill. */
size_t lmd_packed_window_bytes(const lmd_packed_weight *self);
/* Reads the window from row or column `first` on, a multiple of LMD_PACKED_ROWS or of cut, of a
 * checked weight that has_groups. *out points into itself and the buffer. Errors as
 * lmd_file_read. */
lmd_status lmd_packed_read_window(const lmd_packed_weight *self, int32_t first, uint8_t *buffer,
                                  lmd_packed_window *out, lmd_err *err);

#endif
