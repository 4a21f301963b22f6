/* The Quantizer's run of a layer: see py_solve.h. */
#include "python/py_solve.h"

#include "cpu/cpu_features.h"
#include "lite/layer_pair.h"
#include "lite/layer_sums.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_input_sums.h"
#include "python/py_model.h"

typedef struct run_args {
    PyObject *model, *hidden, *lengths, *sums;
    bool from_middle;
} run_args;

static const lmd_py_field run_fields[] = {
    {"model", lmd_py_object, offsetof(run_args, model)},
    {"hidden", lmd_py_object, offsetof(run_args, hidden)},
    {"lengths", lmd_py_object, offsetof(run_args, lengths)},
    {"sums", lmd_py_object, offsetof(run_args, sums)},
    {"from_middle", lmd_py_flag, offsetof(run_args, from_middle)},
    {NULL, NULL, 0},
};

/* What a call computes with. */
typedef struct layer_call {
    const lmd_model *model;
    lmd_threads *threads;
    bool from_middle;
    PyArrayObject *hidden; /* which holds the result at the end */
    PyArrayObject *lengths;
    lmd_input_sums *sums[LMD_INPUT_COUNT]; /* borrowed; NULL: not wanted */
} layer_call;

/* Hidden states of texts, for a model. */
static int check_hidden(PyArrayObject *hidden, const char *name, PyArrayObject *lengths,
                        const lmd_model *model) {
    const npy_intp *dims = PyArray_DIMS(hidden);
    const int32_t *tokens = PyArray_DATA(lengths);
    int64_t n_tokens = 0;
    for (npy_intp i = 0; i < PyArray_SIZE(lengths); i++) n_tokens += tokens[i];
    if (dims[0] != n_tokens)
        PyErr_Format(PyExc_ValueError, "%s has %zd rows; lengths add up to %lld", name,
                     (Py_ssize_t)dims[0], (long long)n_tokens);
    else if (dims[1] != model->config.hidden_dim)
        PyErr_Format(PyExc_ValueError, "%s has %zd columns; the model's is of %d", name,
                     (Py_ssize_t)dims[1], (int)model->config.hidden_dim);
    return PyErr_Occurred() ? -1 : 0;
}

/* Runs a step after the other, between which a signal is noticed. */
static int run_steps(const layer_call *call, const lmd_compute *compute, lmd_layer_run *run) {
    float *states = PyArray_DATA(call->hidden);
    int32_t n_tokens;
    do {
        lmd_err err;
        lmd_status status;
        Py_BEGIN_ALLOW_THREADS
        status = lmd_layer_sums_step(run, compute, states, call->sums, &n_tokens, &err);
        Py_END_ALLOW_THREADS
        if (lmd_py_check(status, &err) < 0 || PyErr_CheckSignals() < 0) return -1;
        states += (int64_t)n_tokens * call->model->config.hidden_dim;
    } while (n_tokens > 0);
    return 0;
}

static int run(const layer_call *call) {
    const lmd_cpu_kernels *kernels;
    lmd_layer_run *run;
    lmd_err err;
    const lmd_texts texts = {(int32_t)PyArray_SIZE(call->lengths), PyArray_DATA(call->lengths)};
    if (lmd_py_check(lmd_cpu_kernels_select(&kernels, &err), &err) < 0) return -1;
    if (lmd_py_check(
            lmd_layer_sums_new(call->model, texts, call->from_middle, call->sums, &run, &err),
            &err) < 0)
        return -1;
    const lmd_compute compute = {&kernels->matrix, call->threads};
    const bool fits = check_hidden(call->hidden, "hidden", call->lengths, call->model) == 0;
    const int code = fits ? run_steps(call, &compute, run) : -1;
    lmd_layer_run_free(run);
    return code;
}

/* Borrows the sums that are not None, runs, and gives them back. */
static int run_with(PyTypeObject *type, layer_call *call, PyObject *items) {
    Py_ssize_t n_borrowed = 0;
    int code = 0;
    for (; code == 0 && n_borrowed < LMD_INPUT_COUNT; n_borrowed++) {
        PyObject *item = PyTuple_GET_ITEM(items, n_borrowed);
        if (item == Py_None) continue;
        call->sums[n_borrowed] = lmd_py_input_sums_borrow(type, item, "sums");
        if (!call->sums[n_borrowed]) code = -1;
    }
    if (code == 0) code = run(call);
    for (Py_ssize_t i = 0; i < n_borrowed; i++)
        if (call->sums[i]) lmd_py_input_sums_give_back(PyTuple_GET_ITEM(items, i));
    return code;
}

/* The five sums, or none of them, as a new tuple. */
static PyObject *five_sums(PyObject *value) {
    if (value == Py_None) return PyTuple_Pack(5, Py_None, Py_None, Py_None, Py_None, Py_None);
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
    static const lmd_py_signature signature = {"run_layer", 4, 3, run_fields};
    run_args given = {.sums = Py_None};
    PyObject *result = NULL, *values = lmd_py_read_call(&signature, args, kwargs, &given);
    if (!values) return NULL;
    layer_call call = {.threads = threads, .from_middle = given.from_middle};
    call.model = lmd_py_model_get(lmd_py_type_of(self, LMD_PY_MODEL), given.model);
    PyObject *items = call.model ? five_sums(given.sums) : NULL;
    if (items && lmd_py_int32_array(given.lengths, "lengths", &call.lengths) == 0 &&
        lmd_py_float_copy(given.hidden, "hidden", 2, &call.hidden) == 0 &&
        run_with(lmd_py_type_of(self, LMD_PY_INPUT_SUMS), &call, items) == 0)
        result = Py_NewRef(call.hidden);
    Py_XDECREF(call.hidden);
    Py_XDECREF(call.lengths);
    Py_XDECREF(items);
    Py_DECREF(values); /* which hold the model */
    return result;
}

