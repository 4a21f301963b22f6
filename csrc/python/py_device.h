/* Devices for Python: their facts, and the arguments that every opener of one has. With the
 * GIL. */
#ifndef LMD_PYTHON_PY_DEVICE_H
#define LMD_PYTHON_PY_DEVICE_H

#include "python/py_state.h" /* Python.h comes before every other header */

/* A kind of field: num_threads as an int32_t; None is 0, as many as are usable. */
int lmd_py_num_threads(PyObject *value, const char *name, void *out);

/* device_info(device, num_threads): a function of the module. */
PyObject *lmd_py_device_info(PyObject *module, PyObject *args, PyObject *kwargs);
/* gpu_count(): a function of the module. */
PyObject *lmd_py_gpu_count(PyObject *module, PyObject *unused);
PyObject *lmd_py_gpu_info(PyObject *module, PyObject *args, PyObject *kwargs);

#endif
