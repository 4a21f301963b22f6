/* The Quantizer type: see py_quantizer.h. */
#include "python/py_quantizer.h"

#include <unistd.h>

#include "base/threads.h"
#include "lite/quantize_matrix.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_solve.h"

typedef struct quantizer_object {
    PyObject_HEAD
    lmd_threads *threads;
    pid_t pid;
} quantizer_object;

/* ---- quantize ---- */

typedef struct quantize_args {
    PyObject *weight, *importance;
    int32_t bits, group_size;
    bool symmetric, search;
} quantize_args;

static const lmd_py_field quantize_fields[] = {
    {"weight", lmd_py_object, offsetof(quantize_args, weight)},
    {"bits", lmd_py_int32, offsetof(quantize_args, bits)},
    {"group_size", lmd_py_int32, offsetof(quantize_args, group_size)},
    {"symmetric", lmd_py_flag, offsetof(quantize_args, symmetric)},
    {"search", lmd_py_flag, offsetof(quantize_args, search)},
    {"importance", lmd_py_object, offsetof(quantize_args, importance)},
    {NULL, NULL, 0},
};

/* (codes, scales, zeros) of a matrix, filled in without the GIL. */
static PyObject *quantize_job(quantizer_object *self, const lmd_matrix_job *job) {
    const npy_intp shape[2] = {job->n_rows, job->n_cols};
    const npy_intp groups[2] = {job->n_rows,
                                job->group_size > 0 ? job->n_cols / job->group_size : 0};
    PyArrayObject *codes = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_UINT8);
    PyArrayObject *scales = (PyArrayObject *)PyArray_SimpleNew(2, groups, NPY_HALF);
    PyArrayObject *zeros = (PyArrayObject *)PyArray_SimpleNew(2, groups, NPY_UINT8);
    PyObject *result = codes && scales && zeros ? PyTuple_Pack(3, codes, scales, zeros) : NULL;
    if (result) {
        const lmd_matrix_codes out = {PyArray_DATA(codes), PyArray_DATA(scales),
                                      PyArray_DATA(zeros)};
        lmd_err err;
        lmd_status status;
        Py_BEGIN_ALLOW_THREADS
        status = lmd_quantize_matrix(job, self->threads, out, &err);
        Py_END_ALLOW_THREADS
        if (lmd_py_check(status, &err) < 0) Py_CLEAR(result);
    }
    Py_XDECREF(codes);
    Py_XDECREF(scales);
    Py_XDECREF(zeros);
    return result;
}

static PyObject *quantize(quantizer_object *self, const quantize_args *call) {
    PyArrayObject *weight;
    if (lmd_py_float_copy(call->weight, "weight", 2, &weight) < 0) return NULL;
    lmd_matrix_job job = {
        .weights = PyArray_DATA(weight),
        .n_rows = (int32_t)PyArray_DIM(weight, 0),
        .n_cols = (int32_t)PyArray_DIM(weight, 1),
        .group_size = call->group_size,
        .form = {.bits = call->bits, .is_symmetric = call->symmetric},
        .search = call->search,
    };
    if (call->group_size == -1) job.group_size = job.n_cols;
    PyArrayObject *importance;
    PyObject *result = NULL;
    if (lmd_py_float_vector(call->importance, "importance", job.n_cols, &importance) == 0) {
        job.importance = importance ? PyArray_DATA(importance) : NULL;
        result = quantize_job(self, &job);
    }
    Py_DECREF(weight);
    Py_XDECREF(importance);
    return result;
}

static PyObject *quantizer_quantize(PyObject *obj, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"quantize", 1, 1, quantize_fields};
    quantizer_object *self = (quantizer_object *)obj;
    quantize_args call = {.importance = Py_None, .bits = 4, .group_size = 128, .search = true};
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    PyObject *result = values ? quantize(self, &call) : NULL;
    Py_XDECREF(values);
    return result;
}

/* ---- by what a linear reads ---- */

typedef PyObject *(*method)(PyObject *self, lmd_threads *threads, PyObject *args,
                            PyObject *kwargs);

static PyObject *call_method(PyObject *obj, method call, PyObject *args, PyObject *kwargs) {
    quantizer_object *self = (quantizer_object *)obj;
    return lmd_py_check_fork(self->pid) < 0 ? NULL : call(obj, self->threads, args, kwargs);
}

static PyObject *quantizer_solve(PyObject *obj, PyObject *args, PyObject *kwargs) {
    return call_method(obj, lmd_py_solve, args, kwargs);
}

