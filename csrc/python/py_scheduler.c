/* The Scheduler and Plan types. Each Scheduler has one lock, taken without holding the GIL
 * back. */
#include "python/py_scheduler.h"

#include <assert.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "engine/scheduler.h"
#include "python/py_array.h"
#include "python/py_error.h"
#include "python/py_snapshot.h"

typedef struct in_flight {
    int64_t plan_id;
    int32_t n_logits_rows;
} in_flight;

typedef struct scheduler_object {
    PyObject_HEAD
    lmd_scheduler *scheduler;
    lmd_scheduler_config config;
    pthread_mutex_t lock;
    PyObject *living; /* dict seq_id -> max_len */
    int64_t next_seq_id;
    in_flight plans[2]; /* plan p stands at p % 2 */
    pid_t pid;
} scheduler_object;

static int enter(scheduler_object *self) {
    if (lmd_py_check_fork(self->pid) < 0) return -1;
    if (pthread_mutex_trylock(&self->lock) == 0) return 0;
    Py_BEGIN_ALLOW_THREADS /* its holder may wait for the GIL */
    pthread_mutex_lock(&self->lock);
    Py_END_ALLOW_THREADS
    return 0;
}

/* Leaves the lock with a result, or with the exception of err where there is one. */
static PyObject *leave(scheduler_object *self, lmd_status status, const lmd_err *err,
                       PyObject *result) {
    pthread_mutex_unlock(&self->lock);
    if (status == LMD_OK) return result;
    Py_XDECREF(result);
    return lmd_py_raise(err);
}

/* ---- lifetime ---- */

static PyObject *scheduler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_blocks",
                            "block_len",
                            "max_batch_size",
                            "max_prefill_token_num",
                            "session_len",
                            "enable_prefix_caching",
                            NULL};
    lmd_scheduler_config config = {0, 64, 64, 512, 8192, true};
    int prefix_caching = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$iiiiip:Scheduler", names,
                                     &config.n_blocks, &config.block_len,
                                     &config.max_batch_size, &config.max_prefill_token_num,
                                     &config.session_len, &prefix_caching))
        return NULL;
    config.prefix_caching = prefix_caching;
    lmd_err err;
    scheduler_object *self = (scheduler_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    pthread_mutexattr_t
        attr; /* recursive: a collection inside may run a finalizer that calls us */
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&self->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    self->config = config;
    self->pid = getpid();
    self->living = PyDict_New();
    if (self->living && lmd_scheduler_new(&config, &self->scheduler, &err) == LMD_OK)
        return (PyObject *)self;
    if (self->living) lmd_py_raise(&err);
    Py_DECREF(self);
    return NULL;
}

static void scheduler_dealloc(PyObject *obj) {
    scheduler_object *self = (scheduler_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    lmd_scheduler_free(self->scheduler);
    pthread_mutex_destroy(&self->lock);
    Py_XDECREF(self->living);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* ---- add, finish, cancel ---- */

static PyObject *scheduler_add(PyObject *obj, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"token_ids", "max_new_tokens", "snapshot", "priority", NULL};
    scheduler_object *self = (scheduler_object *)obj;
    PyObject *ids, *snapshot_obj = Py_None;
    PyArrayObject *array;
    lmd_snapshot *snapshot;
    int max_new_tokens = 512, priority = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$iOi:add", names, &ids, &max_new_tokens,
                                     &snapshot_obj, &priority))
        return NULL;
    if (lmd_py_snapshot_read(lmd_py_state_of_type(Py_TYPE(obj)), snapshot_obj, obj, &snapshot) <
        0)
        return NULL;
    if (lmd_py_int32_array(ids, "token_ids", &array) < 0) return NULL;
    int64_t n = PyArray_SIZE(array), max_len = n + max_new_tokens;
    /* The last token is never computed and needs no KV. */
    int64_t n_blocks = (max_len - 1 + self->config.block_len - 1) / self->config.block_len;
    if (max_new_tokens < 1) {
        PyErr_Format(PyExc_ValueError, "max_new_tokens must be at least 1, not %d",
                     max_new_tokens);
        Py_DECREF(array);
        return NULL;
    }
    if (n_blocks > self->config.n_blocks || max_len > self->config.session_len) {
        PyErr_Format(PyExc_ValueError,
                     "%lld tokens do not ever fit: session_len is %d, and %d blocks hold %lld",
                     (long long)max_len, self->config.session_len, self->config.n_blocks,
                     (long long)self->config.n_blocks * self->config.block_len);
        Py_DECREF(array);
        return NULL;
    }
    if (enter(self) < 0) {
        Py_DECREF(array);
        return NULL;
    }
    lmd_sequence_params params = {.seq_id = self->next_seq_id,
                                  .token_ids = PyArray_DATA(array),
                                  .n_tokens = (int32_t)n,
                                  .max_len = (int32_t)max_len,
                                  .snapshot = snapshot,
                                  .priority = priority};
    lmd_err err;
    lmd_status status = lmd_scheduler_add(self->scheduler, &params, &err);
    PyObject *seq_id = status == LMD_OK ? PyLong_FromLongLong(self->next_seq_id++) : NULL;
    PyObject *limit = seq_id ? PyLong_FromLongLong(max_len) : NULL;
    if (limit && PyDict_SetItem(self->living, seq_id, limit) < 0) Py_CLEAR(seq_id);
    Py_XDECREF(limit);
    Py_DECREF(array);
    return leave(self, status, &err, seq_id);
}

