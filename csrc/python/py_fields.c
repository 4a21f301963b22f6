/* Fields: see py_fields.h. */
#include "python/py_fields.h"

#include <stdbool.h>
#include <string.h>

/* ---- a call ---- */

static int32_t count_fields(const lmd_py_field *fields) {
    int32_t n = 0;
    while (fields[n].name) n++;
    return n;
}

/* The index of the field with that name, or -1. */
static int32_t find_field(const lmd_py_field *fields, PyObject *name) {
    for (int32_t i = 0; fields[i].name; i++)
        if (PyUnicode_CompareWithASCIIString(name, fields[i].name) == 0) return i;
    return -1;
}

/* Puts the values given without names into the first places of a new tuple. */
static int take_positional(const lmd_py_signature *signature, PyObject *args,
                           PyObject *values) {
    const Py_ssize_t n = PyTuple_GET_SIZE(args);
    if (n > signature->n_positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes %d positional arguments at most, not %zd",
                     signature->function, signature->n_positional, n);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        PyTuple_SET_ITEM(values, i, Py_NewRef(PyTuple_GET_ITEM(args, i)));
    return 0;
}

/* Puts the values given by name into the tuple, each at its field's index. Runs no code of
 * theirs: the dict may be the caller's own. */
static int take_keywords(const lmd_py_signature *signature, PyObject *kwargs,
                         PyObject *values) {
    Py_ssize_t at = 0;
    PyObject *name, *value;
    while (kwargs && PyDict_Next(kwargs, &at, &name, &value)) {
        const int32_t i = PyUnicode_Check(name) ? find_field(signature->fields, name) : -1;
        if (i < 0) {
            PyErr_Format(PyExc_TypeError, "%s() has no argument %R", signature->function, name);
            return -1;
        }
        if (PyTuple_GET_ITEM(values, i)) {
            PyErr_Format(PyExc_TypeError, "%s() got its argument '%s' twice",
                         signature->function, signature->fields[i].name);
            return -1;
        }
        PyTuple_SET_ITEM(values, i, Py_NewRef(value));
    }
    return 0;
}

/* Checks that nothing is missing, and converts what is there. */
static int convert(const lmd_py_signature *signature, PyObject *values, void *out) {
    const lmd_py_field *fields = signature->fields;
    for (int32_t i = 0; i < signature->n_required; i++)
        if (!PyTuple_GET_ITEM(values, i)) {
            PyErr_Format(PyExc_TypeError, "%s() needs its argument '%s'", signature->function,
                         fields[i].name);
            return -1;
        }
    for (int32_t i = 0; fields[i].name; i++) {
        PyObject *value = PyTuple_GET_ITEM(values, i);
        if (value && fields[i].kind(value, fields[i].name, (char *)out + fields[i].offset) < 0)
            return -1;
    }
    return 0;
}

PyObject *lmd_py_read_call(const lmd_py_signature *signature, PyObject *args, PyObject *kwargs,
                           void *out) {
    PyObject *values = PyTuple_New(count_fields(signature->fields));
    if (!values) return NULL;
    PyObject_GC_UnTrack(values); /* nobody else sees its empty places */
    if (take_positional(signature, args, values) < 0 ||
        take_keywords(signature, kwargs, values) < 0 || convert(signature, values, out) < 0)
        Py_CLEAR(values);
    return values;
}

/* ---- a dict ---- */

/* The value of a key, a new reference. NULL with KeyError. */
static PyObject *find_key(PyObject *dict, const char *name, const char *what) {
    PyObject *key = PyUnicode_FromString(name);
    PyObject *value = key ? Py_XNewRef(PyDict_GetItemWithError(dict, key)) : NULL;
    Py_XDECREF(key);
    if (!value && !PyErr_Occurred())
        PyErr_Format(PyExc_KeyError, "%s has no key \"%s\"", what, name);
    return value;
}

static int read_key(const lmd_py_field *field, const char *what, PyObject *dict, void *out) {
    char name[128];
    PyObject *value = find_key(dict, field->name, what);
    if (!value) return -1;
    PyOS_snprintf(name, sizeof name, "%s: %s", what, field->name);
    const int code = field->kind(value, name, (char *)out + field->offset);
    Py_DECREF(value);
    return code;
}

