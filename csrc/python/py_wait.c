/* Waiting from Python: see py_wait.h. */
#include "python/py_wait.h"

#include <math.h>

enum { SIGNAL_CHECK_MS = 50 }; /* how soon Ctrl-C is noticed while waiting */

double lmd_py_timeout(PyObject *arg) {
    if (arg == Py_None) return INFINITY;
    const double timeout = PyFloat_AsDouble(arg);
    if (timeout == -1.0 && PyErr_Occurred()) return -1.0;
    return timeout > 0.0 ? timeout : 0.0;
}

int lmd_py_wait(lmd_py_wait_fn wait, void *arg, double timeout) {
    double left_ms = timeout * 1e3;
    for (;;) {
        const int64_t slice =
            left_ms < SIGNAL_CHECK_MS ? (int64_t)ceil(left_ms) : SIGNAL_CHECK_MS;
        bool over;
        Py_BEGIN_ALLOW_THREADS
        over = wait(arg, slice);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0) return -1;
        left_ms -= (double)slice;
        if (over || left_ms <= 0) return 0;
    }
}
