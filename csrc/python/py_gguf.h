/* The Gguf type: a GGUF file, its metadata as Python values and its tensors by name; for
 * Python, and for the Model type. With the GIL. */
#ifndef LMD_PYTHON_PY_GGUF_H
#define LMD_PYTHON_PY_GGUF_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "io/gguf.h"

/* Creates the type and adds it to the module. */
int lmd_py_gguf_init(PyObject *module);

/* The file inside a Gguf object, which the caller must keep alive. */
const lmd_gguf *lmd_py_gguf_get(PyObject *obj);

#endif
