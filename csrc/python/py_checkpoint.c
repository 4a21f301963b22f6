/* The tensors that a Model is made from: see py_checkpoint.h. */
#include "python/py_checkpoint.h"

#include <string.h>

#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_gguf.h"
#include "python/py_tensor.h"

/* Maps a file that the checkpoint does not have yet. */
static int add_file(lmd_checkpoint *checkpoint, PyObject *path, int32_t *out) {
    PyObject *bytes = NULL;
    if (!PyUnicode_FSConverter(path, &bytes)) return -1;
    lmd_err err;
    const lmd_status status =
        lmd_checkpoint_add_file(checkpoint, PyBytes_AS_STRING(bytes), out, &err);
    Py_DECREF(bytes);
    return lmd_py_check(status, &err);
}

/* The index of a file in the checkpoint. `file_idxs` is a dict path -> index of those that it
 * has; a new one is added to both. */
static int find_file(lmd_checkpoint *checkpoint, PyObject *file_idxs, PyObject *path,
                     int32_t *out) {
    PyObject *known = PyDict_GetItemWithError(file_idxs, path);
    if (known) {
        *out = (int32_t)PyLong_AsLong(known);
        return 0;
    }
    if (PyErr_Occurred() || add_file(checkpoint, path, out) < 0) return -1;
    PyObject *idx = PyLong_FromLong(*out);
    const int code = idx ? PyDict_SetItem(file_idxs, path, idx) : -1;
    Py_XDECREF(idx);
    return code;
}

/* The type of a name; LMD_OTHER for those that are not read. */
static lmd_dtype find_dtype(const char *name) {
    for (lmd_dtype dtype = LMD_F32; dtype < LMD_OTHER; dtype++)
        if (strcmp(name, lmd_dtype_name(dtype)) == 0) return dtype;
    return LMD_OTHER;
}

/* Whether a shape is one that weights have: 1 to 4 dimensions, none of them empty. */
static int is_weight_shape(PyObject *shape) {
    const Py_ssize_t n_dims = PyTuple_GET_SIZE(shape);
    for (Py_ssize_t i = 0; i < n_dims; i++) {
        const int is_empty = PyObject_Not(PyTuple_GET_ITEM(shape, i));
        if (is_empty) return is_empty < 0 ? -1 : 0;
    }
    return n_dims >= 1 && n_dims <= LMD_MAX_DIMS;
}

static int read_shape(PyObject *shape, lmd_tensor_spec *spec) {
    spec->n_dims = (int32_t)PyTuple_GET_SIZE(shape);
    for (int32_t i = 0; i < spec->n_dims; i++)
        if (lmd_py_int64(PyTuple_GET_ITEM(shape, i), "a tensor's shape", &spec->dims[i]) < 0)
            return -1;
    return 0;
}

typedef struct spec_args {
    const char *name, *dtype;
    PyObject *shape, *path;
    int64_t offset, n_bytes;
} spec_args;

static int read_tuple(PyObject *value, const char *name, void *out) {
    if (!PyTuple_Check(value)) return lmd_py_wrong_type(value, name, "a tuple");
    *(PyObject **)out = value;
    return 0;
}

static const lmd_py_field spec_fields[] = {
    {"name", lmd_py_text, offsetof(spec_args, name)},
    {"dtype", lmd_py_text, offsetof(spec_args, dtype)},
    {"shape", read_tuple, offsetof(spec_args, shape)},
    {"path", lmd_py_object, offsetof(spec_args, path)},
    {"offset", lmd_py_size, offsetof(spec_args, offset)},
    {"n_bytes", lmd_py_size, offsetof(spec_args, n_bytes)},
    {NULL, NULL, 0},
};

static int add_spec(lmd_checkpoint *checkpoint, PyObject *file_idxs, const spec_args *args) {
    lmd_tensor_spec spec = {.name = args->name,
                            .offset = (uint64_t)args->offset,
                            .n_bytes = (uint64_t)args->n_bytes};
    lmd_err err;
    const int is_weight = is_weight_shape(args->shape);
    if (is_weight < 0) return -1;
    spec.dtype = is_weight ? find_dtype(args->dtype) : LMD_OTHER;
    spec.other_dtype = is_weight ? args->dtype : NULL;
    if ((spec.dtype != LMD_OTHER && read_shape(args->shape, &spec) < 0) ||
        find_file(checkpoint, file_idxs, args->path, &spec.file_idx) < 0)
        return -1;
    return lmd_py_check(lmd_checkpoint_add_tensor(checkpoint, &spec, &err), &err);
}

/* Adds one tensor: (name, dtype, shape, path, offset, n_bytes). */
static int add_tensor(lmd_checkpoint *checkpoint, PyObject *file_idxs, PyObject *item) {
    static const lmd_py_signature signature = {"TensorSpec", 6, 6, spec_fields};
    spec_args args;
    if (!PyTuple_Check(item)) {
        PyErr_Format(PyExc_TypeError,
                     "a tensor must be a tuple (name, dtype, shape, path, offset, n_bytes), "
                     "not %.100s",
                     Py_TYPE(item)->tp_name);
        return -1;
    }
    PyObject *values = lmd_py_read_call(&signature, item, NULL, &args);
    const int code = values ? add_spec(checkpoint, file_idxs, &args) : -1;
    Py_XDECREF(values);
    return code;
}

static int add_tensors(lmd_checkpoint *checkpoint, PyObject *items) {
    PyObject *file_idxs = PyDict_New();
    int code = file_idxs ? 0 : -1;
    for (Py_ssize_t i = 0; code == 0 && i < PyTuple_GET_SIZE(items); i++)
        code = add_tensor(checkpoint, file_idxs, PyTuple_GET_ITEM(items, i));
    Py_XDECREF(file_idxs);
    return code;
}

int lmd_py_checkpoint_read(lmd_py_checkpoint *self, PyTypeObject *gguf_type, PyObject *source) {
    lmd_err err;
    *self = (lmd_py_checkpoint){NULL, NULL};
    if (PyObject_TypeCheck(source, gguf_type)) {
        self->tensors = lmd_gguf_checkpoint(lmd_py_gguf_get(source));
        return 0;
    }
    PyObject *items = lmd_py_tuple_of(source, "source", "a Gguf or a sequence of tensors");
    if (!items) return -1;
    int code = lmd_py_check(lmd_checkpoint_new(&self->made, &err), &err);
    if (code == 0) code = add_tensors(self->made, items);
    Py_DECREF(items);
    self->tensors = self->made;
    if (code < 0) lmd_py_checkpoint_clear(self);
    return code;
}

void lmd_py_checkpoint_clear(lmd_py_checkpoint *self) {
    lmd_checkpoint_free(self->made);
    *self = (lmd_py_checkpoint){NULL, NULL};
}

PyObject *lmd_py_dequantize(PyObject *module, PyObject *spec) {
    lmd_py_checkpoint source;
    PyObject *specs = PyTuple_Pack(1, spec);
    if (!specs) return NULL;
    PyTypeObject *gguf_type = lmd_py_type_of_module(module, LMD_PY_GGUF);
    const int code = lmd_py_checkpoint_read(&source, gguf_type, specs);
    Py_DECREF(specs);
    if (code < 0) return NULL;
    PyObject *array = lmd_py_dequantize_view(lmd_checkpoint_tensor(source.tensors, 0));
    lmd_py_checkpoint_clear(&source);
    return array;
}
