/* A tensor's values for Python. With the GIL. */
#ifndef LMD_PYTHON_PY_TENSOR_H
#define LMD_PYTHON_PY_TENSOR_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "io/checkpoint.h"

/* In fp32, as a new array; NULL with an exception. */
PyObject *lmd_py_dequantize_view(const lmd_tensor_view *view);

#endif
