/* Constants of the module: limits, and names in the order of the numbers that stand for them.
 * With the GIL. */
#ifndef LMD_PYTHON_PY_CONSTANTS_H
#define LMD_PYTHON_PY_CONSTANTS_H

#include "python/py_state.h"

/* Adds them to the module. -1 with an exception. */
int lmd_py_add_constants(PyObject *module);

#endif
