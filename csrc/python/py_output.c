/* The Output type: see py_output.h. */
#include "python/py_output.h"

#include <string.h>

#include "python/py_array.h"
#include "python/py_values.h"

const char *const lmd_py_finish_reasons[LMD_FINISH_COUNT] = {
    [LMD_FINISH_STOP] = "stop",
    [LMD_FINISH_LENGTH] = "length",
    [LMD_FINISH_ERROR] = "error",
    [LMD_FINISH_ABORT] = "abort",
};

static PyObject *token_list(const lmd_output *output) {
    PyObject *list = PyList_New(output->n_tokens);
    for (int32_t i = 0; list && i < output->n_tokens; i++)
        lmd_py_list_put(&list, i, PyLong_FromLong(output->token_ids[i]));
    return list;
}

static PyObject *logprob_dict(const lmd_logprob *entries, int32_t n) {
    PyObject *dict = PyDict_New();
    for (int32_t i = 0; dict && i < n; i++) {
        if (entries[i].token_id < 0) continue;
        PyObject *id = PyLong_FromLong(entries[i].token_id);
        PyObject *value = PyFloat_FromDouble((double)entries[i].logprob);
        if (!id || !value || PyDict_SetItem(dict, id, value) < 0) Py_CLEAR(dict);
        Py_XDECREF(id);
        Py_XDECREF(value);
    }
    return dict;
}

/* entries: [n_rows, n]; NULL gives None. */
static PyObject *logprob_list(const lmd_logprob *entries, int32_t n_rows, int32_t n) {
    if (!entries) Py_RETURN_NONE;
    PyObject *list = PyList_New(n_rows);
    for (int32_t i = 0; list && i < n_rows; i++)
        lmd_py_list_put(&list, i, logprob_dict(entries + (int64_t)i * n, n));
    return list;
}

static PyObject *logits_array(const lmd_output *output, int32_t vocab_size) {
    if (!output->logits) Py_RETURN_NONE;
    const npy_intp dims[] = {output->n_logits_rows, vocab_size};
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(2, dims, NPY_FLOAT);
    if (!array) return NULL;
    float *out = PyArray_DATA(array);
    for (const lmd_logits_chunk *chunk = output->logits; chunk; chunk = chunk->next) {
        const size_t n = (size_t)chunk->n_rows * (size_t)vocab_size;
        memcpy(out, chunk->data, n * sizeof *out);
        out += n;
    }
    return (PyObject *)array;
}

static PyObject *error_message(const lmd_err *why) {
    if (!why) Py_RETURN_NONE;
    return PyUnicode_DecodeUTF8(why->message, (Py_ssize_t)strlen(why->message), "replace");
}

static PyObject *ppl_or_none(const lmd_output *output) {
    if (!output->has_ppl) Py_RETURN_NONE;
    return PyFloat_FromDouble(output->ppl);
}

PyObject *lmd_py_output_new(PyTypeObject *output_type, const lmd_output *output,
                            int32_t vocab_size) {
    const lmd_err *why = output->why;
    PyObject *const fields[] = {
        token_list(output),
        logprob_list(output->logprobs, output->n_tokens, output->n_logprobs),
        logits_array(output, vocab_size),
        lmd_py_text_or_none(lmd_py_finish_reasons[output->finish_reason]),
        error_message(why),
        lmd_py_text_or_none(why ? lmd_status_name(why->code) : NULL),
        ppl_or_none(output),
        PyLong_FromLong(output->cached_len),
        logprob_list(output->scores, output->n_scores, output->n_logprobs),
    };
    return lmd_py_struct_new(output_type, fields, sizeof fields / sizeof *fields);
}

static PyStructSequence_Field output_fields[] = {
    {"token_ids", "list of int"},
    {"logprobs", "list of dict token id -> natural log of its probability, or None"},
    {"logits", "[n_rows, vocab_size] float32, or None"},
    {"finish_reason", "\"stop\", \"length\", \"error\", \"abort\"; None: more will come"},
    {"error_message", "str or None"},
    {"error_code", "of an error: \"LMD_INVALID\", \"LMD_NO_MEMORY\", ...; or None"},
    {"ppl", "mean cross-entropy of the prompt, or None"},
    {"cached_tokens", "prompt tokens that were found in the KV cache"},
    {"prompt_logprobs", "the same as logprobs, of the prompt's second token on, or None"},
    {NULL, NULL},
};

static PyStructSequence_Desc output_desc = {
    .name = "lmdeploy_c._C.Output",
    .doc = "What a request has produced since the last read.",
    .fields = output_fields,
    .n_in_sequence = sizeof output_fields / sizeof *output_fields - 1,
};

int lmd_py_output_init(PyObject *module) {
    return lmd_py_add_struct(module, LMD_PY_OUTPUT, &output_desc);
}
