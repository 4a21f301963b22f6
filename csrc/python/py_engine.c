/* The Engine type: see py_engine.h. */
#include "python/py_engine.h"

#include <unistd.h>

#include "devices/devices.h"
#include "model/decoder.h"
#include "python/py_device.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_kv.h"
#include "python/py_metrics.h"
#include "python/py_model.h"
#include "python/py_model_config.h"
#include "python/py_request.h"
#include "python/py_request_params.h"
#include "python/py_snapshot.h"
#include "python/py_trace.h"

typedef struct engine_object {
    PyObject_HEAD
    lmd_engine *engine;
    PyObject *model; /* the Model object; kept alive: the executor reads its weights */
    int32_t vocab_size;
    bool has_metrics;
    pid_t pid;
} engine_object;

/* ---- lifetime ---- */

typedef struct engine_args {
    PyObject *model;
    lmd_engine_config config;
    lmd_py_kv_pair kv;
    bool fast_activations, batch_invariant, enable_metrics;
    double target_step_ms;
    const char *device; /* of engine_bytes, which has no model to ask */
    int32_t n_threads;
} engine_args;

#define CONFIG(member) offsetof(engine_args, config.member)

static const lmd_py_field engine_fields[] = {
    {"model", lmd_py_object, offsetof(engine_args, model)},
    {"session_len", lmd_py_int32, CONFIG(session_len)},
    {"n_blocks", lmd_py_int32, CONFIG(n_blocks)},
    {"max_batch_size", lmd_py_int32, CONFIG(max_batch_size)},
    {"max_prefill_token_num", lmd_py_int32, CONFIG(max_prefill_token_num)},
    {"block_len", lmd_py_int32, CONFIG(block_len)},
    {"kv_bits", lmd_py_kv_bits, offsetof(engine_args, kv)},
    {"fast_activations", lmd_py_bool, offsetof(engine_args, fast_activations)},
    {"batch_invariant", lmd_py_bool, offsetof(engine_args, batch_invariant)},
    {"enable_prefix_caching", lmd_py_bool, CONFIG(prefix_caching)},
    {"enable_metrics", lmd_py_bool, offsetof(engine_args, enable_metrics)},
    {"num_speculative_tokens", lmd_py_int32, CONFIG(num_speculative_tokens)},
    {"adaptive_speculation", lmd_py_bool, CONFIG(adaptive_speculation)},
    {"target_step_ms", lmd_py_double, offsetof(engine_args, target_step_ms)},
    {"max_waiting_requests", lmd_py_int32, CONFIG(max_waiting)},
    {NULL, NULL, 0},
};

static const engine_args engine_defaults = {
    .config = {.max_batch_size = 64,
               .max_prefill_token_num = 512,
               .block_len = 64,
               .prefix_caching = true,
               .adaptive_speculation = true},
    .kv = {{16, 16}},
    .enable_metrics = true,
    .target_step_ms = 100.0,
    .device = "cpu",
};

/* Checks what an engine is made with; *model is the one inside the Model object. */
static int check_engine_args(PyTypeObject *type, engine_args *call, const lmd_model **model) {
    lmd_engine_config *config = &call->config;
    lmd_err err;
    *model = lmd_py_model_get(lmd_py_type_beside(type, LMD_PY_MODEL), call->model);
    if (!*model) return -1;
    config->vocab_size = lmd_model_vocab_size(*model);
    config->metrics_off = !call->enable_metrics;
    config->step_seconds = call->target_step_ms * 1e-3;
    return lmd_py_check(lmd_engine_config_check(config, &err), &err);
}

static lmd_decoder_config decoder_config(const engine_args *call) {
    const lmd_engine_config *config = &call->config;
    return (lmd_decoder_config){
        .session_len = config->session_len,
        .max_tokens = config->max_prefill_token_num,
        .max_seqs = config->max_batch_size,
        .n_blocks = config->n_blocks,
        .block_len = config->block_len,
        .k_bits = call->kv.bits[0],
        .v_bits = call->kv.bits[1],
        .fast_activations = call->fast_activations,
        .batch_invariant = call->batch_invariant,
    };
}

static lmd_status open_engine(const lmd_model *model, const engine_args *call, lmd_engine **out,
                              lmd_err *err) {
    const lmd_decoder_config decoder = decoder_config(call);
    lmd_executor *executor;
    LMD_TRY(lmd_decoder_new(model, &decoder, &executor, err));
    return lmd_engine_new(&call->config, executor, out, err);
}

