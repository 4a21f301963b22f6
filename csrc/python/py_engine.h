/* The Engine type: continuous batching for Python. The C engine has its own lock and thread; an
 * object adds arguments, results and its end. With the GIL, which submitting and closing
 * release. */
#ifndef LMD_PYTHON_PY_ENGINE_H
#define LMD_PYTHON_PY_ENGINE_H

#include "python/py_state.h"

/* Creates the type and adds it to the module. */
int lmd_py_engine_init(PyObject *module);

/* engine_bytes(config, *, session_len, n_blocks, ...): a function of the module. */
PyObject *lmd_py_engine_bytes(PyObject *module, PyObject *args, PyObject *kwargs);

#endif
