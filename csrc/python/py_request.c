/* The Request type: see py_request.h. */
#include "python/py_request.h"

#include <unistd.h>

#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_output.h"
#include "python/py_snapshot.h"
#include "python/py_wait.h"

typedef struct request_object {
    PyObject_HEAD
    lmd_request *request;
    PyObject *owner; /* the Engine object; kept alive: its thread fills the request */
    lmd_engine *engine;
    int32_t vocab_size;
    pid_t pid;
} request_object;

PyObject *lmd_py_request_wrap(lmd_request *request, PyObject *owner, lmd_engine *engine,
                              int32_t vocab_size) {
    PyTypeObject *type = lmd_py_type_of(owner, LMD_PY_REQUEST);
    request_object *self = (request_object *)type->tp_alloc(type, 0);
    if (!self) {
        lmd_request_cancel(request);
        lmd_request_unref(request);
        return NULL;
    }
    self->request = request;
    self->owner = Py_NewRef(owner);
    self->engine = engine;
    self->vocab_size = vocab_size;
    self->pid = getpid();
    return (PyObject *)self;
}

lmd_request *lmd_py_request_get(PyTypeObject *request_type, PyObject *obj, const char *name) {
    if (!PyObject_TypeCheck(obj, request_type)) {
        lmd_py_wrong_type(obj, name, "a Request");
        return NULL;
    }
    const request_object *self = (request_object *)obj;
    return lmd_py_check_fork(self->pid) < 0 ? NULL : self->request;
}

static int request_traverse(PyObject *obj, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(obj));
    Py_VISIT(((request_object *)obj)->owner);
    return 0;
}

static void request_dealloc(PyObject *obj) {
    request_object *self = (request_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    PyObject_GC_UnTrack(obj);
    if (self->pid == getpid()) {
        lmd_request_cancel(self->request); /* nobody can read it any more */
        lmd_request_unref(self->request);
    }
    Py_XDECREF(self->owner);
    type->tp_free(obj);
    Py_DECREF(type);
}

int lmd_py_leader_read(PyObject *arg, PyObject *owner, lmd_request **out) {
    *out = NULL;
    if (arg == Py_None) return 0;
    lmd_request *leader =
        lmd_py_request_get(lmd_py_type_of(owner, LMD_PY_REQUEST), arg, "leader");
    if (!leader) return -1;
    if (((request_object *)arg)->owner != owner) {
        PyErr_SetString(PyExc_ValueError, "the leader belongs to another engine");
        return -1;
    }
    *out = leader;
    return 0;
}

/* ---- read ---- */

static bool has_output_or_ended(void *arg, int64_t timeout_ms) {
    return lmd_request_wait(arg, timeout_ms) || lmd_request_done(arg);
}

/* The output since the last read, or None. RuntimeError after the end. */
static PyObject *pop_output(request_object *self) {
    lmd_output output;
    if (lmd_request_read(self->request, &output)) {
        PyTypeObject *type = lmd_py_type_of((PyObject *)self, LMD_PY_OUTPUT);
        PyObject *result = lmd_py_output_new(type, &output, self->vocab_size);
        if (result)
            lmd_logits_free(output.logits);
        else /* out of memory: nothing is lost */
            lmd_request_unread(self->request, &output);
        return result;
    }
    if (!lmd_request_done(self->request)) Py_RETURN_NONE;
    return PyErr_Format(PyExc_RuntimeError,
                        "the request has ended, and its end was read before");
}

static PyObject *request_read(PyObject *obj, PyObject *args, PyObject *kwargs) {
    request_object *self = (request_object *)obj;
    double timeout;
    if (lmd_py_read_timeout("read", args, kwargs, &timeout) < 0 ||
        lmd_py_check_fork(self->pid) < 0 ||
        lmd_py_wait(has_output_or_ended, self->request, timeout) < 0)
        return NULL;
    return pop_output(self);
}

/* ---- other methods and attributes ---- */

static PyObject *request_fileno(PyObject *obj, PyObject *unused) {
    (void)unused;
    request_object *self = (request_object *)obj;
    int fd;
    lmd_err err;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    if (lmd_request_fileno(self->request, &fd, &err) != LMD_OK) return lmd_py_raise(&err);
    return PyLong_FromLong(fd);
}

static PyObject *request_cancel(PyObject *obj, PyObject *unused) {
    (void)unused;
    request_object *self = (request_object *)obj;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    lmd_request_cancel(self->request);
    Py_RETURN_NONE;
}

static const lmd_request_info *info_of(PyObject *obj) {
    return lmd_request_get_info(((request_object *)obj)->request);
}

static PyObject *get_request_id(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(info_of(obj)->request_id);
}

static PyObject *get_random_seed(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(info_of(obj)->seed);
}

static PyObject *get_input_token_len(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromLong(info_of(obj)->n_prompt);
}

static PyObject *get_done(PyObject *obj, void *unused) {
    (void)unused;
    request_object *self = (request_object *)obj;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    return PyBool_FromLong(lmd_request_done(self->request));
}

static PyObject *get_snapshot(PyObject *obj, void *unused) {
    (void)unused;
    request_object *self = (request_object *)obj;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    lmd_snapshot *snapshot = lmd_request_snapshot(self->request);
    if (!snapshot) Py_RETURN_NONE;
    return lmd_py_snapshot_wrap(snapshot, self->owner, self->engine);
}

static PyGetSetDef request_getset[] = {
    {"request_id", get_request_id, NULL, "Unique in its engine.", NULL},
    {"random_seed", get_random_seed, NULL, "The seed in use: the one given, or the one drawn.",
     NULL},
    {"input_token_len", get_input_token_len, NULL, "Tokens of the prompt.", NULL},
    {"snapshot", get_snapshot, NULL,
     "What a request with keep_snapshot has left for the next turn; None before its end.",
     NULL},
    {"session", get_snapshot, NULL, "The older name of snapshot.", NULL},
    {"done", get_done, NULL, "True once an Output with a finish_reason has been read.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef request_methods[] = {
    {"read", (PyCFunction)(void (*)(void))request_read, METH_VARARGS | METH_KEYWORDS,
     "read(timeout=None) -> Output | None\n\nWaits for new output (timeout in seconds; None: "
     "forever) and returns it; None on a timeout. RuntimeError after the end."},
    {"fileno", request_fileno, METH_NOARGS,
     "fileno() -> int\n\nA descriptor of its own that is readable while output waits. "
     "ValueError for a request that a Poller has."},
    {"cancel", request_cancel, METH_NOARGS,
     "cancel() -> None\n\nEnds the request within one step, with finish_reason \"abort\"."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot request_slots[] = {
    {Py_tp_dealloc, request_dealloc},
    {Py_tp_traverse, request_traverse},
    {Py_tp_getset, request_getset},
    {Py_tp_methods, request_methods},
    {Py_tp_doc, "One request in an engine. Dropping the last reference cancels it."},
    {0, NULL},
};

static PyType_Spec request_spec = {
    .name = "lmdeploy_c._C.Request",
    .basicsize = sizeof(request_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = request_slots,
};

int lmd_py_request_init(PyObject *module) {
    return lmd_py_add_type(module, LMD_PY_REQUEST, &request_spec);
}
