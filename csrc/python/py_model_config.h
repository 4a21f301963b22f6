/* The normalised config of a model: a Python mapping as a lmd_model_config. With the GIL. */
#ifndef LMD_PYTHON_PY_MODEL_CONFIG_H
#define LMD_PYTHON_PY_MODEL_CONFIG_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "model/model_config.h"

/* Reads a mapping, and returns a dict with a copy of it. Every key that a model has must be
 * there, others may be. NULL with KeyError, TypeError (a value of a wrong type) or ValueError;
 * sizes are checked when the model is loaded. */
PyObject *lmd_py_model_config(PyObject *mapping, lmd_model_config *out);

#endif
