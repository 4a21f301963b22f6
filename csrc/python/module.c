/* The extension module: its exceptions, types and functions. Multi-phase init, no global state
 * but NumPy's table. */
#define LMD_IMPORT_ARRAY
#include "python/py_array.h"

#include "base/bandwidth.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/cpu_features.h"
#include "python/py_engine.h"
#include "python/py_error.h"
#include "python/py_gguf.h"
#include "python/py_kv.h"
#include "python/py_model.h"
#include "python/py_module.h"
#include "python/py_request.h"
#include "python/py_scheduler.h"
#include "python/py_snapshot.h"

static struct PyModuleDef module_def;

lmd_py_state *lmd_py_state_of_module(PyObject *module) { return PyModule_GetState(module); }

lmd_py_state *lmd_py_state_of_type(PyTypeObject *type) {
    PyObject *module = PyType_GetModule(type);
    return module ? PyModule_GetState(module) : NULL;
}

PyObject *lmd_py_struct_new(PyTypeObject *type, PyObject *const *fields, size_t n) {
    bool complete = true;
    for (size_t i = 0; i < n; i++) complete = complete && fields[i];
    PyObject *obj = complete ? PyStructSequence_New(type) : NULL;
    for (size_t i = 0; i < n; i++) {
        if (obj)
            PyStructSequence_SetItem(obj, (Py_ssize_t)i, fields[i]);
        else
            Py_XDECREF(fields[i]);
    }
    return obj;
}

static PyObject *isa_dict(void) {
    lmd_isa isas[LMD_MAX_ISAS];
    int n = lmd_cpu_isas(isas);
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < n; i++)
        if (PyDict_SetItemString(dict, isas[i].kernels->isa,
                                 isas[i].usable ? Py_True : Py_False) < 0)
            Py_CLEAR(dict);
    return dict;
}

static PyObject *cpu_info(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    char features[256];
    lmd_cpu_feature_names(features, sizeof features);
    lmd_err err;
    const lmd_cpu_kernels *kernels = NULL;
    lmd_status status = lmd_cpu_kernels_select(&kernels, &err);
    PyObject *isas = isa_dict();
    if (!isas) return NULL;
    return Py_BuildValue("{s:s, s:N, s:z, s:z, s:i}", "features", features, "isas", isas, "isa",
                         kernels ? kernels->isa : NULL, "error",
                         status == LMD_OK ? NULL : err.message, "usable_threads",
                         (int)lmd_threads_usable());
}

static PyObject *alloc_count(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromUnsignedLongLong(lmd_alloc_count());
}

static PyObject *alloc_bytes(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromUnsignedLongLong(lmd_alloc_bytes());
}

static lmd_status measure_bandwidth(int32_t n_threads, size_t n_bytes, double seconds,
                                    double *out, lmd_err *err) {
    lmd_threads *threads;
    LMD_TRY(lmd_threads_new(n_threads, &threads, err));
    lmd_status status = lmd_read_bandwidth(threads, n_bytes, seconds, out, err);
    lmd_threads_free(threads);
    return status;
}

static PyObject *read_bandwidth(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_bytes", "num_threads", "seconds", NULL};
    long long n_bytes;
    int n_threads = 0;
    double seconds = 0.2, rate;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "L|id:read_bandwidth", names, &n_bytes,
                                     &n_threads, &seconds))
        return NULL;
    if (n_bytes < 1 || n_bytes > 1LL << 40 || n_threads < 0 || n_threads > LMD_MAX_THREADS ||
        !(seconds >= 0.0 && seconds <= 60.0)) {
        PyErr_Format(PyExc_ValueError,
                     "n_bytes must be 1 to 2**40, num_threads 0 to %d, seconds 0 to 60",
                     LMD_MAX_THREADS);
        return NULL;
    }
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = measure_bandwidth(n_threads, (size_t)n_bytes, seconds, &rate, &err);
    Py_END_ALLOW_THREADS
    return status == LMD_OK ? PyFloat_FromDouble(rate) : lmd_py_raise(&err);
}

