/* The InputSums type: see py_input_sums.h. */
#include "python/py_input_sums.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_fields.h"

typedef struct sums_object {
    PyObject_HEAD
    lmd_input_sums *sums;
    bool is_borrowed;
    pid_t pid;
} sums_object;

lmd_input_sums *lmd_py_input_sums_borrow(PyTypeObject *type, PyObject *obj, const char *name) {
    if (!PyObject_TypeCheck(obj, type)) {
        lmd_py_wrong_type(obj, name, "an InputSums");
        return NULL;
    }
    sums_object *self = (sums_object *)obj;
    if (lmd_py_check_fork(self->pid) < 0) return NULL;
    if (self->is_borrowed) {
        PyErr_Format(PyExc_RuntimeError, "%s is in use already", name);
        return NULL;
    }
    self->is_borrowed = true;
    return self->sums;
}

void lmd_py_input_sums_give_back(PyObject *obj) { ((sums_object *)obj)->is_borrowed = false; }

/* ---- reading ---- */

static PyObject *new_array(int n_dims, const npy_intp *dims, int type, const void *values) {
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(n_dims, dims, type);
    if (array) memcpy(PyArray_DATA(array), values, (size_t)PyArray_NBYTES(array));
    return (PyObject *)array;
}

/* A vector of the columns' numbers. */
static PyObject *columns(PyObject *obj, int type, const void *values) {
    sums_object *self = (sums_object *)obj;
    if (!lmd_py_input_sums_borrow(Py_TYPE(obj), obj, "the object")) return NULL;
    const npy_intp n = self->sums->n_cols;
    PyObject *array = new_array(1, &n, type, values);
    lmd_py_input_sums_give_back(obj);
    return array;
}

static PyObject *sums_squares(PyObject *obj, PyObject *unused) {
    (void)unused;
    return columns(obj, NPY_DOUBLE, ((sums_object *)obj)->sums->squares);
}

static PyObject *sums_absolute(PyObject *obj, PyObject *unused) {
    (void)unused;
    return columns(obj, NPY_DOUBLE, ((sums_object *)obj)->sums->absolute);
}

static PyObject *sums_least(PyObject *obj, PyObject *unused) {
    (void)unused;
    return columns(obj, NPY_FLOAT, ((sums_object *)obj)->sums->least);
}

static PyObject *sums_most(PyObject *obj, PyObject *unused) {
    (void)unused;
    return columns(obj, NPY_FLOAT, ((sums_object *)obj)->sums->most);
}

static PyObject *sums_largest(PyObject *obj, PyObject *unused) {
    (void)unused;
    const lmd_input_sums *sums = lmd_py_input_sums_borrow(Py_TYPE(obj), obj, "the object");
    if (!sums) return NULL;
    const npy_intp n = sums->n_cols;
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(1, &n, NPY_FLOAT);
    float *largest = array ? PyArray_DATA(array) : NULL;
    for (npy_intp i = 0; array && i < n; i++)
        largest[i] = fmaxf(0.0f, fmaxf(-sums->least[i], sums->most[i]));
    lmd_py_input_sums_give_back(obj);
    return (PyObject *)array;
}

static PyObject *sums_gram(PyObject *obj, PyObject *unused) {
    (void)unused;
    lmd_input_sums *sums = lmd_py_input_sums_borrow(Py_TYPE(obj), obj, "the object");
    if (!sums) return NULL;
    const npy_intp dims[2] = {sums->n_cols, sums->n_cols};
    const float *gram = lmd_input_sums_gram(sums);
    PyObject *result = gram ? new_array(2, dims, NPY_FLOAT, gram) : Py_NewRef(Py_None);
    lmd_py_input_sums_give_back(obj);
    return result;
}

