/* GGUF reader: see gguf.h. Format: ggml-org/ggml docs/gguf.md. */
#define _GNU_SOURCE
#include "io/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum {
    MIN_PAIR_BYTES = 14,     /* a key's length and byte, a type, one byte */
    MIN_TENSOR_BYTES = 33,   /* a name's length and byte, n_dims, one dim, type, offset */
    DEFAULT_ALIGNMENT = 32,  /* bytes */
    MAX_ALIGNMENT = 1 << 20, /* bytes; far above any writer's */
    MAX_KEY_LEN = 65535,     /* bytes: the format's bound */
    FIRST_READ = 1 << 20,    /* bytes of a file that are read at first */
    MAX_HEADER = 1 << 28     /* bytes before the tensors' data; far above any model's */
};

struct lmd_gguf {
    lmd_checkpoint *checkpoint;
    uint8_t *header; /* a file's bytes before its tensors' data: read once, so that what was
                        checked cannot change; NULL: bytes of the caller */
    lmd_gguf_pair *pairs; /* [n_pairs] in file order */
    uint32_t *by_key;     /* [n_pairs] indices sorted by key */
    size_t n_pairs, n_bytes;
};

/* The bytes that are left to read. */
typedef struct cursor {
    const uint8_t *at;
    size_t left;   /* bytes in memory */
    size_t beyond; /* bytes of the file after these */
    bool ran_out;  /* some of those were asked for */
} cursor;

/* ---- primitives: each checks how many bytes are left ---- */

/* Whether the next n bytes are in memory. */
static bool has_bytes(cursor *self, uint64_t n) {
    if (n <= self->left) return true;
    if (n - self->left <= self->beyond) self->ran_out = true;
    return false;
}

/* Copies the next n bytes to `out`, or skips them (NULL). */
static bool read_bytes(cursor *self, void *out, size_t n) {
    if (!has_bytes(self, n)) return false;
    if (out) memcpy(out, self->at, n);
    self->at += n;
    self->left -= n;
    return true;
}

static bool read_string(cursor *self, lmd_gguf_string *out) {
    uint64_t len;
    if (!read_bytes(self, &len, sizeof len) || !has_bytes(self, len)) return false;
    *out = (lmd_gguf_string){(const char *)self->at, (size_t)len};
    return read_bytes(self, NULL, (size_t)len);
}

