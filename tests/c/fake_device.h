/* A device that runs ahead, made of a backend that does not: for tests of the engine's
 * look-ahead. Operations go into a queue that a thread of its own empties through the inner
 * backend, so bits are the inner backend's. The device keeps the newest token of each slot, and
 * puts it in place of -1; it gives every third plan a pause, so that the host is now faster and
 * now slower. */
#ifndef LMD_TESTS_FAKE_DEVICE_H
#define LMD_TESTS_FAKE_DEVICE_H

#include "backend/backend.h"

/* Takes the inner backend over, also on failure. */
lmd_status lmd_fake_device_open(lmd_backend *inner, lmd_backend **out, lmd_err *err);

#endif
