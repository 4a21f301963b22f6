/* The InputSums type: what a linear reads, summed over tokens. With the GIL; an object that is
 * borrowed is used without it, by one thread. */
#ifndef LMD_PYTHON_PY_INPUT_SUMS_H
#define LMD_PYTHON_PY_INPUT_SUMS_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "lite/input_sums.h"

/* Creates the type and adds it to the module. */
int lmd_py_input_sums_init(PyObject *module);

/* Borrows the sums of an object of the type, which the caller must keep alive, until they are
 * given back. NULL with TypeError, with RuntimeError where another thread uses them, or in a
 * forked child. */
lmd_input_sums *lmd_py_input_sums_borrow(PyTypeObject *type, PyObject *obj, const char *name);
void lmd_py_input_sums_give_back(PyObject *obj);

#endif
