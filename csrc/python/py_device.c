/* Devices for Python: see py_device.h. */
#include "python/py_device.h"

#include "base/threads.h"
#include "devices/devices.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_values.h"

int lmd_py_num_threads(PyObject *value, const char *name, void *out) {
    int64_t n = 0;
    if (value != Py_None) {
        if (lmd_py_int64(value, name, &n) < 0) return -1;
        if (n < 1 || n > LMD_MAX_THREADS) {
            PyErr_Format(PyExc_ValueError, "%s must be 1 to %d, not %lld", name,
                         LMD_MAX_THREADS, (long long)n);
            return -1;
        }
    }
    *(int32_t *)out = (int32_t)n;
    return 0;
}

/* ---- device_info ---- */

static void put_defaults(PyObject **dict, const lmd_device_defaults *defaults) {
    lmd_py_dict_put(dict, "max_batch_size", PyLong_FromLong(defaults->max_batch_size));
    lmd_py_dict_put(dict, "max_prefill_token_num",
                    PyLong_FromLong(defaults->max_prefill_token_num));
    lmd_py_dict_put(dict, "target_step_ms", PyFloat_FromDouble(defaults->step_seconds * 1e3));
    lmd_py_dict_put(dict, "kv_fraction", PyFloat_FromDouble(defaults->kv_fraction));
    lmd_py_dict_put(dict, "kv_max_bytes", PyLong_FromSize_t(defaults->kv_max_bytes));
}

static PyObject *facts_dict(const lmd_backend *backend) {
    const lmd_backend_ops *ops = backend->ops;
    size_t free_bytes, total_bytes;
    lmd_err err;
    if (ops->memory(backend, &free_bytes, &total_bytes, &err) != LMD_OK)
        return lmd_py_raise(&err);
    PyObject *dict = PyDict_New();
    lmd_py_dict_put(&dict, "name", PyUnicode_FromString(ops->name));
    lmd_py_dict_put(&dict, "isa", PyUnicode_FromString(ops->isa(backend)));
    lmd_py_dict_put(&dict, "num_threads", PyLong_FromLong(ops->n_threads(backend)));
    lmd_py_dict_put(&dict, "runs_ahead", PyBool_FromLong(ops->runs_ahead));
    lmd_py_dict_put(&dict, "free_bytes", PyLong_FromSize_t(free_bytes));
    lmd_py_dict_put(&dict, "total_bytes", PyLong_FromSize_t(total_bytes));
    put_defaults(&dict, &ops->defaults);
    return dict;
}

typedef struct device_args {
    const char *device;
    int32_t n_threads;
} device_args;

static const lmd_py_field device_fields[] = {
    {"device", lmd_py_text, offsetof(device_args, device)},
    {"num_threads", lmd_py_num_threads, offsetof(device_args, n_threads)},
    {NULL, NULL, 0},
};

PyObject *lmd_py_device_info(PyObject *module, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"device_info", 2, 0, device_fields};
    (void)module;
    device_args call = {.device = "cpu"};
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    if (!values) return NULL;
    const lmd_backend_config config = {.n_threads = call.n_threads};
    lmd_backend *backend;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS /* starts the backend's threads */
    status = lmd_backend_open(call.device, &config, &backend, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(values);
    if (status != LMD_OK) return lmd_py_raise(&err);
    PyObject *dict = facts_dict(backend);
    Py_BEGIN_ALLOW_THREADS /* joins them */
    backend->ops->free(backend);
    Py_END_ALLOW_THREADS
    return dict;
}

/* ---- GPUs ---- */

PyObject *lmd_py_gpu_count(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    int32_t n = 0;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS /* opens the library and asks the driver */
    status = lmd_gpu_count(&n, &err);
    Py_END_ALLOW_THREADS
    return status == LMD_OK ? PyLong_FromLong(n) : lmd_py_raise(&err);
}

typedef struct gpu_args {
    int32_t idx;
} gpu_args;

static const lmd_py_field gpu_fields[] = {
    {"idx", lmd_py_int32, offsetof(gpu_args, idx)},
    {NULL, NULL, 0},
};

PyObject *lmd_py_gpu_info(PyObject *module, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"gpu_info", 1, 1, gpu_fields};
    (void)module;
    gpu_args call = {0};
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    if (!values) return NULL;
    Py_DECREF(values);
    lmd_device_info info;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS /* wakes the device */
    status = lmd_gpu_info(call.idx, &info, &err);
    Py_END_ALLOW_THREADS
    if (status != LMD_OK) return lmd_py_raise(&err);
    return Py_BuildValue("{s:s, s:s, s:i, s:i, s:n, s:n}", "name", info.name, "kernels",
                         info.kernels, "arch", (int)info.arch, "driver_version",
                         (int)info.driver_version, "free_bytes", (Py_ssize_t)info.free_bytes,
                         "total_bytes", (Py_ssize_t)info.total_bytes);
}
