/* The tensors that a Model is made from: a Gguf's, or specs of tensors in safetensors files.
 * With the GIL. */
#ifndef LMD_PYTHON_PY_CHECKPOINT_H
#define LMD_PYTHON_PY_CHECKPOINT_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "io/checkpoint.h"

typedef struct lmd_py_checkpoint {
    const lmd_checkpoint *tensors; /* of the Gguf, or `made` */
    lmd_checkpoint *made;          /* of specs; otherwise NULL */
} lmd_py_checkpoint;

/* Reads `source`: an object of gguf_type, which the caller keeps alive, or a sequence of tuples
 * (name, dtype, shape, path, offset, n_bytes). -1 with an exception. */
int lmd_py_checkpoint_read(lmd_py_checkpoint *self, PyTypeObject *gguf_type, PyObject *source);
/* Frees what was made; of a zeroed one nothing. */
void lmd_py_checkpoint_clear(lmd_py_checkpoint *self);

/* dequantize(spec). */
PyObject *lmd_py_dequantize(PyObject *module, PyObject *spec);

#endif
