/* The Request and Output types: what a client reads from. With the GIL. */
#ifndef LMD_PYTHON_PY_REQUEST_H
#define LMD_PYTHON_PY_REQUEST_H

#include "python/py_module.h" /* Python.h stands before every other header */

#include "engine/request.h"

/* Creates the types and adds them to the module. */
int lmd_py_request_init(PyObject *module, lmd_py_state *state);

/* Wraps a request and takes its reference over, on failure too. `engine` is kept alive with it.
 */
PyObject *lmd_py_request_wrap(lmd_py_state *state, lmd_request *request, PyObject *engine,
                              int32_t vocab_size);

#endif
