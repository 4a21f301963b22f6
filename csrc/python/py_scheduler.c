/* The Scheduler type: see py_scheduler.h. */
#include "python/py_scheduler.h"

#include <pthread.h>
#include <stdbool.h>
#include <unistd.h>

#include "engine/limits.h"
#include "engine/scheduler.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_fields.h"
#include "python/py_metrics.h"
#include "python/py_snapshot.h"
#include "python/py_step_plan.h"

typedef struct plan_in_flight {
    int64_t plan_id;
    int32_t n_logits_rows;
} plan_in_flight;

typedef struct scheduler_object {
    PyObject_HEAD
    lmd_scheduler *scheduler;
    lmd_scheduler_config config;
    pthread_mutex_t lock;
    PyObject *max_lens; /* dict seq_id -> max_len of the sequences that have not ended */
    int64_t next_seq_id;
    plan_in_flight plans[2]; /* plan p is at p % 2 */
    bool has_untold;         /* the newest plan could not be told: memory was out */
    lmd_plan untold;
    lmd_schedule_report untold_report;
    pid_t pid;
} scheduler_object;

/* ---- the lock ---- */

/* Takes the lock. -1 with RuntimeError in a forked child, and in a finalizer that a garbage
 * collection runs inside of a call of the same object. */
static int enter(scheduler_object *self) {
    int code;
    if (lmd_py_check_fork(self->pid) < 0) return -1;
    if (pthread_mutex_trylock(&self->lock) == 0) return 0;
    Py_BEGIN_ALLOW_THREADS /* its holder may wait for the GIL */
    code = pthread_mutex_lock(&self->lock);
    Py_END_ALLOW_THREADS
    if (code == 0) return 0;
    PyErr_SetString(PyExc_RuntimeError, "a finalizer called a scheduler inside its own call");
    return -1;
}

/* Gives the lock back. Returns the result, or the exception of err when there is one. */
static PyObject *leave(scheduler_object *self, lmd_status status, const lmd_err *err,
                       PyObject *result) {
    pthread_mutex_unlock(&self->lock);
    if (status == LMD_OK) return result;
    Py_XDECREF(result);
    return lmd_py_raise(err);
}

/* Makes the lock, which its own holder is refused. */
static void make_lock(pthread_mutex_t *lock) {
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(lock, &attr);
    pthread_mutexattr_destroy(&attr);
}

/* ---- lifetime ---- */

static const lmd_py_field config_fields[] = {
    {"n_blocks", lmd_py_int32, offsetof(lmd_scheduler_config, n_blocks)},
    {"block_len", lmd_py_int32, offsetof(lmd_scheduler_config, block_len)},
    {"max_batch_size", lmd_py_int32, offsetof(lmd_scheduler_config, max_batch_size)},
    {"max_prefill_token_num", lmd_py_int32,
     offsetof(lmd_scheduler_config, max_prefill_token_num)},
    {"session_len", lmd_py_int32, offsetof(lmd_scheduler_config, session_len)},
    {"enable_prefix_caching", lmd_py_bool, offsetof(lmd_scheduler_config, prefix_caching)},
    {NULL, NULL, 0},
};

/* An object of a scheduler, which it takes over, on failure too. */
static PyObject *wrap(PyTypeObject *type, lmd_scheduler *scheduler,
                      const lmd_scheduler_config *config) {
    PyObject *max_lens = PyDict_New();
    scheduler_object *self = max_lens ? (scheduler_object *)type->tp_alloc(type, 0) : NULL;
    if (!self) {
        Py_XDECREF(max_lens);
        lmd_scheduler_free(scheduler);
        return NULL;
    }
    make_lock(&self->lock);
    self->scheduler = scheduler;
    self->config = *config;
    self->max_lens = max_lens;
    self->pid = getpid();
    return (PyObject *)self;
}

static PyObject *scheduler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"Scheduler", 0, 1, config_fields};
    lmd_scheduler_config config = {
        .block_len = 64,
        .max_batch_size = 64,
        .max_prefill_token_num = 512,
        .session_len = 8192,
        .prefix_caching = true,
    };
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &config);
    if (!values) return NULL;
    Py_DECREF(values);
    lmd_scheduler *scheduler;
    lmd_err err;
    if (lmd_py_check(lmd_scheduler_config_check(&config, &err), &err) < 0 ||
        lmd_py_check(lmd_scheduler_new(&config, &scheduler, &err), &err) < 0)
        return NULL;
    return wrap(type, scheduler, &config);
}

