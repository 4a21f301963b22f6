/* The Quantizer's methods that work with what a linear reads. With the GIL, which is given away
 * while they compute. */
#ifndef LMD_PYTHON_PY_SOLVE_H
#define LMD_PYTHON_PY_SOLVE_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "base/threads.h"

/* solve(weight, sums, *, bits, group_size, ...) */
PyObject *lmd_py_solve(PyObject *self, lmd_threads *threads, PyObject *args, PyObject *kwargs);
/* add_inputs(sums, rows) */
PyObject *lmd_py_add_inputs(PyObject *self, lmd_threads *threads, PyObject *args,
                            PyObject *kwargs);
/* output_errors(sums, differences) */
PyObject *lmd_py_output_errors(PyObject *self, lmd_threads *threads, PyObject *args,
                               PyObject *kwargs);
/* regress(sums, products, *, damp) */
PyObject *lmd_py_regress(PyObject *self, lmd_threads *threads, PyObject *args,
                         PyObject *kwargs);
/* run_layer(model, hidden, lengths, sums) */
PyObject *lmd_py_run_layer(PyObject *self, lmd_threads *threads, PyObject *args,
                           PyObject *kwargs);
/* run_pair(original, drifted, hidden, drifted_hidden, lengths, input, sums) */
PyObject *lmd_py_run_pair(PyObject *self, lmd_threads *threads, PyObject *args,
                          PyObject *kwargs);

#endif
