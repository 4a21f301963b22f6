/* Waiting for the engine from Python: without the GIL, in slices, so that Ctrl-C is noticed.
 * With the GIL. */
#ifndef LMD_PYTHON_PY_WAIT_H
#define LMD_PYTHON_PY_WAIT_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include <stdbool.h>
#include <stdint.h>

/* Waits for at most timeout_ms; true: there is nothing more to wait for. Runs without the GIL.
 */
typedef bool (*lmd_py_wait_fn)(void *arg, int64_t timeout_ms);

/* Reads the only argument of a method that waits, `timeout`: seconds, infinity for None, which
 * is the default, and 0 for less. -1 with an exception. */
int lmd_py_read_timeout(const char *method, PyObject *args, PyObject *kwargs, double *out);
/* Calls `wait` until it gives true, for at most `timeout` seconds. -1 with an exception: a
 * signal's. */
int lmd_py_wait(lmd_py_wait_fn wait, void *arg, double timeout);

#endif
