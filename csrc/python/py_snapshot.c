/* The Snapshot type: an unchanging value, so it needs no lock. */
#include "python/py_snapshot.h"

#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "engine/snapshot_kv.h"
#include "python/py_array.h"
#include "python/py_engine.h"
#include "python/py_error.h"

typedef struct snapshot_object {
    PyObject_HEAD
    lmd_snapshot *snapshot;
    PyObject *owner; /* the Engine or Scheduler that made it; kept alive */
    pid_t pid;
} snapshot_object;

PyObject *lmd_py_snapshot_wrap(lmd_py_state *state, lmd_snapshot *snapshot, PyObject *owner) {
    PyTypeObject *type = state->snapshot_type;
    snapshot_object *self = (snapshot_object *)type->tp_alloc(type, 0);
    if (!self) {
        lmd_snapshot_unref(snapshot);
        return NULL;
    }
    self->snapshot = snapshot;
    self->owner = Py_NewRef(owner);
    self->pid = getpid();
    return (PyObject *)self;
}

int lmd_py_snapshot_read(lmd_py_state *state, PyObject *arg, const PyObject *owner,
                         lmd_snapshot **out) {
    *out = NULL;
    if (arg == Py_None) return 0;
    if (!PyObject_TypeCheck(arg, state->snapshot_type)) {
        PyErr_Format(PyExc_TypeError, "snapshot must be None or a Snapshot, not %.100s",
                     Py_TYPE(arg)->tp_name);
        return -1;
    }
    if (((snapshot_object *)arg)->owner != owner) {
        PyErr_SetString(PyExc_ValueError,
                        "the snapshot belongs to another engine: export its KV and import "
                        "it here");
        return -1;
    }
    *out = ((snapshot_object *)arg)->snapshot;
    return 0;
}

static void snapshot_dealloc(PyObject *obj) {
    snapshot_object *self = (snapshot_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    if (self->pid == getpid()) lmd_snapshot_unref(self->snapshot);
    Py_XDECREF(self->owner);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyObject *snapshot_token_ids(PyObject *obj, void *unused) {
    (void)unused;
    const lmd_snapshot_info *info = lmd_snapshot_get(((snapshot_object *)obj)->snapshot);
    return lmd_py_new_int32(info->tokens, info->n_tokens);
}

static PyObject *snapshot_n_computed(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromLong(lmd_snapshot_get(((snapshot_object *)obj)->snapshot)->n_computed);
}

static PyObject *snapshot_export_kv(PyObject *obj, PyObject *unused) {
    (void)unused;
    snapshot_object *self = (snapshot_object *)obj;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    if (Py_TYPE(self->owner) != lmd_py_state_of_type(Py_TYPE(obj))->engine_type) {
        PyErr_SetString(PyExc_RuntimeError, "this snapshot is a Scheduler's: it has no KV");
        return NULL;
    }
    lmd_engine *engine = lmd_py_engine_get(self->owner);
    lmd_snapshot_kv kv;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_snapshot_export(engine, self->snapshot, &kv, &err);
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

static PyGetSetDef snapshot_getset[] = {
    {"token_ids", snapshot_token_ids, NULL, "[n] int32: the text, prompt and answer", NULL},
    {"n_computed", snapshot_n_computed, NULL,
     "how many of them, from the first on, had their KV when the request ended", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef snapshot_methods[] = {
    {"export_kv", snapshot_export_kv, METH_NOARGS,
     "export_kv() -> (layout, n_computed, kv)\n\nWhat is left of its KV: the layout's name, "
     "the positions covered, [n_blocks, block_bytes] uint8."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot snapshot_slots[] = {
    {Py_tp_dealloc, snapshot_dealloc},
    {Py_tp_methods, snapshot_methods},
    {Py_tp_getset, snapshot_getset},
    {Py_tp_doc,
     "A text and what of it stands in the engine's KV: an unchanging value. Request.snapshot "
     "and Engine.import_snapshot give one."},
    {0, NULL},
};

static PyType_Spec snapshot_spec = {
    .name = "lmdeploy_c._C.Snapshot",
    .basicsize = sizeof(snapshot_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = snapshot_slots,
};

int lmd_py_snapshot_init(PyObject *module, lmd_py_state *state) {
    state->snapshot_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &snapshot_spec, NULL);
    return state->snapshot_type ? PyModule_AddType(module, state->snapshot_type) : -1;
}
