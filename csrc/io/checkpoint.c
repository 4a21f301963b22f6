/* Named tensor views over files: see checkpoint.h. */
#define _GNU_SOURCE
#include "io/checkpoint.h"

#include <stdbool.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"

typedef struct dtype_info {
    const char *name;
    int32_t block_len, block_bytes;
} dtype_info;

static const dtype_info dtypes[LMD_DTYPE_COUNT] = {
    [LMD_F32] = {"F32", 1, 4},
    [LMD_F16] = {"F16", 1, 2},
    [LMD_BF16] = {"BF16", 1, 2},
    [LMD_Q8_0] = {"Q8_0", 32, 34},
    [LMD_Q4_0] = {"Q4_0", 32, 18},
    [LMD_Q4_1] = {"Q4_1", 32, 20},
    [LMD_Q4_K] = {"Q4_K", 256, 144},
    [LMD_Q5_K] = {"Q5_K", 256, 176},
    [LMD_Q6_K] = {"Q6_K", 256, 210},
    [LMD_Q5_0] = {"Q5_0", 32, 22},
    [LMD_Q5_1] = {"Q5_1", 32, 24},
    [LMD_Q2_K] = {"Q2_K", 256, 84},
    [LMD_Q3_K] = {"Q3_K", 256, 110},
    [LMD_IQ4_NL] = {"IQ4_NL", 32, 18},
    [LMD_IQ4_XS] = {"IQ4_XS", 256, 136},
    [LMD_I32] = {"I32", 1, 4},
    [LMD_I8] = {"I8", 1, 1},
    [LMD_OTHER] = {"?", 1, 0},
};

typedef struct source_file {
    lmd_file *file; /* NULL: bytes of the caller */
    const uint8_t *data;
    size_t len;
} source_file;

struct lmd_checkpoint {
    source_file *files;
    size_t n_files, file_capacity;
    lmd_tensor_view *views;
    size_t n_views, view_capacity;
    uint32_t *slots; /* [n_slots] open hash of names: index of a view + 1, 0: empty */
    size_t n_slots;  /* a power of two */
    size_t n_bytes;
};

const char *lmd_dtype_name(lmd_dtype dtype) {
    return (unsigned)dtype < LMD_DTYPE_COUNT ? dtypes[dtype].name : "?";
}

int32_t lmd_dtype_block_len(lmd_dtype dtype) { return dtypes[dtype].block_len; }

int32_t lmd_dtype_block_bytes(lmd_dtype dtype) { return dtypes[dtype].block_bytes; }

int64_t lmd_dtype_row_bytes(lmd_dtype dtype, int64_t n_cols) {
    return n_cols / dtypes[dtype].block_len * dtypes[dtype].block_bytes;
}

const char *lmd_view_dtype_name(const lmd_tensor_view *view) {
    return view->other_dtype ? view->other_dtype : lmd_dtype_name(view->dtype);
}

lmd_status lmd_checkpoint_new(lmd_checkpoint **out, lmd_err *err) {
    lmd_checkpoint *self = lmd_calloc(1, sizeof *self);
    if (!self) return lmd_no_memory(err, "a checkpoint");
    *out = self;
    return LMD_OK;
}

void lmd_checkpoint_free(lmd_checkpoint *self) {
    if (!self) return;
    for (size_t i = 0; i < self->n_views; i++) lmd_free((void *)(uintptr_t)self->views[i].name);
    for (size_t i = 0; i < self->n_files; i++) lmd_file_close(self->files[i].file);
    lmd_free(self->slots);
    lmd_free(self->views);
    lmd_free(self->files);
    lmd_free(self);
}

static lmd_status add_source(lmd_checkpoint *self, source_file file, int32_t *file_idx,
                             lmd_err *err) {
    if (self->n_files >= INT32_MAX) return lmd_fail(err, LMD_BAD_FILE, "too many files");
    LMD_TRY(lmd_grow((void **)&self->files, &self->file_capacity, self->n_files + 1,
                     sizeof *self->files, err));
    *file_idx = (int32_t)self->n_files;
    self->files[self->n_files++] = file;
    return LMD_OK;
}

lmd_status lmd_checkpoint_add_file(lmd_checkpoint *self, const char *path, int32_t *file_idx,
                                   lmd_err *err) {
    lmd_file *file;
    LMD_TRY(lmd_file_open(path, &file, err));
    const source_file source = {.file = file, .len = lmd_file_len(file)};
    lmd_status status = add_source(self, source, file_idx, err);
    if (status != LMD_OK) lmd_file_close(file);
    return status;
}

