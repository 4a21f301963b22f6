/* Files that lie beside the shared object that this code is part of. */
#ifndef LMD_BASE_OWN_PATH_H
#define LMD_BASE_OWN_PATH_H

#include <stdbool.h>

enum { LMD_PATH_CAP = 4096 }; /* bytes, the final zero with them */

/* Writes the path of `relative`, which starts at the folder of this shared object. False where
 * that folder is not known, or the path is too long. */
bool lmd_path_beside_us(char out[LMD_PATH_CAP], const char *relative);

#endif