static PyObject *quantizer_add_inputs(PyObject *obj, PyObject *args, PyObject *kwargs) {
    return call_method(obj, lmd_py_add_inputs, args, kwargs);
}

static PyObject *quantizer_output_errors(PyObject *obj, PyObject *args, PyObject *kwargs) {
    return call_method(obj, lmd_py_output_errors, args, kwargs);
}

static PyObject *quantizer_regress(PyObject *obj, PyObject *args, PyObject *kwargs) {
    return call_method(obj, lmd_py_regress, args, kwargs);
}

static PyObject *quantizer_run_layer(PyObject *obj, PyObject *args, PyObject *kwargs) {
    return call_method(obj, lmd_py_run_layer, args, kwargs);
}

static PyObject *quantizer_run_pair(PyObject *obj, PyObject *args, PyObject *kwargs) {
    return call_method(obj, lmd_py_run_pair, args, kwargs);
}

/* ---- the type ---- */

typedef struct new_args {
    int32_t n_threads;
} new_args;

/* None: as many threads as are usable. */
static int thread_count(PyObject *value, const char *name, void *out) {
    return value == Py_None ? 0 : lmd_py_int32(value, name, out);
}

static const lmd_py_field new_fields[] = {
    {"num_threads", thread_count, offsetof(new_args, n_threads)},
    {NULL, NULL, 0},
};

static PyObject *quantizer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"Quantizer", 1, 0, new_fields};
    new_args call = {0};
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    if (!values) return NULL;
    Py_DECREF(values);
    if (call.n_threads < 0) {
        PyErr_Format(PyExc_ValueError, "num_threads must be 1 to %d, not %d", LMD_MAX_THREADS,
                     call.n_threads);
        return NULL;
    }
    quantizer_object *self = (quantizer_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    lmd_err err;
    self->pid = getpid();
    if (lmd_py_check(lmd_threads_new(call.n_threads, &self->threads, &err), &err) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void quantizer_dealloc(PyObject *obj) {
    PyTypeObject *type = Py_TYPE(obj);
    lmd_threads_free(((quantizer_object *)obj)->threads);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* A method with keywords, as a method table wants it. */
#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

static PyMethodDef quantizer_methods[] = {
    {"quantize", KEYWORDS(quantizer_quantize),
     "quantize(weight, *, bits=4, group_size=128, symmetric=False, search=True, "
     "importance=None) -> (codes, scales, zeros)\n\nA matrix to codes without calibration."},
    {"solve", KEYWORDS(quantizer_solve),
     "solve(weight, sums, *, bits=4, group_size=128, ...) -> (codes, scales, zeros or minima)"
     "\n\nA matrix to codes that change its linear's outputs little."},
    {"add_inputs", KEYWORDS(quantizer_add_inputs),
     "add_inputs(sums, rows) -> None\n\nAdds rows that a linear reads to sums."},
    {"output_errors", KEYWORDS(quantizer_output_errors),
     "output_errors(sums, differences) -> array\n\nWhat differences of a weight's rows change "
     "in the outputs."},
    {"regress", KEYWORDS(quantizer_regress),
     "regress(sums, products, *, damp=0.1) -> array\n\nThe weight that makes outputs of "
     "inputs, "
     "by their products."},
    {"run_layer", KEYWORDS(quantizer_run_layer),
     "run_layer(model, hidden, lengths, sums=None, from_middle=False) -> array\n\nHidden "
     "states after a model's "
     "layer, "
     "whose inputs go into sums."},
    {"run_pair", KEYWORDS(quantizer_run_pair),
     "run_pair(original, drifted, hidden, drifted_hidden, lengths, input, sums) -> two "
     "arrays\n\n"
     "What a linear of a drifted model reads, and what is wanted of it, go into sums."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot quantizer_slots[] = {
    {Py_tp_new, quantizer_new},
    {Py_tp_dealloc, quantizer_dealloc},
    {Py_tp_methods, quantizer_methods},
    {Py_tp_doc, "Quantizer(num_threads=None)\n\nTurns matrices into codes."},
    {0, NULL},
};

static PyType_Spec quantizer_spec = {
    .name = "lmdeploy_c._C.Quantizer",
    .basicsize = sizeof(quantizer_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = quantizer_slots,
};

int lmd_py_quantizer_init(PyObject *module) {
    return lmd_py_add_type(module, LMD_PY_QUANTIZER, &quantizer_spec);
}
