/* The Request type: what a client reads from.
 * The C request's own lock makes a read atomic: two readers never see the same tokens. No lock
 * is held while Python objects are made, because that can run any code and switch threads. With
 * the GIL, which waiting releases. */
#ifndef LMD_PYTHON_PY_REQUEST_H
#define LMD_PYTHON_PY_REQUEST_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "engine/engine.h"

/* Creates the type and adds it to the module. */
int lmd_py_request_init(PyObject *module);

/* Wraps a request of `owner`, an Engine object, which is kept alive; takes the request's
 * reference over, on failure too. */
PyObject *lmd_py_request_wrap(lmd_request *request, PyObject *owner, lmd_engine *engine,
                              int32_t vocab_size);

/* The request inside an object of request_type, which the caller must keep alive; NULL with an
 * exception for any other object, or in a forked child. `name` is the argument's in messages.
 */
lmd_request *lmd_py_request_get(PyTypeObject *request_type, PyObject *obj, const char *name);

/* Reads a `leader` of a request of `owner`: None (NULL) or a Request of that same Engine, whose
 * reference stays the argument's. -1 with an exception: lmd_py_request_get's, or ValueError. */
int lmd_py_leader_read(PyObject *arg, PyObject *owner, lmd_request **out);

#endif
