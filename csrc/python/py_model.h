/* The Model type: a loaded model for Python, and for the Engine type. With the GIL. */
#ifndef LMD_PYTHON_PY_MODEL_H
#define LMD_PYTHON_PY_MODEL_H

#include "python/py_module.h" /* Python.h stands before every other header */

#include "model/model.h"

/* Creates the type and adds it to the module. */
int lmd_py_model_init(PyObject *module, lmd_py_state *state);

/* model_sizes(config, source, *, device): a function of the module. */
PyObject *lmd_py_model_sizes(PyObject *module, PyObject *args, PyObject *kwargs);

/* The model inside a Model object, which the caller must keep alive; NULL with an exception for
 * any other object, or in a forked child. */
const lmd_model *lmd_py_model_get(PyObject *obj);

#endif
