/* The Engine type: continuous batching for Python. With the GIL. */
#ifndef LMD_PYTHON_PY_ENGINE_H
#define LMD_PYTHON_PY_ENGINE_H

#include "python/py_module.h" /* Python.h stands before every other header */

#include "engine/engine.h"

/* Creates the type and adds it to the module. */
int lmd_py_engine_init(PyObject *module, lmd_py_state *state);

/* The C engine of an Engine object, which keeps it alive. */
lmd_engine *lmd_py_engine_get(PyObject *engine);

#endif
