/* The Snapshot type: see py_snapshot.h. */
#include "python/py_snapshot.h"

#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "engine/snapshot_kv.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_fields.h"

typedef struct snapshot_object {
    PyObject_HEAD
    lmd_snapshot *snapshot;
    PyObject *owner;    /* the Engine or Scheduler that made it; kept alive */
    lmd_engine *engine; /* the owner's; NULL: a Scheduler's snapshot, which has no KV */
    pid_t pid;
} snapshot_object;

PyObject *lmd_py_snapshot_wrap(lmd_snapshot *snapshot, PyObject *owner, lmd_engine *engine) {
    PyTypeObject *type = lmd_py_type_of(owner, LMD_PY_SNAPSHOT);
    snapshot_object *self = (snapshot_object *)type->tp_alloc(type, 0);
    if (!self) {
        lmd_snapshot_unref(snapshot);
        return NULL;
    }
    self->snapshot = snapshot;
    self->owner = Py_NewRef(owner);
    self->engine = engine;
    self->pid = getpid();
    return (PyObject *)self;
}

int lmd_py_snapshot_read(PyObject *arg, PyObject *owner, lmd_snapshot **out) {
    *out = NULL;
    if (arg == Py_None) return 0;
    if (!PyObject_TypeCheck(arg, lmd_py_type_of(owner, LMD_PY_SNAPSHOT)))
        return lmd_py_wrong_type(arg, "snapshot", "None or a Snapshot");
    if (((snapshot_object *)arg)->owner != owner) {
        PyErr_SetString(PyExc_ValueError,
                        "the snapshot belongs to another engine: export its KV and import "
                        "it here");
        return -1;
    }
    *out = ((snapshot_object *)arg)->snapshot;
    return 0;
}

static int snapshot_traverse(PyObject *obj, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(obj));
    Py_VISIT(((snapshot_object *)obj)->owner);
    return 0;
}

