/* The Snapshot type: what a request leaves in the engine for the next turn. An unchanging
 * value, so that it needs no lock. With the GIL. */
#ifndef LMD_PYTHON_PY_SNAPSHOT_H
#define LMD_PYTHON_PY_SNAPSHOT_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "engine/engine.h"

/* Creates the type and adds it to the module. */
int lmd_py_snapshot_init(PyObject *module);

/* Wraps a snapshot of `owner`, an Engine or Scheduler object, which is kept alive; takes the
 * snapshot's reference over, on failure too. `engine`: the owner's, which has the KV; NULL for
 * a Scheduler, which has none. */
PyObject *lmd_py_snapshot_wrap(lmd_snapshot *snapshot, PyObject *owner, lmd_engine *engine);

/* Makes a Snapshot of the Engine object `owner` from the arguments of Engine.import_snapshot.
 */
PyObject *lmd_py_snapshot_import(PyObject *args, PyObject *owner, lmd_engine *engine);

/* Reads an argument of a method of `owner`: None (NULL) or a Snapshot of that same object,
 * whose reference stays the argument's. -1 with TypeError or ValueError. */
int lmd_py_snapshot_read(PyObject *arg, PyObject *owner, lmd_snapshot **out);

#endif
