/* The Gguf type: metadata as Python values, tensors by name. Immutable once constructed, so
 * that its methods need no lock. */
#include "python/py_gguf.h"

#include <string.h>

#include "python/py_array.h"
#include "python/py_error.h"
#include "quant/weight_codec.h"

typedef struct gguf_object {
    PyObject_HEAD
    lmd_gguf *gguf;
    PyObject *path;     /* str */
    PyObject *metadata; /* dict */
} gguf_object;

const lmd_gguf *lmd_py_gguf_get(PyObject *obj) { return ((gguf_object *)obj)->gguf; }

/* ---- metadata ---- */

static PyObject *string_object(lmd_gguf_string string) {
    /* A vocabulary may hold bytes that are no UTF-8; they must not stop the file from opening.
     */
    return PyUnicode_DecodeUTF8(string.data, (Py_ssize_t)string.len, "surrogateescape");
}

static PyObject *string_list(const lmd_gguf_value *value) {
    PyObject *list = PyList_New((Py_ssize_t)value->n_items);
    const uint8_t *at = value->data;
    for (uint64_t i = 0; list && i < value->n_items; i++) {
        PyObject *item = string_object(lmd_gguf_next_string(&at));
        if (item)
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *number_array(const lmd_gguf_value *value) {
    static const int types[LMD_GGUF_TYPE_COUNT] = {
        [LMD_GGUF_U8] = NPY_UINT8,  [LMD_GGUF_I8] = NPY_INT8,    [LMD_GGUF_U16] = NPY_UINT16,
        [LMD_GGUF_I16] = NPY_INT16, [LMD_GGUF_U32] = NPY_UINT32, [LMD_GGUF_I32] = NPY_INT32,
        [LMD_GGUF_F32] = NPY_FLOAT, [LMD_GGUF_BOOL] = NPY_BOOL,  [LMD_GGUF_U64] = NPY_UINT64,
        [LMD_GGUF_I64] = NPY_INT64, [LMD_GGUF_F64] = NPY_DOUBLE,
    };
    npy_intp n = (npy_intp)value->n_items;
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(1, &n, types[value->item_type]);
    if (array && n) memcpy(PyArray_DATA(array), value->data, value->n_bytes);
    return (PyObject *)array;
}

static PyObject *value_object(const lmd_gguf_value *value) {
    lmd_gguf_string string;
    uint64_t natural;
    int64_t integer;
    double real;
    bool truth;
    if (value->type == LMD_GGUF_ARRAY)
        return value->item_type == LMD_GGUF_STRING ? string_list(value) : number_array(value);
    if (lmd_gguf_value_string(value, &string)) return string_object(string);
    if (lmd_gguf_value_bool(value, &truth)) return PyBool_FromLong(truth);
    if (lmd_gguf_value_float(value, &real)) return PyFloat_FromDouble(real);
    if (lmd_gguf_value_uint(value, &natural)) return PyLong_FromUnsignedLongLong(natural);
    if (lmd_gguf_value_int(value, &integer)) return PyLong_FromLongLong(integer);
    Py_RETURN_NONE;
}

static PyObject *make_metadata(const lmd_gguf *gguf) {
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < lmd_gguf_n_pairs(gguf); i++) {
        const lmd_gguf_pair *pair = lmd_gguf_pair_at(gguf, i);
        PyObject *key = string_object(pair->key), *value = value_object(&pair->value);
        if (!key || !value || PyDict_SetItem(dict, key, value) < 0) Py_CLEAR(dict);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *get_metadata(PyObject *obj, void *unused) {
    (void)unused;
    return PyDict_Copy(((gguf_object *)obj)->metadata);
}

/* ---- tensors ---- */

static PyObject *shape_tuple(const lmd_tensor_view *view) {
    PyObject *shape = PyTuple_New(view->n_dims);
    for (int32_t i = 0; shape && i < view->n_dims; i++) {
        PyObject *dim = PyLong_FromLongLong(view->dims[i]);
        if (dim)
            PyTuple_SET_ITEM(shape, i, dim);
        else
            Py_CLEAR(shape);
    }
    return shape;
}

static PyObject *get_tensors(PyObject *obj, void *unused) {
    (void)unused;
    const lmd_checkpoint *checkpoint = lmd_gguf_checkpoint(((gguf_object *)obj)->gguf);
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < lmd_checkpoint_n_tensors(checkpoint); i++) {
        const lmd_tensor_view *view = lmd_checkpoint_tensor(checkpoint, i);
        PyObject *name = string_object((lmd_gguf_string){view->name, strlen(view->name)});
        PyObject *item = Py_BuildValue("sN", lmd_dtype_name(view->dtype), shape_tuple(view));
        if (!name || !item || PyDict_SetItem(dict, name, item) < 0) Py_CLEAR(dict);
        Py_XDECREF(name);
        Py_XDECREF(item);
    }
    return dict;
}

/* The view of a name as `tensors` spells it, or NULL with an exception. */
static const lmd_tensor_view *find_tensor(const lmd_checkpoint *checkpoint, PyObject *name) {
    PyObject *bytes = PyUnicode_AsEncodedString(name, "utf-8", "surrogateescape");
    if (!bytes) return NULL;
    const char *text = PyBytes_AS_STRING(bytes);
    const lmd_tensor_view *view = NULL;
    if (strlen(text) == (size_t)PyBytes_GET_SIZE(bytes))
        view = lmd_checkpoint_find(checkpoint, text);
    Py_DECREF(bytes);
    if (!view) PyErr_Format(PyExc_KeyError, "the file has no tensor %R", name);
    return view;
}

static PyObject *dequantize(PyObject *obj, PyObject *arg) {
    const lmd_checkpoint *checkpoint = lmd_gguf_checkpoint(((gguf_object *)obj)->gguf);
    const lmd_tensor_view *view = find_tensor(checkpoint, arg);
    if (!view) return NULL;
    npy_intp dims[LMD_MAX_DIMS];
    for (int32_t i = 0; i < view->n_dims; i++) dims[i] = (npy_intp)view->dims[i];
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(view->n_dims, dims, NPY_FLOAT);
    if (!array) return NULL;
    float *out = PyArray_DATA(array);
    int64_t n_cols = view->dims[view->n_dims - 1], n_rows = PyArray_SIZE(array) / n_cols;
    const uint8_t *data = view->data;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < n_rows; i++)
        lmd_weight_row_to_float(view->dtype,
                                data + i * lmd_dtype_row_bytes(view->dtype, n_cols), n_cols,
                                out + i * n_cols);
    lmd_checkpoint_release(checkpoint, view);
    Py_END_ALLOW_THREADS
    return (PyObject *)array;
}

/* ---- the type ---- */

static PyObject *gguf_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"path", NULL};
    PyObject *path = NULL, *bytes = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&:Gguf", names, PyUnicode_FSConverter,
                                     &bytes))
        return NULL;
    lmd_gguf *gguf = NULL;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_gguf_open(PyBytes_AS_STRING(bytes), &gguf, &err);
    Py_END_ALLOW_THREADS
    path = PyUnicode_DecodeFSDefault(PyBytes_AS_STRING(bytes));
    Py_DECREF(bytes);
    if (status != LMD_OK) lmd_py_raise(&err);
    PyObject *metadata = status == LMD_OK ? make_metadata(gguf) : NULL;
    gguf_object *self = metadata && path ? (gguf_object *)type->tp_alloc(type, 0) : NULL;
    if (!self) {
        lmd_gguf_free(gguf);
        Py_XDECREF(path);
        Py_XDECREF(metadata);
        return NULL;
    }
    self->gguf = gguf;
    self->path = path;
    self->metadata = metadata;
    return (PyObject *)self;
}

