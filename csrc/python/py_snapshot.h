/* The Snapshot type: what a request leaves in the engine for the next turn. With the GIL. */
#ifndef LMD_PYTHON_PY_SNAPSHOT_H
#define LMD_PYTHON_PY_SNAPSHOT_H

#include "python/py_module.h" /* Python.h stands before every other header */

#include "engine/snapshot.h"

/* Creates the type and adds it to the module. */
int lmd_py_snapshot_init(PyObject *module, lmd_py_state *state);

/* Wraps a snapshot of that Engine or Scheduler object and takes its reference over, on failure
 * too. */
PyObject *lmd_py_snapshot_wrap(lmd_py_state *state, lmd_snapshot *snapshot, PyObject *owner);
/* Reads an argument: None (NULL) or a Snapshot of that object. -1 with TypeError or
 * ValueError. */
int lmd_py_snapshot_read(lmd_py_state *state, PyObject *arg, const PyObject *owner,
                         lmd_snapshot **out);

#endif
