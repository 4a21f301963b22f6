/* Constants of the module: see py_constants.h. */
#include "python/py_constants.h"

#include "base/threads.h"
#include "engine/limits.h"
#include "engine/sampler.h"
#include "engine/speculation.h"
#include "python/py_output.h"
#include "python/py_trace.h"
#include "python/py_values.h"

static int add_limits(PyObject *module) {
    static const struct {
        const char *name;
        long value;
    } limits[] = {
        {"MAX_SESSION_LEN", LMD_MAX_SESSION_LEN},
        {"MAX_BLOCKS", LMD_MAX_BLOCKS},
        {"MAX_BLOCK_LEN", LMD_MAX_BLOCK_LEN},
        {"MAX_BATCH_SIZE", LMD_MAX_BATCH_SIZE},
        {"MAX_PREFILL_TOKEN_NUM", LMD_MAX_PREFILL_TOKEN_NUM},
        {"MAX_THREADS", LMD_MAX_THREADS},
        {"MAX_DRAFT_TOKENS", LMD_MAX_DRAFT_TOKENS},
        {"MAX_LOGPROBS", LMD_MAX_LOGPROBS},
        {"MAX_PRIORITY", LMD_MAX_PRIORITY},
        {"MAX_TIMEOUT", LMD_MAX_TIMEOUT},
        {"MAX_TRACE_STEPS", LMD_TRACE_MAX_STEPS},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (PyModule_AddIntConstant(module, limits[i].name, limits[i].value) < 0) return -1;
    return 0;
}

/* Adds an object, a new reference that is taken over; NULL is a failure. */
static int add(PyObject *module, const char *name, PyObject *obj) {
    const int code = obj ? PyModule_AddObjectRef(module, name, obj) : -1;
    Py_XDECREF(obj);
    return code;
}

/* The names, and None for a NULL, as a tuple. */
static PyObject *names_tuple(const char *const *names, int n) {
    PyObject *list = PyList_New(n);
    for (int i = 0; i < n; i++) lmd_py_list_put(&list, i, lmd_py_text_or_none(names[i]));
    PyObject *tuple = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return tuple;
}

/* A read-only mapping name -> (lowest, highest). */
static PyObject *sampling_ranges(void) {
    PyObject *dict = PyDict_New();
    for (const lmd_sampler_range *range = lmd_sampler_ranges; range->name; range++)
        lmd_py_dict_put(&dict, range->name, Py_BuildValue("dd", range->low, range->high));
    PyObject *mapping = dict ? PyDictProxy_New(dict) : NULL;
    Py_XDECREF(dict);
    return mapping;
}

int lmd_py_add_constants(PyObject *module) {
    if (add_limits(module) < 0 || add(module, "SAMPLING_RANGES", sampling_ranges()) < 0 ||
        add(module, "FINISH_REASONS", names_tuple(lmd_py_finish_reasons, LMD_FINISH_COUNT)) < 0)
        return -1;
    return add(module, "TRACE_KINDS", names_tuple(lmd_py_trace_kinds, LMD_TRACE_ENDED + 1));
}
