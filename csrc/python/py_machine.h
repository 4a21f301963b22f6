/* Functions of the module about this machine: its CPU, its memory and the memory's speed, the
 * core's allocations. With the GIL. */
#ifndef LMD_PYTHON_PY_MACHINE_H
#define LMD_PYTHON_PY_MACHINE_H

#include "python/py_state.h" /* Python.h comes before every other header */

PyObject *lmd_py_cpu_info(PyObject *module, PyObject *unused);
PyObject *lmd_py_host_memory(PyObject *module, PyObject *unused);
PyObject *lmd_py_read_bandwidth(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *lmd_py_alloc_count(PyObject *module, PyObject *unused);
PyObject *lmd_py_alloc_bytes(PyObject *module, PyObject *unused);
PyObject *lmd_py_alloc_fail_after(PyObject *module, PyObject *n);

#endif
