/* The keywords of Engine.submit as a lmd_request_params. An option that a request has is one
 * row of the table here. With the GIL. */
#ifndef LMD_PYTHON_PY_REQUEST_PARAMS_H
#define LMD_PYTHON_PY_REQUEST_PARAMS_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "engine/engine.h"
#include "python/py_array.h"

/* A growing list of token sequences: word i is ids[offsets[i] .. offsets[i + 1]). */
typedef struct lmd_py_words {
    int32_t *ids, *offsets;
    size_t id_capacity, offset_capacity;
    int32_t n, n_ids;
} lmd_py_words;

typedef struct lmd_py_request_params {
    lmd_request_params request; /* points into what follows */
    PyArrayObject *token_ids;
    lmd_py_words stop_words, bad_words;
    lmd_token_bias *biases;
    PyObject *values;            /* what the call gave; keeps the next two alive */
    PyObject *snapshot, *leader; /* None or what the call gave, still to be checked */
} lmd_py_request_params;

/* Reads a call's arguments over the defaults; a seed that is not given is drawn. -1 with
 * TypeError for a wrong type or name, ValueError for a wrong value. On failure
 * too the caller ends it with lmd_py_request_params_clear. */
int lmd_py_request_params_read(lmd_py_request_params *self, PyObject *args, PyObject *kwargs);
void lmd_py_request_params_clear(lmd_py_request_params *self);

#endif
