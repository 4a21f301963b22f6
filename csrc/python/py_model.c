/* The Model type: reads the normalised config strictly, opens a backend, loads the weights
 * without the GIL. Immutable once constructed, so its methods need no lock. */
#include "python/py_model.h"

#include <string.h>
#include <unistd.h>

#include "base/threads.h"
#include "devices/devices.h"
#include "io/checkpoint.h"
#include "model/decoder.h"
#include "python/py_error.h"
#include "python/py_gguf.h"

typedef struct model_object {
    PyObject_HEAD
    lmd_model *model;
    PyObject *config; /* dict: a copy of what was given */
    pid_t pid;
} model_object;

/* ---- the config dict, key by key ---- */

/* Reads keys of a mapping; the first failure sticks, with an exception set. */
typedef struct config_reader {
    PyObject *dict;
    bool failed;
} config_reader;

/* A borrowed value, or NULL with KeyError. */
static PyObject *read_key(config_reader *reader, const char *key) {
    if (reader->failed) return NULL;
    PyObject *value = PyDict_GetItemString(reader->dict, key);
    if (value) return value;
    PyErr_Format(PyExc_KeyError, "model config has no key \"%s\"", key);
    reader->failed = true;
    return NULL;
}

static void wrong_type(config_reader *reader, const char *key, const char *wanted,
                       PyObject *value) {
    PyErr_Format(PyExc_TypeError, "model config: %s must be %s, not %R", key, wanted, value);
    reader->failed = true;
}

static int32_t read_int(config_reader *reader, const char *key) {
    PyObject *value = read_key(reader, key);
    if (!value) return 0;
    int overflow = 0;
    long long number =
        PyLong_Check(value) ? PyLong_AsLongLongAndOverflow(value, &overflow) : LLONG_MIN;
    if (overflow || number < INT32_MIN || number > INT32_MAX) {
        wrong_type(reader, key, "a 32-bit integer", value);
        return 0;
    }
    return (int32_t)number;
}

static double read_double(config_reader *reader, const char *key) {
    PyObject *value = read_key(reader, key);
    if (!value) return 0.0;
    if (!PyFloat_Check(value) && !PyLong_Check(value)) {
        wrong_type(reader, key, "a number", value);
        return 0.0;
    }
    double number = PyFloat_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred()) reader->failed = true;
    return number;
}

static bool read_bool(config_reader *reader, const char *key) {
    PyObject *value = read_key(reader, key);
    if (!value) return false;
    if (!PyBool_Check(value)) wrong_type(reader, key, "a bool", value);
    return value == Py_True;
}

static const char *read_string(config_reader *reader, const char *key) {
    PyObject *value = read_key(reader, key);
    if (!value) return "";
    const char *text = PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : NULL;
    if (text) return text;
    PyErr_Clear();
    wrong_type(reader, key, "a string", value);
    return "";
}

static int read_rope(config_reader *reader, lmd_rope_config *rope) {
    rope->theta = read_double(reader, "rope_theta");
    rope->factor = read_double(reader, "rope_factor");
    rope->original_max_position = read_int(reader, "rope_original_max_position");
    rope->low_freq_factor = read_double(reader, "rope_low_freq_factor");
    rope->high_freq_factor = read_double(reader, "rope_high_freq_factor");
    rope->beta_fast = read_double(reader, "rope_beta_fast");
    rope->beta_slow = read_double(reader, "rope_beta_slow");
    rope->attention_factor = read_double(reader, "rope_attention_factor");
    rope->truncate = read_bool(reader, "rope_truncate");
    rope->freqs_tensor = read_bool(reader, "rope_freqs_tensor");
    const char *type = read_string(reader, "rope_type");
    if (reader->failed) return -1;
    lmd_err err;
    if (lmd_rope_type_of(type, &rope->type, &err) == LMD_OK) return 0;
    lmd_py_raise(&err);
    return -1;
}