static PyObject *scheduler_finish(PyObject *obj, PyObject *arg) {
    scheduler_object *self = (scheduler_object *)obj;
    long long seq_id = PyLong_AsLongLong(arg);
    if (seq_id == -1 && PyErr_Occurred()) return NULL;
    if (enter(self) < 0) return NULL;
    lmd_err err;
    lmd_status status = lmd_scheduler_finish(self->scheduler, seq_id, &err);
    if (status == LMD_OK) {
        if (PyDict_DelItem(self->living, arg) < 0) PyErr_Clear();
    } else {
        PyErr_Format(PyExc_KeyError, "seq_id %lld does not live", seq_id);
    }
    return leave(self, status, &err, status == LMD_OK ? Py_NewRef(Py_None) : NULL);
}

static PyObject *scheduler_set_budget(PyObject *obj, PyObject *arg) {
    scheduler_object *self = (scheduler_object *)obj;
    long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred()) return NULL;
    if (n < 1 || n > self->config.max_prefill_token_num)
        return PyErr_Format(PyExc_ValueError, "the budget must be 1 to %d tokens, not %ld",
                            self->config.max_prefill_token_num, n);
    if (enter(self) < 0) return NULL;
    lmd_scheduler_set_budget(self->scheduler, (int32_t)n);
    return leave(self, LMD_OK, NULL, Py_NewRef(Py_None));
}

static PyObject *scheduler_snapshot(PyObject *obj, PyObject *arg) {
    scheduler_object *self = (scheduler_object *)obj;
    long long seq_id = PyLong_AsLongLong(arg);
    if (seq_id == -1 && PyErr_Occurred()) return NULL;
    if (enter(self) < 0) return NULL;
    int32_t n_tokens;
    const bool lives = lmd_scheduler_tokens(self->scheduler, seq_id, &n_tokens) != NULL;
    lmd_snapshot *snapshot = lmd_scheduler_snapshot(self->scheduler, seq_id);
    pthread_mutex_unlock(&self->lock);
    if (snapshot)
        return lmd_py_snapshot_wrap(lmd_py_state_of_type(Py_TYPE(obj)), snapshot, obj);
    return lives ? PyErr_NoMemory()
                 : PyErr_Format(PyExc_KeyError, "seq_id %lld does not live", seq_id);
}

/* ---- schedule ---- */

static const char *reason_name(lmd_wait_reason reason) {
    switch (reason) {
    case LMD_WAIT_SLOT: return "the batch is full";
    case LMD_WAIT_BUDGET: return "the step's tokens are spent";
    case LMD_WAIT_BLOCKS: return "no block is free";
    case LMD_WAIT_TURN: return "behind another that waits";
    }
    return "?";
}

static PyObject *waiting_list(const lmd_schedule_report *report) {
    PyObject *list = PyList_New(report->n_waiting);
    for (int32_t i = 0; list && i < report->n_waiting; i++) {
        PyObject *item = Py_BuildValue("Ls", (long long)report->waiting[i].seq_id,
                                       reason_name(report->waiting[i].reason));
        if (item)
            PyList_SET_ITEM(list, i, item);
        else
            Py_CLEAR(list);
    }
    return list;
}

/* [n_copies, 2] */
static PyObject *copies_array(const lmd_plan *plan) {
    npy_intp dims[] = {plan->n_copies, 2};
    PyObject *array = PyArray_SimpleNew(2, dims, NPY_INT32);
    static_assert(sizeof(lmd_block_copy) == 2 * sizeof(int32_t), "copied as pairs");
    if (array && plan->n_copies)
        memcpy(PyArray_DATA((PyArrayObject *)array), plan->copies,
               (size_t)plan->n_copies * sizeof *plan->copies);
    return array;
}

