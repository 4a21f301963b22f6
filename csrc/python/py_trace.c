/* A trace of an engine as Python values: see py_trace.h. No state. */
#include "python/py_trace.h"

#include <assert.h>

#include "base/memory.h"
#include "python/py_array.h"
#include "python/py_values.h"

const char *const lmd_py_trace_kinds[LMD_TRACE_ENDED + 1] = {
    [LMD_TRACE_SUBMITTED] = "submitted",
    [LMD_TRACE_STARTED] = "started",
    [LMD_TRACE_FIRST_TOKEN] = "first_token",
    [LMD_TRACE_ENDED] = "ended",
};

static const char *const step_fields[] = {
    "start_ns",        "end_ns",    "n_seqs",        "n_prefilled",
    "n_decoded",       "budget",    "n_free_blocks", "n_active_blocks",
    "n_cached_blocks", "n_running", "n_waiting",     "n_preempted",
};
static const char *const event_fields[] = {
    "at_ns", "kind", "request_id", "n_tokens", "finish_reason",
};
static_assert(sizeof step_fields / sizeof *step_fields * 8 == sizeof(lmd_trace_step),
              "one name a field");
static_assert(sizeof event_fields / sizeof *event_fields * 8 == sizeof(lmd_trace_event),
              "one name a field");

/* Copies one column of a ring's n newest records, the oldest first. */
static void read_column(const lmd_trace_ring *ring, int32_t column, int64_t n, int64_t *out) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = (ring->n_added - n + i) % ring->capacity;
        out[i] = ring->values[row * ring->width + column];
    }
}

/* The ring's records as a dict name -> column. */
static PyObject *columns_dict(const lmd_trace_ring *ring, const char *const *names) {
    const int64_t n = ring->n_added < ring->capacity ? ring->n_added : ring->capacity;
    int64_t *column = lmd_calloc((size_t)n, sizeof *column);
    PyObject *dict = column ? PyDict_New() : PyErr_NoMemory();
    for (int32_t i = 0; dict && i < ring->width; i++) {
        read_column(ring, i, n, column);
        lmd_py_dict_put(&dict, names[i], lmd_py_new_int64(column, n));
    }
    lmd_free(column);
    return dict;
}

static PyObject *count_lost(const lmd_trace_ring *ring) {
    const int64_t n = ring->n_added - ring->capacity;
    return PyLong_FromLongLong(n > 0 ? n : 0);
}

PyObject *lmd_py_trace(const lmd_trace_log *log) {
    PyObject *dict = PyDict_New();
    lmd_py_dict_put(&dict, "start_ns", PyLong_FromLongLong(log->start));
    lmd_py_dict_put(&dict, "end_ns", PyLong_FromLongLong(log->end));
    lmd_py_dict_put(&dict, "n_lost_steps", count_lost(&log->steps));
    lmd_py_dict_put(&dict, "n_lost_events", count_lost(&log->events));
    if (dict) lmd_py_dict_put(&dict, "steps", columns_dict(&log->steps, step_fields));
    if (dict) lmd_py_dict_put(&dict, "events", columns_dict(&log->events, event_fields));
    return dict;
}
