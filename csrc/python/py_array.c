/* NumPy arrays in and out: see py_array.h. */
#include "python/py_array.h"

#include <string.h>

/* The values as a contiguous 1-D int64 array, or NULL with an exception. */
static PyArrayObject *to_int64(PyObject *obj, const char *what) {
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(obj);
    if (!any) return NULL;
    /* An empty list becomes a float array; it holds no wrong element. */
    if (!PyArray_ISINTEGER(any) && PyArray_SIZE(any) != 0) {
        PyErr_Format(PyExc_TypeError, "%s must hold integers, not %S", what,
                     (PyObject *)PyArray_DESCR(any));
        Py_DECREF(any);
        return NULL;
    }
    if (PyArray_NDIM(any) != 1) {
        PyErr_Format(PyExc_ValueError, "%s must be one-dimensional, not %d-dimensional", what,
                     PyArray_NDIM(any));
        Py_DECREF(any);
        return NULL;
    }
    PyArrayObject *wide = (PyArrayObject *)PyArray_FROM_OTF(
        (PyObject *)any, NPY_INT64, NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_FORCECAST);
    Py_DECREF(any);
    return wide;
}

int lmd_py_int32_array(PyObject *obj, const char *what, PyArrayObject **out) {
    PyArrayObject *wide = to_int64(obj, what);
    if (!wide) return -1;
    npy_intp n = PyArray_SIZE(wide);
    const int64_t *from = PyArray_DATA(wide);
    PyArrayObject *narrow = (PyArrayObject *)PyArray_SimpleNew(1, &n, NPY_INT32);
    if (!narrow) goto fail;
    int32_t *to = PyArray_DATA(narrow);
    for (npy_intp i = 0; i < n; i++) {
        if (from[i] < INT32_MIN || from[i] > INT32_MAX) {
            PyErr_Format(PyExc_OverflowError, "%s[%zd] = %lld does not fit 32 bits", what,
                         (Py_ssize_t)i, (long long)from[i]);
            goto fail;
        }
        to[i] = (int32_t)from[i];
    }
    Py_DECREF(wide);
    *out = narrow;
    return 0;
fail:
    Py_DECREF(wide);
    Py_XDECREF(narrow);
    return -1;
}

static PyObject *new_array(const void *values, npy_intp n, int type) {
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(1, &n, type);
    if (array && n) memcpy(PyArray_DATA(array), values, (size_t)PyArray_NBYTES(array));
    return (PyObject *)array;
}

PyObject *lmd_py_new_int32(const int32_t *values, npy_intp n) {
    return new_array(values, n, NPY_INT32);
}

PyObject *lmd_py_new_int64(const int64_t *values, npy_intp n) {
    return new_array(values, n, NPY_INT64);
}