static int read_quant(config_reader *reader, lmd_quant_config *quant) {
    quant->bits = read_int(reader, "quant_bits");
    quant->group_size = read_int(reader, "quant_group_size");
    const char *method = read_string(reader, "quant_method");
    if (reader->failed) return -1;
    lmd_err err;
    if (lmd_packing_of(method, &quant->packing, &err) == LMD_OK) return 0;
    lmd_py_raise(&err);
    return -1;
}

static int read_config(PyObject *dict, lmd_model_config *config) {
    config_reader reader = {dict, false};
    const char *arch = read_string(&reader, "arch");
    if (strlen(arch) >= sizeof config->arch) {
        PyErr_Format(PyExc_ValueError, "model config: arch \"%.60s\" is not an architecture",
                     arch);
        return -1;
    }
    memset(config, 0, sizeof *config);
    memcpy(config->arch, arch, strlen(arch));
    const char *naming = read_string(&reader, "naming");
    config->naming = strcmp(naming, "gguf") == 0 ? LMD_NAMING_GGUF : LMD_NAMING_HF;
    config->n_layer = read_int(&reader, "n_layer");
    config->n_head = read_int(&reader, "n_head");
    config->n_kv_head = read_int(&reader, "n_kv_head");
    config->head_dim = read_int(&reader, "head_dim");
    config->hidden_dim = read_int(&reader, "hidden_dim");
    config->ffn_dim = read_int(&reader, "ffn_dim");
    config->vocab_size = read_int(&reader, "vocab_size");
    config->max_position = read_int(&reader, "max_position");
    config->norm_eps = read_double(&reader, "norm_eps");
    config->tie_embeddings = read_bool(&reader, "tie_embeddings");
    config->qkv_bias = read_bool(&reader, "qkv_bias");
    config->o_bias = read_bool(&reader, "o_bias");
    config->mlp_bias = read_bool(&reader, "mlp_bias");
    config->qk_norm = read_bool(&reader, "qk_norm");
    config->packed_qkv = read_bool(&reader, "packed_qkv");
    config->interleaved_rope = read_bool(&reader, "interleaved_rope");
    if (reader.failed || read_quant(&reader, &config->quant) < 0) return -1;
    return read_rope(&reader, &config->rope);
}

/* ---- the checkpoint of safetensors files ---- */

/* The index of a path in the checkpoint, mapped when it is new. `paths` is a dict path ->
 * index. */
static int file_idx_of(lmd_checkpoint *checkpoint, PyObject *paths, PyObject *path,
                       int32_t *out) {
    PyObject *known = PyDict_GetItemWithError(paths, path);
    if (known) {
        *out = (int32_t)PyLong_AsLong(known);
        return 0;
    }
    if (PyErr_Occurred()) return -1;
    PyObject *bytes = NULL;
    if (!PyUnicode_FSConverter(path, &bytes)) return -1;
    lmd_err err;
    lmd_status status =
        lmd_checkpoint_add_file(checkpoint, PyBytes_AS_STRING(bytes), out, &err);
    Py_DECREF(bytes);
    if (status != LMD_OK) {
        lmd_py_raise(&err);
        return -1;
    }
    PyObject *idx = PyLong_FromLong(*out);
    int code = idx ? PyDict_SetItem(paths, path, idx) : -1;
    Py_XDECREF(idx);
    return code;
}

static int dtype_of(const char *name, lmd_dtype *out) {
    static const lmd_dtype served[] = {LMD_F32, LMD_F16, LMD_BF16, LMD_I32};
    for (size_t i = 0; i < sizeof served / sizeof *served; i++)
        if (strcmp(name, lmd_dtype_name(served[i])) == 0) {
            *out = served[i];
            return 0;
        }
    PyErr_Format(PyExc_ValueError,
                 "tensor dtype \"%.20s\" is not served; served: F32, F16, BF16, I32", name);
    return -1;
}

