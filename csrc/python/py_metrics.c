/* What an engine and a scheduler count, as dicts: see py_metrics.h. No state. */
#include "python/py_metrics.h"

#include <stddef.h>

#include "base/memory.h"
#include "python/py_output.h"
#include "python/py_values.h"

/* ---- counters ---- */

typedef struct counter {
    const char *name;
    size_t offset, size; /* of the member: an int32_t or an int64_t */
} counter;

#define COUNTER(type, member)                                                                  \
    { #member, offsetof(type, member), sizeof((type *)NULL)->member }

static const counter scheduler_counters[] = {
    COUNTER(lmd_scheduler_stats, n_running),
    COUNTER(lmd_scheduler_stats, n_waiting),
    COUNTER(lmd_scheduler_stats, n_free_blocks),
    COUNTER(lmd_scheduler_stats, n_active_blocks),
    COUNTER(lmd_scheduler_stats, n_cached_blocks),
    COUNTER(lmd_scheduler_stats, n_preempted),
    COUNTER(lmd_scheduler_stats, n_prompt_tokens),
    COUNTER(lmd_scheduler_stats, n_cached_tokens),
    {NULL, 0, 0},
};

static const counter engine_counters[] = {
    COUNTER(lmd_engine_stats, n_steps),
    COUNTER(lmd_engine_stats, n_tokens_prefilled),
    COUNTER(lmd_engine_stats, n_tokens_generated),
    COUNTER(lmd_engine_stats, n_draft_tokens),
    COUNTER(lmd_engine_stats, n_accepted_tokens),
    {NULL, 0, 0},
};

static void put_counters(PyObject **dict, const counter *counters, const void *values) {
    for (const counter *row = counters; row->name; row++) {
        const void *at = (const char *)values + row->offset;
        const bool is_short = row->size == sizeof(int32_t);
        const int64_t value = is_short ? *(const int32_t *)at : *(const int64_t *)at;
        lmd_py_dict_put(dict, row->name, PyLong_FromLongLong(value));
    }
}

PyObject *lmd_py_scheduler_stats(const lmd_scheduler_stats *stats) {
    PyObject *dict = PyDict_New();
    put_counters(&dict, scheduler_counters, stats);
    return dict;
}

PyObject *lmd_py_engine_stats(const lmd_engine_stats *stats) {
    PyObject *dict = lmd_py_scheduler_stats(&stats->scheduler);
    put_counters(&dict, engine_counters, stats);
    lmd_py_dict_put(&dict, "n_allocs", PyLong_FromUnsignedLongLong(lmd_alloc_count()));
    return dict;
}

/* ---- metrics ---- */

static PyObject *histogram_dict(const lmd_histogram_spec *spec,
                                const lmd_histogram *histogram) {
    PyObject *bounds = PyList_New(spec->n_bounds), *counts = PyList_New(spec->n_bounds + 1);
    for (int32_t i = 0; i < spec->n_bounds; i++)
        lmd_py_list_put(&bounds, i, PyFloat_FromDouble(spec->bounds[i]));
    for (int32_t i = 0; i <= spec->n_bounds; i++)
        lmd_py_list_put(&counts, i, PyLong_FromLongLong(histogram->counts[i]));
    return Py_BuildValue("{s:N, s:N, s:L, s:d}", "bounds", bounds, "counts", counts, "count",
                         (long long)histogram->count, "sum", histogram->sum);
}

static PyObject *histograms_dict(const lmd_metrics *metrics) {
    PyObject *dict = PyDict_New();
    for (int32_t i = 0; i < LMD_HISTOGRAM_COUNT; i++) {
        const lmd_histogram_spec *spec = &lmd_histogram_specs[i];
        lmd_py_dict_put(&dict, spec->name, histogram_dict(spec, &metrics->histograms[i]));
    }
    return dict;
}

static PyObject *ended_dict(const lmd_metrics *metrics) {
    PyObject *dict = PyDict_New();
    for (int32_t i = LMD_FINISH_NONE + 1; i < LMD_FINISH_COUNT; i++)
        lmd_py_dict_put(&dict, lmd_py_finish_reasons[i],
                        PyLong_FromLongLong(metrics->n_ended[i]));
    return dict;
}

PyObject *lmd_py_engine_metrics(const lmd_engine_metrics *metrics) {
    const lmd_scheduler_stats *scheduler = &metrics->stats.scheduler;
    const double n_prompt = (double)scheduler->n_prompt_tokens;
    const double n_cached = (double)scheduler->n_cached_tokens;
    PyObject *dict = lmd_py_engine_stats(&metrics->stats);
    lmd_py_dict_put(&dict, "n_submitted", PyLong_FromLongLong(metrics->n_submitted));
    lmd_py_dict_put(&dict, "n_ended", ended_dict(&metrics->metrics));
    lmd_py_dict_put(&dict, "prefix_hit_rate",
                    PyFloat_FromDouble(n_prompt > 0 ? n_cached / n_prompt : 0.0));
    lmd_py_dict_put(&dict, "histograms", histograms_dict(&metrics->metrics));
    return dict;
}
