/* From lmd_err to a Python exception, in one place. With the GIL. */
#ifndef LMD_PYTHON_PY_ERROR_H
#define LMD_PYTHON_PY_ERROR_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sys/types.h>

#include "base/status.h"

/* Sets the exception of err's code and returns NULL. Where a callback has raised already, its
 * exception stays. */
PyObject *lmd_py_raise(const lmd_err *err);
/* Returns 0 for LMD_OK; otherwise sets the exception of err's code and returns -1. */
int lmd_py_check(lmd_status status, const lmd_err *err);

/* Returns 0 in the process `created_in`; in a forked child sets RuntimeError and returns -1. */
int lmd_py_check_fork(pid_t created_in);

#endif
