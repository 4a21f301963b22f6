/* A checkpoint as csrc/model sees it, the same for GGUF and safetensors: named tensor views.
 * Owns: the open files, the views and their names. The add functions regard what they are
 * given as hostile and check it once. A view's bytes are read when they are wanted, and a file
 * may change until then: a read can fail, and bytes that must not change between a check and a
 * use are loaded once. Must not know: file formats, layers, backends. Built by one thread, then
 * read by any. */
#ifndef LMD_IO_CHECKPOINT_H
#define LMD_IO_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"

typedef enum lmd_dtype {
    LMD_F32,
    LMD_F16,
    LMD_BF16,
    LMD_Q8_0,
    LMD_Q4_0,
    LMD_Q4_1,
    LMD_Q4_K,
    LMD_Q5_K,
    LMD_Q6_K,
    LMD_Q5_0,
    LMD_Q5_1,
    LMD_Q2_K,
    LMD_Q3_K,
    LMD_IQ4_NL,
    LMD_IQ4_XS,
    LMD_I32,   /* words of packed weights; after every type that stores weights by itself */
    LMD_I8,    /* codes of one byte, whose scales are another tensor */
    LMD_OTHER, /* what is not read: a tensor of it may lie in a file as long as nobody needs it
                */
    LMD_DTYPE_COUNT
} lmd_dtype;

enum {
    LMD_MAX_DIMS = 4,
    LMD_TENSOR_NAME_LEN = 255 /* bytes, the longest name accepted */
};

/* The type's name as GGUF writes it, e.g. "Q4_1"; "?" for LMD_OTHER and out of range. */
const char *lmd_dtype_name(lmd_dtype dtype);
int32_t lmd_dtype_block_len(lmd_dtype dtype);   /* values of a block: 1, 32 or 256 */
int32_t lmd_dtype_block_bytes(lmd_dtype dtype); /* bytes of a block; 0: not served */
/* Bytes of a row of n_cols values; n_cols is a multiple of block_len, as every view's last
 * dimension is. */
int64_t lmd_dtype_row_bytes(lmd_dtype dtype, int64_t n_cols);

typedef struct lmd_tensor_view {
    const char *name; /* lives as long as the checkpoint */
    lmd_dtype dtype;
    const char *other_dtype; /* LMD_OTHER's name in the file; NULL for the rest, and where its
                                shape is what no weight has */
    int32_t n_dims;          /* 1 to 4; of LMD_OTHER 0 where the shape was not given */
    int64_t dims[LMD_MAX_DIMS]; /* outermost first, as in NumPy; those after n_dims are 1 */
    const lmd_file *file;       /* where its bytes are, if they are not in memory */
    uint64_t offset;            /* bytes from the start of the file */
    const void *data;           /* in memory, of any alignment; NULL: in the file */
    size_t n_bytes;             /* exactly what dtype and dims need */
} lmd_tensor_view;

/* A tensor to add: where it lies in one of the checkpoint's files. */
typedef struct lmd_tensor_spec {
    const char *name; /* copied */
    lmd_dtype dtype;
    const char
        *other_dtype; /* of LMD_OTHER: what to call it; copied. NULL: its shape is the matter */
    int32_t n_dims;   /* of LMD_OTHER 0 for a shape of no interest */
    int64_t dims[LMD_MAX_DIMS]; /* the first n_dims are read */
    int32_t file_idx;
    uint64_t offset;  /* bytes from the start of the file */
    uint64_t n_bytes; /* must be what dtype and dims need, but for LMD_OTHER */
} lmd_tensor_spec;

/* The name of a view's dtype, that of LMD_OTHER as its file has it. */
const char *lmd_view_dtype_name(const lmd_tensor_view *view);

typedef struct lmd_checkpoint lmd_checkpoint;

/* Makes an empty checkpoint. The caller owns *out and frees it with lmd_checkpoint_free. */
lmd_status lmd_checkpoint_new(lmd_checkpoint **out, lmd_err *err);
/* Closes the files and frees the views and their names. NULL is accepted. */
void lmd_checkpoint_free(lmd_checkpoint *self);

/* Opens a file and gives the index that tensors name it by. */
lmd_status lmd_checkpoint_add_file(lmd_checkpoint *self, const char *path, int32_t *file_idx,
                                   lmd_err *err);
/* The same for bytes that the caller keeps alive: a fuzzer's input, a test's. */
lmd_status lmd_checkpoint_add_memory(lmd_checkpoint *self, const uint8_t *data, size_t n_bytes,
                                     int32_t *file_idx, lmd_err *err);

/* Adds a tensor after checking its name, shape, size and place. LMD_BAD_FILE, LMD_NO_MEMORY. */
lmd_status lmd_checkpoint_add_tensor(lmd_checkpoint *self, const lmd_tensor_spec *spec,
                                     lmd_err *err);

/* Pointers to views are valid until the next add_tensor. find gives NULL where there is no
 * tensor of that name; indices count in the order of adding. */
const lmd_tensor_view *lmd_checkpoint_find(const lmd_checkpoint *self, const char *name);
const lmd_tensor_view *lmd_checkpoint_tensor(const lmd_checkpoint *self, size_t tensor_idx);
size_t lmd_checkpoint_n_tensors(const lmd_checkpoint *self);
size_t lmd_checkpoint_n_bytes(const lmd_checkpoint *self); /* of all tensors' data */

/* ---- bytes ---- */

size_t lmd_checkpoint_file_len(const lmd_checkpoint *self, int32_t file_idx);
/* Reads bytes of a file that was added by its path. Errors as lmd_file_read. */
lmd_status lmd_checkpoint_file_read(const lmd_checkpoint *self, int32_t file_idx,
                                    uint64_t offset, size_t n, void *out, lmd_err *err);

/* The bytes [first, first + n) of a tensor, of any alignment whatever its dtype: in place where
 * the tensor is in memory, otherwise read into `buffer`, which has room for them. Errors as
 * lmd_file_read. Any thread. */
lmd_status lmd_view_bytes(const lmd_tensor_view *view, int64_t first, size_t n, void *buffer,
                          const uint8_t **out, lmd_err *err);

/* A tensor in memory. One of zeros holds nothing; lmd_free(buffer) ends it. */
typedef struct lmd_loaded_tensor {
    lmd_tensor_view view;
    void *buffer;
} lmd_loaded_tensor;

/* Reads a whole tensor into *out and points *view there, unless it is NULL or in memory
 * already. The caller frees out->buffer, on failure too. LMD_NO_MEMORY, or as lmd_file_read. */
lmd_status lmd_view_load(const lmd_tensor_view **view, lmd_loaded_tensor *out, lmd_err *err);

#endif
