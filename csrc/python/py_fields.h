/* Fields: the arguments of a call, or the keys of a dict, into a C struct by a table.
 * Each row of a table names an argument, the member of the struct that it fills, and its kind:
 * the function that converts it. Values are only converted here: their ranges are the core's to
 * check. With the GIL. */
#ifndef LMD_PYTHON_PY_FIELDS_H
#define LMD_PYTHON_PY_FIELDS_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include <stddef.h>
#include <stdint.h>

/* Converts a value into the member at `out`. -1 with an exception that names the field. */
typedef int (*lmd_py_kind)(PyObject *value, const char *name, void *out);

typedef struct lmd_py_field {
    const char *name; /* NULL ends a table */
    lmd_py_kind kind;
    size_t offset; /* of the member in the struct */
} lmd_py_field;

typedef struct lmd_py_signature {
    const char *function; /* as messages name it */
    int32_t n_positional; /* so many of the first fields may be given without their names */
    int32_t n_required;   /* so many of the first fields must be given */
    const lmd_py_field *fields;
} lmd_py_signature;

/* Fills a struct from a call's arguments, in the order of the table. The members of fields that
 * the call leaves out are not touched: what they hold is the default. Returns a new tuple,
 * which holds the values: members that point into them are valid as long as it lives, even if
 * a value runs code, or other code changes the dict `kwargs`. NULL with TypeError (an unknown,
 * missing or doubled argument, too many of them, a wrong type) or with what a kind raises; some
 * members are filled then, with what may be gone. */
PyObject *lmd_py_read_call(const lmd_py_signature *signature, PyObject *args, PyObject *kwargs,
                           void *out);

/* Fills a struct from a dict that has a key for every field, and may have others. `what` names
 * the dict in messages. -1 with KeyError for a missing key, or with what a kind raises. No
 * other thread may change the dict meanwhile. */
int lmd_py_read_dict(const lmd_py_field *fields, const char *what, PyObject *dict, void *out);

/* ---- kinds: the type of the member, and what is converted ----
 * A value of another type is a TypeError, a number that the member cannot hold a ValueError. */

int lmd_py_bool(PyObject *value, const char *name, void *out);   /* bool: any object's truth */
int lmd_py_flag(PyObject *value, const char *name, void *out);   /* bool: True or False alone */
int lmd_py_int32(PyObject *value, const char *name, void *out);  /* int32_t: an integer */
int lmd_py_int64(PyObject *value, const char *name, void *out);  /* int64_t: an integer */
int lmd_py_double(PyObject *value, const char *name, void *out); /* double: a real number */
/* int64_t: an integer from 0 on. */
int lmd_py_size(PyObject *value, const char *name, void *out);
/* const char *: a str without NUL, as long as the value lives. */
int lmd_py_text(PyObject *value, const char *name, void *out);
/* PyObject *: any object, borrowed. */
int lmd_py_object(PyObject *value, const char *name, void *out);

/* ---- for other kinds ---- */

/* Sets TypeError "<name> must be <wanted>, not <type>", in place of a pending TypeError or
 * AttributeError; any other pending exception stays. Returns -1. */
int lmd_py_wrong_type(PyObject *value, const char *name, const char *wanted);
/* A new tuple of an iterable's items; NULL with an exception: lmd_py_wrong_type's. */
PyObject *lmd_py_tuple_of(PyObject *value, const char *name, const char *wanted);

#endif
