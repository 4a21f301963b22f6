/* Python values from C ones, as parts of lists and dicts. With the GIL. */
#ifndef LMD_PYTHON_PY_VALUES_H
#define LMD_PYTHON_PY_VALUES_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include <stdint.h>

/* Puts `item`, a new reference that is taken over, at [i] of a new list, or under `key` into a
 * dict. A NULL item, or any failure, clears the list or dict and leaves the exception; once it
 * is NULL, items are dropped. So a caller may put all of them and look at the end. */
void lmd_py_list_put(PyObject **list, Py_ssize_t i, PyObject *item);
void lmd_py_dict_put(PyObject **dict, const char *key, PyObject *item);

/* A str or None. */
PyObject *lmd_py_text_or_none(const char *text);

#endif
