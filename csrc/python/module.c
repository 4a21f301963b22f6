/* The extension module: its functions, exceptions and types, put together. Multi-phase init, no
 * global state but NumPy's table. */
#define LMD_IMPORT_ARRAY
#include "python/py_array.h"

#include <string.h>

#include "python/py_checkpoint.h"
#include "python/py_constants.h"
#include "python/py_device.h"
#include "python/py_engine.h"
#include "python/py_gguf.h"
#include "python/py_input_sums.h"
#include "python/py_kv.h"
#include "python/py_machine.h"
#include "python/py_model.h"
#include "python/py_output.h"
#include "python/py_poller.h"
#include "python/py_quantizer.h"
#include "python/py_request.h"
#include "python/py_scheduler.h"
#include "python/py_snapshot.h"
#include "python/py_step_plan.h"
#include "python/py_watched.h"

/* A function with keywords, as a method table wants it. */
#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

static PyMethodDef module_methods[] = {
    {"cpu_info", lmd_py_cpu_info, METH_NOARGS,
     "cpu_info() -> dict\n\nCPU features, the instruction sets of this build and whether each "
     "is usable, the one in use, usable threads."},
    {"host_memory", lmd_py_host_memory, METH_NOARGS,
     "host_memory() -> dict\n\nBytes of memory: the machine's, what of it is available, the "
     "limit of the cgroup, and what this process may still use."},
    {"device_info", KEYWORDS(lmd_py_device_info),
     "device_info(device='cpu', num_threads=None) -> dict\n\nFacts about a device, and how its "
     "backend would run."},
    {"gpu_count", lmd_py_gpu_count, METH_NOARGS,
     "gpu_count() -> int\n\nHow many GPUs there are; UnsupportedError says why there is none."},
    {"gpu_info", KEYWORDS(lmd_py_gpu_info),
     "gpu_info(idx) -> dict\n\nWhat a GPU is; UnsupportedError says why it cannot be used."},
    {"read_bandwidth", KEYWORDS(lmd_py_read_bandwidth),
     "read_bandwidth(n_bytes, num_threads=0, seconds=0.2) -> float\n\nBytes a second that all "
     "threads together read from a buffer."},
    {"alloc_count", lmd_py_alloc_count, METH_NOARGS,
     "alloc_count() -> int\n\nAllocations that the core has made in this process."},
    {"alloc_bytes", lmd_py_alloc_bytes, METH_NOARGS,
     "alloc_bytes() -> int\n\nThe bytes of these allocations, freed ones included."},
    {"alloc_fail_after", lmd_py_alloc_fail_after, METH_O,
     "alloc_fail_after(n) -> None\n\nMakes the core's n-th allocation from now fail, once (0: "
     "none). For tests of what happens then."},
    {"model_sizes", KEYWORDS(lmd_py_model_sizes),
     "model_sizes(config, source, *, device='cpu') -> dict\n\nWhat a Model would take, without "
     "loading it."},
    {"engine_bytes", KEYWORDS(lmd_py_engine_bytes),
     "engine_bytes(config, *, session_len, n_blocks, ...) -> int\n\nBytes that an Engine of "
     "these arguments would allocate besides weights and KV blocks."},
    {"kv_block_bytes", KEYWORDS(lmd_py_kv_block_bytes),
     "kv_block_bytes(n_layer, n_kv_head, head_dim, block_len=64, kv_bits=16, device=\"cpu\") "
     "-> int\n\nBytes of one KV block of all layers, as the device's backend stores it."},
    {"kv_encode", lmd_py_kv_encode, METH_VARARGS,
     "kv_encode(x, bits) -> (codes, scales, mins)\n\nThe reference encoding of keys or values: "
     "x [n, head_dim] fp32 becomes codes [n, head_dim] uint8 (one a byte, for 4 bits too) and "
     "one fp16 scale and min [n] a row. bits: 8 or 4. Raises ValueError."},
    {"kv_decode", lmd_py_kv_decode, METH_VARARGS,
     "kv_decode(codes, scales, mins) -> array\n\nscale * code + min in fp32: [n, head_dim]. "
     "Raises ValueError."},
    {"dequantize", lmd_py_dequantize, METH_O,
     "dequantize(spec) -> array\n\nA tensor's values in fp32. Raises CheckpointError, "
     "UnsupportedError."},
    {"watched", KEYWORDS(lmd_py_watched),
     "watched(function, seconds, text) -> object\n\nfunction(), beside which a thread waits "
     "that needs no GIL: after so many seconds it writes the text to the standard error."},
    {NULL, NULL, 0, NULL},
};

/* ---- init ---- */

static int add_exception(PyObject *module, const char *full_name, const char *doc) {
    PyObject *type = PyErr_NewExceptionWithDoc(full_name, doc, PyExc_ValueError, NULL);
    const int code =
        type ? PyModule_AddObjectRef(module, strrchr(full_name, '.') + 1, type) : -1;
    Py_XDECREF(type);
    return code;
}

static int add_exceptions(PyObject *module) {
    if (add_exception(
            module, "lmdeploy_c._C.CheckpointError",
            "A model file is truncated, hostile, of another format, or lacks a tensor.") < 0)
        return -1;
    return add_exception(
        module, "lmdeploy_c._C.UnsupportedError",
        "A known architecture, type or option that this project does not serve.");
}

static int add_types(PyObject *module) {
    static int (*const inits[])(PyObject *) = {
        lmd_py_gguf_init,      lmd_py_model_init,      lmd_py_engine_init,
        lmd_py_request_init,   lmd_py_poller_init,     lmd_py_output_init,
        lmd_py_snapshot_init,  lmd_py_scheduler_init,  lmd_py_step_plan_init,
        lmd_py_quantizer_init, lmd_py_input_sums_init,
    };
    for (size_t i = 0; i < sizeof inits / sizeof *inits; i++)
        if (inits[i](module) < 0) return -1;
    return 0;
}

/* What version 0.1 called two of the types. */
static int add_older_names(PyObject *module) {
    PyObject *snapshot = (PyObject *)lmd_py_type_of_module(module, LMD_PY_SNAPSHOT);
    PyObject *step_plan = (PyObject *)lmd_py_type_of_module(module, LMD_PY_STEP_PLAN);
    if (PyModule_AddObjectRef(module, "Session", snapshot) < 0) return -1;
    return PyModule_AddObjectRef(module, "Plan", step_plan);
}

static int module_exec(PyObject *module) {
    import_array1(-1);
    if (add_exceptions(module) < 0 || add_types(module) < 0 || add_older_names(module) < 0 ||
        lmd_py_add_constants(module) < 0)
        return -1;
    return PyModule_AddStringConstant(module, "__version__", LMD_VERSION);
}

/* ---- the definition ---- */

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    return lmd_py_state_traverse(PyModule_GetState(module), visit, arg);
}

static int module_clear(PyObject *module) {
    lmd_py_state_clear(PyModule_GetState(module));
    return 0;
}

static void module_free(void *module) { module_clear(module); }

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
    .m_doc = "The C core: models, engines, requests, the scheduler and the quantizer.",
    .m_size = sizeof(lmd_py_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&module_def); }
