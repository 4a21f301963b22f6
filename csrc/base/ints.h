/* Small integer arithmetic. No state. Any thread. */
#ifndef LMD_BASE_INTS_H
#define LMD_BASE_INTS_H

#include <stdint.h>

static inline int32_t lmd_min_i32(int32_t a, int32_t b) { return a < b ? a : b; }

static inline int32_t lmd_max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

/* a / b, rounded up; a >= 0, b > 0, and a + b fits. */
static inline int32_t lmd_ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

#endif
