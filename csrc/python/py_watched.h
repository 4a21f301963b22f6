/* A call of Python's that may never return: one thread waits beside it, and says so. With the
 * GIL. */
#ifndef LMD_PYTHON_PY_WATCHED_H
#define LMD_PYTHON_PY_WATCHED_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *lmd_py_watched(PyObject *module, PyObject *args, PyObject *kwargs);

#endif
