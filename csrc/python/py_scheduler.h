/* The Scheduler type: the engine's scheduler by itself. Each object has one lock, and waits for
 * it without the GIL. */
#ifndef LMD_PYTHON_PY_SCHEDULER_H
#define LMD_PYTHON_PY_SCHEDULER_H

#include "python/py_state.h"

/* Creates the type and adds it to the module. */
int lmd_py_scheduler_init(PyObject *module);

#endif
