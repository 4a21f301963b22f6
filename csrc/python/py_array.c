/* NumPy arrays in and out: see py_array.h. */
#include "python/py_array.h"

#include <stdbool.h>
#include <string.h>

/* Whether an array of integers holds one that int64 does not. */
static bool passes_int64(PyArrayObject *array) {
    if (PyArray_TYPE(array) != NPY_ULONG && PyArray_TYPE(array) != NPY_ULONGLONG) return false;
    const npy_intp n = PyArray_SIZE(array);
    for (npy_intp i = 0; i < n; i++) {
        uint64_t value;
        memcpy(&value, PyArray_GETPTR1(array, i), sizeof value);
        if (PyArray_ISBYTESWAPPED(array)) value = __builtin_bswap64(value);
        if (value > INT64_MAX) return true;
    }
    return false;
}

static int check_integers(PyArrayObject *array, const char *what) {
    /* An empty list becomes a float array; it holds no wrong element. */
    if (!PyArray_ISINTEGER(array) && PyArray_SIZE(array) != 0) {
        PyErr_Format(PyExc_TypeError, "%s must hold integers, not %S", what,
                     (PyObject *)PyArray_DESCR(array));
        return -1;
    }
    if (PyArray_NDIM(array) != 1) {
        PyErr_Format(PyExc_ValueError, "%s must be one-dimensional, not %d-dimensional", what,
                     PyArray_NDIM(array));
        return -1;
    }
    if (!passes_int64(array)) return 0;
    PyErr_Format(PyExc_ValueError, "%s must hold integers of 32 bits", what);
    return -1;
}

/* The values as a contiguous 1-D int64 array, which may be the caller's own. NULL with an
 * exception. */
static PyArrayObject *to_int64(PyObject *obj, const char *what) {
    PyArrayObject *wide = NULL, *any = (PyArrayObject *)PyArray_FROM_O(obj);
    if (any && check_integers(any, what) == 0)
        wide = (PyArrayObject *)PyArray_FROM_OTF((PyObject *)any, NPY_INT64,
                                                 NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_FORCECAST);
    Py_XDECREF(any);
    return wide;
}

/* Converts the values. No code of others runs meanwhile, so that they stay where they are. */
static int narrow(PyArrayObject *wide, const char *what, int32_t *to) {
    const npy_intp n = PyArray_SIZE(wide);
    const int64_t *from = PyArray_DATA(wide);
    for (npy_intp i = 0; i < n; i++) {
        const int64_t value = from[i];
        if (value < INT32_MIN || value > INT32_MAX) {
            PyErr_Format(PyExc_ValueError, "%s[%zd] = %lld does not fit 32 bits", what,
                         (Py_ssize_t)i, (long long)value);
            return -1;
        }
        to[i] = (int32_t)value;
    }
    return 0;
}

int lmd_py_int32_array(PyObject *obj, const char *what, PyArrayObject **out) {
    PyArrayObject *wide = to_int64(obj, what);
    if (!wide) return -1;
    npy_intp n = PyArray_SIZE(wide);
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(1, &n, NPY_INT32);
    if (array && narrow(wide, what, PyArray_DATA(array)) < 0) Py_CLEAR(array);
    Py_DECREF(wide);
    if (!array) return -1;
    *out = array;
    return 0;
}

PyArrayObject *lmd_py_to_array(PyObject *obj, const char *what, int type, int n_dims) {
    PyArrayObject *array = (PyArrayObject *)PyArray_FROMANY(
        obj, type, 0, 0, NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_FORCECAST);
    if (!array && PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_ValueError, "%s holds a number that its type cannot", what);
    if (!array || PyArray_NDIM(array) == n_dims) return array;
    PyErr_Format(PyExc_ValueError, "%s must have %d dimensions, not %d", what, n_dims,
                 PyArray_NDIM(array));
    Py_DECREF(array);
    return NULL;
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

int lmd_py_float_copy(PyObject *value, const char *what, int n_dims, PyArrayObject **out) {
    PyArrayObject *array = lmd_py_to_array(value, what, NPY_FLOAT, n_dims);
    *out = array ? (PyArrayObject *)PyArray_NewCopy(array, NPY_CORDER) : NULL;
    Py_XDECREF(array);
    for (int i = 0; *out && i < n_dims; i++)
        if (PyArray_DIM(*out, i) > INT32_MAX) {
            PyErr_Format(PyExc_ValueError, "%s has a dimension of %zd; the most is %d", what,
                         (Py_ssize_t)PyArray_DIM(*out, i), INT32_MAX);
            Py_CLEAR(*out);
        }
    return *out ? 0 : -1;
}

int lmd_py_float_vector(PyObject *value, const char *what, npy_intp n, PyArrayObject **out) {
    *out = NULL;
    if (value == Py_None) return 0;
    if (lmd_py_float_copy(value, what, 1, out) < 0) return -1;
    if (PyArray_DIM(*out, 0) == n) return 0;
    PyErr_Format(PyExc_ValueError, "%s must have a number for each of %zd columns, not %zd",
                 what, (Py_ssize_t)n, (Py_ssize_t)PyArray_DIM(*out, 0));
    Py_CLEAR(*out);
    return -1;
}
