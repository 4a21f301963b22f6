/* The KV cache's storage for Python: see py_kv.h. */
#include "python/py_kv.h"

#include "devices/devices.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "quant/kv_quant.h"

int lmd_py_kv_bits(PyObject *obj, void *out) {
    int32_t *bits = ((lmd_py_kv_pair *)out)->bits;
    PyObject *pair = PyTuple_Check(obj) || PyList_Check(obj) ? PySequence_Tuple(obj)
                                                             : PyTuple_Pack(2, obj, obj);
    if (!pair) return 0;
    int is_pair = PyTuple_GET_SIZE(pair) == 2;
    for (Py_ssize_t i = 0; is_pair && i < 2; i++) {
        PyObject *item = PyTuple_GET_ITEM(pair, i);
        long value = PyLong_Check(item) ? PyLong_AsLong(item) : 0;
        PyErr_Clear(); /* too large for a long is no served value either */
        bits[i] = value == 4 || value == 8 || value == 16 || value == 32 ? (int32_t)value : 0;
        is_pair = bits[i] != 0;
    }
    Py_DECREF(pair);
    if (is_pair && (bits[0] == bits[1] || (bits[0] < 16 && bits[1] < 16))) return 1;
    PyErr_Format(PyExc_ValueError,
                 "kv_bits must be 16, 8, 4 or 32, or 8 or 4 for keys and values each, such as "
                 "(8, 4), not %R",
                 obj);
    return 0;
}

const char lmd_py_kv_block_bytes_doc[] =
    "kv_block_bytes(n_layer, n_kv_head, head_dim, block_len=64, kv_bits=16, device=\"cpu\") -> "
    "int\n\nBytes of one KV block of all layers, as the device's backend stores it.";

PyObject *lmd_py_kv_block_bytes(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    static char *names[] = {"n_layer", "n_kv_head", "head_dim", "block_len",
                            "kv_bits", "device",    NULL};
    lmd_workspace_config config = {.block_len = 64};
    lmd_py_kv_pair kv = {{16, 16}};
    const char *device = "cpu";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iii|iO&s:kv_block_bytes", names,
                                     &config.n_layer, &config.n_kv_head, &config.head_dim,
                                     &config.block_len, lmd_py_kv_bits, &kv, &device))
        return NULL;
    const int32_t sizes[] = {config.n_layer, config.n_kv_head, config.head_dim,
                             config.block_len};
    for (int i = 0; i < 4; i++)
        if (sizes[i] < 1 || sizes[i] > 1 << 14)
            return PyErr_Format(PyExc_ValueError, "%s must be 1 to %d, not %d", names[i],
                                1 << 14, sizes[i]);
    config.k_bits = kv.bits[0];
    config.v_bits = kv.bits[1];
    const lmd_backend_ops *ops;
    lmd_err err;
    if (lmd_backend_ops_of(device, &ops, &err) != LMD_OK) return lmd_py_raise(&err);
    return PyLong_FromSize_t(ops->kv_block_bytes(&config));
}

/* ---- the reference encoding ---- */

/* A new array of `type` with n_dims dimensions and C order. NULL with an exception. */
static PyArrayObject *to_array(PyObject *obj, int type, int n_dims) {
    return (PyArrayObject *)PyArray_FROMANY(obj, type, n_dims, n_dims,
                                            NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_FORCECAST);
}

const char lmd_py_kv_encode_doc[] =
    "kv_encode(x, bits) -> (codes, scales, mins)\n\nThe reference encoding of keys or values: "
    "x [n, head_dim] fp32 becomes codes [n, head_dim] uint8 (one a byte, for 4 bits too) and "
    "one "
    "fp16 scale and min [n] a row. bits: 8 or 4. Raises ValueError.";

PyObject *lmd_py_kv_encode(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *obj, *result = NULL;
    int bits;
    if (!PyArg_ParseTuple(args, "Oi:kv_encode", &obj, &bits)) return NULL;
    if (bits != 8 && bits != 4)
        return PyErr_Format(PyExc_ValueError, "bits must be 8 or 4, not %d", bits);
    PyArrayObject *x = to_array(obj, NPY_FLOAT32, 2);
    if (!x) return NULL;
    const npy_intp n = PyArray_DIM(x, 0), head_dim = PyArray_DIM(x, 1);
    if (head_dim < 1 || head_dim > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "rows of x must hold a value");
        Py_DECREF(x);
        return NULL;
    }
    PyObject *codes = PyArray_SimpleNew(2, PyArray_DIMS(x), NPY_UINT8);
    PyObject *scales = PyArray_SimpleNew(1, &n, NPY_FLOAT16);
    PyObject *mins = PyArray_SimpleNew(1, &n, NPY_FLOAT16);
    if (codes && scales && mins) {
        for (npy_intp i = 0; i < n; i++) {
            lmd_kv_params params = lmd_kv_encode(
                (const float *)PyArray_DATA(x) + i * head_dim, (int32_t)head_dim, bits,
                (uint8_t *)PyArray_DATA((PyArrayObject *)codes) + i * head_dim);
            ((uint16_t *)PyArray_DATA((PyArrayObject *)scales))[i] = params.scale;
            ((uint16_t *)PyArray_DATA((PyArrayObject *)mins))[i] = params.min;
        }
        result = PyTuple_Pack(3, codes, scales, mins);
    }
    Py_DECREF(x);
    Py_XDECREF(codes);
    Py_XDECREF(scales);
    Py_XDECREF(mins);
    return result;
}

const char lmd_py_kv_decode_doc[] =
    "kv_decode(codes, scales, mins) -> array\n\nWhat kv_encode's result stands for: fp32 "
    "[n, head_dim]. Raises ValueError.";

PyObject *lmd_py_kv_decode(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *objs[3], *out = NULL;
    if (!PyArg_ParseTuple(args, "OOO:kv_decode", &objs[0], &objs[1], &objs[2])) return NULL;
    PyArrayObject *codes = to_array(objs[0], NPY_UINT8, 2);
    PyArrayObject *scales = codes ? to_array(objs[1], NPY_FLOAT16, 1) : NULL;
    PyArrayObject *mins = scales ? to_array(objs[2], NPY_FLOAT16, 1) : NULL;
    if (!mins) goto done;
    const npy_intp n = PyArray_DIM(codes, 0), head_dim = PyArray_DIM(codes, 1);
    if (PyArray_DIM(scales, 0) != n || PyArray_DIM(mins, 0) != n || head_dim > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "%zd rows of codes need as many scales and mins",
                     (Py_ssize_t)n);
        goto done;
    }
    out = PyArray_SimpleNew(2, PyArray_DIMS(codes), NPY_FLOAT32);
    for (npy_intp i = 0; out && i < n; i++) {
        lmd_kv_params params = {((const uint16_t *)PyArray_DATA(scales))[i],
                                ((const uint16_t *)PyArray_DATA(mins))[i]};
        lmd_kv_decode((const uint8_t *)PyArray_DATA(codes) + i * head_dim, (int32_t)head_dim,
                      params, (float *)PyArray_DATA((PyArrayObject *)out) + i * head_dim);
    }
done:
    Py_XDECREF(codes);
    Py_XDECREF(scales);
    Py_XDECREF(mins);
    return out;
}
