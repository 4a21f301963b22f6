/* The clock for measuring intervals, which never jumps. No state. Any thread. */
#ifndef LMD_BASE_CLOCK_H
#define LMD_BASE_CLOCK_H

#include <stdint.h>

/* Nanoseconds of CLOCK_MONOTONIC, as Python's time.monotonic_ns. */
int64_t lmd_now_ns(void);

#endif
