/* The normalised config of a model: see py_model_config.h. */
#include "python/py_model_config.h"

#include <string.h>

#include "python/py_error.h"
#include "python/py_fields.h"

/* ---- kinds of field: a word as what it stands for ---- */

static int read_arch(PyObject *value, const char *name, void *out) {
    const char *text;
    if (lmd_py_text(value, name, &text) < 0) return -1;
    const size_t n_bytes = strlen(text) + 1;
    if (n_bytes > sizeof((lmd_model_config *)NULL)->arch) {
        PyErr_Format(PyExc_ValueError, "%s: \"%.60s\" is not an architecture", name, text);
        return -1;
    }
    memcpy(out, text, n_bytes);
    return 0;
}

static int read_naming(PyObject *value, const char *name, void *out) {
    const char *text;
    if (lmd_py_text(value, name, &text) < 0) return -1;
    const bool is_gguf = strcmp(text, "gguf") == 0;
    if (!is_gguf && strcmp(text, "hf") != 0) {
        PyErr_Format(PyExc_ValueError, "%s must be \"gguf\" or \"hf\", not \"%.60s\"", name,
                     text);
        return -1;
    }
    *(lmd_naming *)out = is_gguf ? LMD_NAMING_GGUF : LMD_NAMING_HF;
    return 0;
}

static int read_packing(PyObject *value, const char *name, void *out) {
    const char *text;
    lmd_err err;
    if (lmd_py_text(value, name, &text) < 0) return -1;
    return lmd_py_check(lmd_packing_of(text, out, &err), &err);
}

static int read_rope_type(PyObject *value, const char *name, void *out) {
    const char *text;
    lmd_err err;
    if (lmd_py_text(value, name, &text) < 0) return -1;
    return lmd_py_check(lmd_rope_type_of(text, out, &err), &err);
}

/* ---- the keys ---- */

#define MEMBER(member) offsetof(lmd_model_config, member)

static const lmd_py_field fields[] = {
    {"arch", read_arch, MEMBER(arch)},
    {"naming", read_naming, MEMBER(naming)},
    {"n_layer", lmd_py_int32, MEMBER(n_layer)},
    {"n_head", lmd_py_int32, MEMBER(n_head)},
    {"n_kv_head", lmd_py_int32, MEMBER(n_kv_head)},
    {"head_dim", lmd_py_int32, MEMBER(head_dim)},
    {"hidden_dim", lmd_py_int32, MEMBER(hidden_dim)},
    {"ffn_dim", lmd_py_int32, MEMBER(ffn_dim)},
    {"vocab_size", lmd_py_int32, MEMBER(vocab_size)},
    {"max_position", lmd_py_int32, MEMBER(max_position)},
    {"norm_eps", lmd_py_double, MEMBER(norm_eps)},
    {"tie_embeddings", lmd_py_flag, MEMBER(tie_embeddings)},
    {"qkv_bias", lmd_py_flag, MEMBER(qkv_bias)},
    {"o_bias", lmd_py_flag, MEMBER(o_bias)},
    {"mlp_bias", lmd_py_flag, MEMBER(mlp_bias)},
    {"qk_norm", lmd_py_flag, MEMBER(qk_norm)},
    {"packed_qkv", lmd_py_flag, MEMBER(packed_qkv)},
    {"interleaved_rope", lmd_py_flag, MEMBER(interleaved_rope)},
    {"quant_method", read_packing, MEMBER(packing)},
    {"rope_type", read_rope_type, MEMBER(rope.type)},
    {"rope_theta", lmd_py_double, MEMBER(rope.theta)},
    {"rope_factor", lmd_py_double, MEMBER(rope.factor)},
    {"rope_original_max_position", lmd_py_int32, MEMBER(rope.original_max_position)},
    {"rope_low_freq_factor", lmd_py_double, MEMBER(rope.low_freq_factor)},
    {"rope_high_freq_factor", lmd_py_double, MEMBER(rope.high_freq_factor)},
    {"rope_beta_fast", lmd_py_double, MEMBER(rope.beta_fast)},
    {"rope_beta_slow", lmd_py_double, MEMBER(rope.beta_slow)},
    {"rope_attention_factor", lmd_py_double, MEMBER(rope.attention_factor)},
    {"rope_truncate", lmd_py_flag, MEMBER(rope.truncate)},
    {"rope_freqs_tensor", lmd_py_flag, MEMBER(rope.freqs_tensor)},
    {NULL, NULL, 0},
};

static int copy_and_read(PyObject *mapping, PyObject *dict, lmd_model_config *out) {
    if (PyDict_Update(dict, mapping) < 0)
        return lmd_py_wrong_type(mapping, "config", "a mapping");
    return lmd_py_read_dict(fields, "model config", dict, out);
}

PyObject *lmd_py_model_config(PyObject *mapping, lmd_model_config *out) {
    PyObject *dict = PyDict_New();
    memset(out, 0, sizeof *out);
    if (dict && copy_and_read(mapping, dict, out) < 0) Py_CLEAR(dict);
    return dict;
}
