/* The Quantizer type: matrices to codes, on a pool of threads. Its methods run without the GIL,
 * and the pool takes one at a time. */
#ifndef LMD_PYTHON_PY_QUANTIZER_H
#define LMD_PYTHON_PY_QUANTIZER_H

#include "python/py_state.h"

/* Creates the type and adds it to the module. */
int lmd_py_quantizer_init(PyObject *module);

#endif
