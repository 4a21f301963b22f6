/* A trace of an engine as Python values. With the GIL. */
#ifndef LMD_PYTHON_PY_TRACE_H
#define LMD_PYTHON_PY_TRACE_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "engine/trace.h"

/* A trace as a new dict of columns. NULL with an exception. */
PyObject *lmd_py_trace(const lmd_trace_log *log);

/* The names of lmd_trace_kind. */
extern const char *const lmd_py_trace_kinds[LMD_TRACE_ENDED + 1];

#endif
