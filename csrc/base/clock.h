/* The clock for measuring intervals, which never jumps, and waiting by it. No state. Any
 * thread.
 */
#ifndef LMD_BASE_CLOCK_H
#define LMD_BASE_CLOCK_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

/* Nanoseconds of CLOCK_MONOTONIC, as Python's time.monotonic_ns. */
int64_t lmd_now_ns(void);

/* A condition variable whose timed waits end by this clock. */
void lmd_cond_init(pthread_cond_t *cond);
/* The time in timeout_ms from now, for pthread_cond_timedwait. */
struct timespec lmd_deadline_after(int64_t timeout_ms);

#endif
