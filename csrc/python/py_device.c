/* Devices for Python: see py_device.h. */
#include "python/py_device.h"

#include "base/threads.h"
#include "python/py_fields.h"

int lmd_py_num_threads(PyObject *value, const char *name, void *out) {
    int64_t n = 0;
    if (value != Py_None) {
        if (lmd_py_int64(value, name, &n) < 0) return -1;
        if (n < 1 || n > LMD_MAX_THREADS) {
            PyErr_Format(PyExc_ValueError, "%s must be 1 to %d, not %lld", name,
                         LMD_MAX_THREADS, (long long)n);
            return -1;
        }
    }
    *(int32_t *)out = (int32_t)n;
    return 0;
}
