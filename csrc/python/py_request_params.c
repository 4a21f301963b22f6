/* The keywords of Engine.submit: see py_request_params.h. */
#include "python/py_request_params.h"

#include <string.h>
#include <sys/random.h>

#include "base/memory.h"
#include "python/py_error.h"
#include "python/py_fields.h"

/* ---- kinds of field: words ---- */

/* Makes room for one more word of n tokens. */
static lmd_status grow(lmd_py_words *words, size_t n, lmd_err *err) {
    LMD_TRY(lmd_grow((void **)&words->ids, &words->id_capacity, (size_t)words->n_ids + n,
                     sizeof *words->ids, err));
    return lmd_grow((void **)&words->offsets, &words->offset_capacity, (size_t)words->n + 2,
                    sizeof *words->offsets, err);
}

static int add_word(lmd_py_words *words, const int32_t *ids, npy_intp n) {
    lmd_err err;
    if (n > INT32_MAX - words->n_ids || words->n >= INT32_MAX - 2) {
        PyErr_SetString(PyExc_ValueError, "words must not have 2**31 tokens");
        return -1;
    }
    if (lmd_py_check(grow(words, (size_t)n, &err), &err) < 0) return -1;
    if (n) memcpy(words->ids + words->n_ids, ids, (size_t)n * sizeof *ids);
    words->offsets[0] = 0;
    words->n_ids += (int32_t)n;
    words->offsets[++words->n] = words->n_ids;
    return 0;
}

/* Appends every token sequence of a sequence of them; None has none. */
static int read_words(PyObject *value, const char *name, void *out) {
    if (value == Py_None) return 0;
    PyObject *items = lmd_py_tuple_of(value, name, "a sequence of token sequences");
    if (!items) return -1;
    int code = 0;
    for (Py_ssize_t i = 0; code == 0 && i < PyTuple_GET_SIZE(items); i++) {
        PyArrayObject *ids;
        code = lmd_py_int32_array(PyTuple_GET_ITEM(items, i), name, &ids);
        if (code < 0) break;
        code = add_word(out, PyArray_DATA(ids), PyArray_SIZE(ids));
        Py_DECREF(ids);
    }
    Py_DECREF(items);
    return code;
}

/* Appends words of one token each. */
static int read_tokens_as_words(PyObject *value, const char *name, void *out) {
    if (value == Py_None) return 0;
    PyArrayObject *ids;
    if (lmd_py_int32_array(value, name, &ids) < 0) return -1;
    const int32_t *tokens = PyArray_DATA(ids);
    int code = 0;
    for (npy_intp i = 0; code == 0 && i < PyArray_SIZE(ids); i++)
        code = add_word(out, tokens + i, 1);
    Py_DECREF(ids);
    return code;
}

static lmd_token_words words_of(const lmd_py_words *words) {
    return (lmd_token_words){words->n, words->ids, words->offsets};
}

static void words_clear(lmd_py_words *words) {
    lmd_free(words->ids);
    lmd_free(words->offsets);
}

/* ---- other kinds of field ---- */

static int read_prompt(PyObject *value, const char *name, void *out) {
    lmd_py_request_params *self = out;
    if (lmd_py_int32_array(value, name, &self->token_ids) < 0) return -1;
    self->request.token_ids = PyArray_DATA(self->token_ids);
    self->request.n_tokens = PyArray_SIZE(self->token_ids);
    return 0;
}

/* One (token id, bias) of a mapping's items; an id outside int32 becomes -1, which is refused
 * like any other that the model lacks. */
static int read_bias(PyObject *item, lmd_token_bias *out) {
    int64_t id;
    double bias;
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
        PyErr_SetString(PyExc_TypeError, "logit_bias must have items (token id, number)");
        return -1;
    }
    if (lmd_py_int64(PyTuple_GET_ITEM(item, 0), "a token id of logit_bias", &id) < 0 ||
        lmd_py_double(PyTuple_GET_ITEM(item, 1), "a value of logit_bias", &bias) < 0)
        return -1;
    *out = (lmd_token_bias){id < 0 || id > INT32_MAX ? -1 : (int32_t)id, (float)bias};
    return 0;
}

static int read_biases(PyObject *value, const char *name, void *out) {
    lmd_py_request_params *self = out;
    if (value == Py_None) return 0;
    PyObject *list = PyMapping_Items(value);
    PyObject *items = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    if (!items) return lmd_py_wrong_type(value, name, "a mapping of token ids to numbers");
    const Py_ssize_t n = PyTuple_GET_SIZE(items);
    self->biases = lmd_calloc((size_t)n, sizeof *self->biases);
    int code = self->biases ? 0 : -1;
    if (code < 0) PyErr_NoMemory();
    for (Py_ssize_t i = 0; code == 0 && i < n; i++)
        code = read_bias(PyTuple_GET_ITEM(items, i), &self->biases[i]);
    Py_DECREF(items);
    self->request.sampler.biases = self->biases;
    self->request.sampler.n_biases = (int32_t)n;
    return code;
}

