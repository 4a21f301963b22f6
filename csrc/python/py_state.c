/* The module's state: see py_state.h. */
#include "python/py_state.h"

#include <stdbool.h>

int lmd_py_state_traverse(const lmd_py_state *self, visitproc visit, void *arg) {
    for (int i = 0; i < LMD_PY_TYPE_COUNT; i++) Py_VISIT(self->types[i]);
    return 0;
}

void lmd_py_state_clear(lmd_py_state *self) {
    for (int i = 0; i < LMD_PY_TYPE_COUNT; i++) Py_CLEAR(self->types[i]);
}

static lmd_py_state *state_of(PyObject *module) { return PyModule_GetState(module); }

PyTypeObject *lmd_py_type_of_module(PyObject *module, lmd_py_type_id id) {
    return state_of(module)->types[id];
}

PyTypeObject *lmd_py_type_beside(PyTypeObject *type, lmd_py_type_id id) {
    return lmd_py_type_of_module(PyType_GetModule(type), id);
}

PyTypeObject *lmd_py_type_of(PyObject *obj, lmd_py_type_id id) {
    return lmd_py_type_beside(Py_TYPE(obj), id);
}

static int add(PyObject *module, lmd_py_type_id id, PyTypeObject *type) {
    state_of(module)->types[id] = type;
    return type ? PyModule_AddType(module, type) : -1;
}

int lmd_py_add_type(PyObject *module, lmd_py_type_id id, PyType_Spec *spec) {
    return add(module, id, (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL));
}

int lmd_py_add_struct(PyObject *module, lmd_py_type_id id, PyStructSequence_Desc *desc) {
    return add(module, id, PyStructSequence_NewType(desc));
}

PyObject *lmd_py_struct_new(PyTypeObject *type, PyObject *const *fields, size_t n) {
    bool complete = true;
    for (size_t i = 0; i < n; i++) complete = complete && fields[i];
    PyObject *obj = complete ? PyStructSequence_New(type) : NULL;
    for (size_t i = 0; i < n; i++) {
        if (obj)
            PyStructSequence_SetItem(obj, (Py_ssize_t)i, fields[i]);
        else
            Py_XDECREF(fields[i]);
    }
    return obj;
}