static void snapshot_dealloc(PyObject *obj) {
    snapshot_object *self = (snapshot_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    PyObject_GC_UnTrack(obj);
    if (self->pid == getpid()) lmd_snapshot_unref(self->snapshot);
    Py_XDECREF(self->owner);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* ---- KV in and out ---- */

/* Imports the text and the KV of two checked arrays. */
static PyObject *import_arrays(PyArrayObject *token_ids, PyArrayObject *blocks,
                               lmd_snapshot_kv *kv, PyObject *owner, lmd_engine *engine) {
    const lmd_snapshot_info text = {.tokens = PyArray_DATA(token_ids),
                                    .n_tokens = (int32_t)PyArray_SIZE(token_ids)};
    lmd_snapshot *snapshot;
    lmd_err err;
    lmd_status status;
    kv->n_blocks = (int32_t)PyArray_DIM(blocks, 0);
    kv->block_bytes = (size_t)PyArray_DIM(blocks, 1);
    kv->data = PyArray_DATA(blocks);
    Py_BEGIN_ALLOW_THREADS
    status = lmd_snapshot_import(engine, &text, kv, &snapshot, &err);
    Py_END_ALLOW_THREADS
    if (status != LMD_OK) return lmd_py_raise(&err);
    return lmd_py_snapshot_wrap(snapshot, owner, engine);
}

typedef struct import_args {
    PyObject *token_ids, *kv;
    const char *layout;
    int32_t n_computed;
} import_args;

static const lmd_py_field import_fields[] = {
    {"token_ids", lmd_py_object, offsetof(import_args, token_ids)},
    {"layout", lmd_py_text, offsetof(import_args, layout)},
    {"n_computed", lmd_py_int32, offsetof(import_args, n_computed)},
    {"kv", lmd_py_object, offsetof(import_args, kv)},
    {NULL, NULL, 0},
};

/* Whether an array's memory is that of bytes, which stays where it is. */
static bool is_of_bytes(PyArrayObject *array) {
    PyObject *base = (PyObject *)array;
    while (base && PyArray_Check(base)) base = PyArray_BASE((PyArrayObject *)base);
    if (base && PyMemoryView_Check(base)) base = PyMemoryView_GET_BASE(base);
    return base && PyBytes_CheckExact(base);
}

/* The blocks as an array that no other thread can resize while the GIL is away: a copy, unless
 * they lie in bytes, or were converted to a new array. */
static PyArrayObject *to_blocks(PyObject *obj) {
    PyArrayObject *blocks = lmd_py_to_array(obj, "kv [n_blocks, block_bytes]", NPY_UINT8, 2);
    if (!blocks || is_of_bytes(blocks) ||
        (Py_REFCNT(blocks) == 1 && PyArray_CHKFLAGS(blocks, NPY_ARRAY_OWNDATA)))
        return blocks;
    PyArrayObject *copy = (PyArrayObject *)PyArray_NewCopy(blocks, NPY_CORDER);
    Py_DECREF(blocks);
    return copy;
}

static PyObject *import_blocks(const import_args *call, PyArrayObject *blocks, PyObject *owner,
                               lmd_engine *engine) {
    lmd_snapshot_kv kv = {.layout = call->layout, .n_computed = call->n_computed};
    PyArrayObject *token_ids;
    if (kv.n_computed < 0 || PyArray_DIM(blocks, 0) > INT32_MAX)
        return PyErr_Format(PyExc_ValueError,
                            "n_computed must not be negative, nor kv have 2**31 blocks");
    if (lmd_py_int32_array(call->token_ids, "token_ids", &token_ids) < 0) return NULL;
    PyObject *result = import_arrays(token_ids, blocks, &kv, owner, engine);
    Py_DECREF(token_ids);
    return result;
}

PyObject *lmd_py_snapshot_import(PyObject *args, PyObject *owner, lmd_engine *engine) {
    static const lmd_py_signature signature = {"import_snapshot", 4, 4, import_fields};
    import_args call;
    PyObject *values = lmd_py_read_call(&signature, args, NULL, &call);
    PyArrayObject *blocks = values ? to_blocks(call.kv) : NULL;
    PyObject *result = blocks ? import_blocks(&call, blocks, owner, engine) : NULL;
    Py_XDECREF(blocks);
    Py_XDECREF(values);
    return result;
}

static PyObject *snapshot_export_kv(PyObject *obj, PyObject *unused) {
    (void)unused;
    snapshot_object *self = (snapshot_object *)obj;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    if (!self->engine)
        return PyErr_Format(PyExc_RuntimeError, "this snapshot is a Scheduler's: it has no KV");
    lmd_snapshot_kv kv;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_snapshot_export(self->engine, self->snapshot, &kv, &err);
    Py_END_ALLOW_THREADS
    if (status != LMD_OK) return lmd_py_raise(&err);
    const npy_intp dims[] = {kv.n_blocks, (npy_intp)kv.block_bytes};
    PyObject *array = PyArray_SimpleNew(2, dims, NPY_UINT8);
    if (array)
        memcpy(PyArray_DATA((PyArrayObject *)array), kv.data,
               (size_t)kv.n_blocks * kv.block_bytes);
    lmd_free(kv.data);
    return array ? Py_BuildValue("siN", kv.layout, (int)kv.n_computed, array) : NULL;
}

/* ---- the type ---- */

static PyObject *get_token_ids(PyObject *obj, void *unused) {
    (void)unused;
    const lmd_snapshot_info *info = lmd_snapshot_get(((snapshot_object *)obj)->snapshot);
    return lmd_py_new_int32(info->tokens, info->n_tokens);
}

static PyObject *get_n_computed(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromLong(lmd_snapshot_get(((snapshot_object *)obj)->snapshot)->n_computed);
}

static PyGetSetDef snapshot_getset[] = {
    {"token_ids", get_token_ids, NULL, "[n] int32: the text, prompt and answer.", NULL},
    {"n_computed", get_n_computed, NULL,
     "How many of the tokens, from the first on, had their KV when the request ended.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef snapshot_methods[] = {
    {"export_kv", snapshot_export_kv, METH_NOARGS,
     "export_kv() -> (layout, n_computed, kv)\n\nWhat is left of its KV: the layout's name, "
     "how many positions the blocks cover, [n_blocks, block_bytes] uint8. RuntimeError when "
     "the engine is closed, or the snapshot a Scheduler's."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot snapshot_slots[] = {
    {Py_tp_dealloc, snapshot_dealloc},
    {Py_tp_traverse, snapshot_traverse},
    {Py_tp_methods, snapshot_methods},
    {Py_tp_getset, snapshot_getset},
    {Py_tp_doc,
     "A text, and which part of it the engine's KV cache holds: an unchanging value. "
     "Request.snapshot and Engine.import_snapshot give one."},
    {0, NULL},
};

static PyType_Spec snapshot_spec = {
    .name = "lmdeploy_c._C.Snapshot",
    .basicsize = sizeof(snapshot_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = snapshot_slots,
};

int lmd_py_snapshot_init(PyObject *module) {
    return lmd_py_add_type(module, LMD_PY_SNAPSHOT, &snapshot_spec);
}
