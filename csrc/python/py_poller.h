/* The Poller type: waits for the output of several requests. The C poller's own lock orders
 * readers; no lock is held while Python objects are made. With the GIL, which waiting releases.
 */
#ifndef LMD_PYTHON_PY_POLLER_H
#define LMD_PYTHON_PY_POLLER_H

#include "python/py_state.h" /* Python.h comes before every other header */

/* Creates the type and adds it to the module. */
int lmd_py_poller_init(PyObject *module);

#endif