lmd_status lmd_checkpoint_add_memory(lmd_checkpoint *self, const uint8_t *data, size_t n_bytes,
                                     int32_t *file_idx, lmd_err *err) {
    return add_source(self, (source_file){.data = data, .len = n_bytes}, file_idx, err);
}

/* ---- names ---- */

/* The seed is an address, so that nobody can prepare a file whose names all collide. */
static size_t hash_name(const lmd_checkpoint *self, const char *name) {
    uint64_t hash = (uint64_t)(uintptr_t)self;
    for (; *name; name++) {
        hash = (hash ^ (uint8_t)*name) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return (size_t)hash;
}

/* The slot that holds the name, or the empty one where it belongs. */
static size_t find_slot(const lmd_checkpoint *self, const char *name) {
    size_t slot = hash_name(self, name) & (self->n_slots - 1);
    while (self->slots[slot] && strcmp(self->views[self->slots[slot] - 1].name, name) != 0)
        slot = (slot + 1) & (self->n_slots - 1);
    return slot;
}

/* Keeps the table at most half full. */
static lmd_status grow_slots(lmd_checkpoint *self, lmd_err *err) {
    if ((self->n_views + 1) * 2 <= self->n_slots) return LMD_OK;
    if (self->n_views >= UINT32_MAX / 8) return lmd_fail(err, LMD_BAD_FILE, "too many tensors");
    size_t n_slots = self->n_slots ? self->n_slots * 2 : 64;
    uint32_t *slots = lmd_calloc(n_slots, sizeof *slots);
    if (!slots) return lmd_no_memory(err, "tensor names");
    lmd_free(self->slots);
    self->slots = slots;
    self->n_slots = n_slots;
    for (size_t i = 0; i < self->n_views; i++)
        self->slots[find_slot(self, self->views[i].name)] = (uint32_t)(i + 1);
    return LMD_OK;
}

/* ---- tensors ---- */

static lmd_status check_shape(const lmd_tensor_spec *spec, uint64_t *n_bytes, lmd_err *err) {
    const bool is_other = spec->dtype == LMD_OTHER;
    *n_bytes = spec->n_bytes;
    if (is_other && spec->n_dims == 0) return LMD_OK;
    if (spec->n_dims < 1 || spec->n_dims > LMD_MAX_DIMS)
        return lmd_fail(err, LMD_BAD_FILE,
                        "tensor \"%s\" has %d dimensions; 1 to %d are served", spec->name,
                        spec->n_dims, LMD_MAX_DIMS);
    uint64_t n = 1;
    for (int32_t i = 0; i < spec->n_dims; i++) {
        if (spec->dims[i] < 1 || spec->dims[i] > INT32_MAX ||
            __builtin_mul_overflow(n, (uint64_t)spec->dims[i], &n) || n > INT64_MAX / 8)
            return lmd_fail(err, LMD_BAD_FILE, "tensor \"%s\": dimension %d is %lld",
                            spec->name, i, (long long)spec->dims[i]);
    }
    if (is_other) return LMD_OK;
    const dtype_info *info = &dtypes[spec->dtype];
    int64_t n_cols = spec->dims[spec->n_dims - 1];
    if (n_cols % info->block_len)
        return lmd_fail(err, LMD_BAD_FILE,
                        "tensor \"%s\": rows of %lld values are no multiple of %s's %d",
                        spec->name, (long long)n_cols, info->name, info->block_len);
    *n_bytes = n / (uint64_t)info->block_len * (uint64_t)info->block_bytes;
    return LMD_OK;
}

static lmd_status check_place(const lmd_checkpoint *self, const lmd_tensor_spec *spec,
                              uint64_t n_bytes, lmd_err *err) {
    if (spec->file_idx < 0 || (size_t)spec->file_idx >= self->n_files)
        return lmd_fail(err, LMD_INTERNAL, "tensor \"%s\" names file %d of %zu", spec->name,
                        spec->file_idx, self->n_files);
    if (spec->n_bytes != n_bytes)
        return lmd_fail(err, LMD_BAD_FILE,
                        "tensor \"%s\" has %llu bytes, but its shape needs %llu", spec->name,
                        (unsigned long long)spec->n_bytes, (unsigned long long)n_bytes);
    size_t len = self->files[spec->file_idx].len;
    if (spec->offset > len || n_bytes > len - spec->offset)
        return lmd_fail(
            err, LMD_BAD_FILE,
            "tensor \"%s\" ends at byte %llu, but the file has %zu: it is truncated",
            spec->name, (unsigned long long)(spec->offset + n_bytes), len);
    return LMD_OK;
}

lmd_status lmd_checkpoint_add_tensor(lmd_checkpoint *self, const lmd_tensor_spec *spec,
                                     lmd_err *err) {
    size_t name_len = strnlen(spec->name, LMD_TENSOR_NAME_LEN + 1);
    if (name_len == 0 || name_len > LMD_TENSOR_NAME_LEN)
        return lmd_fail(err, LMD_BAD_FILE, "a tensor's name has %zu bytes; 1 to %d are served",
                        name_len, LMD_TENSOR_NAME_LEN);
    if ((unsigned)spec->dtype >= LMD_DTYPE_COUNT)
        return lmd_fail(err, LMD_INTERNAL, "tensor \"%s\" has dtype %d", spec->name,
                        (int)spec->dtype);
    uint64_t n_bytes = 0;
    LMD_TRY(check_shape(spec, &n_bytes, err));
    LMD_TRY(check_place(self, spec, n_bytes, err));
    LMD_TRY(grow_slots(self, err));
    size_t slot = find_slot(self, spec->name);
    if (self->slots[slot])
        return lmd_fail(err, LMD_BAD_FILE, "tensor \"%s\" is there twice", spec->name);
    LMD_TRY(lmd_grow((void **)&self->views, &self->view_capacity, self->n_views + 1,
                     sizeof *self->views, err));
    const bool is_other = spec->dtype == LMD_OTHER;
    const size_t other_len = spec->other_dtype ? strlen(spec->other_dtype) + 1 : 0;
    char *name = lmd_calloc(name_len + 1 + other_len, 1); /* both names, one after the other */
    if (!name) return lmd_no_memory(err, "a tensor's name");
    memcpy(name, spec->name, name_len);
    if (other_len) memcpy(name + name_len + 1, spec->other_dtype, other_len);
    const source_file *source = &self->files[spec->file_idx];
    lmd_tensor_view view = {.name = name,
                            .dtype = spec->dtype,
                            .other_dtype = is_other && other_len ? name + name_len + 1 : NULL,
                            .n_dims = spec->n_dims,
                            .dims = {1, 1, 1, 1},
                            .file = source->file,
                            .offset = spec->offset,
                            .data = source->data ? source->data + spec->offset : NULL,
                            .n_bytes = (size_t)n_bytes};
    for (int32_t i = 0; i < spec->n_dims; i++) view.dims[i] = spec->dims[i];
    self->views[self->n_views++] = view;
    self->slots[slot] = (uint32_t)self->n_views;
    self->n_bytes += view.n_bytes;
    return LMD_OK;
}

const lmd_tensor_view *lmd_checkpoint_find(const lmd_checkpoint *self, const char *name) {
    if (!self->n_slots) return NULL;
    uint32_t found = self->slots[find_slot(self, name)];
    return found ? &self->views[found - 1] : NULL;
}

const lmd_tensor_view *lmd_checkpoint_tensor(const lmd_checkpoint *self, size_t tensor_idx) {
    return &self->views[tensor_idx];
}

size_t lmd_checkpoint_n_tensors(const lmd_checkpoint *self) { return self->n_views; }

size_t lmd_checkpoint_n_bytes(const lmd_checkpoint *self) { return self->n_bytes; }

/* ---- bytes ---- */

size_t lmd_checkpoint_file_len(const lmd_checkpoint *self, int32_t file_idx) {
    return self->files[file_idx].len;
}

lmd_status lmd_checkpoint_file_read(const lmd_checkpoint *self, int32_t file_idx,
                                    uint64_t offset, size_t n, void *out, lmd_err *err) {
    return lmd_file_read(self->files[file_idx].file, offset, n, out, err);
}

lmd_status lmd_view_bytes(const lmd_tensor_view *view, int64_t first, size_t n, void *buffer,
                          const uint8_t **out, lmd_err *err) {
    if (!view->data)
        LMD_TRY(lmd_file_read(view->file, view->offset + (uint64_t)first, n, buffer, err));
    *out = view->data ? (const uint8_t *)view->data + first : buffer;
    return LMD_OK;
}

lmd_status lmd_view_load(const lmd_tensor_view **view, lmd_loaded_tensor *out, lmd_err *err) {
    const lmd_tensor_view *from = *view;
    if (!from || from->data) return LMD_OK;
    out->buffer = lmd_realloc(NULL, from->n_bytes, 1);
    if (!out->buffer) return lmd_no_memory(err, "tensor \"%s\"", from->name);
    LMD_TRY(lmd_file_read(from->file, from->offset, from->n_bytes, out->buffer, err));
    out->view = *from;
    out->view.data = out->buffer;
    *view = &out->view;
    return LMD_OK;
}
