/* The Engine type: reads arguments, submits without the GIL's help, closes with the GIL
 * released. The C engine has its own lock; the object's guards only its end. */
#include "python/py_engine.h"

#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/memory.h"
#include "engine/snapshot_kv.h"
#include "engine/speculation.h"
#include "model/decoder.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_kv.h"
#include "python/py_metrics.h"
#include "python/py_model.h"
#include "python/py_request.h"
#include "python/py_snapshot.h"

typedef struct engine_object {
    PyObject_HEAD
    lmd_engine *engine;
    PyObject *model; /* kept alive: the executor reads its weights */
    int32_t vocab_size;
    bool has_metrics;
    pid_t pid;
} engine_object;

lmd_engine *lmd_py_engine_get(PyObject *engine) { return ((engine_object *)engine)->engine; }

/* ---- lifetime ---- */

static lmd_status open_engine(const lmd_model *model, const lmd_engine_config *config,
                              lmd_py_kv_pair kv, bool fast_activations, lmd_engine **out,
                              lmd_err *err) {
    lmd_decoder_config decoder = {
        .session_len = config->session_len,
        .max_tokens = config->max_prefill_token_num,
        .max_seqs = config->max_batch_size,
        .n_blocks = config->n_blocks,
        .block_len = config->block_len,
        .k_bits = kv.bits[0],
        .v_bits = kv.bits[1],
        .fast_activations = fast_activations,
    };
    lmd_executor *executor;
    LMD_TRY(lmd_decoder_new(model, &decoder, &executor, err));
    return lmd_engine_new(config, executor, out, err);
}

static int check_limits(const lmd_engine_config *config) {
    const struct {
        const char *name;
        int32_t value, max;
    } fields[] = {{"session_len", config->session_len, 1 << 24},
                  {"n_blocks", config->n_blocks, 1 << 28},
                  {"max_batch_size", config->max_batch_size, 4096},
                  {"max_prefill_token_num", config->max_prefill_token_num, 65536},
                  {"block_len", config->block_len, 4096}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (fields[i].value >= 1 && fields[i].value <= fields[i].max) continue;
        PyErr_Format(PyExc_ValueError, "%s must be 1 to %d, not %d", fields[i].name,
                     fields[i].max, fields[i].value);
        return -1;
    }
    return 0;
}

static int check_drafts(const lmd_engine_config *config) {
    int32_t n = config->num_speculative_tokens;
    if (n >= 0 && n <= LMD_MAX_DRAFT_TOKENS) return 0;
    PyErr_Format(PyExc_ValueError, "num_speculative_tokens must be 0 to %d, not %d",
                 LMD_MAX_DRAFT_TOKENS, n);
    return -1;
}

static PyObject *engine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"model",
                            "session_len",
                            "n_blocks",
                            "max_batch_size",
                            "max_prefill_token_num",
                            "block_len",
                            "kv_bits",
                            "fast_activations",
                            "enable_prefix_caching",
                            "enable_metrics",
                            "num_speculative_tokens",
                            "adaptive_speculation",
                            "target_step_ms",
                            "max_waiting_requests",
                            NULL};
    PyObject *model_obj;
    lmd_engine_config config = {
        .max_batch_size = 64, .max_prefill_token_num = 512, .block_len = 64};
    int fast_activations = 0, prefix_caching = 1, metrics = 1, adaptive = 1;
    lmd_py_kv_pair kv = {{16, 16}};
    double target_step_ms = 100.0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$iiiiiO&pppipdi:Engine", names,
                                     &model_obj, &config.session_len, &config.n_blocks,
                                     &config.max_batch_size, &config.max_prefill_token_num,
                                     &config.block_len, lmd_py_kv_bits, &kv, &fast_activations,
                                     &prefix_caching, &metrics, &config.num_speculative_tokens,
                                     &adaptive, &target_step_ms, &config.max_waiting))
        return NULL;
    const lmd_model *model = lmd_py_model_get(model_obj);
    if (!model || check_limits(&config) < 0 || check_drafts(&config) < 0) return NULL;
    if (!(target_step_ms >= 0.0) || config.max_waiting < 0) {
        PyErr_SetString(PyExc_ValueError,
                        "target_step_ms and max_waiting_requests must not be negative; 0: no "
                        "bound");
        return NULL;
    }
    engine_object *self = (engine_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->model = Py_NewRef(model_obj);
    self->pid = getpid();
    self->vocab_size = config.vocab_size = lmd_model_vocab_size(model);
    config.prefix_caching = prefix_caching;
    config.step_seconds = target_step_ms * 1e-3;
    config.metrics_off = !metrics;
    self->has_metrics = metrics;
    config.adaptive_speculation = adaptive;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = open_engine(model, &config, kv, fast_activations, &self->engine, &err);
    Py_END_ALLOW_THREADS
    if (status == LMD_OK) return (PyObject *)self;
    Py_DECREF(self);
    return lmd_py_raise(&err);
}