static void free_engine(lmd_engine *engine) {
    Py_BEGIN_ALLOW_THREADS /* joins the thread */
    lmd_engine_free(engine);
    Py_END_ALLOW_THREADS
}

/* An object of an engine, which it takes over, on failure too. It is made last,
 * because Python code can find every object through the garbage collector, half-made ones too.
 */
static PyObject *wrap_engine(PyTypeObject *type, lmd_engine *engine, const engine_args *call) {
    engine_object *self = (engine_object *)type->tp_alloc(type, 0);
    if (!self) {
        free_engine(engine);
        return NULL;
    }
    self->engine = engine;
    self->model = Py_NewRef(call->model);
    self->vocab_size = call->config.vocab_size;
    self->has_metrics = call->enable_metrics;
    self->pid = getpid();
    return (PyObject *)self;
}

static PyObject *make(PyTypeObject *type, engine_args *call) {
    const lmd_model *model;
    lmd_engine *engine;
    lmd_err err;
    lmd_status status;
    if (check_engine_args(type, call, &model) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = open_engine(model, call, &engine, &err);
    Py_END_ALLOW_THREADS
    return status == LMD_OK ? wrap_engine(type, engine, call) : lmd_py_raise(&err);
}

static PyObject *engine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"Engine", 1, 3, engine_fields};
    engine_args call = engine_defaults;
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    PyObject *self = values ? make(type, &call) : NULL;
    Py_XDECREF(values);
    return self;
}

static int engine_traverse(PyObject *obj, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(obj));
    Py_VISIT(((engine_object *)obj)->model);
    return 0;
}

