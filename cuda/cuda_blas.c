/* cuBLAS at run time: see cuda_blas.h.
 * The entry points and numbers are those of the public cuBLAS documentation ("Using the
 * cublasLt API"), declared here because the headers come with a package of several hundred
 * megabytes. */
#include "cuda_blas.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/own_path.h"

/* ---- what cublasLt declares ---- */

enum {
    TYPE_F32 = 0,
    TYPE_F16 = 2,
    COMPUTE_F32 = 68,
    DESC_TRANSPOSE_A = 3,
    TRANSPOSED = 1,
    PREFER_MAX_WORKSPACE = 1,
    PREFER_ALIGNMENT_A = 5 /* B, C and D follow */
};

typedef struct lt_algo {
    uint64_t data[8];
} lt_algo;

typedef struct lt_heuristic {
    lt_algo algo;
    size_t workspace_bytes;
    int state; /* 0: usable */
    float waves;
    int reserved[4];
} lt_heuristic;

typedef void *lt_object; /* a handle, a description, a layout, a preference */

typedef struct lt_functions {
    int (*create)(lt_object *out);
    int (*destroy)(lt_object handle);
    int (*desc_create)(lt_object *out, int compute_type, int scale_type);
    int (*desc_destroy)(lt_object desc);
    int (*desc_set)(lt_object desc, int attribute, const void *value, size_t n_bytes);
    int (*layout_create)(lt_object *out, int type, uint64_t n_rows, uint64_t n_cols,
                         int64_t stride);
    int (*layout_destroy)(lt_object layout);
    int (*preference_create)(lt_object *out);
    int (*preference_destroy)(lt_object preference);
    int (*preference_set)(lt_object preference, int attribute, const void *value,
                          size_t n_bytes);
    int (*find)(lt_object handle, lt_object desc, lt_object a, lt_object b, lt_object c,
                lt_object d, lt_object preference, int n_wanted, lt_heuristic *out,
                int *n_found);
    int (*multiply)(lt_object handle, lt_object desc, const void *alpha, const void *a,
                    lt_object a_layout, const void *b, lt_object b_layout, const void *beta,
                    const void *c, lt_object c_layout, void *d, lt_object d_layout,
                    const lt_algo *algo, void *workspace, size_t workspace_bytes,
                    cudaStream_t stream);
} lt_functions;

/* ---- opening ---- */

/* The shape of a product, and what cublasLt made for it. */
typedef struct product {
    int32_t n_out, n_in, n_rows, x_stride, out_stride;
    int32_t out_type;
    size_t workspace_bytes;
    lt_object desc, weight, x, out; /* NULL: a free place */
    bool is_served;
    lt_algo algo;
} product;

enum { MAX_PRODUCTS = 64, ALIGNMENT = 16 };

struct lmd_cuda_blas {
    void *library;
    lt_functions lt;
    lt_object handle;
    product products[MAX_PRODUCTS]; /* the oldest is replaced */
    int32_t next;
};

/* Tries a library in the folder `relative` to the one that holds this library. */
static void *open_beside(const char *relative) {
    char path[LMD_PATH_CAP];
    return lmd_path_beside_us(path, relative) ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
}

