/* The Model type: a model's weights in a backend's layout, for Python and for the Engine type.
 * Weights are loaded without the GIL; the rest is with it. */
#ifndef LMD_PYTHON_PY_MODEL_H
#define LMD_PYTHON_PY_MODEL_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "model/model.h"

/* Creates the type and adds it to the module. */
int lmd_py_model_init(PyObject *module);

/* model_sizes(config, source, *, device): a function of the module. */
PyObject *lmd_py_model_sizes(PyObject *module, PyObject *args, PyObject *kwargs);

/* The model inside an object of model_type, which the caller must keep alive; NULL with an
 * exception for any other object, or in a forked child. */
const lmd_model *lmd_py_model_get(PyTypeObject *model_type, PyObject *obj);

#endif
