/* The KV cache's storage for Python: see py_kv.h. */
#include "python/py_kv.h"

#include <stdbool.h>

#include "devices/devices.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "quant/kv_quant.h"

/* ---- bits ---- */

/* The bits that an object says, or 0 when no cache has elements of so many. */
static int32_t served_bits(PyObject *obj) {
    int32_t bits;
    if (lmd_py_int32(obj, "bits", &bits) < 0) {
        PyErr_Clear(); /* what is no such number is not served either */
        return 0;
    }
    return bits == 4 || bits == 8 || bits == 16 || bits == 32 ? bits : 0;
}

static bool read_pair(PyObject *pair, lmd_py_kv_pair *out) {
    if (PyTuple_GET_SIZE(pair) != 2) return false;
    const int32_t k_bits = served_bits(PyTuple_GET_ITEM(pair, 0));
    const int32_t v_bits = served_bits(PyTuple_GET_ITEM(pair, 1));
    *out = (lmd_py_kv_pair){{k_bits, v_bits}};
    return k_bits && v_bits && (k_bits == v_bits || (k_bits < 16 && v_bits < 16));
}

int lmd_py_kv_bits(PyObject *value, const char *name, void *out) {
    const bool is_pair = PyTuple_Check(value) || PyList_Check(value);
    PyObject *pair = is_pair ? PySequence_Tuple(value) : PyTuple_Pack(2, value, value);
    if (!pair) return -1;
    const bool served = read_pair(pair, out);
    Py_DECREF(pair);
    if (served) return 0;
    PyErr_Format(PyExc_ValueError,
                 "%s must be 16, 8, 4 or 32, or 8 or 4 for keys and values each, such as "
                 "(8, 4), not %R",
                 name, value);
    return -1;
}

/* ---- bytes of a block ---- */

typedef struct block_args {
    int32_t n_layer, n_kv_head, head_dim, block_len;
    lmd_py_kv_pair kv;
    const char *device;
} block_args;

static const lmd_py_field block_fields[] = {
    {"n_layer", lmd_py_int32, offsetof(block_args, n_layer)},
    {"n_kv_head", lmd_py_int32, offsetof(block_args, n_kv_head)},
    {"head_dim", lmd_py_int32, offsetof(block_args, head_dim)},
    {"block_len", lmd_py_int32, offsetof(block_args, block_len)},
    {"kv_bits", lmd_py_kv_bits, offsetof(block_args, kv)},
    {"device", lmd_py_text, offsetof(block_args, device)},
    {NULL, NULL, 0},
};

/* The four sizes are limited so that their product fits. */
static int check_sizes(const block_args *call) {
    enum { MAX_SIZE = 1 << 14 };
    const int32_t sizes[] = {call->n_layer, call->n_kv_head, call->head_dim, call->block_len};
    for (int i = 0; i < 4; i++)
        if (sizes[i] < 1 || sizes[i] > MAX_SIZE) {
            PyErr_Format(PyExc_ValueError, "%s must be 1 to %d, not %d", block_fields[i].name,
                         MAX_SIZE, sizes[i]);
            return -1;
        }
    return 0;
}

static PyObject *block_bytes(const block_args *call) {
    const lmd_workspace_config config = {
        .n_layer = call->n_layer,
        .n_kv_head = call->n_kv_head,
        .head_dim = call->head_dim,
        .block_len = call->block_len,
        .k_bits = call->kv.bits[0],
        .v_bits = call->kv.bits[1],
    };
    const lmd_backend_ops *ops;
    lmd_err err;
    if (lmd_backend_ops_of(call->device, &ops, &err) != LMD_OK) return lmd_py_raise(&err);
    return PyLong_FromSize_t(ops->kv_block_bytes(&config));
}

PyObject *lmd_py_kv_block_bytes(PyObject *module, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"kv_block_bytes", 6, 3, block_fields};
    (void)module;
    block_args call = {.block_len = 64, .kv = {{16, 16}}, .device = "cpu"};
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    PyObject *n_bytes = values && check_sizes(&call) == 0 ? block_bytes(&call) : NULL;
    Py_XDECREF(values);
    return n_bytes;
}

/* ---- the reference encoding ---- */

/* Arrays of n rows: codes of head_dim bytes, and a scale and a min in fp16 for each. */
typedef struct encoded {
    PyArrayObject *codes, *scales, *mins;
} encoded;