/* Adds one TensorSpec: (name, dtype, shape, path, offset, n_bytes). */
static int add_tensor(lmd_checkpoint *checkpoint, PyObject *paths, PyObject *item) {
    const char *name, *dtype;
    PyObject *shape, *path;
    unsigned long long offset, n_bytes;
    lmd_tensor_spec spec = {0};
    if (!PyTuple_Check(item)) {
        PyErr_Format(PyExc_TypeError,
                     "a tensor must be a tuple (name, dtype, shape, path, offset, "
                     "n_bytes), not %R",
                     item);
        return -1;
    }
    if (!PyArg_ParseTuple(item, "ssO!OKK", &name, &dtype, &PyTuple_Type, &shape, &path, &offset,
                          &n_bytes))
        return -1;
    if (dtype_of(dtype, &spec.dtype) < 0) return -1;
    if (PyTuple_GET_SIZE(shape) > LMD_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "tensor \"%.100s\" has more than %d dimensions", name,
                     LMD_MAX_DIMS);
        return -1;
    }
    spec.name = name;
    spec.offset = offset;
    spec.n_bytes = n_bytes;
    spec.n_dims = (int32_t)PyTuple_GET_SIZE(shape);
    for (int32_t i = 0; i < spec.n_dims; i++) {
        spec.dims[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
        if (spec.dims[i] == -1 && PyErr_Occurred()) return -1;
    }
    if (file_idx_of(checkpoint, paths, path, &spec.file_idx) < 0) return -1;
    lmd_err err;
    if (lmd_checkpoint_add_tensor(checkpoint, &spec, &err) == LMD_OK) return 0;
    lmd_py_raise(&err);
    return -1;
}

static lmd_checkpoint *checkpoint_of_specs(PyObject *specs) {
    lmd_err err;
    lmd_checkpoint *checkpoint = NULL;
    PyObject *items = PySequence_Fast(specs, "source must be a Gguf or a sequence of tensors");
    PyObject *paths = items ? PyDict_New() : NULL;
    if (!paths) goto fail;
    if (lmd_checkpoint_new(&checkpoint, &err) != LMD_OK) {
        lmd_py_raise(&err);
        goto fail;
    }
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items); i++)
        if (add_tensor(checkpoint, paths, PySequence_Fast_GET_ITEM(items, i)) < 0) goto fail;
    Py_DECREF(items);
    Py_DECREF(paths);
    return checkpoint;
fail:
    Py_XDECREF(items);
    Py_XDECREF(paths);
    lmd_checkpoint_free(checkpoint);
    return NULL;
}

/* ---- construction ---- */

static lmd_status report_progress(void *callback, size_t done, size_t total, lmd_err *err) {
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *result = PyErr_CheckSignals() < 0 ? NULL : Py_NewRef(Py_None);
    if (result && callback) {
        Py_DECREF(result);
        result = PyObject_CallFunction(callback, "KK", (unsigned long long)done,
                                       (unsigned long long)total);
    }
    bool failed = result == NULL;
    Py_XDECREF(result);
    PyGILState_Release(gil);
    if (!failed) return LMD_OK;
    return lmd_fail(err, LMD_CLOSED, "the load was stopped by its progress callback");
}

static lmd_status load(const lmd_model_config *config, const lmd_checkpoint *checkpoint,
                       const char *device, const lmd_backend_config *backend_config,
                       PyObject *callback, lmd_model **out, lmd_err *err) {
    lmd_backend *backend;
    lmd_progress progress = {report_progress, callback == Py_None ? NULL : callback};
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_backend_open(device, backend_config, &backend, err);
    if (status == LMD_OK)
        status = lmd_model_load(config, checkpoint, backend, &progress, out, err);
    Py_END_ALLOW_THREADS
    return status;
}

/* The tensors of a Gguf, or of specs; *own is what the caller must free then. */
static const lmd_checkpoint *checkpoint_of(lmd_py_state *state, PyObject *source,
                                           lmd_checkpoint **own) {
    if (PyObject_TypeCheck(source, state->gguf_type))
        return lmd_gguf_checkpoint(lmd_py_gguf_get(source));
    return *own = checkpoint_of_specs(source);
}

static int thread_count_of(PyObject *value, int32_t *out) {
    *out = 0;
    if (value == Py_None) return 0;
    long n = PyLong_AsLong(value);
    if (n == -1 && PyErr_Occurred()) return -1;
    if (n < 1 || n > LMD_MAX_THREADS) {
        PyErr_Format(PyExc_ValueError, "num_threads must be 1 to %d, not %ld", LMD_MAX_THREADS,
                     n);
        return -1;
    }
    *out = (int32_t)n;
    return 0;
}