static void scheduler_dealloc(PyObject *obj) {
    scheduler_object *self = (scheduler_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    lmd_scheduler_free(self->scheduler);
    pthread_mutex_destroy(&self->lock);
    Py_DECREF(self->max_lens);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* ---- add ---- */

typedef struct add_args {
    PyObject *token_ids, *snapshot;
    int32_t max_new_tokens, priority;
} add_args;

static const lmd_py_field add_fields[] = {
    {"token_ids", lmd_py_object, offsetof(add_args, token_ids)},
    {"max_new_tokens", lmd_py_int32, offsetof(add_args, max_new_tokens)},
    {"snapshot", lmd_py_object, offsetof(add_args, snapshot)},
    {"priority", lmd_py_int32, offsetof(add_args, priority)},
    {"session", lmd_py_object, offsetof(add_args, snapshot)}, /* the older name of snapshot */
    {NULL, NULL, 0},
};

/* Checks that a sequence of n_tokens and max_new_tokens fits when it is alone. */
static int check_fits(const lmd_scheduler_config *config, int64_t n_tokens,
                      int32_t max_new_tokens) {
    const int64_t max_len = n_tokens + max_new_tokens;
    const int64_t n_positions = (int64_t)config->n_blocks * config->block_len;
    if (max_new_tokens < 1) {
        PyErr_Format(PyExc_ValueError, "max_new_tokens must be at least 1, not %d",
                     max_new_tokens);
        return -1;
    }
    /* The last token is never computed and needs no KV. */
    if (max_len <= config->session_len && max_len - 1 <= n_positions) return 0;
    PyErr_Format(PyExc_ValueError,
                 "%lld tokens do not ever fit: session_len is %d, and %d blocks hold %lld",
                 (long long)max_len, config->session_len, config->n_blocks,
                 (long long)n_positions);
    return -1;
}

/* Notes a sequence that was added; a new reference to its seq_id. The lock is held. */
static PyObject *note_added(scheduler_object *self, const lmd_sequence_params *params) {
    PyObject *seq_id = PyLong_FromLongLong(params->seq_id);
    PyObject *max_len = PyLong_FromLong(params->max_len);
    if (!seq_id || !max_len || PyDict_SetItem(self->max_lens, seq_id, max_len) < 0)
        Py_CLEAR(seq_id);
    Py_XDECREF(max_len);
    return seq_id;
}

static PyObject *add_sequence(scheduler_object *self, lmd_sequence_params *params) {
    lmd_err err;
    if (enter(self) < 0) return NULL;
    params->seq_id = self->next_seq_id;
    const lmd_status status = lmd_scheduler_add(self->scheduler, params, &err);
    if (status != LMD_OK) return leave(self, status, &err, NULL);
    self->next_seq_id++;
    PyObject *seq_id = note_added(self, params);
    if (!seq_id) lmd_scheduler_finish(self->scheduler, params->seq_id, NULL);
    return leave(self, LMD_OK, NULL, seq_id);
}

static PyObject *add(scheduler_object *self, const add_args *call) {
    PyArrayObject *array;
    lmd_snapshot *snapshot;
    if (lmd_py_snapshot_read(call->snapshot, (PyObject *)self, &snapshot) < 0 ||
        lmd_py_int32_array(call->token_ids, "token_ids", &array) < 0)
        return NULL;
    PyObject *seq_id = NULL;
    const int64_t n_tokens = PyArray_SIZE(array);
    if (check_fits(&self->config, n_tokens, call->max_new_tokens) == 0) {
        lmd_sequence_params params = {.token_ids = PyArray_DATA(array),
                                      .n_tokens = (int32_t)n_tokens,
                                      .max_len = (int32_t)n_tokens + call->max_new_tokens,
                                      .snapshot = snapshot,
                                      .priority = call->priority};
        seq_id = add_sequence(self, &params);
    }
    Py_DECREF(array);
    return seq_id;
}

static PyObject *scheduler_add(PyObject *obj, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"add", 1, 1, add_fields};
    add_args call = {.snapshot = Py_None, .max_new_tokens = 512};
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    PyObject *seq_id = values ? add((scheduler_object *)obj, &call) : NULL;
    Py_XDECREF(values);
    return seq_id;
}

/* ---- one sequence ---- */

/* LMD_UNKNOWN_ID unless the sequence was added and has not ended. The lock is held. */
static lmd_status find(const scheduler_object *self, int64_t seq_id, lmd_err *err) {
    int32_t n_tokens;
    if (lmd_scheduler_tokens(self->scheduler, seq_id, &n_tokens)) return LMD_OK;
    return lmd_fail(err, LMD_UNKNOWN_ID,
                    "no sequence has seq_id %lld: it has ended, or it was never added",
                    (long long)seq_id);
}

static PyObject *scheduler_finish(PyObject *obj, PyObject *arg) {
    scheduler_object *self = (scheduler_object *)obj;
    int64_t seq_id;
    lmd_err err;
    if (lmd_py_int64(arg, "seq_id", &seq_id) < 0 || enter(self) < 0) return NULL;
    const lmd_status status = find(self, seq_id, &err);
    if (status != LMD_OK) return leave(self, status, &err, NULL);
    PyObject *key = PyLong_FromLongLong(seq_id);
    const int code = key ? PyDict_DelItem(self->max_lens, key) : -1;
    Py_XDECREF(key);
    if (code == 0) lmd_scheduler_finish(self->scheduler, seq_id, NULL);
    return leave(self, LMD_OK, NULL, code < 0 ? NULL : Py_NewRef(Py_None));
}

static PyObject *scheduler_snapshot(PyObject *obj, PyObject *arg) {
    scheduler_object *self = (scheduler_object *)obj;
    int64_t seq_id;
    lmd_err err;
    lmd_snapshot *snapshot = NULL;
    if (lmd_py_int64(arg, "seq_id", &seq_id) < 0 || enter(self) < 0) return NULL;
    lmd_status status = find(self, seq_id, &err);
    if (status == LMD_OK) snapshot = lmd_scheduler_snapshot(self->scheduler, seq_id);
    if (status == LMD_OK && !snapshot) status = lmd_no_memory(&err, "a snapshot");
    if (status != LMD_OK) return leave(self, status, &err, NULL);
    return leave(self, LMD_OK, NULL, lmd_py_snapshot_wrap(snapshot, obj, NULL));
}

/* ---- steps ---- */

static PyObject *scheduler_set_budget(PyObject *obj, PyObject *arg) {
    scheduler_object *self = (scheduler_object *)obj;
    const int32_t max = self->config.max_prefill_token_num;
    int64_t n;
    if (lmd_py_int64(arg, "n_tokens", &n) < 0) return NULL;
    if (n < 1 || n > max)
        return PyErr_Format(PyExc_ValueError, "the budget must be 1 to %d tokens, not %lld",
                            max, (long long)n);
    if (enter(self) < 0) return NULL;
    lmd_scheduler_set_budget(self->scheduler, (int32_t)n);
    return leave(self, LMD_OK, NULL, Py_NewRef(Py_None));
}

static PyObject *scheduler_schedule(PyObject *obj, PyObject *unused) {
    (void)unused;
    scheduler_object *self = (scheduler_object *)obj;
    if (enter(self) < 0) return NULL;
    PyObject *result = NULL;
    if (!self->has_untold) {
        self->has_untold =
            lmd_scheduler_schedule(self->scheduler, &self->untold, &self->untold_report);
        const lmd_plan *plan = &self->untold;
        if (self->has_untold)
            self->plans[plan->plan_id % 2] =
                (plan_in_flight){plan->plan_id, plan->n_logits_rows};
    }
    if (self->has_untold) {
        result = lmd_py_step_plan_new(lmd_py_type_of(obj, LMD_PY_STEP_PLAN), &self->untold,
                                      &self->untold_report);
        self->has_untold = !result; /* out of memory: the next call tells it */
    } else if (self->untold_report.failed >= 0) {
        PyErr_Format(PyExc_MemoryError,
                     "seq_id %lld needs more KV blocks than there are; cancel it or make a "
                     "scheduler with more n_blocks",
                     (long long)self->untold_report.failed);
    } else {
        result = Py_NewRef(Py_None);
    }
    return leave(self, LMD_OK, NULL, result);
}

/* Ends a sequence that has all its tokens, and appends (seq_id, "length") to `ended`. */
static int end_if_full(scheduler_object *self, PyObject *seq_id, PyObject *max_len,
                       PyObject *ended) {
    const int64_t id = PyLong_AsLongLong(seq_id);
    int32_t n_tokens = 0;
    lmd_scheduler_tokens(self->scheduler, id, &n_tokens);
    if (n_tokens < PyLong_AsLong(max_len)) return 0;
    PyObject *item = Py_BuildValue("Os", seq_id, "length");
    int code = item ? PyList_Append(ended, item) : -1;
    Py_XDECREF(item);
    if (code == 0) code = PyDict_DelItem(self->max_lens, seq_id);
    if (code == 0) lmd_scheduler_finish(self->scheduler, id, NULL);
    return code;
}

/* Ends the sequences that have all their tokens: a new list of what update returns. */
static PyObject *end_full(scheduler_object *self) {
    PyObject *ended = PyList_New(0), *items = ended ? PyDict_Items(self->max_lens) : NULL;
    if (!items) Py_CLEAR(ended);
    for (Py_ssize_t i = 0; ended && i < PyList_GET_SIZE(items); i++) {
        PyObject *item = PyList_GET_ITEM(items, i);
        if (end_if_full(self, PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1), ended) < 0)
            Py_CLEAR(ended);
    }
    Py_XDECREF(items);
    return ended;
}

