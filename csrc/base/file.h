/* Files that are read by position.
 * Owns: the descriptor, the length that the file had when it was opened, and its path for
 * messages. Must not know: file formats.
 * Nothing is mapped: a file that shrinks, or a disk that fails, is an error of the read that
 * meets it, where a map would be a SIGBUS. Bytes that are read are the caller's: what another
 * program writes into the file later does not change them. Any thread may read; open and close
 * belong to one owner. */
#ifndef LMD_BASE_FILE_H
#define LMD_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct lmd_file lmd_file;

/* Opens a regular file. LMD_NOT_FOUND, LMD_IO (refused, a directory, a device), LMD_BAD_FILE
 * (empty), LMD_NO_MEMORY. The caller owns *out and ends it with lmd_file_close. */
lmd_status lmd_file_open(const char *path, lmd_file **out, lmd_err *err);
/* NULL is accepted. */
void lmd_file_close(lmd_file *self);

size_t lmd_file_len(const lmd_file *self); /* bytes, at least 1 */

/* Reads n bytes from `offset` on into out. LMD_IO (the disk failed), LMD_BAD_FILE (the file has
 * become shorter); out may then hold anything. */
lmd_status lmd_file_read(const lmd_file *self, uint64_t offset, size_t n, void *out,
                         lmd_err *err);

#endif
