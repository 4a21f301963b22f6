/* The Quantizer's solver: see py_solve.h. */
#include "python/py_solve.h"

#include <string.h>

#include "cpu/cpu_features.h"
#include "lite/solve_matrix.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_input_sums.h"

/* ---- solve ---- */

typedef struct solve_args {
    PyObject *weight, *sums, *scales, *progress;
    int32_t bits, group_size, rounds;
    bool symmetric, minima, search, ordered;
    double shrink, damp;
} solve_args;

static const lmd_py_field solve_fields[] = {
    {"weight", lmd_py_object, offsetof(solve_args, weight)},
    {"sums", lmd_py_object, offsetof(solve_args, sums)},
    {"bits", lmd_py_int32, offsetof(solve_args, bits)},
    {"group_size", lmd_py_int32, offsetof(solve_args, group_size)},
    {"symmetric", lmd_py_flag, offsetof(solve_args, symmetric)},
    {"minima", lmd_py_flag, offsetof(solve_args, minima)},
    {"search", lmd_py_flag, offsetof(solve_args, search)},
    {"ordered", lmd_py_flag, offsetof(solve_args, ordered)},
    {"rounds", lmd_py_int32, offsetof(solve_args, rounds)},
    {"shrink", lmd_py_double, offsetof(solve_args, shrink)},
    {"damp", lmd_py_double, offsetof(solve_args, damp)},
    {"scales", lmd_py_object, offsetof(solve_args, scales)},
    {"progress", lmd_py_object, offsetof(solve_args, progress)},
    {NULL, NULL, 0},
};

/* A computation without the GIL, and what it calls between its parts. */
typedef struct working_thread {
    PyObject *progress; /* or None */
    PyThreadState *state;
} working_thread;

static lmd_status report(void *user, int32_t n_done, lmd_err *err) {
    working_thread *thread = user;
    PyEval_RestoreThread(thread->state);
    bool stopped = PyErr_CheckSignals() < 0;
    if (!stopped && thread->progress != Py_None) {
        PyObject *result = PyObject_CallFunction(thread->progress, "i", (int)n_done);
        stopped = !result;
        Py_XDECREF(result);
    }
    thread->state = PyEval_SaveThread();
    return stopped ? lmd_fail(err, LMD_CLOSED, "the callback stopped it") : LMD_OK;
}

/* The arrays of a result: codes, scales, and zeros or minima. */
static PyObject *solve_into(const lmd_solve_request *request, lmd_threads *threads,
                            PyObject *progress) {
    const int32_t size = request->feedback.group_size;
    const npy_intp shape[2] = {request->n_rows, request->n_cols};
    const npy_intp groups[2] = {request->n_rows, size > 0 ? request->n_cols / size : 0};
    const bool has_min = request->solver.form.has_min;
    PyArrayObject *codes = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_UINT8);
    PyArrayObject *scales = (PyArrayObject *)PyArray_SimpleNew(2, groups, NPY_HALF);
    PyArrayObject *last =
        (PyArrayObject *)PyArray_SimpleNew(2, groups, has_min ? NPY_HALF : NPY_UINT8);
    PyObject *result = codes && scales && last ? PyTuple_Pack(3, codes, scales, last) : NULL;
    if (result) {
        const lmd_solver_codes out = {PyArray_DATA(codes), PyArray_DATA(scales),
                                      has_min ? NULL : PyArray_DATA(last),
                                      has_min ? PyArray_DATA(last) : NULL};
        lmd_err err;
        working_thread thread = {progress, PyEval_SaveThread()};
        const lmd_solver_progress calls = {report, &thread};
        const lmd_status status = lmd_solve_matrix(request, threads, &calls, out, &err);
        PyEval_RestoreThread(thread.state);
        if (lmd_py_check(status, &err) < 0) Py_CLEAR(result);
    }
    Py_XDECREF(codes);
    Py_XDECREF(scales);
    Py_XDECREF(last);
    return result;
}