static lmd_status update(scheduler_object *self, int64_t plan_id, PyArrayObject *token_ids,
                         lmd_err *err) {
    const plan_in_flight *plan = &self->plans[plan_id & 1];
    const int64_t n = PyArray_SIZE(token_ids);
    if (plan->plan_id == plan_id && n != plan->n_logits_rows)
        return lmd_fail(err, LMD_INVALID, "plan %lld has %d logits rows, but %lld tokens came",
                        (long long)plan_id, plan->n_logits_rows, (long long)n);
    return lmd_scheduler_update(self->scheduler, plan_id, PyArray_DATA(token_ids), err);
}

static PyObject *scheduler_update(PyObject *obj, PyObject *args) {
    scheduler_object *self = (scheduler_object *)obj;
    int64_t plan_id;
    PyObject *id, *ids, *result = NULL;
    PyArrayObject *array;
    lmd_err err;
    if (!PyArg_ParseTuple(args, "OO:update", &id, &ids) ||
        lmd_py_int64(id, "plan_id", &plan_id) < 0 ||
        lmd_py_int32_array(ids, "token_ids", &array) < 0)
        return NULL;
    if (enter(self) == 0) {
        const lmd_status status = update(self, plan_id, array, &err);
        result = leave(self, status, &err, status == LMD_OK ? end_full(self) : NULL);
    }
    Py_DECREF(array);
    return result;
}