static PyObject *plan_object(PyTypeObject *type, const lmd_plan *plan,
                             const lmd_schedule_report *report) {
    PyObject *const fields[] = {
        PyLong_FromLongLong(plan->plan_id),
        lmd_py_new_int64(plan->seq_ids, plan->n_seqs),
        lmd_py_new_int32(plan->slots, plan->n_seqs),
        lmd_py_new_int32(plan->history_lens, plan->n_seqs),
        lmd_py_new_int32(plan->input_lens, plan->n_seqs),
        lmd_py_new_int32(plan->token_ids, plan->n_tokens),
        lmd_py_new_int32(plan->positions, plan->n_tokens),
        lmd_py_new_int32(plan->block_offsets, plan->n_seqs + 1),
        lmd_py_new_int32(plan->block_ids, plan->block_offsets[plan->n_seqs]),
        lmd_py_new_int32(plan->logits_rows, plan->n_logits_rows),
        lmd_py_new_int64(report->preempted, report->n_preempted),
        waiting_list(report),
        copies_array(plan),
    };
    return lmd_py_struct_new(type, fields, sizeof fields / sizeof *fields);
}

static PyObject *scheduler_schedule(PyObject *obj, PyObject *unused) {
    (void)unused;
    scheduler_object *self = (scheduler_object *)obj;
    if (enter(self) < 0) return NULL;
    lmd_plan plan;
    lmd_schedule_report report;
    PyObject *result = NULL;
    if (lmd_scheduler_schedule(self->scheduler, &plan, &report)) {
        self->plans[plan.plan_id % 2] = (in_flight){plan.plan_id, plan.n_logits_rows};
        result = plan_object(lmd_py_state_of_type(Py_TYPE(obj))->plan_type, &plan, &report);
    } else if (report.failed >= 0) {
        PyErr_Format(
            PyExc_MemoryError,
            "seq_id %lld needs more KV blocks than there are; cancel it or make a scheduler "
            "with more n_blocks",
            (long long)report.failed);
    } else {
        result = Py_NewRef(Py_None);
    }
    return leave(self, LMD_OK, NULL, result);
}

/* ---- update ---- */

/* Ends the sequences that have reached their max_len; a new list of (seq_id, "length"). */
static PyObject *finish_full(scheduler_object *self) {
    PyObject *ended = PyList_New(0), *items = PyDict_Items(self->living);
    for (Py_ssize_t i = 0; ended && items && i < PyList_GET_SIZE(items); i++) {
        PyObject *key = PyTuple_GET_ITEM(PyList_GET_ITEM(items, i), 0);
        long long seq_id = PyLong_AsLongLong(key);
        long limit = PyLong_AsLong(PyTuple_GET_ITEM(PyList_GET_ITEM(items, i), 1));
        int32_t n_tokens = 0;
        lmd_scheduler_tokens(self->scheduler, seq_id, &n_tokens);
        if (n_tokens < limit) continue;
        PyObject *item = Py_BuildValue("Ls", seq_id, "length");
        if (!item || PyList_Append(ended, item) < 0 || PyDict_DelItem(self->living, key) < 0)
            Py_CLEAR(ended);
        Py_XDECREF(item);
        lmd_scheduler_finish(self->scheduler, seq_id, NULL);
    }
    Py_XDECREF(items);
    return ended;
}

static PyObject *scheduler_update(PyObject *obj, PyObject *args) {
    scheduler_object *self = (scheduler_object *)obj;
    long long plan_id;
    PyObject *ids;
    PyArrayObject *array;
    if (!PyArg_ParseTuple(args, "LO:update", &plan_id, &ids)) return NULL;
    if (lmd_py_int32_array(ids, "token_ids", &array) < 0) return NULL;
    if (enter(self) < 0) {
        Py_DECREF(array);
        return NULL;
    }
    lmd_err err;
    lmd_status status;
    const in_flight *plan = &self->plans[plan_id & 1];
    if (plan->plan_id == plan_id && PyArray_SIZE(array) != plan->n_logits_rows)
        status =
            lmd_fail(&err, LMD_INVALID, "plan %lld has %d logits rows, but %lld tokens came",
                     plan_id, plan->n_logits_rows, (long long)PyArray_SIZE(array));
    else
        status = lmd_scheduler_update(self->scheduler, plan_id, PyArray_DATA(array), &err);
    Py_DECREF(array);
    return leave(self, status, &err, status == LMD_OK ? finish_full(self) : NULL);
}

/* ---- looking ---- */