static void engine_dealloc(PyObject *obj) {
    engine_object *self = (engine_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    Py_BEGIN_ALLOW_THREADS /* joins the thread */
    lmd_engine_free(self->engine);
    Py_END_ALLOW_THREADS
    Py_XDECREF(self->model);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyObject *engine_close(PyObject *obj, PyObject *unused) {
    (void)unused;
    engine_object *self = (engine_object *)obj;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    lmd_engine_close(self->engine);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ---- submit: arguments to C ---- */

/* Arrays made from the arguments, freed together. */
typedef struct submit_memory {
    PyArrayObject *prompt;
    int32_t *stop_ids, *stop_offsets, *bad_ids, *bad_offsets;
    lmd_token_bias *biases;
} submit_memory;

static void submit_memory_clear(submit_memory *memory) {
    Py_XDECREF(memory->prompt);
    lmd_free(memory->stop_ids);
    lmd_free(memory->stop_offsets);
    lmd_free(memory->bad_ids);
    lmd_free(memory->bad_offsets);
    lmd_free(memory->biases);
}

/* A growing list of words. */
typedef struct word_list {
    int32_t *ids, *offsets;
    size_t id_capacity, offset_capacity;
    int32_t n, n_ids;
} word_list;

static int add_word(word_list *list, const int32_t *ids, npy_intp n) {
    lmd_err err;
    if (lmd_grow((void **)&list->ids, &list->id_capacity, (size_t)list->n_ids + (size_t)n,
                 sizeof *ids, &err) != LMD_OK ||
        lmd_grow((void **)&list->offsets, &list->offset_capacity, (size_t)list->n + 2,
                 sizeof *ids, &err) != LMD_OK) {
        lmd_py_raise(&err);
        return -1;
    }
    if (n) memcpy(list->ids + list->n_ids, ids, (size_t)n * sizeof *ids);
    list->offsets[0] = 0;
    list->n_ids += (int32_t)n;
    list->offsets[++list->n] = list->n_ids;
    return 0;
}

/* Adds every token sequence of a Python sequence of sequences. */
static int add_words(word_list *list, PyObject *words, const char *what) {
    if (words == Py_None) return 0;
    PyObject *items = PySequence_Fast(words, "words must be a sequence of token sequences");
    if (!items) return -1;
    int code = 0;
    for (Py_ssize_t i = 0; code == 0 && i < PySequence_Fast_GET_SIZE(items); i++) {
        PyArrayObject *array;
        code = lmd_py_int32_array(PySequence_Fast_GET_ITEM(items, i), what, &array);
        if (code < 0) break;
        code = add_word(list, PyArray_DATA(array), PyArray_SIZE(array));
        Py_DECREF(array);
    }
    Py_DECREF(items);
    return code;
}

/* A stop token is a word of one. */
static int add_stop_tokens(word_list *list, PyObject *ids) {
    if (ids == Py_None) return 0;
    PyArrayObject *array;
    if (lmd_py_int32_array(ids, "stop_token_ids", &array) < 0) return -1;
    const int32_t *values = PyArray_DATA(array);
    int code = 0;
    for (npy_intp i = 0; code == 0 && i < PyArray_SIZE(array); i++)
        code = add_word(list, values + i, 1);
    Py_DECREF(array);
    return code;
}

static int read_biases(PyObject *mapping, submit_memory *memory, lmd_sampler_params *out) {
    if (mapping == Py_None) return 0;
    PyObject *items = PyMapping_Items(mapping);
    if (!items) return -1;
    Py_ssize_t n = PyList_GET_SIZE(items);
    memory->biases = lmd_calloc((size_t)n, sizeof *memory->biases);
    if (!memory->biases) {
        Py_DECREF(items);
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PyList_GET_ITEM(items, i);
        long id = PyLong_AsLong(PyTuple_GET_ITEM(item, 0));
        double bias = PyFloat_AsDouble(PyTuple_GET_ITEM(item, 1));
        if (PyErr_Occurred()) {
            Py_DECREF(items);
            return -1;
        }
        int32_t token_id = id < INT32_MIN || id > INT32_MAX ? -1 : (int32_t)id;
        memory->biases[i] = (lmd_token_bias){token_id, (float)bias};
    }
    Py_DECREF(items);
    out->n_biases = (int32_t)n;
    out->biases = memory->biases;
    return 0;
}

static int read_words(PyObject *bad, PyObject *stop, PyObject *stop_ids, submit_memory *memory,
                      lmd_request_params *out) {
    word_list bad_list = {0}, stop_list = {0};
    int code = add_words(&bad_list, bad, "bad_words");
    if (code == 0) code = add_words(&stop_list, stop, "stop_words");
    if (code == 0) code = add_stop_tokens(&stop_list, stop_ids);
    memory->bad_ids = bad_list.ids;
    memory->bad_offsets = bad_list.offsets;
    memory->stop_ids = stop_list.ids;
    memory->stop_offsets = stop_list.offsets;
    out->sampler.bad_words = (lmd_token_words){bad_list.n, bad_list.ids, bad_list.offsets};
    out->stop_words = (lmd_token_words){stop_list.n, stop_list.ids, stop_list.offsets};
    return code;
}

static int read_output_logits(const char *name, lmd_output_logits *out) {
    *out = LMD_LOGITS_NONE;
    if (!name) return 0;
    if (strcmp(name, "all") == 0)
        *out = LMD_LOGITS_ALL;
    else if (strcmp(name, "generation") == 0)
        *out = LMD_LOGITS_GENERATION;
    else
        return -1;
    return 0;
}

/* The seed given, or one drawn. */
static int read_seed(PyObject *value, uint64_t *out) {
    if (value == Py_None) {
        if (getrandom(out, sizeof *out, 0) == (ssize_t)sizeof *out) {
            *out >>= 1; /* fits a signed integer of the client's */
            return 0;
        }
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    PyObject *number = PyNumber_Index(value);
    if (!number) return -1;
    *out = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    if (!PyErr_Occurred()) return 0;
    PyErr_Format(PyExc_ValueError, "random_seed must be 0 to 2**64 - 1, not %R", value);
    return -1;
}

/* An argument of the right type and a wrong value is the request's error, not the caller's
 * exception. */
static PyObject *reject(engine_object *self, const char *why) {
    lmd_request *request;
    lmd_err wrong, err;
    lmd_fail(&wrong, LMD_INVALID, "%s", why);
    if (lmd_engine_reject(self->engine, &wrong, &request, &err) != LMD_OK)
        return lmd_py_raise(&err);
    return lmd_py_request_wrap(lmd_py_state_of_type(Py_TYPE(self)), request, (PyObject *)self,
                               self->vocab_size);
}

/* Turns a pending ValueError or OverflowError into a rejected request; other exceptions stay.
 */
static PyObject *reject_pending(engine_object *self) {
    if (!PyErr_ExceptionMatches(PyExc_ValueError) &&
        !PyErr_ExceptionMatches(PyExc_OverflowError))
        return NULL;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *text = value ? PyObject_Str(value) : NULL;
    const char *why = text ? PyUnicode_AsUTF8(text) : NULL;
    if (!why) PyErr_Clear();
    PyObject *result = reject(self, why ? why : "a wrong argument");
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return result;
}

static PyObject *submit_params(engine_object *self, const lmd_request_params *params) {
    lmd_request *request;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS /* copies the prompt, reserves the answer */
    status = lmd_engine_submit(self->engine, params, &request, &err);
    Py_END_ALLOW_THREADS
    if (status != LMD_OK) return lmd_py_raise(&err);
    return lmd_py_request_wrap(lmd_py_state_of_type(Py_TYPE(self)), request, (PyObject *)self,
                               self->vocab_size);
}

static PyObject *engine_submit(PyObject *obj, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"token_ids",
                            "max_new_tokens",
                            "min_new_tokens",
                            "do_sample",
                            "temperature",
                            "top_k",
                            "top_p",
                            "min_p",
                            "repetition_penalty",
                            "presence_penalty",
                            "frequency_penalty",
                            "logit_bias",
                            "bad_words",
                            "stop_words",
                            "stop_token_ids",
                            "logprobs",
                            "output_logits",
                            "return_ppl",
                            "random_seed",
                            "snapshot",
                            "keep_snapshot",
                            "priority",
                            "timeout",
                            NULL};
    engine_object *self = (engine_object *)obj;
    PyObject *prompt, *bias = Py_None, *bad = Py_None, *stop = Py_None, *stop_ids = Py_None;
    PyObject *seed = Py_None, *snapshot = Py_None;
    const char *logits = NULL;
    int do_sample = 0, return_ppl = 0, keep_snapshot = 0;
    long long max_new = 512, min_new = 0, top_k = 0, n_logprobs = 0;
    lmd_request_params params = {0};
    lmd_sampler_params *sampler = &params.sampler;
    lmd_sampler_params_init(sampler);
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O|$LLpdLdddddOOOOLzpOOpid:submit", names, &prompt, &max_new,
            &min_new, &do_sample, &sampler->temperature, &top_k, &sampler->top_p,
            &sampler->min_p, &sampler->repetition_penalty, &sampler->presence_penalty,
            &sampler->frequency_penalty, &bias, &bad, &stop, &stop_ids, &n_logprobs, &logits,
            &return_ppl, &seed, &snapshot, &keep_snapshot, &params.priority, &params.timeout))
        return lmd_py_check_fork(self->pid) < 0 ? NULL : reject_pending(self);
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    if (read_output_logits(logits, &params.output_logits) < 0)
        return reject(self, "output_logits must be \"all\" or \"generation\"");
    submit_memory memory = {0};
    PyObject *result = NULL;
    if (lmd_py_int32_array(prompt, "token_ids", &memory.prompt) < 0 ||
        read_biases(bias, &memory, sampler) < 0 ||
        read_words(bad, stop, stop_ids, &memory, &params) < 0 ||
        read_seed(seed, &sampler->seed) < 0 ||
        lmd_py_snapshot_read(lmd_py_state_of_type(Py_TYPE(obj)), snapshot, obj,
                             &params.snapshot) < 0) {
        result = reject_pending(self);
    } else {
        params.token_ids = PyArray_DATA(memory.prompt);
        params.n_tokens = PyArray_SIZE(memory.prompt);
        params.max_new_tokens = max_new;
        params.min_new_tokens = min_new;
        params.return_ppl = return_ppl;
        params.keep_snapshot = keep_snapshot;
        sampler->do_sample = do_sample;
        sampler->top_k = top_k;
        sampler->n_logprobs = n_logprobs;
        result = submit_params(self, &params);
    }
    submit_memory_clear(&memory);
    return result;
}

static PyObject *engine_reject(PyObject *obj, PyObject *arg) {
    engine_object *self = (engine_object *)obj;
    const char *message = PyUnicode_AsUTF8(arg);
    if (!message || lmd_py_check_fork(self->pid) < 0) return NULL;
    return reject(self, message);
}

static PyObject *engine_import_snapshot(PyObject *obj, PyObject *args) {
    engine_object *self = (engine_object *)obj;
    PyObject *ids, *kv_obj;
    PyArrayObject *array;
    lmd_snapshot_kv kv = {0};
    int n_computed;
    if (!PyArg_ParseTuple(args, "OsiO:import_snapshot", &ids, &kv.layout, &n_computed, &kv_obj))
        return NULL;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    PyArrayObject *blocks =
        (PyArrayObject *)PyArray_FROM_OTF(kv_obj, NPY_UINT8, NPY_ARRAY_IN_ARRAY);
    if (!blocks) return NULL;
    if (PyArray_NDIM(blocks) != 2 || n_computed < 0 || PyArray_DIM(blocks, 0) > INT32_MAX) {
        Py_DECREF(blocks);
        PyErr_SetString(PyExc_ValueError, "kv must be [n_blocks, block_bytes], and n_computed "
                                          "not negative");
        return NULL;
    }
    if (lmd_py_int32_array(ids, "token_ids", &array) < 0) {
        Py_DECREF(blocks);
        return NULL;
    }
    kv.n_blocks = (int32_t)PyArray_DIM(blocks, 0);
    kv.block_bytes = (size_t)PyArray_DIM(blocks, 1);
    kv.n_computed = n_computed;
    kv.data = PyArray_DATA(blocks);
    const lmd_snapshot_info text = {.tokens = PyArray_DATA(array),
                                    .n_tokens = (int32_t)PyArray_SIZE(array)};
    lmd_snapshot *snapshot;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_snapshot_import(self->engine, &text, &kv, &snapshot, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(blocks);
    Py_DECREF(array);
    if (status != LMD_OK) return lmd_py_raise(&err);
    return lmd_py_snapshot_wrap(lmd_py_state_of_type(Py_TYPE(obj)), snapshot, obj);
}

static PyObject *engine_stats(PyObject *obj, PyObject *unused) {
    (void)unused;
    engine_object *self = (engine_object *)obj;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    lmd_engine_stats stats;
    lmd_engine_get_stats(self->engine, &stats);
    const lmd_scheduler_stats *scheduler = &stats.scheduler;
    return Py_BuildValue(
        "{s:i, s:i, s:i, s:i, s:i, s:L, s:L, s:L, s:L, s:L, s:L, s:L, s:L, s:K}", "n_running",
        scheduler->n_running, "n_waiting", scheduler->n_waiting, "n_free_blocks",
        scheduler->n_free_blocks, "n_active_blocks", scheduler->n_active_blocks,
        "n_cached_blocks", scheduler->n_cached_blocks, "n_preempted",
        (long long)scheduler->n_preempted, "n_prompt_tokens",
        (long long)scheduler->n_prompt_tokens, "n_cached_tokens",
        (long long)scheduler->n_cached_tokens, "n_steps", (long long)stats.n_steps,
        "n_tokens_prefilled", (long long)stats.n_tokens_prefilled, "n_tokens_generated",
        (long long)stats.n_tokens_generated, "n_draft_tokens", (long long)stats.n_draft_tokens,
        "n_accepted_tokens", (long long)stats.n_accepted_tokens, "n_allocs",
        (unsigned long long)lmd_alloc_count());
}

static PyObject *engine_metrics(PyObject *obj, PyObject *unused) {
    (void)unused;
    engine_object *self = (engine_object *)obj;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    if (!self->has_metrics) {
        PyErr_SetString(PyExc_RuntimeError,
                        "metrics are off: make the engine with enable_metrics=True");
        return NULL;
    }
    lmd_engine_metrics metrics;
    lmd_engine_get_metrics(self->engine, &metrics);
    return lmd_py_metrics(&metrics);
}

static PyObject *engine_trace_start(PyObject *obj, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"max_steps", NULL};
    engine_object *self = (engine_object *)obj;
    long long max_steps = 1 << 16;
    lmd_err err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|L:trace_start", names, &max_steps) ||
        lmd_py_check_fork(self->pid) < 0)
        return NULL;
    if (lmd_trace_start(lmd_engine_trace(self->engine), max_steps, &err) != LMD_OK)
        return lmd_py_raise(&err);
    Py_RETURN_NONE;
}

