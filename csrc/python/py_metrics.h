/* Metrics and traces of an engine as Python values. With the GIL. */
#ifndef LMD_PYTHON_PY_METRICS_H
#define LMD_PYTHON_PY_METRICS_H

#include "python/py_module.h" /* Python.h stands before every other header */

#include "engine/engine.h"

/* Counters and histograms as a new dict. NULL with an exception. */
PyObject *lmd_py_metrics(const lmd_engine_metrics *metrics);
/* A trace as a new dict of columns. NULL with an exception. */
PyObject *lmd_py_trace(const lmd_trace_log *log);

#endif
