/* Values of tensors: see py_tensor.h. */
#include "python/py_tensor.h"

#include "base/memory.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "quant/weight_codec.h"

/* Dequantises every row into out [n_rows, n_cols]; without the GIL. */
static lmd_status dequantize_rows(const lmd_tensor_view *view, int64_t n_rows, int64_t n_cols,
                                  float *out, lmd_err *err) {
    const int64_t row_bytes = lmd_dtype_row_bytes(view->dtype, n_cols);
    lmd_loaded_tensor loaded = {0};
    const lmd_status status = lmd_view_load(&view, &loaded, err);
    const uint8_t *data = status == LMD_OK ? view->data : NULL;
    for (int64_t i = 0; data && i < n_rows; i++)
        lmd_weight_row_to_float(view->dtype, data + i * row_bytes, n_cols, out + i * n_cols);
    lmd_free(loaded.buffer);
    return status;
}

PyObject *lmd_py_dequantize_view(const lmd_tensor_view *view) {
    lmd_weight_format format;
    lmd_err err;
    lmd_status status;
    if (lmd_py_check(lmd_weight_format_of(view, &format, &err), &err) < 0) return NULL;
    npy_intp dims[LMD_MAX_DIMS];
    for (int32_t i = 0; i < view->n_dims; i++) dims[i] = (npy_intp)view->dims[i];
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(view->n_dims, dims, NPY_FLOAT);
    if (!array) return NULL;
    const int64_t n_cols = view->dims[view->n_dims - 1];
    const int64_t n_rows = PyArray_SIZE(array) / n_cols;
    float *out = PyArray_DATA(array);
    Py_BEGIN_ALLOW_THREADS
    status = dequantize_rows(view, n_rows, n_cols, out, &err);
    Py_END_ALLOW_THREADS
    if (lmd_py_check(status, &err) < 0) Py_CLEAR(array);
    return (PyObject *)array;
}
