/* The Gguf type: see py_gguf.h. An object never changes once it is constructed, so that its
 * methods need no lock. */
#include "python/py_gguf.h"

#include <string.h>

#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_tensor.h"
#include "python/py_values.h"

typedef struct gguf_object {
    PyObject_HEAD
    lmd_gguf *gguf;
    PyObject *path;     /* str */
    PyObject *metadata; /* dict */
} gguf_object;

const lmd_gguf *lmd_py_gguf_get(PyObject *obj) { return ((gguf_object *)obj)->gguf; }

/* ---- metadata ---- */

/* Bytes that are no UTF-8 become surrogates: a vocabulary with such tokens must open. */
static PyObject *string_object(lmd_gguf_string string) {
    return PyUnicode_DecodeUTF8(string.data, (Py_ssize_t)string.len, "surrogateescape");
}

static PyObject *string_list(const lmd_gguf_value *value) {
    PyObject *list = PyList_New((Py_ssize_t)value->n_items);
    const uint8_t *at = value->data;
    for (uint64_t i = 0; list && i < value->n_items; i++)
        lmd_py_list_put(&list, (Py_ssize_t)i, string_object(lmd_gguf_next_string(&at)));
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

/* Puts a value under a key, both new references that are taken over; as lmd_py_dict_put. */
static void put(PyObject **dict, PyObject *key, PyObject *value) {
    if (!key || !value || PyDict_SetItem(*dict, key, value) < 0) Py_CLEAR(*dict);
    Py_XDECREF(key);
    Py_XDECREF(value);
}

static PyObject *make_metadata(const lmd_gguf *gguf) {
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < lmd_gguf_n_pairs(gguf); i++) {
        const lmd_gguf_pair *pair = lmd_gguf_pair_at(gguf, i);
        put(&dict, string_object(pair->key), value_object(&pair->value));
    }
    return dict;
}

static PyObject *get_metadata(PyObject *obj, void *unused) {
    (void)unused;
    return PyDict_Copy(((gguf_object *)obj)->metadata);
}

/* ---- tensors ---- */

static PyObject *shape_object(const lmd_tensor_view *view) {
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

static PyObject *name_object(const lmd_tensor_view *view) {
    return string_object((lmd_gguf_string){view->name, strlen(view->name)});
}

static PyObject *get_tensors(PyObject *obj, void *unused) {
    (void)unused;
    const lmd_checkpoint *checkpoint = lmd_gguf_checkpoint(((gguf_object *)obj)->gguf);
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < lmd_checkpoint_n_tensors(checkpoint); i++) {
        const lmd_tensor_view *view = lmd_checkpoint_tensor(checkpoint, i);
        PyObject *item = Py_BuildValue("sN", lmd_view_dtype_name(view), shape_object(view));
        put(&dict, name_object(view), item);
    }
    return dict;
}

static PyObject *get_specs(PyObject *obj, void *unused) {
    (void)unused;
    const gguf_object *self = (const gguf_object *)obj;
    const lmd_checkpoint *checkpoint = lmd_gguf_checkpoint(self->gguf);
    const size_t n = lmd_checkpoint_n_tensors(checkpoint);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list && i < n; i++) {
        const lmd_tensor_view *view = lmd_checkpoint_tensor(checkpoint, i);
        PyObject *spec = Py_BuildValue(
            "NsNOKK", name_object(view), lmd_view_dtype_name(view), shape_object(view),
            self->path, (unsigned long long)view->offset, (unsigned long long)view->n_bytes);
        lmd_py_list_put(&list, (Py_ssize_t)i, spec);
    }
    return list;
}

/* The tensor of that name, spelled as in `tensors`. NULL with KeyError. */
static const lmd_tensor_view *find_tensor(const lmd_checkpoint *checkpoint, PyObject *name) {
    if (!PyUnicode_Check(name)) {
        lmd_py_wrong_type(name, "name", "a str");
        return NULL;
    }
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
    return view ? lmd_py_dequantize_view(view) : NULL;
}

/* ---- the type ---- */

/* An object of an open file, which it takes over, on failure too. */
static PyObject *wrap(PyTypeObject *type, lmd_gguf *gguf, const char *path) {
    PyObject *metadata = make_metadata(gguf);
    PyObject *text = metadata ? PyUnicode_DecodeFSDefault(path) : NULL;
    gguf_object *self = text ? (gguf_object *)type->tp_alloc(type, 0) : NULL;
    if (!self) {
        Py_XDECREF(metadata);
        Py_XDECREF(text);
        lmd_gguf_free(gguf);
        return NULL;
    }
    self->gguf = gguf;
    self->path = text;
    self->metadata = metadata;
    return (PyObject *)self;
}

/* Opens the file of that path, for the operating system. */
static PyObject *open_file(PyTypeObject *type, const char *path) {
    lmd_gguf *gguf;
    lmd_err err;
    lmd_status status;
    Py_BEGIN_ALLOW_THREADS
    status = lmd_gguf_open(path, &gguf, &err);
    Py_END_ALLOW_THREADS
    return status == LMD_OK ? wrap(type, gguf, path) : lmd_py_raise(&err);
}

typedef struct gguf_args {
    PyObject *path;
} gguf_args;

static const lmd_py_field gguf_fields[] = {
    {"path", lmd_py_object, offsetof(gguf_args, path)},
    {NULL, NULL, 0},
};

static PyObject *gguf_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"Gguf", 1, 1, gguf_fields};
    gguf_args call;
    PyObject *path, *self = NULL;
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    if (!values) return NULL;
    if (PyUnicode_FSConverter(call.path, &path)) {
        self = open_file(type, PyBytes_AS_STRING(path));
        Py_DECREF(path);
    }
    Py_DECREF(values);
    return self;
}

/* Callers share the metadata's lists, and may put the object itself into one. */
static int gguf_traverse(PyObject *obj, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(obj));
    Py_VISIT(((gguf_object *)obj)->metadata);
    return 0;
}

static void gguf_dealloc(PyObject *obj) {
    gguf_object *self = (gguf_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    PyObject_GC_UnTrack(obj);
    lmd_gguf_free(self->gguf);
    Py_DECREF(self->path);
    Py_DECREF(self->metadata);
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
    {"specs", get_specs, NULL, "The tensors as a Model's source.", NULL},
    {"n_bytes", get_n_bytes, NULL, "Size of the file in bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef gguf_methods[] = {
    {"dequantize", dequantize, METH_O,
     "dequantize(name) -> array\n\nThe tensor's values in fp32. Raises KeyError, "
     "UnsupportedError."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot gguf_slots[] = {
    {Py_tp_new, gguf_new},
    {Py_tp_dealloc, gguf_dealloc},
    {Py_tp_traverse, gguf_traverse},
    {Py_tp_getset, gguf_getset},
    {Py_tp_methods, gguf_methods},
    {Py_tp_doc, "Gguf(path)\n\nA GGUF file, validated before the constructor "
                "returns."},
    {0, NULL},
};

static PyType_Spec gguf_spec = {
    .name = "lmdeploy_c._C.Gguf",
    .basicsize = sizeof(gguf_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gguf_slots,
};

int lmd_py_gguf_init(PyObject *module) {
    return lmd_py_add_type(module, LMD_PY_GGUF, &gguf_spec);
}
