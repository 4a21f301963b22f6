/* The StepPlan type: one step's work as NumPy arrays. With the GIL. */
#ifndef LMD_PYTHON_PY_STEP_PLAN_H
#define LMD_PYTHON_PY_STEP_PLAN_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "engine/scheduler.h"

/* Creates the type and adds it to the module. */
int lmd_py_step_plan_init(PyObject *module);

/* Copies a plan and its report into a new object of plan_type. NULL with an exception. */
PyObject *lmd_py_step_plan_new(PyTypeObject *plan_type, const lmd_plan *plan,
                               const lmd_schedule_report *report);

#endif
