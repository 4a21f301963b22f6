/* What an engine and a scheduler count, as dicts. Each counter has one row in a table, so that
 * stats() and metrics() name the same things alike. With the GIL. */
#ifndef LMD_PYTHON_PY_METRICS_H
#define LMD_PYTHON_PY_METRICS_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "engine/engine.h"

/* New dicts; NULL with an exception. */
PyObject *lmd_py_scheduler_stats(const lmd_scheduler_stats *stats);
PyObject *lmd_py_engine_stats(const lmd_engine_stats *stats);
/* The same counters, and everything else that is counted and timed. */
PyObject *lmd_py_engine_metrics(const lmd_engine_metrics *metrics);

#endif
