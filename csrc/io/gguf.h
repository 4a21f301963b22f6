/* GGUF reader, versions 2 and 3: metadata and tensor directory.
 * Owns: the validation of everything except the tensors' contents, and a checkpoint of the
 * tensors. Nothing in a file is trusted: every length, count, offset and type is checked before
 * it is used, and all that comes before the tensors' data is read once. Values point into it,
 * strings are not terminated and their UTF-8 is not checked. Must not know: what keys mean.
 * Immutable once opened: any thread. */
#ifndef LMD_IO_GGUF_H
#define LMD_IO_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "io/checkpoint.h"

typedef struct lmd_gguf lmd_gguf;

/* Numbered as the file format numbers them. */
typedef enum lmd_gguf_type {
    LMD_GGUF_U8,
    LMD_GGUF_I8,
    LMD_GGUF_U16,
    LMD_GGUF_I16,
    LMD_GGUF_U32,
    LMD_GGUF_I32,
    LMD_GGUF_F32,
    LMD_GGUF_BOOL, /* one byte, 0 or 1 (checked) */
    LMD_GGUF_STRING,
    LMD_GGUF_ARRAY,
    LMD_GGUF_U64,
    LMD_GGUF_I64,
    LMD_GGUF_F64,
    LMD_GGUF_TYPE_COUNT
} lmd_gguf_type;

typedef struct lmd_gguf_string {
    const char *data; /* not terminated */
    size_t len;
} lmd_gguf_string;

typedef struct lmd_gguf_value {
    lmd_gguf_type type;
    lmd_gguf_type item_type; /* of an array: any but ARRAY; otherwise the type itself */
    uint64_t n_items;        /* of an array; otherwise 1 */
    const uint8_t *data;     /* the scalar, an array's first item, or a string's length field */
    size_t n_bytes;          /* from data to the value's end */
} lmd_gguf_value;

typedef struct lmd_gguf_pair {
    lmd_gguf_string key; /* not empty, no NUL byte */
    lmd_gguf_value value;
} lmd_gguf_pair;

/* Opens a file. LMD_NOT_FOUND, LMD_IO, LMD_BAD_FILE, LMD_UNSUPPORTED (other versions,
 * big-endian, nested arrays), LMD_NO_MEMORY. Tensors of types that are not served are there,
 * without bytes. The caller owns *out. */
lmd_status lmd_gguf_open(const char *path, lmd_gguf **out, lmd_err *err);
/* The same for bytes that the caller keeps alive as long as the object. */
lmd_status lmd_gguf_parse(const uint8_t *data, size_t n_bytes, lmd_gguf **out, lmd_err *err);
/* Frees the object and its checkpoint, and closes the file. NULL is accepted. */
void lmd_gguf_free(lmd_gguf *self);

size_t lmd_gguf_n_bytes(const lmd_gguf *self); /* of the file */
/* The tensors; owned by self. */
const lmd_checkpoint *lmd_gguf_checkpoint(const lmd_gguf *self);

/* Metadata in file order, and by key (NULL when there is none). */
size_t lmd_gguf_n_pairs(const lmd_gguf *self);
const lmd_gguf_pair *lmd_gguf_pair_at(const lmd_gguf *self, size_t pair_idx);
const lmd_gguf_value *lmd_gguf_find(const lmd_gguf *self, const char *key);

/* Read a value as a C type; false where the value has another type, or the number does not
 * fit. */
bool lmd_gguf_value_uint(const lmd_gguf_value *value, uint64_t *out); /* any integer >= 0 */
bool lmd_gguf_value_int(const lmd_gguf_value *value, int64_t *out);   /* any integer */
bool lmd_gguf_value_float(const lmd_gguf_value *value, double *out);  /* F32, F64 */
bool lmd_gguf_value_bool(const lmd_gguf_value *value, bool *out);
bool lmd_gguf_value_string(const lmd_gguf_value *value, lmd_gguf_string *out);

/* Walks an array of strings: start *cursor at value->data and call n_items times. */
lmd_gguf_string lmd_gguf_next_string(const uint8_t **cursor);

/* Bytes of a number or bool of that type; 0 for STRING and ARRAY. */
size_t lmd_gguf_type_bytes(lmd_gguf_type type);

#endif
