/* What a model's linears read: see py_calibrate.h. */
#include "python/py_calibrate.h"

#include "lite/calibrate.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_model.h"

typedef struct squares_args {
    PyObject *model, *token_ids;
} squares_args;

static const lmd_py_field squares_fields[] = {
    {"model", lmd_py_object, offsetof(squares_args, model)},
    {"token_ids", lmd_py_object, offsetof(squares_args, token_ids)},
    {NULL, NULL, 0},
};

enum { N_PLACES = 4 };

/* (qkv, o, gate_up, down) of a text, filled in without the GIL. */
static PyObject *squares_of(const lmd_model *model, PyArrayObject *ids) {
    const lmd_model_config *config = &model->config;
    const npy_intp widths[N_PLACES] = {config->hidden_dim, config->n_head * config->head_dim,
                                       config->hidden_dim, config->ffn_dim};
    PyObject *result = PyTuple_New(N_PLACES);
    double *sums[N_PLACES];
    for (Py_ssize_t i = 0; result && i < N_PLACES; i++) {
        const npy_intp shape[2] = {config->n_layer, widths[i]};
        PyObject *array = PyArray_ZEROS(2, shape, NPY_DOUBLE, 0);
        if (!array) Py_CLEAR(result);
        if (!array) break;
        sums[i] = PyArray_DATA((PyArrayObject *)array);
        PyTuple_SET_ITEM(result, i, array);
    }
    if (!result) return NULL;
    const lmd_column_squares out = {sums[0], sums[1], sums[2], sums[3]};
    const int32_t *token_ids = PyArray_DATA(ids);
    const npy_intp n = PyArray_SIZE(ids);
    const int32_t n_tokens = n < INT32_MAX ? (int32_t)n : INT32_MAX;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_add_column_squares(model, token_ids, n_tokens, out, &err);
    Py_END_ALLOW_THREADS
    if (lmd_py_check(status, &err) < 0) Py_CLEAR(result);
    return result;
}

PyObject *lmd_py_column_squares(PyObject *module, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"column_squares", 2, 2, squares_fields};
    squares_args call;
    PyArrayObject *ids = NULL;
    PyObject *result = NULL;
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    if (!values) return NULL;
    const lmd_model *model =
        lmd_py_model_get(lmd_py_type_of_module(module, LMD_PY_MODEL), call.model);
    if (model && lmd_py_int32_array(call.token_ids, "token_ids", &ids) == 0)
        result = squares_of(model, ids);
    Py_XDECREF(ids);
    Py_DECREF(values); /* which hold the model */
    return result;
}