static PyObject *scheduler_check(PyObject *obj, PyObject *unused) {
    (void)unused;
    scheduler_object *self = (scheduler_object *)obj;
    if (enter(self) < 0) return NULL;
    lmd_err err;
    lmd_status status = lmd_scheduler_check(self->scheduler, &err);
    return leave(self, status, &err, Py_NewRef(Py_None));
}

static PyObject *scheduler_stats(PyObject *obj, PyObject *unused) {
    (void)unused;
    scheduler_object *self = (scheduler_object *)obj;
    if (enter(self) < 0) return NULL;
    lmd_scheduler_stats stats;
    lmd_scheduler_get_stats(self->scheduler, &stats);
    PyObject *dict = Py_BuildValue(
        "{s:i, s:i, s:i, s:i, s:i, s:L, s:L, s:L}", "n_running", stats.n_running, "n_waiting",
        stats.n_waiting, "n_free_blocks", stats.n_free_blocks, "n_active_blocks",
        stats.n_active_blocks, "n_cached_blocks", stats.n_cached_blocks, "n_preempted",
        (long long)stats.n_preempted, "n_prompt_tokens", (long long)stats.n_prompt_tokens,
        "n_cached_tokens", (long long)stats.n_cached_tokens);
    return leave(self, LMD_OK, NULL, dict);
}

/* ---- the types ---- */

static PyMethodDef scheduler_methods[] = {
    {"add", (PyCFunction)(void (*)(void))scheduler_add, METH_VARARGS | METH_KEYWORDS,
     "add(token_ids, *, max_new_tokens=512, snapshot=None, priority=0) -> int\n\nQueues a "
     "sequence and "
     "returns its seq_id; a snapshot's blocks serve as far as the texts agree. ValueError when "
     "it cannot ever fit."},
    {"snapshot", scheduler_snapshot, METH_O,
     "snapshot(seq_id) -> Snapshot\n\nWhat a living sequence has so far, for a later add; its "
     "blocks stay cached when it ends. KeyError."},
    {"set_budget", scheduler_set_budget, METH_O,
     "set_budget(n_tokens) -> None\n\nTokens that each of the next steps may have. "
     "ValueError."},
    {"schedule", scheduler_schedule, METH_NOARGS,
     "schedule() -> Plan | None\n\nThe next step's plan; None when nothing can run now. "
     "MemoryError "
     "when nothing ever can."},
    {"update", scheduler_update, METH_VARARGS,
     "update(plan_id, token_ids) -> list\n\nGives one token for each of the plan's logits_rows "
     "and ends "
     "the plan; returns (seq_id, reason) of the sequences that ended."},
    {"cancel", scheduler_finish, METH_O,
     "cancel(seq_id) -> None\n\nEnds a sequence. KeyError."},
    {"finish", scheduler_finish, METH_O,
     "finish(seq_id) -> None\n\nEnds a sequence. KeyError."},
    {"check", scheduler_check, METH_NOARGS,
     "check() -> None\n\nAsserts every invariant; RuntimeError names the broken one."},
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

static PyStructSequence_Field plan_fields[] = {
    {"plan_id", NULL},
    {"seq_ids", "[n] int64"},
    {"slots", "[n] int32: seat in the batch"},
    {"history_lens", "[n] int32: tokens already in KV"},
    {"input_lens", "[n] int32: tokens of this step"},
    {"token_ids", "[t] int32; -1: a token that the plan in flight will give"},
    {"positions", "[t] int32"},
    {"block_offsets", "[n + 1] int32 into block_ids"},
    {"block_ids", "int32"},
    {"logits_rows", "int32: rows of the step that give a token"},
    {"preempted", "int64: seq_ids that lost their seat"},
    {"waiting", "list of (seq_id, why it waits)"},
    {"copies", "[n_copies, 2] int32: blocks copied (from, to) before the step writes"},
    {NULL, NULL},
};

static PyStructSequence_Desc plan_desc = {
    .name = "lmdeploy_c._C.StepPlan",
    .doc = "One step's work as NumPy arrays: n sequences, t tokens in all.",
    .fields = plan_fields,
    .n_in_sequence = 13,
};

int lmd_py_scheduler_init(PyObject *module, lmd_py_state *state) {
    state->scheduler_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &scheduler_spec, NULL);
    state->plan_type = PyStructSequence_NewType(&plan_desc);
    if (!state->scheduler_type || !state->plan_type) return -1;
    if (PyModule_AddObjectRef(module, "StepPlan", (PyObject *)state->plan_type) < 0) return -1;
    return PyModule_AddType(module, state->scheduler_type);
}
