/* The Request and Output types. The request's lock in C makes a take atomic: two readers never
 * see the same tokens. No lock is held while Python objects are made: that can run any code and
 * switch threads. */
#include "python/py_request.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_snapshot.h"

enum { SIGNAL_CHECK_MS = 50 }; /* how soon Ctrl-C is noticed while waiting */

typedef struct request_object {
    PyObject_HEAD
    lmd_request *request;
    PyObject *engine; /* kept alive: its thread fills the request */
    int32_t vocab_size;
    pid_t pid;
} request_object;

PyObject *lmd_py_request_wrap(lmd_py_state *state, lmd_request *request, PyObject *engine,
                              int32_t vocab_size) {
    PyTypeObject *type = state->request_type;
    request_object *self = (request_object *)type->tp_alloc(type, 0);
    if (!self) {
        lmd_request_cancel(request);
        lmd_request_unref(request);
        return NULL;
    }
    self->request = request;
    self->engine = Py_NewRef(engine);
    self->vocab_size = vocab_size;
    self->pid = getpid();
    return (PyObject *)self;
}

static void request_dealloc(PyObject *obj) {
    request_object *self = (request_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    if (self->pid == getpid()) {
        lmd_request_cancel(self->request); /* nobody can read it any more */
        lmd_request_unref(self->request);
    }
    Py_XDECREF(self->engine);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* ---- one output as Python objects ---- */

static PyObject *token_list(const lmd_output *output) {
    PyObject *list = PyList_New(output->n_tokens);
    for (int32_t i = 0; list && i < output->n_tokens; i++) {
        PyObject *id = PyLong_FromLong(output->token_ids[i]);
        if (id)
            PyList_SET_ITEM(list, i, id);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *logprob_dict(const lmd_logprob *entries, int32_t n) {
    PyObject *dict = PyDict_New();
    for (int32_t i = 0; dict && i < n; i++) {
        if (entries[i].token_id < 0) continue;
        PyObject *id = PyLong_FromLong(entries[i].token_id);
        PyObject *value = PyFloat_FromDouble((double)entries[i].logprob);
        if (!id || !value || PyDict_SetItem(dict, id, value) < 0) Py_CLEAR(dict);
        Py_XDECREF(id);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *logprob_list(const lmd_output *output) {
    if (!output->n_logprobs) Py_RETURN_NONE;
    PyObject *list = PyList_New(output->n_tokens);
    for (int32_t i = 0; list && i < output->n_tokens; i++) {
        PyObject *dict = logprob_dict(output->logprobs + (int64_t)i * output->n_logprobs,
                                      output->n_logprobs);
        if (dict)
            PyList_SET_ITEM(list, i, dict);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *logits_array(const lmd_output *output, int32_t vocab_size) {
    if (!output->logits) Py_RETURN_NONE;
    npy_intp dims[] = {output->n_logits_rows, vocab_size};
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(2, dims, NPY_FLOAT);
    if (!array) return NULL;
    float *out = PyArray_DATA(array);
    for (const lmd_logits_chunk *chunk = output->logits; chunk; chunk = chunk->next) {
        size_t n = (size_t)chunk->n_rows * (size_t)vocab_size;
        memcpy(out, chunk->data, n * sizeof *out);
        out += n;
    }
    return (PyObject *)array;
}

static PyObject *reason_object(lmd_finish_reason reason) {
    switch (reason) {
    case LMD_FINISH_STOP: return PyUnicode_FromString("stop");
    case LMD_FINISH_LENGTH: return PyUnicode_FromString("length");
    case LMD_FINISH_ERROR: return PyUnicode_FromString("error");
    case LMD_FINISH_ABORT: return PyUnicode_FromString("abort");
    case LMD_FINISH_NONE: break;
    }
    Py_RETURN_NONE;
}

static PyObject *output_object(PyTypeObject *type, const lmd_output *output,
                               int32_t vocab_size) {
    const lmd_err *why = output->why;
    PyObject *const fields[] = {
        token_list(output),
        logprob_list(output),
        logits_array(output, vocab_size),
        reason_object(output->finish_reason),
        why ? PyUnicode_DecodeUTF8(why->message, (Py_ssize_t)strlen(why->message), "replace")
            : Py_NewRef(Py_None),
        why ? PyUnicode_FromString(lmd_status_name(why->code)) : Py_NewRef(Py_None),
        output->has_ppl ? PyFloat_FromDouble(output->ppl) : Py_NewRef(Py_None),
        PyLong_FromLong(output->cached_len),
    };
    return lmd_py_struct_new(type, fields, sizeof fields / sizeof *fields);
}

/* ---- read ---- */

/* Waits up to `timeout` seconds, looking for signals. 1: ready; 0: timed out; -1: exception. */
static int wait_for_output(request_object *self, double timeout) {
    double left_ms = timeout * 1e3;
    for (;;) {
        int64_t slice = left_ms < SIGNAL_CHECK_MS ? (int64_t)ceil(left_ms) : SIGNAL_CHECK_MS;
        bool ready;
        Py_BEGIN_ALLOW_THREADS
        ready = lmd_request_wait(self->request, slice);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0) return -1;
        if (ready || lmd_request_done(self->request)) return 1;
        left_ms -= (double)slice;
        if (left_ms <= 0) return 0;
    }
}

static PyObject *request_read(PyObject *obj, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"timeout", NULL};
    request_object *self = (request_object *)obj;
    PyObject *timeout_obj = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:read", names, &timeout_obj)) return NULL;
    double timeout = timeout_obj == Py_None ? INFINITY : PyFloat_AsDouble(timeout_obj);
    if (timeout == -1.0 && PyErr_Occurred()) return NULL;
    if (isnan(timeout) || timeout < 0.0) timeout = 0.0;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    int ready = wait_for_output(self, timeout);
    if (ready < 0) return NULL;
    lmd_output output;
    lmd_py_state *state = lmd_py_state_of_type(Py_TYPE(obj));
    PyObject *result = NULL;
    bool taken = lmd_request_take(self->request, &output);
    if (taken) {
        result = output_object(state->output_type, &output, self->vocab_size);
        lmd_logits_free(output.logits);
    } else if (lmd_request_done(self->request)) {
        PyErr_SetString(PyExc_RuntimeError,
                        "the request has ended, and its end was read before");
    } else {
        result = Py_NewRef(Py_None);
    }
    return result;
}

/* ---- the rest ---- */

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

static PyObject *get_request_id(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(
        lmd_request_get_info(((request_object *)obj)->request)->request_id);
}

static PyObject *get_random_seed(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(
        lmd_request_get_info(((request_object *)obj)->request)->seed);
}

static PyObject *get_input_token_len(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromLong(lmd_request_get_info(((request_object *)obj)->request)->n_prompt);
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
    return lmd_py_snapshot_wrap(lmd_py_state_of_type(Py_TYPE(obj)), snapshot, self->engine);
}

static PyGetSetDef request_getset[] = {
    {"request_id", get_request_id, NULL, "Unique in its engine.", NULL},
    {"random_seed", get_random_seed, NULL, "The seed in use: the one given, or the one drawn.",
     NULL},
    {"input_token_len", get_input_token_len, NULL, "Tokens of the prompt.", NULL},
    {"snapshot", get_snapshot, NULL,
     "What an ended request with keep_snapshot has left for the next turn; or None.", NULL},
    {"done", get_done, NULL, "True once an Output with a finish_reason has been read.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef request_methods[] = {
    {"read", (PyCFunction)(void (*)(void))request_read, METH_VARARGS | METH_KEYWORDS,
     "read(timeout=None) -> Output | None\n\nWaits for new output (timeout in seconds; None: "
     "forever) "
     "and takes it; None on a timeout. RuntimeError after the end."},
    {"fileno", request_fileno, METH_NOARGS,
     "fileno() -> int\n\nA descriptor that is readable while output waits."},
    {"cancel", request_cancel, METH_NOARGS,
     "cancel() -> None\n\nEnds the request within one step, with finish_reason \"abort\"."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot request_slots[] = {
    {Py_tp_dealloc, request_dealloc},
    {Py_tp_getset, request_getset},
    {Py_tp_methods, request_methods},
    {Py_tp_doc, "One request in an engine. Dropping the last reference cancels it."},
    {0, NULL},
};

static PyType_Spec request_spec = {
    .name = "lmdeploy_c._C.Request",
    .basicsize = sizeof(request_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = request_slots,
};

static PyStructSequence_Field output_fields[] = {
    {"token_ids", "list of int"},
    {"logprobs", "list of dict id -> natural log of its probability, or None"},
    {"logits", "[n_rows, vocab_size] float32, or None"},
    {"finish_reason", "\"stop\", \"length\", \"error\", \"abort\"; None: it goes on"},
    {"error_message", "str or None"},
    {"error_code", "of an error: \"LMD_INVALID\", \"LMD_NO_MEMORY\", ...; or None"},
    {"ppl", "mean cross-entropy of the prompt, or None"},
    {"cached_tokens", "prompt tokens that were found in the KV cache"},
    {NULL, NULL},
};

static PyStructSequence_Desc output_desc = {
    .name = "lmdeploy_c._C.Output",
    .doc = "What a request has produced since the last read.",
    .fields = output_fields,
    .n_in_sequence = 8,
};

int lmd_py_request_init(PyObject *module, lmd_py_state *state) {
    state->request_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &request_spec, NULL);
    state->output_type = PyStructSequence_NewType(&output_desc);
    if (!state->request_type || !state->output_type) return -1;
    if (PyModule_AddObjectRef(module, "Output", (PyObject *)state->output_type) < 0) return -1;
    return PyModule_AddType(module, state->request_type);
}
