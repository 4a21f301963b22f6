/* The module's state: its types, where each can find the others.
 * One state for each interpreter: multi-phase init and heap types, no global state. Includes
 * Python.h, which must come before every other header. With the GIL. */
#ifndef LMD_PYTHON_PY_STATE_H
#define LMD_PYTHON_PY_STATE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

typedef enum lmd_py_type_id {
    LMD_PY_GGUF,
    LMD_PY_MODEL,
    LMD_PY_ENGINE,
    LMD_PY_REQUEST,
    LMD_PY_POLLER,
    LMD_PY_OUTPUT,
    LMD_PY_SNAPSHOT,
    LMD_PY_SCHEDULER,
    LMD_PY_STEP_PLAN,
    LMD_PY_QUANTIZER,
    LMD_PY_INPUT_SUMS,
    LMD_PY_TYPE_COUNT
} lmd_py_type_id;

typedef struct lmd_py_state {
    PyTypeObject *types[LMD_PY_TYPE_COUNT]; /* owned */
} lmd_py_state;

/* For the module's tp_traverse and tp_clear. */
int lmd_py_state_traverse(const lmd_py_state *self, visitproc visit, void *arg);
void lmd_py_state_clear(lmd_py_state *self);

/* A type of the module, borrowed: of that module itself, of the module that made `type`, or of
 * the module that made the type of `obj`. */
PyTypeObject *lmd_py_type_of_module(PyObject *module, lmd_py_type_id id);
PyTypeObject *lmd_py_type_beside(PyTypeObject *type, lmd_py_type_id id);
PyTypeObject *lmd_py_type_of(PyObject *obj, lmd_py_type_id id);

/* Makes a type and adds it to the module under the last part of its name. -1 with an exception.
 */
int lmd_py_add_type(PyObject *module, lmd_py_type_id id, PyType_Spec *spec);
int lmd_py_add_struct(PyObject *module, lmd_py_type_id id, PyStructSequence_Desc *desc);

/* A structseq of n fields, whose references it takes over, on failure too. A NULL field is a
 * failure with its exception set. */
PyObject *lmd_py_struct_new(PyTypeObject *type, PyObject *const *fields, size_t n);

#endif
