/* The Session type: what a request leaves in the engine for the next turn. With the GIL. */
#ifndef LMD_PYTHON_PY_SESSION_H
#define LMD_PYTHON_PY_SESSION_H

#include "python/py_module.h" /* Python.h stands before every other header */

#include "engine/session.h"

/* Creates the type and adds it to the module. */
int lmd_py_session_init(PyObject *module, lmd_py_state *state);

/* Wraps a session of that Engine or Scheduler object and takes its reference over, on failure
 * too. */
PyObject *lmd_py_session_wrap(lmd_py_state *state, lmd_session *session, PyObject *owner);
/* Reads an argument: None (NULL) or a Session of that object. -1 with TypeError or
 * ValueError. */
int lmd_py_session_read(lmd_py_state *state, PyObject *arg, const PyObject *owner,
                        lmd_session **out);

#endif