static void gguf_dealloc(PyObject *obj) {
    gguf_object *self = (gguf_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    lmd_gguf_free(self->gguf);
    Py_XDECREF(self->path);
    Py_XDECREF(self->metadata);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyObject *get_path(PyObject *obj, void *unused) {
    (void)unused;
    return Py_NewRef(((gguf_object *)obj)->path);
}

static PyObject *get_n_bytes(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(lmd_gguf_n_bytes(((gguf_object *)obj)->gguf));
}

static PyGetSetDef gguf_getset[] = {
    {"path", get_path, NULL, "The file's path.", NULL},
    {"metadata", get_metadata, NULL,
     "Key -> value. Arrays of strings are lists; arrays of numbers are NumPy arrays.", NULL},
    {"tensors", get_tensors, NULL, "Name -> (type name, shape with rows first).", NULL},
    {"n_bytes", get_n_bytes, NULL, "Size of the file in bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef gguf_methods[] = {
    {"dequantize", dequantize, METH_O,
     "dequantize(name) -> array\n\nThe tensor's values in fp32. Raises KeyError."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot gguf_slots[] = {
    {Py_tp_new, gguf_new},
    {Py_tp_dealloc, gguf_dealloc},
    {Py_tp_getset, gguf_getset},
    {Py_tp_methods, gguf_methods},
    {Py_tp_doc,
     "Gguf(path)\n\nA GGUF v3 file, mapped read-only and validated before the constructor "
     "returns."},
    {0, NULL},
};

static PyType_Spec gguf_spec = {
    .name = "lmdeploy_c._C.Gguf",
    .basicsize = sizeof(gguf_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gguf_slots,
};

int lmd_py_gguf_init(PyObject *module, lmd_py_state *state) {
    state->gguf_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &gguf_spec, NULL);
    return state->gguf_type ? PyModule_AddType(module, state->gguf_type) : -1;
}
