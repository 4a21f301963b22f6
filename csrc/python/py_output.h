/* The Output type: what a request has produced since the last read. With the GIL. */
#ifndef LMD_PYTHON_PY_OUTPUT_H
#define LMD_PYTHON_PY_OUTPUT_H

#include "python/py_state.h" /* Python.h comes before every other header */

#include "engine/metrics.h"
#include "engine/request.h"

/* Creates the type and adds it to the module. */
int lmd_py_output_init(PyObject *module);

/* An output as a new object of output_type. NULL with an exception. */
PyObject *lmd_py_output_new(PyTypeObject *output_type, const lmd_output *output,
                            int32_t vocab_size);

/* The names of lmd_finish_reason; that of LMD_FINISH_NONE is NULL. */
extern const char *const lmd_py_finish_reasons[LMD_FINISH_COUNT];

#endif
