/* Waiting from Python: see py_wait.h. */
#include "python/py_wait.h"

#include <math.h>

#include "python/py_fields.h"

enum { SIGNAL_CHECK_MS = 50 }; /* how soon Ctrl-C is noticed while waiting */

static int read_seconds(PyObject *value, const char *name, void *out) {
    double timeout = INFINITY;
    if (value != Py_None && lmd_py_double(value, name, &timeout) < 0) return -1;
    *(double *)out = timeout > 0.0 ? timeout : 0.0;
    return 0;
}

int lmd_py_read_timeout(const char *method, PyObject *args, PyObject *kwargs, double *out) {
    static const lmd_py_field fields[] = {{"timeout", read_seconds, 0}, {NULL, NULL, 0}};
    const lmd_py_signature signature = {method, 1, 0, fields};
    *out = INFINITY;
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, out);
    if (!values) return -1;
    Py_DECREF(values);
    return 0;
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