static PyObject *sums_wanted(PyObject *obj, PyObject *unused) {
    (void)unused;
    lmd_input_sums *sums = lmd_py_input_sums_borrow(Py_TYPE(obj), obj, "the object");
    if (!sums) return NULL;
    const npy_intp dims[2] = {sums->n_wanted, sums->n_cols};
    PyObject *result =
        sums->wanted ? new_array(2, dims, NPY_FLOAT, sums->wanted) : Py_NewRef(Py_None);
    lmd_py_input_sums_give_back(obj);
    return result;
}

typedef struct shrink_args {
    PyObject *other;
} shrink_args;

static const lmd_py_field shrink_fields[] = {
    {"other", lmd_py_object, offsetof(shrink_args, other)},
    {NULL, NULL, 0},
};

static PyObject *shrink(const lmd_input_sums *sums, const lmd_input_sums *other) {
    if (!sums->gram || !other->gram || sums->n_cols != other->n_cols) {
        PyErr_SetString(PyExc_ValueError, "both must keep grams of as many columns");
        return NULL;
    }
    double result;
    Py_BEGIN_ALLOW_THREADS
    result = lmd_input_sums_shrink(sums, other);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(result);
}

static PyObject *sums_shrink(PyObject *obj, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"shrink", 1, 1, shrink_fields};
    shrink_args call;
    PyObject *result = NULL, *values = lmd_py_read_call(&signature, args, kwargs, &call);
    if (!values) return NULL;
    lmd_input_sums *sums = lmd_py_input_sums_borrow(Py_TYPE(obj), obj, "the object");
    lmd_input_sums *other =
        sums ? lmd_py_input_sums_borrow(Py_TYPE(obj), call.other, "other") : NULL;
    if (other) {
        result = shrink(sums, other);
        lmd_py_input_sums_give_back(call.other);
    }
    if (sums) lmd_py_input_sums_give_back(obj);
    Py_DECREF(values);
    return result;
}

/* ---- another order of columns ---- */

typedef struct order_args {
    PyObject *order;
} order_args;

static const lmd_py_field order_fields[] = {
    {"order", lmd_py_object, offsetof(order_args, order)},
    {NULL, NULL, 0},
};

/* An object that owns the sums, or NULL; then they are freed. */
static PyObject *object_of(PyTypeObject *type, lmd_input_sums *sums) {
    sums_object *self = (sums_object *)type->tp_alloc(type, 0);
    if (!self) {
        lmd_input_sums_free(sums);
        return NULL;
    }
    self->sums = sums;
    self->pid = getpid();
    return (PyObject *)self;
}

static PyObject *in_order(PyObject *obj, PyArrayObject *order) {
    lmd_input_sums *made = NULL;
    lmd_err err;
    lmd_status status = LMD_OK;
    lmd_input_sums *sums = lmd_py_input_sums_borrow(Py_TYPE(obj), obj, "the object");
    if (!sums) return NULL;
    const npy_intp n = PyArray_DIM(order, 0);
    if (n != sums->n_cols) {
        PyErr_Format(PyExc_ValueError, "order has %zd items; there are %d columns",
                     (Py_ssize_t)n, sums->n_cols);
    } else {
        Py_BEGIN_ALLOW_THREADS
        status = lmd_input_sums_in_order(sums, PyArray_DATA(order), &made, &err);
        Py_END_ALLOW_THREADS
        if (lmd_py_check(status, &err) < 0) made = NULL;
    }
    lmd_py_input_sums_give_back(obj);
    return made ? object_of(Py_TYPE(obj), made) : NULL;
}

static PyObject *sums_in_order(PyObject *obj, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"in_order", 1, 1, order_fields};
    order_args call;
    PyArrayObject *order;
    PyObject *result = NULL, *values = lmd_py_read_call(&signature, args, kwargs, &call);
    if (!values) return NULL;
    if (lmd_py_int32_array(call.order, "order", &order) == 0) {
        result = in_order(obj, order);
        Py_DECREF(order);
    }
    Py_DECREF(values);
    return result;
}

/* ---- the type ---- */

typedef struct new_args {
    int32_t n_cols, n_wanted;
    bool gram;
} new_args;

