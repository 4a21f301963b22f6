/* How fast this machine reads memory, measured on the spot.
 * Owns: nothing that stays. Must not know: what will be read. Any thread; takes all cores. */
#ifndef LMD_BASE_BANDWIDTH_H
#define LMD_BASE_BANDWIDTH_H

#include "base/status.h"
#include "base/threads.h"

/* Reads a buffer of n_bytes again and again for about `seconds`, three times at least, and
 * gives the rate of the best pass: neighbours can only slow one down. A buffer as large as what
 * will be read later meets the same caches. LMD_NO_MEMORY. */
lmd_status lmd_read_bandwidth(lmd_threads *threads, size_t n_bytes, double seconds,
                              double *bytes_per_second, lmd_err *err);

#endif
