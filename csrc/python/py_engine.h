/* The Engine type: continuous batching for Python. With the GIL. */
#ifndef LMD_PYTHON_PY_ENGINE_H
#define LMD_PYTHON_PY_ENGINE_H

#include "python/py_module.h"

/* Creates the type and adds it to the module. */
int lmd_py_engine_init(PyObject *module, lmd_py_state *state);

#endif
