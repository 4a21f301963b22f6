/* The KV cache's storage for Python: the bits of an element, the bytes of a block, the
 * reference encoding. With the GIL. */
#ifndef LMD_PYTHON_PY_KV_H
#define LMD_PYTHON_PY_KV_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include <stdint.h>

typedef struct lmd_py_kv_pair {
    int32_t bits[2]; /* of keys, of values */
} lmd_py_kv_pair;

/* A kind of field: 16, 8, 4, 32 or a pair such as (8, 4) as a lmd_py_kv_pair. ValueError. */
int lmd_py_kv_bits(PyObject *value, const char *name, void *out);

/* Functions of the module. */
PyObject *lmd_py_kv_block_bytes(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *lmd_py_kv_encode(PyObject *module, PyObject *args);
PyObject *lmd_py_kv_decode(PyObject *module, PyObject *args);

#endif