/* With the sums borrowed. */
static PyObject *solve_with(const solve_args *call, lmd_input_sums *sums,
                            lmd_threads *threads) {
    PyArrayObject *weight, *scales = NULL;
    PyObject *result = NULL;
    if (lmd_py_float_copy(call->weight, "weight", 2, &weight) < 0) return NULL;
    const npy_intp n_cols = PyArray_DIM(weight, 1);
    const bool has_scales = lmd_py_float_vector(call->scales, "scales", n_cols, &scales) == 0;
    if (has_scales) {
        const lmd_solve_request request = {
            .weights = PyArray_DATA(weight),
            .scales = scales ? PyArray_DATA(scales) : NULL,
            .n_rows = (int32_t)PyArray_DIM(weight, 0),
            .n_cols = (int32_t)n_cols,
            .sums = sums,
            .solver = {{call->bits, call->symmetric, call->minima}, call->search, call->rounds},
            .feedback = {call->group_size == -1 ? (int32_t)n_cols : call->group_size,
                         call->ordered, (float)call->shrink, (float)call->damp},
        };
        result = solve_into(&request, threads, call->progress);
    }
    Py_DECREF(weight);
    Py_XDECREF(scales);
    return result;
}

PyObject *lmd_py_solve(PyObject *self, lmd_threads *threads, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"solve", 2, 2, solve_fields};
    solve_args call = {.scales = Py_None,
                       .progress = Py_None,
                       .bits = 4,
                       .group_size = 128,
                       .rounds = 2,
                       .search = true,
                       .ordered = true,
                       .shrink = 0.25,
                       .damp = 0.01};
    PyObject *result = NULL, *values = lmd_py_read_call(&signature, args, kwargs, &call);
    if (!values) return NULL;
    lmd_input_sums *sums =
        lmd_py_input_sums_borrow(lmd_py_type_of(self, LMD_PY_INPUT_SUMS), call.sums, "sums");
    if (sums) {
        result = solve_with(&call, sums, threads);
        lmd_py_input_sums_give_back(call.sums);
    }
    Py_DECREF(values);
    return result;
}

/* ---- methods of sums and rows ---- */

typedef struct rows_args {
    PyObject *sums, *rows;
    double damp;
} rows_args;

/* What a method does with rows [n, columns of the sums], a copy that it may change. */
typedef PyObject *(*rows_method)(const rows_args *call, lmd_input_sums *sums,
                                 const lmd_compute *compute, PyArrayObject *rows);

/* With the sums borrowed. name: the rows' in messages. */
static PyObject *call_with_rows(const rows_args *call, lmd_input_sums *sums,
                                lmd_threads *threads, const char *name, rows_method method) {
    const lmd_cpu_kernels *kernels;
    lmd_err err;
    PyArrayObject *rows;
    PyObject *result = NULL;
    if (lmd_py_check(lmd_cpu_kernels_select(&kernels, &err), &err) < 0 ||
        lmd_py_float_copy(call->rows, name, 2, &rows) < 0)
        return NULL;
    const lmd_compute compute = {&kernels->matrix, threads};
    if (PyArray_DIM(rows, 1) == sums->n_cols)
        result = method(call, sums, &compute, rows);
    else
        PyErr_Format(PyExc_ValueError, "%s must have the %d columns of sums, not %zd", name,
                     (int)sums->n_cols, (Py_ssize_t)PyArray_DIM(rows, 1));
    Py_DECREF(rows);
    return result;
}

/* Reads a call whose second argument is the rows, and makes it. */
static PyObject *read_and_call(PyObject *self, lmd_threads *threads, PyObject *args,
                               PyObject *kwargs, const lmd_py_signature *signature,
                               rows_method method) {
    rows_args call = {.damp = 0.1};
    PyObject *result = NULL, *values = lmd_py_read_call(signature, args, kwargs, &call);
    if (!values) return NULL;
    lmd_input_sums *sums =
        lmd_py_input_sums_borrow(lmd_py_type_of(self, LMD_PY_INPUT_SUMS), call.sums, "sums");
    if (sums) {
        result = call_with_rows(&call, sums, threads, signature->fields[1].name, method);
        lmd_py_input_sums_give_back(call.sums);
    }
    Py_DECREF(values);
    return result;
}

