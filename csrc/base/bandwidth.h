/* How fast this machine reads memory, measured when asked.
 * Owns: nothing beyond a call. Must not know: what will be read. Any thread; the pool that it
 * is given does the reading. */
#ifndef LMD_BASE_BANDWIDTH_H
#define LMD_BASE_BANDWIDTH_H

#include "base/status.h"
#include "base/threads.h"

/* Reads a buffer of n_bytes again and again for about `seconds`, three times at least, and
 * gives the rate of the fastest pass, because other processes can only slow a pass down. The
 * buffer should be as large as what will be read later, so that caches help as much.
 * LMD_NO_MEMORY. */
lmd_status lmd_read_bandwidth(lmd_threads *threads, size_t n_bytes, double seconds,
                              double *bytes_per_second, lmd_err *err);

#endif
