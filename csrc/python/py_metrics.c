/* Metrics and traces as dicts of numbers, lists and arrays: see py_metrics.h. No state. */
#include "python/py_metrics.h"

#include <assert.h>

#include "base/memory.h"
#include "python/py_array.h"

/* Puts a new reference into a dict and takes it over. */
static int put(PyObject *dict, const char *key, PyObject *value) {
    int code = value ? PyDict_SetItemString(dict, key, value) : -1;
    Py_XDECREF(value);
    return code;
}

static PyObject *histogram_dict(const lmd_histogram_spec *spec,
                                const lmd_histogram *histogram) {
    PyObject *bounds = PyList_New(spec->n_bounds), *counts = PyList_New(spec->n_bounds + 1);
    bool complete = bounds && counts;
    for (int32_t i = 0; complete && i <= spec->n_bounds; i++) {
        PyObject *count = PyLong_FromLongLong(histogram->counts[i]);
        PyObject *bound = i < spec->n_bounds ? PyFloat_FromDouble(spec->bounds[i]) : NULL;
        complete = count && (bound || i == spec->n_bounds);
        PyList_SET_ITEM(counts, i, count);
        if (i < spec->n_bounds) PyList_SET_ITEM(bounds, i, bound);
    }
    if (complete)
        return Py_BuildValue("{s:N, s:N, s:L, s:d}", "bounds", bounds, "counts", counts,
                             "count", (long long)histogram->count, "sum", histogram->sum);
    Py_XDECREF(bounds);
    Py_XDECREF(counts);
    return NULL;
}

static PyObject *histograms_dict(const lmd_metrics *metrics) {
    PyObject *dict = PyDict_New();
    for (int32_t i = 0; dict && i < LMD_HISTOGRAM_COUNT; i++) {
        const lmd_histogram_spec *spec = &lmd_histogram_specs[i];
        if (put(dict, spec->name, histogram_dict(spec, &metrics->histograms[i])) < 0)
            Py_CLEAR(dict);
    }
    return dict;
}

static PyObject *counters_dict(const lmd_engine_metrics *metrics) {
    const lmd_engine_stats *stats = &metrics->stats;
    const lmd_scheduler_stats *scheduler = &stats->scheduler;
    const struct {
        const char *name;
        int64_t value;
    } counters[] = {
        {"n_submitted", metrics->n_submitted},
        {"n_running", scheduler->n_running},
        {"n_waiting", scheduler->n_waiting},
        {"n_free_blocks", scheduler->n_free_blocks},
        {"n_active_blocks", scheduler->n_active_blocks},
        {"n_cached_blocks", scheduler->n_cached_blocks},
        {"n_steps", stats->n_steps},
        {"n_tokens_prefilled", stats->n_tokens_prefilled},
        {"n_tokens_generated", stats->n_tokens_generated},
        {"n_prompt_tokens", scheduler->n_prompt_tokens},
        {"n_cached_tokens", scheduler->n_cached_tokens},
        {"n_preempted", scheduler->n_preempted},
    };
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < sizeof counters / sizeof *counters; i++)
        if (put(dict, counters[i].name, PyLong_FromLongLong(counters[i].value)) < 0)
            Py_CLEAR(dict);
    return dict;
}

PyObject *lmd_py_metrics(const lmd_engine_metrics *metrics) {
    const int64_t *n_ended = metrics->metrics.n_ended;
    const lmd_scheduler_stats *scheduler = &metrics->stats.scheduler;
    const double n_prompt = (double)scheduler->n_prompt_tokens;
    PyObject *dict = counters_dict(metrics);
    if (!dict) return NULL;
    if (put(dict, "prefix_hit_rate",
            PyFloat_FromDouble(n_prompt > 0 ? (double)scheduler->n_cached_tokens / n_prompt
                                            : 0.0)) < 0 ||
        put(dict, "n_ended",
            Py_BuildValue("{s:L, s:L, s:L, s:L}", "stop", (long long)n_ended[LMD_FINISH_STOP],
                          "length", (long long)n_ended[LMD_FINISH_LENGTH], "error",
                          (long long)n_ended[LMD_FINISH_ERROR], "abort",
                          (long long)n_ended[LMD_FINISH_ABORT])) < 0 ||
        put(dict, "histograms", histograms_dict(&metrics->metrics)) < 0)
        Py_CLEAR(dict);
    return dict;
}

/* ---- traces ---- */

static const char *const step_fields[] = {"start_ns",      "end_ns",          "n_seqs",
                                          "n_prefilled",   "n_decoded",       "budget",
                                          "n_free_blocks", "n_active_blocks", "n_cached_blocks",
                                          "n_running",     "n_waiting",       "n_preempted"};
static const char *const event_fields[] = {"at_ns", "kind", "request_id", "n_tokens",
                                           "finish_reason"};
static_assert(sizeof step_fields / sizeof *step_fields * 8 == sizeof(lmd_trace_step),
              "one name a field");
static_assert(sizeof event_fields / sizeof *event_fields * 8 == sizeof(lmd_trace_event),
              "one name a field");

/* The ring's records, the oldest first, as name -> column. */
static PyObject *columns_dict(const lmd_trace_ring *ring, const char *const *names) {
    const int64_t n = ring->n_added < ring->capacity ? ring->n_added : ring->capacity;
    int64_t *column = lmd_calloc((size_t)n, sizeof *column);
    PyObject *dict = column ? PyDict_New() : PyErr_NoMemory();
    for (int32_t c = 0; dict && c < ring->width; c++) {
        for (int64_t i = 0; i < n; i++) {
            int64_t row = (ring->n_added - n + i) % ring->capacity;
            column[i] = ring->values[row * ring->width + c];
        }
        if (put(dict, names[c], lmd_py_new_int64(column, n)) < 0) Py_CLEAR(dict);
    }
    lmd_free(column);
    return dict;
}

static long long count_lost(const lmd_trace_ring *ring) {
    return ring->n_added > ring->capacity ? ring->n_added - ring->capacity : 0;
}

PyObject *lmd_py_trace(const lmd_trace_log *log) {
    PyObject *steps = columns_dict(&log->steps, step_fields);
    PyObject *events = steps ? columns_dict(&log->events, event_fields) : NULL;
    if (events)
        return Py_BuildValue("{s:L, s:L, s:N, s:N, s:L, s:L}", "start_ns",
                             (long long)log->start, "end_ns", (long long)log->end, "steps",
                             steps, "events", events, "n_lost_steps", count_lost(&log->steps),
                             "n_lost_events", count_lost(&log->events));
    Py_XDECREF(steps);
    return NULL;
}