int lmd_py_read_dict(const lmd_py_field *fields, const char *what, PyObject *dict, void *out) {
    for (const lmd_py_field *field = fields; field->name; field++)
        if (read_key(field, what, dict, out) < 0) return -1;
    return 0;
}

/* ---- kinds ---- */

int lmd_py_wrong_type(PyObject *value, const char *name, const char *wanted) {
    if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_TypeError) ||
        PyErr_ExceptionMatches(PyExc_AttributeError))
        PyErr_Format(PyExc_TypeError, "%s must be %s, not %.100s", name, wanted,
                     Py_TYPE(value)->tp_name);
    return -1;
}

PyObject *lmd_py_tuple_of(PyObject *value, const char *name, const char *wanted) {
    PyObject *items = PySequence_Tuple(value);
    if (!items) lmd_py_wrong_type(value, name, wanted);
    return items;
}

int lmd_py_bool(PyObject *value, const char *name, void *out) {
    (void)name;
    const int truth = PyObject_IsTrue(value);
    if (truth < 0) return -1;
    *(bool *)out = truth;
    return 0;
}

int lmd_py_flag(PyObject *value, const char *name, void *out) {
    if (!PyBool_Check(value)) return lmd_py_wrong_type(value, name, "a bool");
    *(bool *)out = value == Py_True;
    return 0;
}

/* An integer of `n_bits` bits, or of an object that stands for one (__index__). */
static int read_integer(PyObject *value, const char *name, int n_bits, int64_t *out) {
    if (!PyIndex_Check(value)) {
        char wanted[32];
        PyOS_snprintf(wanted, sizeof wanted, "a %d-bit integer", n_bits);
        return lmd_py_wrong_type(value, name, wanted);
    }
    PyObject *number = PyNumber_Index(value);
    if (!number) return -1;
    int overflow;
    const int64_t result = PyLong_AsLongLongAndOverflow(number, &overflow);
    Py_DECREF(number);
    if (overflow || (n_bits == 32 && (result < INT32_MIN || result > INT32_MAX))) {
        PyErr_Format(PyExc_ValueError, "%s does not fit %d bits", name, n_bits);
        return -1;
    }
    *out = result;
    return 0;
}

int lmd_py_int32(PyObject *value, const char *name, void *out) {
    int64_t number;
    if (read_integer(value, name, 32, &number) < 0) return -1;
    *(int32_t *)out = (int32_t)number;
    return 0;
}

int lmd_py_int64(PyObject *value, const char *name, void *out) {
    return read_integer(value, name, 64, out);
}

int lmd_py_size(PyObject *value, const char *name, void *out) {
    int64_t number;
    if (read_integer(value, name, 64, &number) < 0) return -1;
    if (number < 0) {
        PyErr_Format(PyExc_ValueError, "%s must not be negative, but is %lld", name,
                     (long long)number);
        return -1;
    }
    *(int64_t *)out = number;
    return 0;
}

int lmd_py_double(PyObject *value, const char *name, void *out) {
    const double number = PyFloat_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return lmd_py_wrong_type(value, name, "a number");
        PyErr_Format(PyExc_ValueError, "%s does not fit a double", name);
        return -1;
    }
    *(double *)out = number;
    return 0;
}

int lmd_py_text(PyObject *value, const char *name, void *out) {
    if (!PyUnicode_Check(value)) return lmd_py_wrong_type(value, name, "a str");
    Py_ssize_t n;
    const char *text = PyUnicode_AsUTF8AndSize(value, &n);
    if (!text) return -1;
    if (strlen(text) != (size_t)n) {
        PyErr_Format(PyExc_ValueError, "%s must not hold a NUL", name);
        return -1;
    }
    *(const char **)out = text;
    return 0;
}

int lmd_py_object(PyObject *value, const char *name, void *out) {
    (void)name;
    *(PyObject **)out = value;
    return 0;
}
