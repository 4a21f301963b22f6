/* NumPy arrays in and out. The only header that includes NumPy's; module.c imports its table.
 * With the GIL. */
#ifndef LMD_PYTHON_PY_ARRAY_H
#define LMD_PYTHON_PY_ARRAY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define PY_ARRAY_UNIQUE_SYMBOL lmd_array_api
#ifndef LMD_IMPORT_ARRAY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

/* Converts a sequence or array of integers to a new 1-D contiguous int32 array. Returns -1 with
 * TypeError (no integers) or ValueError (not 1-D, outside int32) naming `what`. */
int lmd_py_int32_array(PyObject *obj, const char *what, PyArrayObject **out);

/* Converts an object to an array of `type` with n_dims dimensions and C order, which may be the
 * caller's own. NULL with an exception: NumPy's, or ValueError naming `what` for a number that
 * the type cannot hold, or for other dimensions. */
PyArrayObject *lmd_py_to_array(PyObject *obj, const char *what, int type, int n_dims);

/* New arrays [n] with copies of the values. NULL with MemoryError. */
PyObject *lmd_py_new_int32(const int32_t *values, npy_intp n);
PyObject *lmd_py_new_int64(const int64_t *values, npy_intp n);

/* A new contiguous fp32 array of n_dims dimensions, none of them above 2^31 - 1: a copy,
 * because another thread may resize the caller's while it is read without the GIL. -1 with an
 * exception that names the argument. */
int lmd_py_float_copy(PyObject *value, const char *what, int n_dims, PyArrayObject **out);
/* The same for n numbers; NULL in *out for None. */
int lmd_py_float_vector(PyObject *value, const char *what, npy_intp n, PyArrayObject **out);

#endif
