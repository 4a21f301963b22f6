/* Waiting for the engine from Python: without the GIL, in slices, so that Ctrl-C is noticed.
 * With the GIL. */
#ifndef LMD_PYTHON_PY_WAIT_H
#define LMD_PYTHON_PY_WAIT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

/* Waits for at most timeout_ms; true: there is nothing more to wait for. Runs without the GIL.
 */
typedef bool (*lmd_py_wait_fn)(void *arg, int64_t timeout_ms);

/* Seconds of a `timeout` argument: infinity for None, 0 for a negative one. -1 with an
 * exception for what is no number. */
double lmd_py_timeout(PyObject *arg);
/* Calls `wait` until it gives true, for at most `timeout` seconds. -1 with an exception: a
 * signal's. */
int lmd_py_wait(lmd_py_wait_fn wait, void *arg, double timeout);

#endif