static PyObject *alloc_fail_after(PyObject *module, PyObject *arg) {
    (void)module;
    unsigned long long n = PyLong_AsUnsignedLongLong(arg);
    if (n == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
    lmd_alloc_fail_after(n);
    Py_RETURN_NONE;
}

static int add_exception(PyObject *module, const char *name, const char *full_name,
                         const char *doc, PyObject **slot) {
    *slot = PyErr_NewExceptionWithDoc(full_name, doc, PyExc_ValueError, NULL);
    return *slot ? PyModule_AddObjectRef(module, name, *slot) : -1;
}

/* What Snapshot and StepPlan were called in 0.1. */
static int add_older_names(PyObject *module, const lmd_py_state *state) {
    return PyModule_AddObjectRef(module, "Session", (PyObject *)state->snapshot_type) < 0
               ? -1
               : PyModule_AddObjectRef(module, "Plan", (PyObject *)state->plan_type);
}

static int module_exec(PyObject *module) {
    import_array1(-1);
    lmd_py_state *state = PyModule_GetState(module);
    if (add_exception(
            module, "CheckpointError", "lmdeploy_c._C.CheckpointError",
            "A model file is truncated, hostile, of another format, or lacks a tensor.",
            &state->checkpoint_error) < 0 ||
        add_exception(module, "UnsupportedError", "lmdeploy_c._C.UnsupportedError",
                      "A known architecture, type or option that this project does not serve.",
                      &state->unsupported_error) < 0)
        return -1;
    if (lmd_py_gguf_init(module, state) < 0 || lmd_py_model_init(module, state) < 0 ||
        lmd_py_engine_init(module, state) < 0 || lmd_py_request_init(module, state) < 0 ||
        lmd_py_scheduler_init(module, state) < 0 || lmd_py_snapshot_init(module, state) < 0)
        return -1;
    return add_older_names(module, state) < 0
               ? -1
               : PyModule_AddStringConstant(module, "__version__", LMD_VERSION);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    lmd_py_state *state = PyModule_GetState(module);
    Py_VISIT(state->checkpoint_error);
    Py_VISIT(state->unsupported_error);
    Py_VISIT(state->gguf_type);
    Py_VISIT(state->model_type);
    Py_VISIT(state->request_type);
    Py_VISIT(state->engine_type);
    Py_VISIT(state->scheduler_type);
    Py_VISIT(state->output_type);
    Py_VISIT(state->plan_type);
    Py_VISIT(state->snapshot_type);
    return 0;
}

static int module_clear(PyObject *module) {
    lmd_py_state *state = PyModule_GetState(module);
    Py_CLEAR(state->checkpoint_error);
    Py_CLEAR(state->unsupported_error);
    Py_CLEAR(state->gguf_type);
    Py_CLEAR(state->model_type);
    Py_CLEAR(state->request_type);
    Py_CLEAR(state->engine_type);
    Py_CLEAR(state->scheduler_type);
    Py_CLEAR(state->output_type);
    Py_CLEAR(state->plan_type);
    Py_CLEAR(state->snapshot_type);
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyMethodDef module_methods[] = {
    {"cpu_info", cpu_info, METH_NOARGS,
     "cpu_info() -> dict\n\nCPU features, the ISAs of this build and whether each is usable, "
     "the one "
     "in use, usable threads."},
    {"alloc_count", alloc_count, METH_NOARGS,
     "alloc_count() -> int\n\nAllocations the core has made in this process."},
    {"alloc_bytes", alloc_bytes, METH_NOARGS,
     "alloc_bytes() -> int\n\nTheir bytes, freed ones included."},
    {"model_sizes", (PyCFunction)(void (*)(void))lmd_py_model_sizes,
     METH_VARARGS | METH_KEYWORDS,
     "model_sizes(config, source, *, device='cpu') -> dict\n\nWhat a Model would take, without "
     "loading it."},
    {"read_bandwidth", (PyCFunction)(void (*)(void))read_bandwidth,
     METH_VARARGS | METH_KEYWORDS,
     "read_bandwidth(n_bytes, num_threads=0, seconds=0.2) -> float\n\nBytes a second that all "
     "threads together read from a buffer."},
    {"alloc_fail_after", alloc_fail_after, METH_O,
     "alloc_fail_after(n: int) -> None\n\nMakes the core's n-th allocation from now fail, once "
     "(0: "
     "off). For fault injection."},
    {"kv_block_bytes", (PyCFunction)(void (*)(void))lmd_py_kv_block_bytes,
     METH_VARARGS | METH_KEYWORDS, lmd_py_kv_block_bytes_doc},
    {"kv_encode", lmd_py_kv_encode, METH_VARARGS, lmd_py_kv_encode_doc},
    {"kv_decode", lmd_py_kv_decode, METH_VARARGS, lmd_py_kv_decode_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "lmdeploy_c._C",
    .m_doc = "The C core: models, engines, requests and the scheduler.",
    .m_size = sizeof(lmd_py_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&module_def); }