static void *open_library(void) {
    static const char *const beside[] = {"../nvidia/cu13/lib/libcublasLt.so.13",
                                         "../nvidia/cublas/lib/libcublasLt.so.13",
                                         "../nvidia/cublas/lib/libcublasLt.so.12"};
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
    const char *named = getenv("LMDEPLOY_C_CUBLASLT");
    if (named && *named) return dlopen(named, RTLD_NOW | RTLD_LOCAL);
    void *library = NULL;
    for (size_t i = 0; !library && i < sizeof beside / sizeof *beside; i++)
        library = open_beside(beside[i]);
    for (size_t i = 0; !library && i < sizeof names / sizeof *names; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

/* Fills the table; the name of a function that is missing, or NULL. */
static const char *find_functions(void *library, lt_functions *out) {
    const struct {
        const char *name;
        void *slot;
    } functions[] = {
        {"cublasLtCreate", &out->create},
        {"cublasLtDestroy", &out->destroy},
        {"cublasLtMatmulDescCreate", &out->desc_create},
        {"cublasLtMatmulDescDestroy", &out->desc_destroy},
        {"cublasLtMatmulDescSetAttribute", &out->desc_set},
        {"cublasLtMatrixLayoutCreate", &out->layout_create},
        {"cublasLtMatrixLayoutDestroy", &out->layout_destroy},
        {"cublasLtMatmulPreferenceCreate", &out->preference_create},
        {"cublasLtMatmulPreferenceDestroy", &out->preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", &out->preference_set},
        {"cublasLtMatmulAlgoGetHeuristic", &out->find},
        {"cublasLtMatmul", &out->multiply},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *symbol = dlsym(library, functions[i].name);
        if (!symbol) return functions[i].name;
        memcpy(functions[i].slot, &symbol, sizeof symbol);
    }
    return NULL;
}

lmd_cuda_blas *lmd_cuda_blas_open(char *why, size_t n) {
    void *library = open_library();
    if (!library) {
        snprintf(why, n, "libcublasLt.so is not installed (pip install nvidia-cublas)");
        return NULL;
    }
    lmd_cuda_blas *self = lmd_calloc(1, sizeof *self);
    const char *missing = self ? find_functions(library, &self->lt) : "memory";
    if (missing || self->lt.create(&self->handle) != 0) {
        snprintf(why, n, "libcublasLt.so cannot be used: %s",
                 missing ? missing : "cublasLtCreate failed");
        lmd_free(self);
        return NULL; /* the library stays open: nothing is known of what closing it does */
    }
    self->library = library;
    return self;
}

/* ---- products ---- */

static void clear_product(const lmd_cuda_blas *self, product *at) {
    if (at->desc) self->lt.desc_destroy(at->desc);
    lt_object const layouts[] = {at->weight, at->x, at->out};
    for (int i = 0; i < 3; i++)
        if (layouts[i]) self->lt.layout_destroy(layouts[i]);
    *at = (product){0};
}

void lmd_cuda_blas_close(lmd_cuda_blas *self) {
    if (!self) return;
    for (int32_t i = 0; i < MAX_PRODUCTS; i++) clear_product(self, &self->products[i]);
    self->lt.destroy(self->handle);
    dlclose(self->library);
    lmd_free(self);
}

/* cublasLt's matrices have columns in order, ours rows: so a weight [n_out, n_in] is its matrix
 * of n_in rows, transposed, x one of n_in rows, and out one of n_out rows. */
static bool describe(const lmd_cuda_blas *self, product *at) {
    const lt_functions *lt = &self->lt;
    const int transposed = TRANSPOSED;
    const uint64_t n_out = (uint64_t)at->n_out, n_in = (uint64_t)at->n_in;
    const uint64_t n_rows = (uint64_t)at->n_rows;
    return lt->desc_create(&at->desc, COMPUTE_F32, TYPE_F32) == 0 &&
           lt->desc_set(at->desc, DESC_TRANSPOSE_A, &transposed, sizeof transposed) == 0 &&
           lt->layout_create(&at->weight, TYPE_F16, n_in, n_out, at->n_in) == 0 &&
           lt->layout_create(&at->x, TYPE_F16, n_in, n_rows, at->x_stride) == 0 &&
           lt->layout_create(&at->out, at->out_type, n_out, n_rows, at->out_stride) == 0;
}

static bool choose_algo(const lmd_cuda_blas *self, product *at) {
    const lt_functions *lt = &self->lt;
    const uint32_t alignment = ALIGNMENT;
    lt_object preference = NULL;
    lt_heuristic best = {.state = -1};
    int n_found = 0;
    bool ok = lt->preference_create(&preference) == 0 &&
              lt->preference_set(preference, PREFER_MAX_WORKSPACE, &at->workspace_bytes,
                                 sizeof at->workspace_bytes) == 0;
    for (int i = 0; ok && i < 4; i++) /* the default asks for more than our rows have */
        ok = lt->preference_set(preference, PREFER_ALIGNMENT_A + i, &alignment,
                                sizeof alignment) == 0;
    ok = ok &&
         lt->find(self->handle, at->desc, at->weight, at->x, at->out, at->out, preference, 1,
                  &best, &n_found) == 0 &&
         n_found == 1 && best.state == 0;
    if (preference) lt->preference_destroy(preference);
    at->algo = best.algo;
    return ok;
}

static bool is_alike(const product *a, const product *b) {
    return a->n_out == b->n_out && a->n_in == b->n_in && a->n_rows == b->n_rows &&
           a->x_stride == b->x_stride && a->out_stride == b->out_stride &&
           a->out_type == b->out_type && a->workspace_bytes == b->workspace_bytes;
}

/* The product of a shape, from those that are kept or made now. */
static const product *find_product(lmd_cuda_blas *self, const product *wanted) {
    for (int32_t i = 0; i < MAX_PRODUCTS; i++)
        if (self->products[i].n_out && is_alike(&self->products[i], wanted))
            return &self->products[i];
    product *at = &self->products[self->next];
    self->next = (self->next + 1) % MAX_PRODUCTS;
    clear_product(self, at);
    *at = *wanted;
    at->is_served = describe(self, at) && choose_algo(self, at);
    return at;
}

static bool is_aligned(const void *ptr, int64_t stride_bytes) {
    return (uintptr_t)ptr % ALIGNMENT == 0 && stride_bytes % ALIGNMENT == 0;
}

bool lmd_cuda_blas_multiply(lmd_cuda_blas *self, const lmd_cuda_blas_args *args,
                            lmd_cuda_queue *queue) {
    const int64_t value = args->out_is_float ? (int64_t)sizeof(float) : 2;
    const product wanted = {.n_out = args->n_out,
                            .n_in = args->n_in,
                            .n_rows = args->n_rows,
                            .x_stride = args->x_stride,
                            .out_stride = args->out_stride,
                            .out_type = args->out_is_float ? TYPE_F32 : TYPE_F16,
                            .workspace_bytes = args->workspace_bytes};
    if (!is_aligned(args->weight, args->n_in * (int64_t)2) ||
        !is_aligned(args->x, args->x_stride * (int64_t)2) ||
        !is_aligned(args->out, args->out_stride * value))
        return false;
    const product *at = find_product(self, &wanted);
    if (!at->is_served) return false;
    const float beta = args->adds ? 1.0f : 0.0f;
    const int status =
        self->lt.multiply(self->handle, at->desc, &args->scale, args->weight, at->weight,
                          args->x, at->x, &beta, args->out, at->out, args->out, at->out,
                          &at->algo, args->workspace, args->workspace_bytes, queue->stream);
    if (status != 0) lmd_cuda_note(queue, cudaErrorUnknown, "cublasLtMatmul");
    return true;
}
