/* What a model's linears read, for Python. With the GIL, but for the computation. */
#ifndef LMD_PYTHON_PY_CALIBRATE_H
#define LMD_PYTHON_PY_CALIBRATE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* column_squares(model, token_ids): a function of the module. */
PyObject *lmd_py_column_squares(PyObject *module, PyObject *args, PyObject *kwargs);

#endif