size_t lmd_gguf_type_bytes(lmd_gguf_type type) {
    static const uint8_t bytes[LMD_GGUF_TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return (unsigned)type < LMD_GGUF_TYPE_COUNT ? bytes[type] : 0;
}

static int compare_strings(lmd_gguf_string a, lmd_gguf_string b) {
    size_t n = a.len < b.len ? a.len : b.len;
    int order = memcmp(a.data, b.data, n);
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

/* ---- metadata ---- */

static lmd_status truncated(const char *what, lmd_gguf_string name, lmd_err *err) {
    return lmd_fail(err, LMD_BAD_FILE,
                    "%s \"%.*s\" runs past the end of the file: it is truncated", what,
                    (int)(name.len < 100 ? name.len : 100), name.data);
}

static lmd_status bad_pair(lmd_gguf_string key, const char *problem, uint64_t value,
                           lmd_err *err) {
    return lmd_fail(err, LMD_BAD_FILE, "metadata \"%.*s\": %s %llu",
                    (int)(key.len < 100 ? key.len : 100), key.data, problem,
                    (unsigned long long)value);
}

/* Skips n items of a type after checking them: bools must be 0 or 1. */
static lmd_status read_items(cursor *self, lmd_gguf_string key, lmd_gguf_type type, uint64_t n,
                             lmd_err *err) {
    if (type == LMD_GGUF_STRING) {
        lmd_gguf_string item;
        for (uint64_t i = 0; i < n; i++)
            if (!read_string(self, &item)) return truncated("metadata", key, err);
        return LMD_OK;
    }
    size_t item_bytes = lmd_gguf_type_bytes(type);
    if (n > SIZE_MAX / item_bytes || !has_bytes(self, n * item_bytes))
        return truncated("metadata", key, err);
    for (uint64_t i = 0; type == LMD_GGUF_BOOL && i < n; i++)
        if (self->at[i] > 1)
            return bad_pair(key, "a bool must be 0 or 1, not", self->at[i], err);
    read_bytes(self, NULL, (size_t)n * item_bytes);
    return LMD_OK;
}

static lmd_status read_value(cursor *self, lmd_gguf_string key, lmd_gguf_value *out,
                             lmd_err *err) {
    uint32_t type, item_type;
    uint64_t n_items = 1;
    if (!read_bytes(self, &type, sizeof type)) return truncated("metadata", key, err);
    if (type >= LMD_GGUF_TYPE_COUNT) return bad_pair(key, "there is no value type", type, err);
    item_type = type;
    if (type == LMD_GGUF_ARRAY) {
        if (!read_bytes(self, &item_type, sizeof item_type) ||
            !read_bytes(self, &n_items, sizeof n_items))
            return truncated("metadata", key, err);
        if (item_type >= LMD_GGUF_TYPE_COUNT)
            return bad_pair(key, "there is no value type", item_type, err);
        if (item_type == LMD_GGUF_ARRAY)
            return lmd_fail(err, LMD_UNSUPPORTED,
                            "metadata \"%.*s\": an array of arrays is not served",
                            (int)(key.len < 100 ? key.len : 100), key.data);
    }
    const uint8_t *data = self->at;
    LMD_TRY(read_items(self, key, (lmd_gguf_type)item_type, n_items, err));
    *out = (lmd_gguf_value){(lmd_gguf_type)type, (lmd_gguf_type)item_type, n_items, data,
                            (size_t)(self->at - data)};
    return LMD_OK;
}

static lmd_status read_pair(cursor *self, lmd_gguf_pair *out, lmd_err *err) {
    lmd_gguf_string key;
    if (!read_string(self, &key))
        return lmd_fail(err, LMD_BAD_FILE,
                        "the metadata is truncated: a key runs past the end");
    if (key.len == 0 || key.len > MAX_KEY_LEN || memchr(key.data, 0, key.len))
        return lmd_fail(err, LMD_BAD_FILE,
                        "a metadata key of %zu bytes is empty, too long or holds a NUL byte",
                        key.len);
    out->key = key;
    return read_value(self, key, &out->value, err);
}

static int compare_pairs(const void *a, const void *b, void *pairs) {
    const lmd_gguf_pair *base = pairs;
    return compare_strings(base[*(const uint32_t *)a].key, base[*(const uint32_t *)b].key);
}

static lmd_status index_keys(lmd_gguf *self, lmd_err *err) {
    for (size_t i = 0; i < self->n_pairs; i++) self->by_key[i] = (uint32_t)i;
    qsort_r(self->by_key, self->n_pairs, sizeof *self->by_key, compare_pairs, self->pairs);
    for (size_t i = 1; i < self->n_pairs; i++) {
        lmd_gguf_string key = self->pairs[self->by_key[i]].key;
        if (compare_strings(key, self->pairs[self->by_key[i - 1]].key) == 0)
            return lmd_fail(err, LMD_BAD_FILE, "metadata \"%.*s\" is there twice",
                            (int)(key.len < 100 ? key.len : 100), key.data);
    }
    return LMD_OK;
}

static lmd_status read_pairs(lmd_gguf *self, cursor *at, uint64_t n, lmd_err *err) {
    if (n > (at->left + at->beyond) / MIN_PAIR_BYTES)
        return lmd_fail(err, LMD_BAD_FILE, "%llu metadata pairs do not fit in the file",
                        (unsigned long long)n);
    self->pairs = lmd_calloc((size_t)n, sizeof *self->pairs);
    self->by_key = lmd_calloc((size_t)n, sizeof *self->by_key);
    if (!self->pairs || !self->by_key) return lmd_no_memory(err, "metadata");
    for (uint64_t i = 0; i < n; i++) LMD_TRY(read_pair(at, &self->pairs[i], err));
    self->n_pairs = (size_t)n;
    return index_keys(self, err);
}

/* ---- tensors ---- */

/* The names of the types, as the format numbers them; NULL for those that it has removed. */
static const char *const type_names[] = {
    "F32",     "F16",   "Q4_0",   "Q4_1",  NULL,    NULL,     "Q5_0", "Q5_1",    "Q8_0",
    "Q8_1",    "Q2_K",  "Q3_K",   "Q4_K",  "Q5_K",  "Q6_K",   "Q8_K", "IQ2_XXS", "IQ2_XS",
    "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",   "I16",     "I32",
    "I64",     "F64",   "IQ1_M",  "BF16",  NULL,    NULL,     NULL,   "TQ1_0",   "TQ2_0",
    NULL,      NULL,    NULL,     "MXFP4", "NVFP4", "Q1_0",   "Q2_0",
};

/* Types that are not served have a name and no bytes, so that a file opens whose model does not
 * need them. */
static void set_type(lmd_tensor_spec *spec, uint32_t type) {
    const char *name = type < sizeof type_names / sizeof *type_names ? type_names[type] : NULL;
    spec->dtype = LMD_OTHER;
    spec->other_dtype = name ? name : "unknown";
    for (lmd_dtype dtype = LMD_F32; name && dtype < LMD_OTHER; dtype++)
        if (strcmp(name, lmd_dtype_name(dtype)) == 0) spec->dtype = dtype;
}

typedef struct tensor_entry {
    lmd_tensor_spec spec;
    char name[LMD_TENSOR_NAME_LEN + 1];
} tensor_entry;

static lmd_status read_tensor(cursor *at, tensor_entry *out, lmd_err *err) {
    lmd_gguf_string name;
    if (!read_string(at, &name))
        return lmd_fail(err, LMD_BAD_FILE, "the tensor directory is truncated");
    if (name.len == 0 || name.len > LMD_TENSOR_NAME_LEN || memchr(name.data, 0, name.len))
        return lmd_fail(err, LMD_BAD_FILE,
                        "a tensor name of %zu bytes is empty, too long or holds a NUL byte",
                        name.len);
    memcpy(out->name, name.data, name.len);
    out->name[name.len] = '\0';
    uint32_t n_dims, type;
    if (!read_bytes(at, &n_dims, sizeof n_dims)) return truncated("tensor", name, err);
    if (n_dims < 1 || n_dims > LMD_MAX_DIMS)
        return lmd_fail(err, LMD_BAD_FILE,
                        "tensor \"%s\" has %u dimensions; 1 to %d are served", out->name,
                        n_dims, LMD_MAX_DIMS);
    out->spec.n_dims = (int32_t)n_dims;
    for (uint32_t i = 0; i < n_dims; i++) { /* the file lists the innermost dimension first */
        uint64_t dim;
        if (!read_bytes(at, &dim, sizeof dim)) return truncated("tensor", name, err);
        out->spec.dims[n_dims - 1 - i] = dim > INT64_MAX ? -1 : (int64_t)dim;
    }
    if (!read_bytes(at, &type, sizeof type) ||
        !read_bytes(at, &out->spec.offset, sizeof out->spec.offset))
        return truncated("tensor", name, err);
    set_type(&out->spec, type);
    return LMD_OK;
}

/* The bytes that a valid shape needs; add_tensor refuses other shapes. */
static uint64_t shape_bytes(const lmd_tensor_spec *spec) {
    uint64_t n = 1;
    for (int32_t i = 0; i < spec->n_dims; i++)
        if (spec->dims[i] < 1 || __builtin_mul_overflow(n, (uint64_t)spec->dims[i], &n) ||
            n > INT64_MAX / 8)
            return 0;
    return n / (uint64_t)lmd_dtype_block_len(spec->dtype) *
           (uint64_t)lmd_dtype_block_bytes(spec->dtype);
}

static lmd_status read_alignment(const lmd_gguf *self, uint64_t *out, lmd_err *err) {
    const lmd_gguf_value *value = lmd_gguf_find(self, "general.alignment");
    *out = DEFAULT_ALIGNMENT;
    if (!value) return LMD_OK;
    if (!lmd_gguf_value_uint(value, out) || *out < 1 || *out > MAX_ALIGNMENT ||
        (*out & (*out - 1)) != 0)
        return lmd_fail(err, LMD_BAD_FILE,
                        "metadata \"general.alignment\" must be a power of two up to %d",
                        MAX_ALIGNMENT);
    return LMD_OK;
}

static lmd_status add_tensors(lmd_gguf *self, const cursor *directory, uint64_t n,
                              uint64_t data_begin, uint64_t alignment, lmd_err *err) {
    cursor at = *directory;
    for (uint64_t i = 0; i < n; i++) {
        tensor_entry entry = {0};
        LMD_TRY(read_tensor(&at, &entry, err));
        lmd_tensor_spec *spec = &entry.spec;
        spec->name = entry.name;
        spec->n_bytes = shape_bytes(spec);
        if (spec->offset % alignment)
            return lmd_fail(err, LMD_BAD_FILE,
                            "tensor \"%s\" starts at %llu, no multiple of %llu", entry.name,
                            (unsigned long long)spec->offset, (unsigned long long)alignment);
        if (__builtin_add_overflow(spec->offset, data_begin, &spec->offset))
            return lmd_fail(err, LMD_BAD_FILE, "tensor \"%s\" starts past the end", entry.name);
        LMD_TRY(lmd_checkpoint_add_tensor(self->checkpoint, spec, err));
    }
    return LMD_OK;
}

static int compare_places(const void *a, const void *b) {
    const uint64_t x = (*(const lmd_tensor_view *const *)a)->offset;
    const uint64_t y = (*(const lmd_tensor_view *const *)b)->offset;
    return (x > y) - (x < y);
}

/* No writer shares bytes between tensors: a file in which tensors overlap is hostile. */
static lmd_status check_overlaps(const lmd_checkpoint *checkpoint, lmd_err *err) {
    size_t n = lmd_checkpoint_n_tensors(checkpoint);
    const lmd_tensor_view **views = lmd_calloc(n, sizeof *views);
    if (!views) return lmd_no_memory(err, "%zu tensors", n);
    for (size_t i = 0; i < n; i++) views[i] = lmd_checkpoint_tensor(checkpoint, i);
    qsort(views, n, sizeof *views, compare_places);
    lmd_status status = LMD_OK;
    for (size_t i = 1; i < n && status == LMD_OK; i++)
        if (views[i - 1]->offset + views[i - 1]->n_bytes > views[i]->offset)
            status = lmd_fail(err, LMD_BAD_FILE, "tensors \"%.100s\" and \"%.100s\" overlap",
                              views[i - 1]->name, views[i]->name);
    lmd_free(views);
    return status;
}

static lmd_status read_tensors(lmd_gguf *self, cursor *at, uint64_t n, lmd_err *err) {
    if (n > (at->left + at->beyond) / MIN_TENSOR_BYTES)
        return lmd_fail(err, LMD_BAD_FILE, "%llu tensors do not fit in the file",
                        (unsigned long long)n);
    cursor directory = *at;
    tensor_entry entry;
    /* The tensors' data follows the directory, whose end is known once all of it was read. */
    for (uint64_t i = 0; i < n; i++) LMD_TRY(read_tensor(at, &entry, err));
    uint64_t alignment, begin = self->n_bytes - at->beyond - at->left;
    LMD_TRY(read_alignment(self, &alignment, err));
    begin = (begin + alignment - 1) / alignment * alignment;
    LMD_TRY(add_tensors(self, &directory, n, begin, alignment, err));
    return check_overlaps(self->checkpoint, err);
}

/* ---- the file ---- */

static lmd_status check_header(cursor *at, uint64_t *n_tensors, uint64_t *n_pairs,
                               lmd_err *err) {
    char magic[4];
    uint32_t version = 0;
    if (!read_bytes(at, magic, sizeof magic) || memcmp(magic, "GGUF", sizeof magic) != 0)
        return lmd_fail(err, LMD_BAD_FILE,
                        "this is no GGUF file: it does not start with \"GGUF\"");
    bool has_version = read_bytes(at, &version, sizeof version);
    if (has_version && version != 0 && (version & 0xffff) == 0)
        return lmd_fail(err, LMD_UNSUPPORTED, "big-endian GGUF files are not served");
    if (has_version && version != 2 && version != 3) /* 3 only adds files that are big-endian */
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "GGUF version %u is not served, only 2 and 3; convert the model anew",
                        version);
    if (!has_version || !read_bytes(at, n_tensors, sizeof *n_tensors) ||
        !read_bytes(at, n_pairs, sizeof *n_pairs))
        return lmd_fail(err, LMD_BAD_FILE, "the GGUF header is truncated");
    return LMD_OK;
}

/* Reads the first n bytes of the checkpoint's only file. *ran_out: they are too few. */
static lmd_status parse(lmd_gguf *self, const uint8_t *data, size_t n, bool *ran_out,
                        lmd_err *err) {
    cursor at = {data, n, self->n_bytes - n, false};
    uint64_t n_tensors = 0, n_pairs = 0;
    lmd_status status = check_header(&at, &n_tensors, &n_pairs, err);
    if (status == LMD_OK) status = read_pairs(self, &at, n_pairs, err);
    if (status == LMD_OK) status = read_tensors(self, &at, n_tensors, err);
    *ran_out = at.ran_out;
    return status;
}

static void forget_pairs(lmd_gguf *self) {
    lmd_free(self->pairs);
    lmd_free(self->by_key);
    self->pairs = NULL;
    self->by_key = NULL;
    self->n_pairs = 0;
}

/* Reads more of the file until all is there that comes before the tensors' data. */
static lmd_status parse_file(lmd_gguf *self, lmd_err *err) {
    size_t n_read = 0, capacity = 0;
    for (size_t n = FIRST_READ; n <= MAX_HEADER; n *= 2) {
        if (n > self->n_bytes) n = self->n_bytes;
        bool ran_out;
        LMD_TRY(lmd_grow((void **)&self->header, &capacity, n, 1, err));
        LMD_TRY(lmd_checkpoint_file_read(self->checkpoint, 0, n_read, n - n_read,
                                         self->header + n_read, err));
        n_read = n;
        const lmd_status status = parse(self, self->header, n, &ran_out, err);
        if (!ran_out) return status;
        forget_pairs(self); /* they point to where the header has been */
    }
    return lmd_fail(err, LMD_BAD_FILE, "metadata and tensor directory pass %d bytes",
                    MAX_HEADER);
}

static lmd_status open_path(lmd_gguf *self, const char *path, lmd_err *err) {
    int32_t file_idx;
    LMD_TRY(lmd_checkpoint_add_file(self->checkpoint, path, &file_idx, err));
    self->n_bytes = lmd_checkpoint_file_len(self->checkpoint, file_idx);
    const lmd_status status = parse_file(self, err);
    return status == LMD_OK ? LMD_OK : lmd_err_prefix(err, status, "\"%.200s\"", path);
}

static lmd_status open_memory(lmd_gguf *self, const uint8_t *data, size_t n_bytes,
                              lmd_err *err) {
    int32_t file_idx;
    bool ran_out;
    LMD_TRY(lmd_checkpoint_add_memory(self->checkpoint, data, n_bytes, &file_idx, err));
    self->n_bytes = n_bytes;
    return parse(self, data, n_bytes, &ran_out, err);
}

static lmd_status open_with(const char *path, const uint8_t *data, size_t n_bytes,
                            lmd_gguf **out, lmd_err *err) {
    lmd_gguf *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a GGUF file");
    lmd_status status = lmd_checkpoint_new(&self->checkpoint, err);
    if (status == LMD_OK)
        status = path ? open_path(self, path, err) : open_memory(self, data, n_bytes, err);
    if (status != LMD_OK) {
        lmd_gguf_free(self);
        return status;
    }
    *out = self;
    return LMD_OK;
}

lmd_status lmd_gguf_open(const char *path, lmd_gguf **out, lmd_err *err) {
    return open_with(path, NULL, 0, out, err);
}

lmd_status lmd_gguf_parse(const uint8_t *data, size_t n_bytes, lmd_gguf **out, lmd_err *err) {
    return open_with(NULL, data, n_bytes, out, err);
}

void lmd_gguf_free(lmd_gguf *self) {
    if (!self) return;
    lmd_checkpoint_free(self->checkpoint);
    forget_pairs(self);
    lmd_free(self->header);
    lmd_free(self);
}

size_t lmd_gguf_n_bytes(const lmd_gguf *self) { return self->n_bytes; }

const lmd_checkpoint *lmd_gguf_checkpoint(const lmd_gguf *self) { return self->checkpoint; }

size_t lmd_gguf_n_pairs(const lmd_gguf *self) { return self->n_pairs; }

const lmd_gguf_pair *lmd_gguf_pair_at(const lmd_gguf *self, size_t pair_idx) {
    return &self->pairs[pair_idx];
}

const lmd_gguf_value *lmd_gguf_find(const lmd_gguf *self, const char *key) {
    lmd_gguf_string wanted = {key, strlen(key)};
    size_t low = 0, high = self->n_pairs;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const lmd_gguf_pair *pair = &self->pairs[self->by_key[middle]];
        int order = compare_strings(wanted, pair->key);
        if (order == 0) return &pair->value;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* ---- values ---- */

bool lmd_gguf_value_int(const lmd_gguf_value *value, int64_t *out) {
    uint64_t bits = 0;
    if (value->type == LMD_GGUF_BOOL || value->type == LMD_GGUF_F32 ||
        value->type == LMD_GGUF_F64 || lmd_gguf_type_bytes(value->type) == 0)
        return false;
    size_t n = lmd_gguf_type_bytes(value->type);
    memcpy(&bits, value->data, n);
    bool is_signed = value->type == LMD_GGUF_I8 || value->type == LMD_GGUF_I16 ||
                     value->type == LMD_GGUF_I32 || value->type == LMD_GGUF_I64;
    if (is_signed && n < 8 && bits >> (n * 8 - 1)) bits |= UINT64_MAX << (n * 8);
    if (!is_signed && bits > INT64_MAX) return false;
    memcpy(out, &bits, sizeof *out);
    return true;
}

bool lmd_gguf_value_uint(const lmd_gguf_value *value, uint64_t *out) {
    if (value->type == LMD_GGUF_U64) {
        memcpy(out, value->data, sizeof *out);
        return true;
    }
    int64_t number;
    if (!lmd_gguf_value_int(value, &number) || number < 0) return false;
    *out = (uint64_t)number;
    return true;
}

bool lmd_gguf_value_float(const lmd_gguf_value *value, double *out) {
    float narrow;
    if (value->type == LMD_GGUF_F64) {
        memcpy(out, value->data, sizeof *out);
        return true;
    }
    if (value->type != LMD_GGUF_F32) return false;
    memcpy(&narrow, value->data, sizeof narrow);
    *out = narrow;
    return true;
}

bool lmd_gguf_value_bool(const lmd_gguf_value *value, bool *out) {
    if (value->type != LMD_GGUF_BOOL) return false;
    *out = value->data[0] != 0;
    return true;
}

bool lmd_gguf_value_string(const lmd_gguf_value *value, lmd_gguf_string *out) {
    if (value->type != LMD_GGUF_STRING) return false;
    const uint8_t *at = value->data;
    *out = lmd_gguf_next_string(&at);
    return true;
}

lmd_gguf_string lmd_gguf_next_string(const uint8_t **at) {
    uint64_t len;
    memcpy(&len, *at, sizeof len);
    lmd_gguf_string out = {(const char *)*at + sizeof len, (size_t)len};
    *at += sizeof len + len;
    return out;
}
