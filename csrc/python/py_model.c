/* The Model type: see py_model.h. An object never changes once it is constructed, so that its
 * methods need no lock. */
#include "python/py_model.h"

#include <unistd.h>

#include "devices/devices.h"
#include "python/py_checkpoint.h"
#include "python/py_device.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_model_config.h"

typedef struct model_object {
    PyObject_HEAD
    lmd_model *model;
    PyObject *config; /* dict: a copy of what was given */
    pid_t pid;
} model_object;

/* ---- sizes ---- */

typedef struct sizes_args {
    PyObject *config, *source;
    const char *device;
    int32_t quantize_bits; /* 0: floats stay floats */
} sizes_args;

static int read_quantize(PyObject *value, const char *name, void *out) {
    const char *text;
    lmd_err err;
    if (value == Py_None) return 0;
    if (lmd_py_text(value, name, &text) < 0) return -1;
    return lmd_py_check(lmd_quantize_bits_of(text, out, &err), &err);
}

static const lmd_py_field sizes_fields[] = {
    {"config", lmd_py_object, offsetof(sizes_args, config)},
    {"source", lmd_py_object, offsetof(sizes_args, source)},
    {"device", lmd_py_text, offsetof(sizes_args, device)},
    {"quantize", read_quantize, offsetof(sizes_args, quantize_bits)},
    {NULL, NULL, 0},
};

static PyObject *measure(const lmd_model_config *config, const lmd_checkpoint *checkpoint,
                         const char *device) {
    const lmd_backend_config backend_config = {.n_threads = 1};
    lmd_backend *backend;
    lmd_model_sizes sizes;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_backend_open(device, &backend_config, &backend, &err);
    if (status == LMD_OK) status = lmd_model_measure(config, checkpoint, backend, &sizes, &err);
    Py_END_ALLOW_THREADS
    if (status != LMD_OK) return lmd_py_raise(&err);
    return Py_BuildValue("{s:n, s:n}", "weight_bytes", (Py_ssize_t)sizes.weight_bytes,
                         "read_bytes", (Py_ssize_t)sizes.read_bytes);
}

static PyObject *read_and_measure(const sizes_args *call, PyTypeObject *gguf_type) {
    lmd_model_config config;
    lmd_py_checkpoint checkpoint;
    PyObject *dict = lmd_py_model_config(call->config, &config);
    config.quantize_bits = call->quantize_bits;
    Py_XDECREF(dict);
    if (!dict || lmd_py_checkpoint_read(&checkpoint, gguf_type, call->source) < 0) return NULL;
    PyObject *sizes = measure(&config, checkpoint.tensors, call->device);
    lmd_py_checkpoint_clear(&checkpoint);
    return sizes;
}

PyObject *lmd_py_model_sizes(PyObject *module, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"model_sizes", 2, 2, sizes_fields};
    sizes_args call = {.device = "cpu"};
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    PyTypeObject *gguf_type = lmd_py_type_of_module(module, LMD_PY_GGUF);
    PyObject *sizes = values ? read_and_measure(&call, gguf_type) : NULL;
    Py_XDECREF(values);
    return sizes;
}

/* ---- construction ---- */

typedef struct model_args {
    PyObject *config, *source;
    const char *device;
    int32_t n_threads;
    PyObject *progress; /* NULL: none */
    bool blank;
    int32_t quantize_bits; /* 0: floats stay floats */
} model_args;

static int read_progress(PyObject *value, const char *name, void *out) {
    if (value != Py_None && !PyCallable_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be callable, not %R", name, value);
        return -1;
    }
    *(PyObject **)out = value == Py_None ? NULL : value;
    return 0;
}

static const lmd_py_field model_fields[] = {
    {"config", lmd_py_object, offsetof(model_args, config)},
    {"source", lmd_py_object, offsetof(model_args, source)},
    {"device", lmd_py_text, offsetof(model_args, device)},
    {"num_threads", lmd_py_num_threads, offsetof(model_args, n_threads)},
    {"progress", read_progress, offsetof(model_args, progress)},
    {"blank", lmd_py_bool, offsetof(model_args, blank)},
    {"quantize", read_quantize, offsetof(model_args, quantize_bits)},
    {NULL, NULL, 0},
};

/* A load: what it calls, and the state of the thread that does so, while that has given the GIL
 * away. */
typedef struct load_thread {
    PyObject *progress; /* NULL: none */
    PyThreadState *state;
} load_thread;

/* Called by the loading thread between weights, without the GIL. An exception stops the load.
 */
static lmd_status report_progress(void *user, size_t done, size_t total, lmd_err *err) {
    load_thread *thread = user;
    PyEval_RestoreThread(thread->state);
    bool stopped = PyErr_CheckSignals() < 0;
    if (!stopped && thread->progress) {
        PyObject *result = PyObject_CallFunction(
            thread->progress, "KK", (unsigned long long)done, (unsigned long long)total);
        stopped = !result;
        Py_XDECREF(result);
    }
    thread->state = PyEval_SaveThread();
    if (!stopped) return LMD_OK;
    return lmd_fail(err, LMD_CLOSED, "the load was stopped by its progress callback");
}

