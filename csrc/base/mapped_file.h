/* Read-only memory maps of model files.
 * Owns: the mapping and its length, which fstat gave at open. Must not know: file formats.
 * Hazard: a file must not be changed while it is mapped. If it is truncated meanwhile, reads
 * past its new end raise SIGBUS, which nothing here can prevent: replace files, never edit.
 * Any thread may read; open and close belong to one owner. */
#ifndef LMD_BASE_MAPPED_FILE_H
#define LMD_BASE_MAPPED_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct lmd_mapped_file lmd_mapped_file;

/* Maps a regular file. LMD_NOT_FOUND, LMD_IO (refused, a directory, a device), LMD_BAD_FILE
 * (empty), LMD_NO_MEMORY. The caller owns *out and ends it with lmd_mapped_file_close. */
lmd_status lmd_mapped_file_open(const char *path, lmd_mapped_file **out, lmd_err *err);

const uint8_t *lmd_mapped_file_data(const lmd_mapped_file *self);
size_t lmd_mapped_file_len(const lmd_mapped_file *self); /* bytes, at least 1 */

/* Lets the kernel reclaim the whole pages inside the range; they are read from the file again
 * when touched. So resident memory does not grow while tensors are uploaded one by one. */
void lmd_mapped_file_drop(const lmd_mapped_file *self, const void *ptr, size_t n_bytes);

/* Unmaps the file: pointers into it are invalid from then on. NULL is accepted. */
void lmd_mapped_file_close(lmd_mapped_file *self);

#endif
