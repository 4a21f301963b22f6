/* The StepPlan type: see py_step_plan.h. */
#include "python/py_step_plan.h"

#include <assert.h>
#include <string.h>

#include "python/py_array.h"
#include "python/py_values.h"

static const char *const wait_reasons[] = {
    [LMD_WAIT_SLOT] = "the batch is full",
    [LMD_WAIT_BUDGET] = "the step's tokens are spent",
    [LMD_WAIT_BLOCKS] = "no block is free",
    [LMD_WAIT_TURN] = "behind another that waits",
};

static PyObject *waiting_list(const lmd_schedule_report *report) {
    PyObject *list = PyList_New(report->n_waiting);
    for (int32_t i = 0; list && i < report->n_waiting; i++) {
        const lmd_waiting *waiting = &report->waiting[i];
        lmd_py_list_put(
            &list, i,
            Py_BuildValue("Ls", (long long)waiting->seq_id, wait_reasons[waiting->reason]));
    }
    return list;
}

/* [n_copies, 2] */
static PyObject *copies_array(const lmd_plan *plan) {
    const npy_intp dims[] = {plan->n_copies, 2};
    PyObject *array = PyArray_SimpleNew(2, dims, NPY_INT32);
    static_assert(sizeof(lmd_block_copy) == 2 * sizeof(int32_t), "copied as pairs");
    if (array && plan->n_copies)
        memcpy(PyArray_DATA((PyArrayObject *)array), plan->copies,
               (size_t)plan->n_copies * sizeof *plan->copies);
    return array;
}

PyObject *lmd_py_step_plan_new(PyTypeObject *plan_type, const lmd_plan *plan,
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
    return lmd_py_struct_new(plan_type, fields, sizeof fields / sizeof *fields);
}

static PyStructSequence_Field plan_fields[] = {
    {"plan_id", NULL},
    {"seq_ids", "[n] int64"},
    {"slots", "[n] int32: place in the batch"},
    {"history_lens", "[n] int32: tokens already in KV"},
    {"input_lens", "[n] int32: tokens of this step"},
    {"token_ids", "[t] int32; -1: a token that the plan in flight will give"},
    {"positions", "[t] int32"},
    {"block_offsets", "[n + 1] int32 into block_ids"},
    {"block_ids", "int32"},
    {"logits_rows", "int32: rows of the step that give a token"},
    {"preempted", "int64: seq_ids that lost their slot"},
    {"waiting", "list of (seq_id, why it waits)"},
    {"copies", "[n_copies, 2] int32: blocks copied (from, to) before the step writes"},
    {NULL, NULL},
};

static PyStructSequence_Desc plan_desc = {
    .name = "lmdeploy_c._C.StepPlan",
    .doc = "One step's work as NumPy arrays: n sequences, t tokens in all.",
    .fields = plan_fields,
    .n_in_sequence = sizeof plan_fields / sizeof *plan_fields - 1,
};

int lmd_py_step_plan_init(PyObject *module) {
    return lmd_py_add_struct(module, LMD_PY_STEP_PLAN, &plan_desc);
}