static void engine_dealloc(PyObject *obj) {
    engine_object *self = (engine_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    PyObject_GC_UnTrack(obj);
    free_engine(self->engine);
    Py_DECREF(self->model);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* The object, or NULL with RuntimeError in a forked child. */
static engine_object *engine_of(PyObject *obj) {
    engine_object *self = (engine_object *)obj;
    return lmd_py_check_fork(self->pid) < 0 ? NULL : self;
}

static PyObject *engine_close(PyObject *obj, PyObject *unused) {
    (void)unused;
    engine_object *self = (engine_object *)obj;
    Py_BEGIN_ALLOW_THREADS /* joins the thread; does nothing in a forked child */
    lmd_engine_close(self->engine);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ---- its size ---- */

static const lmd_py_field size_fields[] = {
    {"config", lmd_py_object, offsetof(engine_args, model)},
    {"session_len", lmd_py_int32, CONFIG(session_len)},
    {"n_blocks", lmd_py_int32, CONFIG(n_blocks)},
    {"max_batch_size", lmd_py_int32, CONFIG(max_batch_size)},
    {"max_prefill_token_num", lmd_py_int32, CONFIG(max_prefill_token_num)},
    {"block_len", lmd_py_int32, CONFIG(block_len)},
    {"kv_bits", lmd_py_kv_bits, offsetof(engine_args, kv)},
    {"enable_prefix_caching", lmd_py_bool, CONFIG(prefix_caching)},
    {"device", lmd_py_text, offsetof(engine_args, device)},
    {"num_threads", lmd_py_num_threads, offsetof(engine_args, n_threads)},
    {NULL, NULL, 0},
};

static lmd_status measure_engine(const lmd_model_config *shape, const engine_args *call,
                                 size_t *out, lmd_err *err) {
    const lmd_backend_config backend_config = {.n_threads = call->n_threads};
    const lmd_decoder_config decoder = decoder_config(call);
    lmd_backend *backend;
    LMD_TRY(lmd_model_config_check(shape, err));
    LMD_TRY(lmd_engine_config_check(&call->config, err));
    LMD_TRY(lmd_backend_open(call->device, &backend_config, &backend, err));
    const lmd_status status = lmd_decoder_size(shape, &decoder, backend, out, err);
    if (status == LMD_OK) *out += lmd_engine_bytes(&call->config, backend->ops->runs_ahead);
    backend->ops->free(backend);
    return status;
}

static PyObject *engine_bytes(const engine_args *call) {
    lmd_model_config shape;
    PyObject *dict = lmd_py_model_config(call->model, &shape);
    if (!dict) return NULL;
    Py_DECREF(dict);
    size_t n_bytes;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS /* starts and joins the backend's threads */
    status = measure_engine(&shape, call, &n_bytes, &err);
    Py_END_ALLOW_THREADS
    return status == LMD_OK ? PyLong_FromSize_t(n_bytes) : lmd_py_raise(&err);
}

PyObject *lmd_py_engine_bytes(PyObject *module, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"engine_bytes", 1, 3, size_fields};
    (void)module;
    engine_args call = engine_defaults;
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    PyObject *n_bytes = values ? engine_bytes(&call) : NULL;
    Py_XDECREF(values);
    return n_bytes;
}

/* ---- requests ---- */

static PyObject *wrap(engine_object *self, lmd_request *request) {
    return lmd_py_request_wrap(request, (PyObject *)self, self->engine, self->vocab_size);
}

/* A request that has failed already: its error output is its only one. `message` is a str, of
 * any characters. */
static PyObject *reject(engine_object *self, PyObject *message) {
    PyObject *bytes = PyUnicode_AsEncodedString(message, "utf-8", "backslashreplace");
    if (!bytes) return NULL;
    lmd_request *request;
    lmd_err why, err;
    lmd_fail(&why, LMD_INVALID, "%s", PyBytes_AS_STRING(bytes));
    Py_DECREF(bytes);
    if (lmd_engine_reject(self->engine, &why, &request, &err) != LMD_OK)
        return lmd_py_raise(&err);
    return wrap(self, request);
}

/* Turns a pending ValueError into a rejected request; other exceptions stay. */
static PyObject *reject_pending(engine_object *self) {
    if (!PyErr_ExceptionMatches(PyExc_ValueError)) return NULL;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *message = value ? PyObject_Str(value) : PyUnicode_FromString("a wrong argument");
    PyObject *request = message ? reject(self, message) : NULL;
    Py_XDECREF(message);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return request;
}

static PyObject *submit(engine_object *self, const lmd_request_params *params) {
    lmd_request *request;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS /* copies the prompt, reserves the answer */
    status = lmd_engine_submit(self->engine, params, &request, &err);
    Py_END_ALLOW_THREADS
    return status == LMD_OK ? wrap(self, request) : lmd_py_raise(&err);
}

static PyObject *engine_submit(PyObject *obj, PyObject *args, PyObject *kwargs) {
    engine_object *self = engine_of(obj);
    lmd_py_request_params params;
    if (!self) return NULL;
    const bool is_read =
        lmd_py_request_params_read(&params, args, kwargs) == 0 &&
        lmd_py_snapshot_read(params.snapshot, obj, &params.request.snapshot) == 0 &&
        lmd_py_leader_read(params.leader, obj, &params.request.leader) == 0;
    PyObject *request = is_read ? submit(self, &params.request) : reject_pending(self);
    lmd_py_request_params_clear(&params);
    return request;
}

static PyObject *engine_reject(PyObject *obj, PyObject *arg) {
    engine_object *self = engine_of(obj);
    if (!self) return NULL;
    if (PyUnicode_Check(arg)) return reject(self, arg);
    lmd_py_wrong_type(arg, "message", "a str");
    return NULL;
}

static PyObject *engine_import_snapshot(PyObject *obj, PyObject *args) {
    engine_object *self = engine_of(obj);
    return self ? lmd_py_snapshot_import(args, obj, self->engine) : NULL;
}

/* ---- what it counts and records ---- */

static PyObject *engine_stats(PyObject *obj, PyObject *unused) {
    (void)unused;
    engine_object *self = engine_of(obj);
    if (!self) return NULL;
    lmd_engine_stats stats;
    lmd_engine_get_stats(self->engine, &stats);
    return lmd_py_engine_stats(&stats);
}

static PyObject *engine_metrics(PyObject *obj, PyObject *unused) {
    (void)unused;
    engine_object *self = engine_of(obj);
    if (!self) return NULL;
    if (!self->has_metrics)
        return PyErr_Format(PyExc_RuntimeError,
                            "metrics are off: make the engine with enable_metrics=True");
    lmd_engine_metrics metrics;
    lmd_engine_get_metrics(self->engine, &metrics);
    return lmd_py_engine_metrics(&metrics);
}

typedef struct trace_args {
    int64_t max_steps;
} trace_args;

static const lmd_py_field trace_fields[] = {
    {"max_steps", lmd_py_int64, offsetof(trace_args, max_steps)},
    {NULL, NULL, 0},
};

static PyObject *engine_trace_start(PyObject *obj, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"trace_start", 1, 0, trace_fields};
    engine_object *self = engine_of(obj);
    trace_args call = {.max_steps = 1 << 16};
    lmd_err err;
    PyObject *values = self ? lmd_py_read_call(&signature, args, kwargs, &call) : NULL;
    if (!values) return NULL;
    Py_DECREF(values);
    if (lmd_trace_start(lmd_engine_trace(self->engine), call.max_steps, &err) != LMD_OK)
        return lmd_py_raise(&err);
    Py_RETURN_NONE;
}

static PyObject *engine_trace_stop(PyObject *obj, PyObject *unused) {
    (void)unused;
    engine_object *self = engine_of(obj);
    lmd_trace_log log;
    lmd_err err;
    if (!self) return NULL;
    lmd_trace *trace = lmd_engine_trace(self->engine);
    if (lmd_trace_stop(trace, &log, &err) != LMD_OK) return lmd_py_raise(&err);
    PyObject *records = lmd_py_trace(&log);
    if (records)
        lmd_trace_log_clear(&log);
    else /* out of memory: nothing is lost */
        lmd_trace_resume(trace, &log);
    return records;
}

/* ---- the type ---- */

static PyMethodDef engine_methods[] = {
    {"submit", (PyCFunction)(void (*)(void))engine_submit, METH_VARARGS | METH_KEYWORDS,
     "submit(token_ids, *, max_new_tokens=512, ...) -> Request\n\nQueues a request and returns "
     "at once. A wrong value gives a Request whose only Output has finish_reason \"error\"; a "
     "wrong type or an unknown keyword is a TypeError."},
    {"reject", engine_reject, METH_O,
     "reject(message) -> Request\n\nA request that has failed before it could be submitted: "
     "its only Output has finish_reason \"error\" and this message."},
    {"import_snapshot", engine_import_snapshot, METH_VARARGS,
     "import_snapshot(token_ids, layout, n_computed, kv) -> Snapshot\n\nA snapshot of a text "
     "and of what Snapshot.export_kv gave, in this process or an earlier one. KV of another "
     "layout is not taken."},
    {"import_session", engine_import_snapshot, METH_VARARGS,
     "The older name of import_snapshot."},
    {"stats", engine_stats, METH_NOARGS, "stats() -> dict\n\nCounters of the engine."},
    {"metrics", engine_metrics, METH_NOARGS,
     "metrics() -> dict\n\nCounters and histograms of the engine, of one moment. RuntimeError "
     "when metrics are off."},
    {"trace_start", (PyCFunction)(void (*)(void))engine_trace_start,
     METH_VARARGS | METH_KEYWORDS,
     "trace_start(max_steps=65536) -> None\n\nStarts to record the last max_steps steps. "
     "ValueError when a trace runs already."},
    {"trace_stop", engine_trace_stop, METH_NOARGS,
     "trace_stop() -> dict\n\nEnds the trace and returns its records. ValueError when no trace "
     "runs."},
    {"close", engine_close, METH_NOARGS,
     "close() -> None\n\nAborts every request, joins the thread, frees KV and scratch. May be "
     "called again. Does nothing in a forked child."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_new, engine_new},
    {Py_tp_dealloc, engine_dealloc},
    {Py_tp_traverse, engine_traverse},
    {Py_tp_methods, engine_methods},
    {Py_tp_doc,
     "Engine(model, *, session_len, n_blocks, max_batch_size=64, max_prefill_token_num=512, "
     "block_len=64, kv_bits=16, fast_activations=False, batch_invariant=False, "
     "enable_prefix_caching=True, "
     "enable_metrics=True, num_speculative_tokens=0, adaptive_speculation=True, "
     "target_step_ms=100.0, max_waiting_requests=0)\n\n"
     "Continuous batching over one model, in a thread of its own."},
    {0, NULL},
};

static PyType_Spec engine_spec = {
    .name = "lmdeploy_c._C.Engine",
    .basicsize = sizeof(engine_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = engine_slots,
};

int lmd_py_engine_init(PyObject *module) {
    return lmd_py_add_type(module, LMD_PY_ENGINE, &engine_spec);
}