static lmd_status open_and_load(const model_args *call, const lmd_model_config *config,
                                const lmd_checkpoint *checkpoint, load_thread *thread,
                                lmd_model **out, lmd_err *err) {
    const lmd_backend_config backend_config = {
        .n_threads = call->n_threads,
        .matrices = call->blank ? LMD_MATRICES_BLANK : LMD_MATRICES_PACKED,
    };
    const lmd_progress progress = {report_progress, thread};
    lmd_backend *backend;
    LMD_TRY(lmd_backend_open(call->device, &backend_config, &backend, err));
    return lmd_model_load(config, checkpoint, backend, &progress, out, err);
}

static void free_model(lmd_model *model) {
    Py_BEGIN_ALLOW_THREADS /* joins threads, frees weights */
    lmd_model_free(model);
    Py_END_ALLOW_THREADS
}

/* Loads the weights. -1 with an exception. */
static int load(const model_args *call, const lmd_model_config *config, PyTypeObject *gguf_type,
                lmd_model **out) {
    lmd_py_checkpoint checkpoint;
    lmd_err err;
    if (lmd_py_checkpoint_read(&checkpoint, gguf_type, call->source) < 0) return -1;
    load_thread thread = {call->progress, PyEval_SaveThread()};
    const lmd_status status =
        open_and_load(call, config, checkpoint.tensors, &thread, out, &err);
    PyEval_RestoreThread(thread.state);
    lmd_py_checkpoint_clear(&checkpoint);
    return lmd_py_check(status, &err);
}

/* An object of a loaded model and its config, both of which it takes over, on failure too. It
 * is made last, because Python code can find every object through the garbage collector,
 * half-made ones too. */
static PyObject *wrap(PyTypeObject *type, lmd_model *model, PyObject *config) {
    model_object *self = (model_object *)type->tp_alloc(type, 0);
    if (!self) {
        free_model(model);
        Py_DECREF(config);
        return NULL;
    }
    self->model = model;
    self->config = config;
    self->pid = getpid();
    return (PyObject *)self;
}

static PyObject *make(PyTypeObject *type, const model_args *call) {
    lmd_model_config config;
    lmd_model *model;
    PyObject *dict = lmd_py_model_config(call->config, &config);
    if (!dict) return NULL;
    config.quantize_bits = call->quantize_bits;
    if (load(call, &config, lmd_py_type_beside(type, LMD_PY_GGUF), &model) == 0)
        return wrap(type, model, dict);
    Py_DECREF(dict);
    return NULL;
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"Model", 2, 2, model_fields};
    model_args call = {.device = "cpu"};
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    PyObject *self = values ? make(type, &call) : NULL;
    Py_XDECREF(values);
    return self;
}

static int model_traverse(PyObject *obj, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(obj));
    Py_VISIT(((model_object *)obj)->config);
    return 0;
}

static void model_dealloc(PyObject *obj) {
    model_object *self = (model_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    PyObject_GC_UnTrack(obj);
    if (self->pid == getpid()) free_model(self->model);
    Py_DECREF(self->config);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* ---- attributes ---- */

const lmd_model *lmd_py_model_get(PyTypeObject *model_type, PyObject *obj) {
    if (!PyObject_TypeCheck(obj, model_type)) {
        lmd_py_wrong_type(obj, "model", "a Model");
        return NULL;
    }
    const model_object *self = (model_object *)obj;
    return lmd_py_check_fork(self->pid) < 0 ? NULL : self->model;
}

static PyObject *get_config(PyObject *obj, void *unused) {
    (void)unused;
    return PyDict_Copy(((model_object *)obj)->config);
}

static PyObject *get_device(PyObject *obj, void *unused) {
    (void)unused;
    return PyUnicode_FromString(((model_object *)obj)->model->backend->ops->name);
}

static PyObject *get_isa(PyObject *obj, void *unused) {
    (void)unused;
    const lmd_backend *backend = ((model_object *)obj)->model->backend;
    return PyUnicode_FromString(backend->ops->isa(backend));
}

static PyObject *get_num_threads(PyObject *obj, void *unused) {
    (void)unused;
    const lmd_backend *backend = ((model_object *)obj)->model->backend;
    return PyLong_FromLong(backend->ops->n_threads(backend));
}

static PyObject *get_weight_bytes(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(((model_object *)obj)->model->sizes.weight_bytes);
}

static PyGetSetDef model_getset[] = {
    {"config", get_config, NULL, "The normalised config: a copy.", NULL},
    {"device", get_device, NULL, "\"cpu\".", NULL},
    {"isa", get_isa, NULL, "The instruction set in use.", NULL},
    {"num_threads", get_num_threads, NULL, "Threads of the backend.", NULL},
    {"weight_bytes", get_weight_bytes, NULL, "Bytes of all weights as the backend keeps them.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot model_slots[] = {
    {Py_tp_new, model_new},
    {Py_tp_dealloc, model_dealloc},
    {Py_tp_traverse, model_traverse},
    {Py_tp_getset, model_getset},
    {Py_tp_doc, "Model(config, source, *, device='cpu', num_threads=None, progress=None, "
                "blank=False, quantize=None)\n\nA model's weights in a backend's layout, with "
                "the backend's "
                "thread pool."},
    {0, NULL},
};

static PyType_Spec model_spec = {
    .name = "lmdeploy_c._C.Model",
    .basicsize = sizeof(model_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = model_slots,
};

int lmd_py_model_init(PyObject *module) {
    return lmd_py_add_type(module, LMD_PY_MODEL, &model_spec);
}
