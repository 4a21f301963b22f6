/* The module's state: its exceptions and types. One for each interpreter (multi-phase init,
 * heap types). */
#ifndef LMD_PYTHON_PY_MODULE_H
#define LMD_PYTHON_PY_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

typedef struct lmd_py_state {
    PyObject *checkpoint_error, *unsupported_error;
    PyTypeObject *gguf_type, *model_type, *request_type, *engine_type, *scheduler_type;
    PyTypeObject *output_type, *plan_type, *snapshot_type;
} lmd_py_state;

lmd_py_state *lmd_py_state_of_module(PyObject *module);
/* The state of the module that made this type (not a subclass of it). NULL with an exception.
 */
lmd_py_state *lmd_py_state_of_type(PyTypeObject *type);

/* A structseq of n fields, whose references it takes over, on failure too. A NULL field is a
 * failure with its exception set. */
PyObject *lmd_py_struct_new(PyTypeObject *type, PyObject *const *fields, size_t n);

#endif