static const lmd_py_field new_fields[] = {
    {"n_cols", lmd_py_int32, offsetof(new_args, n_cols)},
    {"gram", lmd_py_flag, offsetof(new_args, gram)},
    {"n_wanted", lmd_py_int32, offsetof(new_args, n_wanted)},
    {NULL, NULL, 0},
};

static PyObject *sums_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"InputSums", 1, 1, new_fields};
    new_args call = {.gram = true};
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    if (!values) return NULL;
    Py_DECREF(values);
    lmd_input_sums *sums;
    lmd_err err;
    const lmd_status status =
        lmd_input_sums_new(call.n_cols, call.gram, call.n_wanted, &sums, &err);
    return lmd_py_check(status, &err) < 0 ? NULL : object_of(type, sums);
}

static void sums_dealloc(PyObject *obj) {
    PyTypeObject *type = Py_TYPE(obj);
    lmd_input_sums_free(((sums_object *)obj)->sums);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyObject *get_n_cols(PyObject *obj, void *closure) {
    (void)closure;
    return PyLong_FromLong(((sums_object *)obj)->sums->n_cols);
}

static PyObject *get_n_tokens(PyObject *obj, void *closure) {
    (void)closure;
    return PyLong_FromLongLong(((sums_object *)obj)->sums->n_tokens);
}

static PyObject *get_first_token_mass(PyObject *obj, void *closure) {
    (void)closure;
    const lmd_input_sums *sums = ((sums_object *)obj)->sums;
    return PyFloat_FromDouble(sums->total > 0.0 ? sums->first / sums->total : 0.0);
}

static PyGetSetDef sums_getset[] = {
    {"n_cols", get_n_cols, NULL, "Columns of the input.", NULL},
    {"n_tokens", get_n_tokens, NULL, "Tokens that were added.", NULL},
    {"first_token_mass", get_first_token_mass, NULL,
     "The part of the sum of squares that texts' first tokens carry.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef sums_methods[] = {
    {"squares", sums_squares, METH_NOARGS, "squares() -> array\n\nOf the weighted rows."},
    {"absolute", sums_absolute, METH_NOARGS, "absolute() -> array\n\nOf |x|, not weighted."},
    {"least", sums_least, METH_NOARGS, "least() -> array\n\nThe smallest x."},
    {"most", sums_most, METH_NOARGS, "most() -> array\n\nThe largest x."},
    {"largest", sums_largest, METH_NOARGS, "largest() -> array\n\nThe largest |x|."},
    {"gram", sums_gram, METH_NOARGS,
     "gram() -> array or None\n\nThe sum of x^T x over the weighted rows."},
    {"wanted", sums_wanted, METH_NOARGS,
     "wanted() -> array or None\n\nThe sum of y^T x over the weighted rows."},
    {"shrink", (PyCFunction)(void (*)(void))sums_shrink, METH_VARARGS | METH_KEYWORDS,
     "shrink(other) -> float\n\nHow much of the gram's off-diagonal is chance, by another "
     "text's."},
    {"in_order", (PyCFunction)(void (*)(void))sums_in_order, METH_VARARGS | METH_KEYWORDS,
     "in_order(order) -> InputSums\n\nThe sums with the columns in another order."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot sums_slots[] = {
    {Py_tp_new, sums_new},
    {Py_tp_dealloc, sums_dealloc},
    {Py_tp_methods, sums_methods},
    {Py_tp_getset, sums_getset},
    {Py_tp_doc,
     "InputSums(n_cols, gram=True, n_wanted=0)\n\nWhat a linear reads, summed over tokens."},
    {0, NULL},
};

static PyType_Spec sums_spec = {
    .name = "lmdeploy_c._C.InputSums",
    .basicsize = sizeof(sums_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = sums_slots,
};

int lmd_py_input_sums_init(PyObject *module) {
    return lmd_py_add_type(module, LMD_PY_INPUT_SUMS, &sums_spec);
}
