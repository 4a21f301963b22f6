/* Finding a model's tensors in a checkpoint: see weight_finder.h. */
#include "model/weight_finder.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "quant/packed_check.h"

static void tensor_name(const lmd_weight_finder *self, lmd_tensor_role role, int32_t layer,
                        char *out, size_t n_bytes) {
    const char *pattern = self->arch->names[role];
    const char *mark = pattern ? strstr(pattern, "{}") : NULL;
    if (!mark)
        snprintf(out, n_bytes, "%s", pattern ? pattern : "?");
    else
        snprintf(out, n_bytes, "%.*s%d%s", (int)(mark - pattern), pattern, layer, mark + 2);
}

static lmd_status find_name(const lmd_weight_finder *self, const char *name,
                            const lmd_tensor_view **out, lmd_err *err) {
    *out = lmd_checkpoint_find(self->checkpoint, name);
    if (*out) return LMD_OK;
    return lmd_fail(err, LMD_BAD_FILE,
                    "the checkpoint has no tensor \"%s\", which architecture \"%s\" needs",
                    name, self->config->arch);
}

/* Finds a tensor and checks its shape; n_cols 0 asks for a vector of n_rows values. */
lmd_status lmd_weight_finder_tensor(const lmd_weight_finder *self, lmd_tensor_role role,
                                    int32_t layer, int64_t n_rows, int64_t n_cols,
                                    const lmd_tensor_view **out, lmd_err *err) {
    char name[LMD_TENSOR_NAME_LEN + 1];
    const lmd_tensor_view *view;
    tensor_name(self, role, layer, name, sizeof name);
    LMD_TRY(find_name(self, name, &view, err));
    lmd_weight_format format;
    LMD_TRY(lmd_weight_format_of(view, &format, err));
    bool fits = view->dims[0] == n_rows;
    for (int32_t i = 1; i < LMD_MAX_DIMS; i++)
        fits = fits && view->dims[i] == (i == 1 && n_cols ? n_cols : 1);
    if (!fits)
        return lmd_fail(
            err, LMD_BAD_FILE,
            "tensor \"%s\" has shape %lld x %lld, but the config asks for %lld x %lld", name,
            (long long)view->dims[0], (long long)view->dims[1], (long long)n_rows,
            (long long)(n_cols ? n_cols : 1));
    *out = view;
    return LMD_OK;
}

/* The tensors of a packed matrix, after the name that it would have without ".weight". */
typedef struct packed_names {
    const char *qweight, *scales, *qzeros, *g_idx;
} packed_names;

static const packed_names word_names = {"qweight", "scales", "qzeros", "g_idx"};
static const packed_names compressed_names = {"weight_packed", "weight_scale",
                                              "weight_zero_point", "weight_g_idx"};

/* Finds the codes of a packed matrix, words or bytes; NULL: it is not packed. `suffix` is the
 * end of `name`. */
static const lmd_tensor_view *find_codes(const lmd_weight_finder *self,
                                         const packed_names *names, const char *name,
                                         char *suffix) {
    strcpy(suffix, names->qweight);
    const lmd_tensor_view *words = lmd_checkpoint_find(self->checkpoint, name);
    if (words || names != &compressed_names) return words;
    strcpy(suffix, "weight");
    const lmd_tensor_view *weight = lmd_checkpoint_find(self->checkpoint, name);
    return weight && weight->dtype == LMD_I8 ? weight : NULL;
}

/* Reads a tensor that decides what a packed matrix becomes, once: what is checked is what will
 * be decoded. It stays until the source was uploaded. */
static lmd_status load_once(lmd_weight_finder *self, const lmd_tensor_view **view,
                            lmd_err *err) {
    return lmd_view_load(view, &self->loaded[self->n_loaded++], err);
}

void lmd_weight_finder_forget(lmd_weight_finder *self) {
    for (int32_t i = 0; i < self->n_loaded; i++) lmd_free(self->loaded[i].buffer);
    memset(self->loaded, 0, sizeof self->loaded);
    self->n_loaded = 0;
}

/* Finds and checks the packed tensors of a matrix, which are there in place of "x.weight", or
 * are that and its scales. Leaves out->packing NONE where they are not. */
static lmd_status find_packed(lmd_weight_finder *self, const char *weight_name, int64_t n_rows,
                              int64_t n_cols, lmd_packed_weight *out, lmd_err *err) {
    const lmd_packing packing = self->config->packing;
    const bool is_compressed = packing == LMD_PACKING_COMPRESSED;
    const packed_names *names = is_compressed ? &compressed_names : &word_names;
    const size_t stem_len = strlen(weight_name) - strlen("weight");
    char name[LMD_TENSOR_NAME_LEN + 1];
    lmd_packed_weight packed = {.packing = packing};
    if (stem_len + sizeof "weight_zero_point" > sizeof name) return LMD_OK;
    memcpy(name, weight_name, stem_len);
    char *suffix = name + stem_len;
    packed.qweight = find_codes(self, names, name, suffix);
    if (!packed.qweight) return LMD_OK;
    strcpy(suffix, names->scales);
    LMD_TRY(find_name(self, name, &packed.scales, err));
    strcpy(suffix, names->qzeros);
    packed.qzeros = lmd_checkpoint_find(self->checkpoint, name);
    if (!packed.qzeros && !is_compressed) LMD_TRY(find_name(self, name, &packed.qzeros, err));
    strcpy(suffix, names->g_idx);
    if (packing != LMD_PACKING_AWQ) packed.g_idx = lmd_checkpoint_find(self->checkpoint, name);
    LMD_TRY(load_once(self, &packed.qzeros, err));
    LMD_TRY(load_once(self, &packed.g_idx, err));
    LMD_TRY(lmd_packed_check(&packed, n_rows, n_cols, err));
    *out = packed;
    return LMD_OK;
}

/* Sets a linear's codes. LMD_INVALID where it is no floats. */
static lmd_status set_codes(const lmd_weight_finder *self, lmd_weight_part *part,
                            lmd_err *err) {
    if (!self->codes.bits) return LMD_OK;
    part->codes = self->codes;
    if (!part->packed.packing && part->tensor->dtype <= LMD_BF16) return LMD_OK;
    return lmd_fail(err, LMD_INVALID,
                    "quantize: tensor \"%s\" is quantised already; leave quantize out, or load "
                    "the model of floats that it was made of",
                    part->packed.packing ? part->packed.qweight->name : part->tensor->name);
}

/* Finds a matrix, packed or not: all of its n_rows rows in their order. */
lmd_status lmd_weight_finder_part(lmd_weight_finder *self, lmd_tensor_role role, int32_t layer,
                                  int32_t n_rows, int32_t n_cols, lmd_weight_part *out,
                                  lmd_err *err) {
    char name[LMD_TENSOR_NAME_LEN + 1];
    lmd_weight_part part = {.n_rows = n_rows};
    tensor_name(self, role, layer, name, sizeof name);
    if (self->config->packing)
        LMD_TRY(find_packed(self, name, n_rows, n_cols, &part.packed, err));
    if (!part.packed.packing)
        LMD_TRY(lmd_weight_finder_tensor(self, role, layer, n_rows, n_cols, &part.tensor, err));
    if (role != LMD_EMBED && role != LMD_HEAD) LMD_TRY(set_codes(self, &part, err));
    *out = part;
    return LMD_OK;
}
