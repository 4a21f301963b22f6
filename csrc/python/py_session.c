/* The Session type: an unchanging value, so it needs no lock. */
#include "python/py_session.h"

#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "engine/session_kv.h"
#include "python/py_array.h"
#include "python/py_engine.h"
#include "python/py_error.h"

typedef struct session_object {
    PyObject_HEAD
    lmd_session *session;
    PyObject *owner; /* the Engine or Scheduler that made it; kept alive */
    pid_t pid;
} session_object;

PyObject *lmd_py_session_wrap(lmd_py_state *state, lmd_session *session, PyObject *owner) {
    PyTypeObject *type = state->session_type;
    session_object *self = (session_object *)type->tp_alloc(type, 0);
    if (!self) {
        lmd_session_unref(session);
        return NULL;
    }
    self->session = session;
    self->owner = Py_NewRef(owner);
    self->pid = getpid();
    return (PyObject *)self;
}

int lmd_py_session_read(lmd_py_state *state, PyObject *arg, const PyObject *owner,
                        lmd_session **out) {
    *out = NULL;
    if (arg == Py_None) return 0;
    if (!PyObject_TypeCheck(arg, state->session_type)) {
        PyErr_Format(PyExc_TypeError, "session must be None or a Session, not %.100s",
                     Py_TYPE(arg)->tp_name);
        return -1;
    }
    if (((session_object *)arg)->owner != owner) {
        PyErr_SetString(PyExc_ValueError,
                        "the session belongs to another engine: export its KV and import "
                        "it here");
        return -1;
    }
    *out = ((session_object *)arg)->session;
    return 0;
}

static void session_dealloc(PyObject *obj) {
    session_object *self = (session_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    if (self->pid == getpid()) lmd_session_unref(self->session);
    Py_XDECREF(self->owner);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyObject *session_token_ids(PyObject *obj, void *unused) {
    (void)unused;
    const lmd_session_info *info = lmd_session_get(((session_object *)obj)->session);
    return lmd_py_new_int32(info->tokens, info->n_tokens);
}

static PyObject *session_n_computed(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromLong(lmd_session_get(((session_object *)obj)->session)->n_computed);
}

static PyObject *session_export_kv(PyObject *obj, PyObject *unused) {
    (void)unused;
    session_object *self = (session_object *)obj;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    if (Py_TYPE(self->owner) != lmd_py_state_of_type(Py_TYPE(obj))->engine_type) {
        PyErr_SetString(PyExc_RuntimeError, "this session is a Scheduler's: it has no KV");
        return NULL;
    }
    lmd_engine *engine = lmd_py_engine_get(self->owner);
    lmd_session_kv kv;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_session_export(engine, self->session, &kv, &err);
    Py_END_ALLOW_THREADS
    if (status != LMD_OK) return lmd_py_raise(&err);
    npy_intp dims[] = {kv.n_blocks, (npy_intp)kv.block_bytes};
    PyObject *array = PyArray_SimpleNew(2, dims, NPY_UINT8);
    if (array)
        memcpy(PyArray_DATA((PyArrayObject *)array), kv.data,
               (size_t)kv.n_blocks * kv.block_bytes);
    lmd_free(kv.data);
    return array ? Py_BuildValue("siN", kv.layout, (int)kv.n_computed, array) : NULL;
}

static PyGetSetDef session_getset[] = {
    {"token_ids", session_token_ids, NULL, "[n] int32: the text, prompt and answer", NULL},
    {"n_computed", session_n_computed, NULL,
     "how many of them, from the first on, had their KV when the request ended", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef session_methods[] = {
    {"export_kv", session_export_kv, METH_NOARGS,
     "export_kv() -> (layout, n_computed, kv)\n\nWhat is left of its KV: the layout's name, "
     "the positions covered, [n_blocks, block_bytes] uint8."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot session_slots[] = {
    {Py_tp_dealloc, session_dealloc},
    {Py_tp_methods, session_methods},
    {Py_tp_getset, session_getset},
    {Py_tp_doc,
     "A text and what of it stands in the engine's KV: an unchanging value. Request.session "
     "and Engine.import_session give one."},
    {0, NULL},
};

static PyType_Spec session_spec = {
    .name = "lmdeploy_c._C.Session",
    .basicsize = sizeof(session_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = session_slots,
};

int lmd_py_session_init(PyObject *module, lmd_py_state *state) {
    state->session_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &session_spec, NULL);
    return state->session_type ? PyModule_AddType(module, state->session_type) : -1;
}
