/* Functions about this machine: see py_machine.h. */
#include "python/py_machine.h"

#include "base/bandwidth.h"
#include "base/host_memory.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/cpu_features.h"
#include "python/py_error.h"
#include "python/py_fields.h"

static PyObject *isa_dict(void) {
    lmd_isa isas[LMD_MAX_ISAS];
    const int n = lmd_cpu_isas(isas);
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < n; i++)
        if (PyDict_SetItemString(dict, isas[i].kernels->isa,
                                 isas[i].usable ? Py_True : Py_False) < 0)
            Py_CLEAR(dict);
    return dict;
}

PyObject *lmd_py_cpu_info(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    char features[256];
    lmd_cpu_feature_names(features, sizeof features);
    lmd_err err;
    const lmd_cpu_kernels *kernels = NULL;
    const lmd_status status = lmd_cpu_kernels_select(&kernels, &err);
    PyObject *isas = isa_dict();
    if (!isas) return NULL;
    return Py_BuildValue("{s:s, s:N, s:z, s:z, s:i}", "features", features, "isas", isas, "isa",
                         kernels ? kernels->isa : NULL, "error",
                         status == LMD_OK ? NULL : err.message, "usable_threads",
                         (int)lmd_threads_usable());
}

/* None where no limit is set. */
static PyObject *limit_bytes(bool is_set, uint64_t n_bytes) {
    if (!is_set) Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(n_bytes);
}

PyObject *lmd_py_host_memory(PyObject *module, PyObject *unused) {
    static const char *const bounds[] = {
        [LMD_BOUND_MACHINE] = "machine",
        [LMD_BOUND_CGROUP] = "cgroup",
        [LMD_BOUND_ADDRESS_SPACE] = "address space",
        [LMD_BOUND_DATA_SIZE] = "data size",
    };
    (void)module;
    (void)unused;
    lmd_memory_bound bound;
    lmd_memory_size cgroup = {0}, space = {0}, data = {0};
    const lmd_memory_size machine = lmd_machine_memory("/");
    const lmd_memory_size usable = lmd_process_memory("/", &bound);
    const bool has_cgroup = lmd_cgroup_memory("/", &cgroup);
    const bool has_space = lmd_address_space("/", &space), has_data = lmd_data_size("/", &data);
    return Py_BuildValue("{s:K, s:K, s:N, s:N, s:N, s:K, s:s}", "total_bytes",
                         (unsigned long long)machine.total, "available_bytes",
                         (unsigned long long)machine.available, "cgroup_limit_bytes",
                         limit_bytes(has_cgroup, cgroup.total), "address_space_limit_bytes",
                         limit_bytes(has_space, space.total), "data_size_limit_bytes",
                         limit_bytes(has_data, data.total), "usable_bytes",
                         (unsigned long long)usable.available, "bound", bounds[bound]);
}

/* ---- the core's allocations ---- */

PyObject *lmd_py_alloc_count(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromUnsignedLongLong(lmd_alloc_count());
}

PyObject *lmd_py_alloc_bytes(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromUnsignedLongLong(lmd_alloc_bytes());
}

PyObject *lmd_py_alloc_fail_after(PyObject *module, PyObject *n) {
    (void)module;
    int64_t count;
    if (lmd_py_size(n, "n", &count) < 0) return NULL;
    lmd_alloc_fail_after((uint64_t)count);
    Py_RETURN_NONE;
}

/* ---- the speed of memory ---- */

typedef struct bandwidth_args {
    int64_t n_bytes;
    int32_t n_threads;
    double seconds;
} bandwidth_args;

static const lmd_py_field bandwidth_fields[] = {
    {"n_bytes", lmd_py_int64, offsetof(bandwidth_args, n_bytes)},
    {"num_threads", lmd_py_int32, offsetof(bandwidth_args, n_threads)},
    {"seconds", lmd_py_double, offsetof(bandwidth_args, seconds)},
    {NULL, NULL, 0},
};

static lmd_status measure_bandwidth(const bandwidth_args *call, double *out, lmd_err *err) {
    lmd_threads *threads;
    LMD_TRY(lmd_threads_new(call->n_threads, &threads, err));
    const lmd_status status =
        lmd_read_bandwidth(threads, (size_t)call->n_bytes, call->seconds, out, err);
    lmd_threads_free(threads);
    return status;
}

PyObject *lmd_py_read_bandwidth(PyObject *module, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"read_bandwidth", 3, 1, bandwidth_fields};
    (void)module;
    bandwidth_args call = {.seconds = 0.2};
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    if (!values) return NULL;
    Py_DECREF(values);
    if (call.n_bytes < 1 || call.n_bytes > INT64_C(1) << 40 || call.n_threads < 0 ||
        call.n_threads > LMD_MAX_THREADS || !(call.seconds >= 0.0 && call.seconds <= 60.0))
        return PyErr_Format(PyExc_ValueError,
                            "n_bytes must be 1 to 2**40, num_threads 0 to %d, seconds 0 to 60",
                            LMD_MAX_THREADS);
    double rate;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = measure_bandwidth(&call, &rate, &err);
    Py_END_ALLOW_THREADS
    return status == LMD_OK ? PyFloat_FromDouble(rate) : lmd_py_raise(&err);
}