static int read_output_logits(PyObject *value, const char *name, void *out) {
    lmd_output_logits *logits = out;
    if (value == Py_None) return 0;
    if (!PyUnicode_Check(value)) return lmd_py_wrong_type(value, name, "a str or None");
    if (PyUnicode_CompareWithASCIIString(value, "all") == 0) {
        *logits = LMD_LOGITS_ALL;
    } else if (PyUnicode_CompareWithASCIIString(value, "generation") == 0) {
        *logits = LMD_LOGITS_GENERATION;
    } else {
        PyErr_Format(PyExc_ValueError, "%s must be \"all\" or \"generation\"", name);
        return -1;
    }
    return 0;
}

static int draw_seed(uint64_t *out) {
    if (getrandom(out, sizeof *out, 0) != (ssize_t)sizeof *out) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    *out >>= 1; /* fits a signed integer of the client's */
    return 0;
}

/* None leaves the seed that was drawn. */
static int read_seed(PyObject *value, const char *name, void *out) {
    if (value == Py_None) return 0;
    PyObject *number = PyNumber_Index(value);
    if (!number) return lmd_py_wrong_type(value, name, "an integer or None");
    const unsigned long long seed = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    if (PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "%s must be 0 to 2**64 - 1, not %R", name, value);
        return -1;
    }
    *(uint64_t *)out = seed;
    return 0;
}

/* ---- the keywords ---- */

#define SELF(member)    offsetof(lmd_py_request_params, member)
#define REQUEST(member) SELF(request.member)
#define SAMPLER(member) SELF(request.sampler.member)

static const lmd_py_field fields[] = {
    {"token_ids", read_prompt, 0},
    {"max_new_tokens", lmd_py_int64, REQUEST(max_new_tokens)},
    {"min_new_tokens", lmd_py_int64, REQUEST(min_new_tokens)},
    {"do_sample", lmd_py_bool, SAMPLER(do_sample)},
    {"temperature", lmd_py_double, SAMPLER(temperature)},
    {"top_k", lmd_py_int64, SAMPLER(top_k)},
    {"top_p", lmd_py_double, SAMPLER(top_p)},
    {"min_p", lmd_py_double, SAMPLER(min_p)},
    {"repetition_penalty", lmd_py_double, SAMPLER(repetition_penalty)},
    {"presence_penalty", lmd_py_double, SAMPLER(presence_penalty)},
    {"frequency_penalty", lmd_py_double, SAMPLER(frequency_penalty)},
    {"no_repeat_ngram_size", lmd_py_int64, SAMPLER(no_repeat_ngram_size)},
    {"logit_bias", read_biases, 0},
    {"bad_words", read_words, SELF(bad_words)},
    {"stop_words", read_words, SELF(stop_words)},
    {"stop_token_ids", read_tokens_as_words, SELF(stop_words)},
    {"logprobs", lmd_py_int64, SAMPLER(n_logprobs)},
    {"output_logits", read_output_logits, REQUEST(output_logits)},
    {"return_ppl", lmd_py_bool, REQUEST(return_ppl)},
    {"prompt_logprobs", lmd_py_bool, REQUEST(prompt_logprobs)},
    {"random_seed", read_seed, SAMPLER(seed)},
    {"snapshot", lmd_py_object, SELF(snapshot)},
    {"keep_snapshot", lmd_py_bool, REQUEST(keep_snapshot)},
    {"leader", lmd_py_object, SELF(leader)},
    {"priority", lmd_py_int32, REQUEST(priority)},
    {"timeout", lmd_py_double, REQUEST(timeout)},
    {"session", lmd_py_object, SELF(snapshot)}, /* older names of snapshot and keep_snapshot */
    {"keep_session", lmd_py_bool, REQUEST(keep_snapshot)},
    {NULL, NULL, 0},
};

int lmd_py_request_params_read(lmd_py_request_params *self, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"submit", 1, 1, fields};
    *self = (lmd_py_request_params){
        .request.max_new_tokens = 512, .snapshot = Py_None, .leader = Py_None};
    lmd_sampler_params_init(&self->request.sampler);
    if (draw_seed(&self->request.sampler.seed) < 0) return -1;
    self->values = lmd_py_read_call(&signature, args, kwargs, self);
    if (!self->values) return -1;
    self->request.stop_words = words_of(&self->stop_words);
    self->request.sampler.bad_words = words_of(&self->bad_words);
    return 0;
}

void lmd_py_request_params_clear(lmd_py_request_params *self) {
    Py_XDECREF(self->values);
    Py_XDECREF(self->token_ids);
    words_clear(&self->stop_words);
    words_clear(&self->bad_words);
    lmd_free(self->biases);
}
