/* The Quantizer's run of a layer: see py_solve.h. */
#include "python/py_solve.h"

#include "cpu/cpu_features.h"
#include "lite/layer_run.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_input_sums.h"
#include "python/py_model.h"

typedef struct run_args {
    PyObject *model, *hidden, *sums;
} run_args;

static const lmd_py_field run_fields[] = {
    {"model", lmd_py_object, offsetof(run_args, model)},
    {"hidden", lmd_py_object, offsetof(run_args, hidden)},
    {"sums", lmd_py_object, offsetof(run_args, sums)},
    {NULL, NULL, 0},
};

/* Runs the layer; `hidden` holds its result then. -1 with an exception. */
static int run(const lmd_model *model, lmd_threads *threads, PyArrayObject *hidden,
               lmd_input_sums *const *sums) {
    const lmd_cpu_kernels *kernels;
    lmd_err err;
    if (PyArray_DIM(hidden, 1) != model->config.hidden_dim) {
        PyErr_Format(PyExc_ValueError, "hidden has %zd columns; the model's is of %d",
                     (Py_ssize_t)PyArray_DIM(hidden, 1), (int)model->config.hidden_dim);
        return -1;
    }
    if (lmd_py_check(lmd_cpu_kernels_select(&kernels, &err), &err) < 0) return -1;
    const lmd_compute compute = {&kernels->matrix, threads};
    float *states = PyArray_DATA(hidden);
    const int32_t n = (int32_t)PyArray_DIM(hidden, 0);
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_layer_run(model, &compute, states, n, sums, &err);
    Py_END_ALLOW_THREADS
    return lmd_py_check(status, &err);
}

/* Borrows the sums that are not None, runs, and gives them back. */
static int run_with(PyTypeObject *type, const lmd_model *model, lmd_threads *threads,
                    PyArrayObject *hidden, PyObject *items) {
    lmd_input_sums *sums[LMD_INPUT_COUNT] = {NULL};
    Py_ssize_t n_borrowed = 0;
    int code = 0;
    for (; code == 0 && n_borrowed < LMD_INPUT_COUNT; n_borrowed++) {
        PyObject *item = PyTuple_GET_ITEM(items, n_borrowed);
        if (item == Py_None) continue;
        sums[n_borrowed] = lmd_py_input_sums_borrow(type, item, "sums");
        if (!sums[n_borrowed]) code = -1;
    }
    if (code == 0) code = run(model, threads, hidden, sums);
    for (Py_ssize_t i = 0; i < n_borrowed; i++)
        if (sums[i]) lmd_py_input_sums_give_back(PyTuple_GET_ITEM(items, i));
    return code;
}

/* The four sums, or none of them, as a new tuple. */
static PyObject *four_sums(PyObject *value) {
    if (value == Py_None) return PyTuple_Pack(4, Py_None, Py_None, Py_None, Py_None);
    PyObject *items = lmd_py_tuple_of(value, "sums", "None or a sequence of InputSums");
    if (items && PyTuple_GET_SIZE(items) != LMD_INPUT_COUNT) {
        PyErr_Format(PyExc_ValueError, "sums must be %d, not %zd", LMD_INPUT_COUNT,
                     PyTuple_GET_SIZE(items));
        Py_CLEAR(items);
    }
    return items;
}

PyObject *lmd_py_run_layer(PyObject *self, lmd_threads *threads, PyObject *args,
                           PyObject *kwargs) {
    static const lmd_py_signature signature = {"run_layer", 3, 2, run_fields};
    run_args call = {.sums = Py_None};
    PyArrayObject *hidden = NULL;
    PyObject *result = NULL, *values = lmd_py_read_call(&signature, args, kwargs, &call);
    if (!values) return NULL;
    const lmd_model *model = lmd_py_model_get(lmd_py_type_of(self, LMD_PY_MODEL), call.model);
    PyObject *items = model ? four_sums(call.sums) : NULL;
    if (items && lmd_py_float_copy(call.hidden, "hidden", 2, &hidden) == 0 &&
        run_with(lmd_py_type_of(self, LMD_PY_INPUT_SUMS), model, threads, hidden, items) == 0)
        result = Py_NewRef(hidden);
    Py_XDECREF(hidden);
    Py_XDECREF(items);
    Py_DECREF(values); /* which hold the model */
    return result;
}