static PyObject *sizes_of(const lmd_model_config *config, const lmd_checkpoint *checkpoint,
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

PyObject *lmd_py_model_sizes(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"config", "source", "device", NULL};
    PyObject *dict, *source, *sizes = NULL;
    const char *device = "cpu";
    lmd_model_config config;
    lmd_checkpoint *own = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O|$s:model_sizes", names, &PyDict_Type,
                                     &dict, &source, &device) ||
        read_config(dict, &config) < 0)
        return NULL;
    const lmd_checkpoint *checkpoint =
        checkpoint_of(lmd_py_state_of_module(module), source, &own);
    if (checkpoint) sizes = sizes_of(&config, checkpoint, device);
    lmd_checkpoint_free(own);
    return sizes;
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"config",   "source", "device", "num_threads",
                            "progress", "blank",  NULL};
    PyObject *mapping, *source, *threads = Py_None, *callback = Py_None;
    const char *device = "cpu";
    int blank = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$sOOp:Model", names, &mapping, &source,
                                     &device, &threads, &callback, &blank))
        return NULL;
    int32_t n_threads;
    if (thread_count_of(threads, &n_threads) < 0) return NULL;
    if (callback != Py_None && !PyCallable_Check(callback)) {
        PyErr_Format(PyExc_TypeError, "progress must be callable, not %R", callback);
        return NULL;
    }
    lmd_model_config config;
    lmd_checkpoint *own = NULL;
    const lmd_checkpoint *checkpoint = NULL;
    model_object *self = NULL;
    lmd_py_state *state = lmd_py_state_of_type(type);
    PyObject *dict = state ? PyDict_New() : NULL;
    if (!dict || PyDict_Update(dict, mapping) < 0 || read_config(dict, &config) < 0) goto fail;
    checkpoint = checkpoint_of(state, source, &own);
    if (!checkpoint) goto fail;
    self = (model_object *)type->tp_alloc(type, 0);
    if (!self) goto fail;
    lmd_err err;
    const lmd_backend_config backend = {
        .n_threads = n_threads,
        .matrices = blank ? LMD_MATRICES_BLANK : LMD_MATRICES_PACKED,
    };
    if (load(&config, checkpoint, device, &backend, callback, &self->model, &err) != LMD_OK) {
        lmd_py_raise(&err);
        goto fail;
    }
    self->pid = getpid();
    self->config = dict;
    lmd_checkpoint_free(own);
    return (PyObject *)self;
fail:
    lmd_checkpoint_free(own);
    Py_XDECREF(dict);
    Py_XDECREF(self);
    return NULL;
}

static void model_dealloc(PyObject *obj) {
    model_object *self = (model_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    if (self->model && self->pid == getpid()) {
        lmd_model *model = self->model;
        Py_BEGIN_ALLOW_THREADS /* joins threads, unmaps weights */
        lmd_model_free(model);
        Py_END_ALLOW_THREADS
    }
    Py_XDECREF(self->config);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* ---- attributes ---- */

const lmd_model *lmd_py_model_get(PyObject *obj) {
    if (Py_TYPE(obj)->tp_dealloc != model_dealloc) {
        PyErr_Format(PyExc_TypeError, "model must be a Model, not %.100s",
                     Py_TYPE(obj)->tp_name);
        return NULL;
    }
    model_object *self = (model_object *)obj;
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
    {Py_tp_getset, model_getset},
    {Py_tp_doc, "Model(config, source, *, device='cpu', num_threads=None, progress=None, "
                "blank=False)\n\nA model's weights in a backend's layout, with the backend's "
                "thread pool."},
    {0, NULL},
};

static PyType_Spec model_spec = {
    .name = "lmdeploy_c._C.Model",
    .basicsize = sizeof(model_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = model_slots,
};

int lmd_py_model_init(PyObject *module, lmd_py_state *state) {
    state->model_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &model_spec, NULL);
    return state->model_type ? PyModule_AddType(module, state->model_type) : -1;
}
