/* The Scheduler and Plan types: the engine's scheduler by itself. With the GIL. */
#ifndef LMD_PYTHON_PY_SCHEDULER_H
#define LMD_PYTHON_PY_SCHEDULER_H

#include "python/py_module.h"

/* Creates the types and adds them to the module. */
int lmd_py_scheduler_init(PyObject *module, lmd_py_state *state);

#endif