static int check_gram(const lmd_input_sums *sums) {
    if (sums->gram) return 0;
    PyErr_SetString(PyExc_ValueError, "sums keep no gram");
    return -1;
}

static PyObject *errors_of(const rows_args *call, lmd_input_sums *sums,
                           const lmd_compute *compute, PyArrayObject *rows) {
    const npy_intp n = PyArray_DIM(rows, 0);
    (void)call;
    if (check_gram(sums) < 0) return NULL;
    PyArrayObject *result = (PyArrayObject *)PyArray_SimpleNew(1, &n, NPY_DOUBLE);
    if (!result) return NULL;
    double *out = PyArray_DATA(result);
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_input_sums_errors(sums, compute, PyArray_DATA(rows), (int32_t)n, out, &err);
    Py_END_ALLOW_THREADS
    if (lmd_py_check(status, &err) < 0) Py_CLEAR(result);
    return (PyObject *)result;
}

PyObject *lmd_py_output_errors(PyObject *self, lmd_threads *threads, PyObject *args,
                               PyObject *kwargs) {
    static const lmd_py_field fields[] = {
        {"sums", lmd_py_object, offsetof(rows_args, sums)},
        {"differences", lmd_py_object, offsetof(rows_args, rows)},
        {NULL, NULL, 0},
    };
    static const lmd_py_signature signature = {"output_errors", 2, 2, fields};
    return read_and_call(self, threads, args, kwargs, &signature, errors_of);
}

static PyObject *regress(const rows_args *call, lmd_input_sums *sums,
                         const lmd_compute *compute, PyArrayObject *rows) {
    const int32_t n = (int32_t)PyArray_DIM(rows, 0);
    lmd_err err;
    lmd_status status;
    if (check_gram(sums) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_input_sums_regress(sums, compute, PyArray_DATA(rows), n, call->damp, &err);
    Py_END_ALLOW_THREADS
    return lmd_py_check(status, &err) < 0 ? NULL : Py_NewRef(rows);
}

PyObject *lmd_py_regress(PyObject *self, lmd_threads *threads, PyObject *args,
                         PyObject *kwargs) {
    static const lmd_py_field fields[] = {
        {"sums", lmd_py_object, offsetof(rows_args, sums)},
        {"products", lmd_py_object, offsetof(rows_args, rows)},
        {"damp", lmd_py_double, offsetof(rows_args, damp)},
        {NULL, NULL, 0},
    };
    static const lmd_py_signature signature = {"regress", 2, 2, fields};
    return read_and_call(self, threads, args, kwargs, &signature, regress);
}

static PyObject *add_rows(const rows_args *call, lmd_input_sums *sums,
                          const lmd_compute *compute, PyArrayObject *rows) {
    const int32_t n = (int32_t)PyArray_DIM(rows, 0);
    lmd_err err;
    lmd_status status;
    (void)call;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_input_sums_add(sums, compute, PyArray_DATA(rows), NULL, NULL, n, &err);
    Py_END_ALLOW_THREADS
    return lmd_py_check(status, &err) < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *lmd_py_add_inputs(PyObject *self, lmd_threads *threads, PyObject *args,
                            PyObject *kwargs) {
    static const lmd_py_field fields[] = {
        {"sums", lmd_py_object, offsetof(rows_args, sums)},
        {"rows", lmd_py_object, offsetof(rows_args, rows)},
        {NULL, NULL, 0},
    };
    static const lmd_py_signature signature = {"add_inputs", 2, 2, fields};
    return read_and_call(self, threads, args, kwargs, &signature, add_rows);
}