static PyObject *engine_trace_stop(PyObject *obj, PyObject *unused) {
    (void)unused;
    engine_object *self = (engine_object *)obj;
    lmd_trace_log log;
    lmd_err err;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    if (lmd_trace_stop(lmd_engine_trace(self->engine), &log, &err) != LMD_OK)
        return lmd_py_raise(&err);
    PyObject *trace = lmd_py_trace(&log);
    lmd_trace_log_clear(&log);
    return trace;
}

static PyMethodDef engine_methods[] = {
    {"submit", (PyCFunction)(void (*)(void))engine_submit, METH_VARARGS | METH_KEYWORDS,
     "submit(token_ids, *, max_new_tokens=512, ...) -> Request\n\nQueues a request and returns "
     "at once. "
     "A wrong value gives a Request whose only Output has finish_reason \"error\"."},
    {"reject", engine_reject, METH_O,
     "reject(message) -> Request\n\nA request that has failed before it could be submitted: "
     "its "
     "only Output has finish_reason \"error\" and this message."},
    {"import_snapshot", engine_import_snapshot, METH_VARARGS,
     "import_snapshot(token_ids, layout, n_computed, kv) -> Snapshot\n\nA snapshot of a text "
     "and "
     "of what Snapshot.export_kv gave, in this process or an earlier one. KV of another layout "
     "is not taken."},
    {"stats", engine_stats, METH_NOARGS, "stats() -> dict\n\nCounters of the engine."},
    {"metrics", engine_metrics, METH_NOARGS,
     "metrics() -> dict\n\nCounters and histograms of the engine, of one moment."},
    {"trace_start", (PyCFunction)(void (*)(void))engine_trace_start,
     METH_VARARGS | METH_KEYWORDS,
     "trace_start(max_steps=65536) -> None\n\nStarts to record the last max_steps steps."},
    {"trace_stop", engine_trace_stop, METH_NOARGS,
     "trace_stop() -> dict\n\nEnds the trace and returns its records."},
    {"close", engine_close, METH_NOARGS,
     "close() -> None\n\nAborts every request, joins the thread, frees KV and scratch. "
     "Idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_new, engine_new},
    {Py_tp_dealloc, engine_dealloc},
    {Py_tp_methods, engine_methods},
    {Py_tp_doc,
     "Engine(model, *, session_len, n_blocks, max_batch_size=64, max_prefill_token_num=512, "
     "block_len=64, kv_bits=16, fast_activations=False, enable_prefix_caching=True, "
     "enable_metrics=True, num_speculative_tokens=0, adaptive_speculation=True, "
     "target_step_ms=100.0, max_waiting_requests=0)\n\n"
     "Continuous batching over one model, in a thread of its own."},
    {0, NULL},
};

static PyType_Spec engine_spec = {
    .name = "lmdeploy_c._C.Engine",
    .basicsize = sizeof(engine_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = engine_slots,
};

int lmd_py_engine_init(PyObject *module, lmd_py_state *state) {
    state->engine_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &engine_spec, NULL);
    return state->engine_type ? PyModule_AddType(module, state->engine_type) : -1;
}
