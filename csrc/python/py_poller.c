/* The Poller type: see py_poller.h. */
#include "python/py_poller.h"

#include <unistd.h>

#include "engine/poller.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_request.h"
#include "python/py_wait.h"

enum { MAX_KEYS = 64 }; /* of one wait */

typedef struct poller_object {
    PyObject_HEAD
    lmd_poller *poller;
    pid_t pid;
} poller_object;

static PyObject *poller_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {NULL};
    lmd_poller *poller;
    lmd_err err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Poller", names) ||
        lmd_py_check(lmd_poller_new(&poller, &err), &err) < 0)
        return NULL;
    poller_object *self = (poller_object *)type->tp_alloc(type, 0);
    if (!self) {
        lmd_poller_unref(poller);
        return NULL;
    }
    self->poller = poller;
    self->pid = getpid();
    return (PyObject *)self;
}

static void poller_dealloc(PyObject *obj) {
    poller_object *self = (poller_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    if (self->pid == getpid()) lmd_poller_unref(self->poller);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* The poller, or NULL with RuntimeError in a forked child. */
static lmd_poller *poller_of(PyObject *obj) {
    const poller_object *self = (poller_object *)obj;
    return lmd_py_check_fork(self->pid) < 0 ? NULL : self->poller;
}

static PyObject *poller_add(PyObject *obj, PyObject *args) {
    PyObject *request_obj, *key_obj;
    int64_t key;
    lmd_err err;
    lmd_poller *self = poller_of(obj);
    if (!self || !PyArg_ParseTuple(args, "OO:add", &request_obj, &key_obj)) return NULL;
    lmd_request *request =
        lmd_py_request_get(lmd_py_type_of(obj, LMD_PY_REQUEST), request_obj, "request");
    if (!request || lmd_py_int64(key_obj, "key", &key) < 0 ||
        lmd_py_check(lmd_request_poll(request, self, key, &err), &err) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *poller_remove(PyObject *obj, PyObject *arg) {
    lmd_poller *self = poller_of(obj);
    lmd_request *request =
        self ? lmd_py_request_get(lmd_py_type_of(obj, LMD_PY_REQUEST), arg, "request") : NULL;
    if (!request) return NULL;
    lmd_request_unpoll(request, self);
    Py_RETURN_NONE;
}

static bool has_keys(void *arg, int64_t timeout_ms) { return lmd_poller_wait(arg, timeout_ms); }

/* Appends the keys to a list. -1 with MemoryError. */
static int append_keys(PyObject *list, const int64_t *keys, int32_t n) {
    int code = 0;
    for (int32_t i = 0; code == 0 && i < n; i++) {
        PyObject *key = PyLong_FromLongLong(keys[i]);
        code = key ? PyList_Append(list, key) : -1;
        Py_XDECREF(key);
    }
    return code;
}

/* The list is made before its keys are taken, so that none is lost. Numbers are no objects that
 * may start the garbage collector: nobody takes a key in between. */
static PyObject *take_keys(lmd_poller *self) {
    int64_t keys[MAX_KEYS];
    PyObject *list = PyList_New(0);
    if (!list) return NULL;
    const int32_t n = lmd_poller_look(self, keys, MAX_KEYS);
    if (append_keys(list, keys, n) < 0)
        Py_CLEAR(list);
    else
        lmd_poller_take(self, n);
    return list;
}

static PyObject *poller_wait(PyObject *obj, PyObject *args, PyObject *kwargs) {
    double timeout;
    lmd_poller *self = poller_of(obj);
    if (!self || lmd_py_read_timeout("wait", args, kwargs, &timeout) < 0 ||
        lmd_py_wait(has_keys, self, timeout) < 0)
        return NULL;
    return take_keys(self);
}

static PyObject *poller_fileno(PyObject *obj, PyObject *unused) {
    (void)unused;
    lmd_poller *self = poller_of(obj);
    int fd;
    lmd_err err;
    if (!self || lmd_py_check(lmd_poller_fileno(self, &fd, &err), &err) < 0) return NULL;
    return PyLong_FromLong(fd);
}

/* ---- the type ---- */

static PyMethodDef poller_methods[] = {
    {"add", poller_add, METH_VARARGS,
     "add(request, key) -> None\n\nWaits for this request too, until it is removed. ValueError "
     "for a request that has a poller or a descriptor."},
    {"remove", poller_remove, METH_O,
     "remove(request) -> None\n\nWaits for this request no longer."},
    {"wait", (PyCFunction)(void (*)(void))poller_wait, METH_VARARGS | METH_KEYWORDS,
     "wait(timeout=None) -> list[int]\n\nThe keys of requests that have output, [] on a "
     "timeout (in seconds; None: forever)."},
    {"fileno", poller_fileno, METH_NOARGS,
     "fileno() -> int\n\nA descriptor that is readable while wait would give keys at once."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot poller_slots[] = {
    {Py_tp_new, poller_new},
    {Py_tp_dealloc, poller_dealloc},
    {Py_tp_methods, poller_methods},
    {Py_tp_doc, "Poller()\n\nWaits for the output of several requests at once."},
    {0, NULL},
};

static PyType_Spec poller_spec = {
    .name = "lmdeploy_c._C.Poller",
    .basicsize = sizeof(poller_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = poller_slots,
};

int lmd_py_poller_init(PyObject *module) {
    return lmd_py_add_type(module, LMD_PY_POLLER, &poller_spec);
}
