/* The KV cache's storage for Python: kv_bits, bytes of a block, the reference encoding. With
 * the GIL. */
#ifndef LMD_PYTHON_PY_KV_H
#define LMD_PYTHON_PY_KV_H

#include "python/py_module.h" /* Python.h stands before every other header */

#include <stdint.h>

typedef struct lmd_py_kv_pair {
    int32_t bits[2]; /* of keys, of values */
} lmd_py_kv_pair;

/* A converter for PyArg_Parse's "O&": 16, 8, 4, 32 or a pair such as (8, 4) into a
 * lmd_py_kv_pair. 0 with ValueError. */
int lmd_py_kv_bits(PyObject *obj, void *out);

extern const char lmd_py_kv_block_bytes_doc[], lmd_py_kv_encode_doc[], lmd_py_kv_decode_doc[];

PyObject *lmd_py_kv_block_bytes(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *lmd_py_kv_encode(PyObject *module, PyObject *args);
PyObject *lmd_py_kv_decode(PyObject *module, PyObject *args);

#endif