/* ---- looking ---- */

static PyObject *scheduler_check(PyObject *obj, PyObject *unused) {
    (void)unused;
    scheduler_object *self = (scheduler_object *)obj;
    if (enter(self) < 0) return NULL;
    lmd_err err;
    const lmd_status status = lmd_scheduler_check(self->scheduler, &err);
    return leave(self, status, &err, Py_NewRef(Py_None));
}

static PyObject *scheduler_stats(PyObject *obj, PyObject *unused) {
    (void)unused;
    scheduler_object *self = (scheduler_object *)obj;
    if (enter(self) < 0) return NULL;
    lmd_scheduler_stats stats;
    lmd_scheduler_get_stats(self->scheduler, &stats);
    return leave(self, LMD_OK, NULL, lmd_py_scheduler_stats(&stats));
}

/* ---- the type ---- */

static PyMethodDef scheduler_methods[] = {
    {"add", (PyCFunction)(void (*)(void))scheduler_add, METH_VARARGS | METH_KEYWORDS,
     "add(token_ids, *, max_new_tokens=512, snapshot=None, priority=0) -> int\n\nQueues a "
     "sequence and returns its seq_id; a snapshot's blocks serve as far as the texts agree. "
     "ValueError when it cannot ever fit."},
    {"session", scheduler_snapshot, METH_O, "The older name of snapshot."},
    {"snapshot", scheduler_snapshot, METH_O,
     "snapshot(seq_id) -> Snapshot\n\nThe text and the KV of a sequence that has not ended, "
     "for "
     "a later add; its blocks stay cached when it ends. KeyError."},
    {"set_budget", scheduler_set_budget, METH_O,
     "set_budget(n_tokens) -> None\n\nTokens that each of the next steps may have. "
     "ValueError."},
    {"schedule", scheduler_schedule, METH_NOARGS,
     "schedule() -> StepPlan | None\n\nThe next step's plan; None when nothing can run now. "
     "MemoryError when nothing ever can."},
    {"update", scheduler_update, METH_VARARGS,
     "update(plan_id, token_ids) -> list\n\nGives one token for each of the plan's logits_rows "
     "and ends the plan; returns (seq_id, reason) of the sequences that ended."},
    {"cancel", scheduler_finish, METH_O,
     "cancel(seq_id) -> None\n\nEnds a sequence. KeyError."},
    {"finish", scheduler_finish, METH_O,
     "finish(seq_id) -> None\n\nEnds a sequence. KeyError."},
    {"check", scheduler_check, METH_NOARGS,
     "check() -> None\n\nChecks every invariant; RuntimeError names the broken one."},
    {"stats", scheduler_stats, METH_NOARGS,
     "stats() -> dict\n\nCounts of sequences and blocks."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot scheduler_slots[] = {
    {Py_tp_new, scheduler_new},
    {Py_tp_dealloc, scheduler_dealloc},
    {Py_tp_methods, scheduler_methods},
    {Py_tp_doc,
     "Scheduler(*, n_blocks, block_len=64, max_batch_size=64, max_prefill_token_num=512, "
     "session_len=8192, enable_prefix_caching=True)\n\nThe engine's scheduler by itself."},
    {0, NULL},
};

static PyType_Spec scheduler_spec = {
    .name = "lmdeploy_c._C.Scheduler",
    .basicsize = sizeof(scheduler_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = scheduler_slots,
};

int lmd_py_scheduler_init(PyObject *module) {
    return lmd_py_add_type(module, LMD_PY_SCHEDULER, &scheduler_spec);
}