/* ---- run_pair ---- */

typedef struct pair_args {
    PyObject *original, *drifted, *hidden, *drifted_hidden, *lengths, *sums;
    int32_t input;
} pair_args;

static const lmd_py_field pair_fields[] = {
    {"original", lmd_py_object, offsetof(pair_args, original)},
    {"drifted", lmd_py_object, offsetof(pair_args, drifted)},
    {"hidden", lmd_py_object, offsetof(pair_args, hidden)},
    {"drifted_hidden", lmd_py_object, offsetof(pair_args, drifted_hidden)},
    {"lengths", lmd_py_object, offsetof(pair_args, lengths)},
    {"input", lmd_py_int32, offsetof(pair_args, input)},
    {"sums", lmd_py_object, offsetof(pair_args, sums)},
    {NULL, NULL, 0},
};

typedef struct pair_call {
    const lmd_model *original, *drifted;
    lmd_threads *threads;
    PyArrayObject *hidden, *drifted_hidden; /* which hold the results at the end */
    PyArrayObject *lengths;
    lmd_input_sums *sums;
    int32_t input;
} pair_call;

static int check_pair(const pair_call *call) {
    if (check_hidden(call->hidden, "hidden", call->lengths, call->original) < 0) return -1;
    if (check_hidden(call->drifted_hidden, "drifted_hidden", call->lengths, call->drifted) < 0)
        return -1;
    const int32_t width = lmd_input_width(&call->drifted->config, call->input);
    if (call->sums->n_cols == width && call->sums->n_wanted == call->drifted->config.hidden_dim)
        return 0;
    PyErr_Format(PyExc_ValueError,
                 "sums must be of %d columns and of %d wanted ones, not %d, %d", (int)width,
                 (int)call->drifted->config.hidden_dim, (int)call->sums->n_cols,
                 (int)call->sums->n_wanted);
    return -1;
}

static int run_pair_steps(const pair_call *call, const lmd_compute *compute,
                          lmd_layer_pair *pair) {
    float *states = PyArray_DATA(call->hidden);
    float *drifted = PyArray_DATA(call->drifted_hidden);
    int32_t n_tokens;
    do {
        lmd_err err;
        lmd_status status;
        Py_BEGIN_ALLOW_THREADS
        status =
            lmd_layer_pair_step(pair, compute, states, drifted, call->sums, &n_tokens, &err);
        Py_END_ALLOW_THREADS
        if (lmd_py_check(status, &err) < 0 || PyErr_CheckSignals() < 0) return -1;
        states += (int64_t)n_tokens * call->original->config.hidden_dim;
        drifted += (int64_t)n_tokens * call->original->config.hidden_dim;
    } while (n_tokens > 0);
    return 0;
}

static int run_pair(const pair_call *call) {
    const lmd_cpu_kernels *kernels;
    lmd_layer_pair *pair;
    lmd_err err;
    const lmd_texts texts = {(int32_t)PyArray_SIZE(call->lengths), PyArray_DATA(call->lengths)};
    if (lmd_py_check(lmd_cpu_kernels_select(&kernels, &err), &err) < 0) return -1;
    if (lmd_py_check(
            lmd_layer_pair_new(call->original, call->drifted, texts, call->input, &pair, &err),
            &err) < 0)
        return -1;
    const lmd_compute compute = {&kernels->matrix, call->threads};
    const int code = check_pair(call) < 0 ? -1 : run_pair_steps(call, &compute, pair);
    lmd_layer_pair_free(pair);
    return code;
}

static int read_pair(PyObject *self, const pair_args *given, pair_call *call) {
    PyTypeObject *model_type = lmd_py_type_of(self, LMD_PY_MODEL);
    call->original = lmd_py_model_get(model_type, given->original);
    call->drifted = call->original ? lmd_py_model_get(model_type, given->drifted) : NULL;
    if (!call->drifted) return -1;
    if (given->input < 0 || given->input > LMD_DOWN_INPUT) {
        PyErr_Format(PyExc_ValueError, "input must be 0 to %d, not %d", LMD_DOWN_INPUT,
                     (int)given->input);
        return -1;
    }
    call->input = given->input;
    if (lmd_py_int32_array(given->lengths, "lengths", &call->lengths) < 0) return -1;
    if (lmd_py_float_copy(given->hidden, "hidden", 2, &call->hidden) < 0) return -1;
    return lmd_py_float_copy(given->drifted_hidden, "drifted_hidden", 2, &call->drifted_hidden);
}

PyObject *lmd_py_run_pair(PyObject *self, lmd_threads *threads, PyObject *args,
                          PyObject *kwargs) {
    static const lmd_py_signature signature = {"run_pair", 7, 7, pair_fields};
    pair_args given;
    PyObject *result = NULL, *values = lmd_py_read_call(&signature, args, kwargs, &given);
    if (!values) return NULL;
    pair_call call = {.threads = threads};
    if (read_pair(self, &given, &call) == 0) {
        call.sums = lmd_py_input_sums_borrow(lmd_py_type_of(self, LMD_PY_INPUT_SUMS),
                                             given.sums, "sums");
        if (call.sums && run_pair(&call) == 0)
            result = PyTuple_Pack(2, call.hidden, call.drifted_hidden);
        if (call.sums) lmd_py_input_sums_give_back(given.sums);
    }
    Py_XDECREF(call.hidden);
    Py_XDECREF(call.drifted_hidden);
    Py_XDECREF(call.lengths);
    Py_DECREF(values); /* which hold the models */
    return result;
}