static PyArrayObject *new_array(int n_dims, const npy_intp *dims, int type) {
    return (PyArrayObject *)PyArray_SimpleNew(n_dims, dims, type);
}

static void encode_rows(PyArrayObject *x, int bits, const encoded *out) {
    const npy_intp n = PyArray_DIM(x, 0), head_dim = PyArray_DIM(x, 1);
    const float *values = PyArray_DATA(x);
    uint8_t *codes = PyArray_DATA(out->codes);
    uint16_t *scales = PyArray_DATA(out->scales), *mins = PyArray_DATA(out->mins);
    for (npy_intp i = 0; i < n; i++) {
        const lmd_kv_params params =
            lmd_kv_encode(values + i * head_dim, (int32_t)head_dim, bits, codes + i * head_dim);
        scales[i] = params.scale;
        mins[i] = params.min;
    }
}

static PyObject *encode(PyArrayObject *x, int bits) {
    const npy_intp n = PyArray_DIM(x, 0), head_dim = PyArray_DIM(x, 1);
    if (head_dim < 1 || head_dim > INT32_MAX)
        return PyErr_Format(PyExc_ValueError, "each row of x must hold a value");
    const npy_intp dims[] = {n, head_dim};
    const encoded out = {
        new_array(2, dims, NPY_UINT8),
        new_array(1, &n, NPY_FLOAT16),
        new_array(1, &n, NPY_FLOAT16),
    };
    if (out.codes && out.scales && out.mins) encode_rows(x, bits, &out);
    return Py_BuildValue("NNN", out.codes, out.scales, out.mins); /* a NULL is a failure */
}

PyObject *lmd_py_kv_encode(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *obj, *bits_obj;
    int32_t bits;
    if (!PyArg_ParseTuple(args, "OO:kv_encode", &obj, &bits_obj) ||
        lmd_py_int32(bits_obj, "bits", &bits) < 0)
        return NULL;
    if (bits != 8 && bits != 4)
        return PyErr_Format(PyExc_ValueError, "bits must be 8 or 4, not %d", (int)bits);
    PyArrayObject *x = lmd_py_to_array(obj, "x", NPY_FLOAT32, 2);
    PyObject *result = x ? encode(x, bits) : NULL;
    Py_XDECREF(x);
    return result;
}

static void decode_rows(const encoded *in, PyArrayObject *out) {
    const npy_intp n = PyArray_DIM(in->codes, 0), head_dim = PyArray_DIM(in->codes, 1);
    const uint8_t *codes = PyArray_DATA(in->codes);
    const uint16_t *scales = PyArray_DATA(in->scales), *mins = PyArray_DATA(in->mins);
    float *values = PyArray_DATA(out);
    for (npy_intp i = 0; i < n; i++)
        lmd_kv_decode(codes + i * head_dim, (int32_t)head_dim,
                      (lmd_kv_params){scales[i], mins[i]}, values + i * head_dim);
}

static PyObject *decode(const encoded *in) {
    const npy_intp n = PyArray_DIM(in->codes, 0);
    if (PyArray_DIM(in->scales, 0) != n || PyArray_DIM(in->mins, 0) != n)
        return PyErr_Format(PyExc_ValueError, "%zd rows of codes need as many scales and mins",
                            (Py_ssize_t)n);
    if (PyArray_DIM(in->codes, 1) > INT32_MAX)
        return PyErr_Format(PyExc_ValueError, "rows of codes must not pass 2**31 values");
    PyArrayObject *out = new_array(2, PyArray_DIMS(in->codes), NPY_FLOAT32);
    if (out) decode_rows(in, out);
    return (PyObject *)out;
}

PyObject *lmd_py_kv_decode(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *codes, *scales, *mins;
    if (!PyArg_ParseTuple(args, "OOO:kv_decode", &codes, &scales, &mins)) return NULL;
    encoded in = {.codes = lmd_py_to_array(codes, "codes", NPY_UINT8, 2)};
    if (in.codes) in.scales = lmd_py_to_array(scales, "scales", NPY_FLOAT16, 1);
    if (in.scales) in.mins = lmd_py_to_array(mins, "mins", NPY_FLOAT16, 1);
    PyObject *result = in.mins ? decode(&in) : NULL;
    Py_XDECREF(in.codes);
    Py_XDECREF(in.scales);
    Py_XDECREF(in.mins);
    return result;
}
