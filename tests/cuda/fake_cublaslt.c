/* A library that stands for libcublasLt.so on the emulator: one plain matrix product of halves,
 * as a job in a stream, behind the real names. It refuses what it does not know, and is at
 * least as strict as the real one where that is documented. Finds the emulator's runtime in the
 * process that loads it. Any thread, as the real one; objects belong to one thread. */
#define _GNU_SOURCE
#include "cublaslt_abi.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "emu/runtime.h"

enum { ALGO_TAG = 0x464b4c54, DEFAULT_ALIGNMENT = 256, WORKSPACE_ALIGNMENT = 16 };

struct cublaslt_context {
    int unused;
};

struct cublaslt_matmul_desc {
    int32_t compute_type, scale_type, pointer_mode, transposes_a, transposes_b, transposes_c;
    int32_t epilogue;
};

struct cublaslt_matrix_layout {
    int32_t type, order, n_batches;
    uint64_t n_rows, n_cols;
    int64_t ld, batch_stride; /* elements; a column is ld behind the one before */
};

struct cublaslt_matmul_preference {
    uint64_t workspace_bytes;
    uint32_t search_mode, reduction_schemes;
    uint32_t alignments[4]; /* of a, b, c and d */
};

/* ---- the runtime ---- */

static struct {
    cudaError_t (*enqueue)(cudaStream_t, emu_job);
    void (*job_wrote)(const void *, size_t);
    void (*raise)(cudaError_t, const char *);
    ptrdiff_t (*alias_delta)(void);
    bool (*find_allocation)(const void *, uintptr_t *, size_t *);
    bool (*find_pinned)(const void *, uintptr_t *, size_t *);
} runtime;

/* Looks for the runtime in one library of the process, which may have been opened for its user
 * alone. */
static int look_in(struct dl_phdr_info *info, size_t n_bytes, void *arg) {
    (void)n_bytes, (void)arg;
    const char *name = *info->dlpi_name ? info->dlpi_name : NULL; /* NULL: the program */
    void *library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return 0;
    const struct {
        const char *name;
        void *place;
    } functions[] = {{"emu_enqueue", &runtime.enqueue},
                     {"emu_job_wrote", &runtime.job_wrote},
                     {"emu_raise", &runtime.raise},
                     {"emu_alias_delta", &runtime.alias_delta},
                     {"emu_find_allocation", &runtime.find_allocation},
                     {"emu_find_pinned", &runtime.find_pinned}};
    bool found = true;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *function = dlsym(library, functions[i].name);
        memcpy(functions[i].place, &function, sizeof function);
        found = found && function;
    }
    dlclose(library);
    return found;
}

static bool runtime_is_there;

static void find_runtime(void) { runtime_is_there = dl_iterate_phdr(look_in, NULL) != 0; }

/* ---- objects ---- */

size_t cublasLtGetVersion(void) { return 130000; }

cublas_status cublasLtCreate(cublaslt_handle *handle) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_runtime);
    if (!runtime_is_there) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!handle) return CUBLAS_STATUS_INVALID_VALUE;
    cublaslt_handle self = calloc(1, sizeof *self);
    if (!self) return CUBLAS_STATUS_ALLOC_FAILED;
    *handle = self;
    return CUBLAS_STATUS_SUCCESS;
}

cublas_status cublasLtDestroy(cublaslt_handle handle) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

/* Where the value of an attribute is kept; the place of an unknown one is NULL. */
typedef struct attribute {
    void *place;
    size_t n_bytes;
} attribute;

static cublas_status set_attribute(attribute to, const void *value, size_t n_bytes) {
    if (!to.place || !value || n_bytes != to.n_bytes) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to.place, value, n_bytes);
    return CUBLAS_STATUS_SUCCESS;
}

#define ATTRIBUTE(field) ((attribute){&(field), sizeof(field)})

cublas_status cublasLtMatmulDescCreate(cublaslt_desc *desc, int compute_type, int scale_type) {
    if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
    cublaslt_desc self = calloc(1, sizeof *self);
    if (!self) return CUBLAS_STATUS_ALLOC_FAILED;
    self->compute_type = compute_type;
    self->scale_type = scale_type;
    self->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    *desc = self;
    return CUBLAS_STATUS_SUCCESS;
}

cublas_status cublasLtMatmulDescDestroy(cublaslt_desc desc) {
    free(desc);
    return CUBLAS_STATUS_SUCCESS;
}

cublas_status cublasLtMatmulDescSetAttribute(cublaslt_desc desc, int name, const void *value,
                                             size_t n_bytes) {
    attribute to = {0};
    if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
    switch (name) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE: to = ATTRIBUTE(desc->compute_type); break;
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE: to = ATTRIBUTE(desc->scale_type); break;
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: to = ATTRIBUTE(desc->pointer_mode); break;
    case CUBLASLT_MATMUL_DESC_TRANSA: to = ATTRIBUTE(desc->transposes_a); break;
    case CUBLASLT_MATMUL_DESC_TRANSB: to = ATTRIBUTE(desc->transposes_b); break;
    case CUBLASLT_MATMUL_DESC_TRANSC: to = ATTRIBUTE(desc->transposes_c); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: to = ATTRIBUTE(desc->epilogue); break;
    default: break;
    }
    return set_attribute(to, value, n_bytes);
}

cublas_status cublasLtMatrixLayoutCreate(cublaslt_layout *layout, int type, uint64_t n_rows,
                                         uint64_t n_cols, int64_t ld) {
    if (!layout) return CUBLAS_STATUS_INVALID_VALUE;
    cublaslt_layout self = calloc(1, sizeof *self);
    if (!self) return CUBLAS_STATUS_ALLOC_FAILED;
    *self = (struct cublaslt_matrix_layout){
        .type = type, .n_batches = 1, .n_rows = n_rows, .n_cols = n_cols, .ld = ld};
    *layout = self;
    return CUBLAS_STATUS_SUCCESS;
}

cublas_status cublasLtMatrixLayoutDestroy(cublaslt_layout layout) {
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

cublas_status cublasLtMatrixLayoutSetAttribute(cublaslt_layout layout, int name,
                                               const void *value, size_t n_bytes) {
    attribute to = {0};
    if (!layout) return CUBLAS_STATUS_INVALID_VALUE;
    switch (name) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE: to = ATTRIBUTE(layout->type); break;
    case CUBLASLT_MATRIX_LAYOUT_ORDER: to = ATTRIBUTE(layout->order); break;
    case CUBLASLT_MATRIX_LAYOUT_ROWS: to = ATTRIBUTE(layout->n_rows); break;
    case CUBLASLT_MATRIX_LAYOUT_COLS: to = ATTRIBUTE(layout->n_cols); break;
    case CUBLASLT_MATRIX_LAYOUT_LD: to = ATTRIBUTE(layout->ld); break;
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: to = ATTRIBUTE(layout->n_batches); break;
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        to = ATTRIBUTE(layout->batch_stride);
        break;
    default: break;
    }
    return set_attribute(to, value, n_bytes);
}

cublas_status cublasLtMatmulPreferenceCreate(cublaslt_preference *preference) {
    if (!preference) return CUBLAS_STATUS_INVALID_VALUE;
    cublaslt_preference self = calloc(1, sizeof *self);
    if (!self) return CUBLAS_STATUS_ALLOC_FAILED;
    for (int i = 0; i < 4; i++) self->alignments[i] = DEFAULT_ALIGNMENT;
    *preference = self;
    return CUBLAS_STATUS_SUCCESS;
}

cublas_status cublasLtMatmulPreferenceDestroy(cublaslt_preference preference) {
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublas_status cublasLtMatmulPreferenceSetAttribute(cublaslt_preference preference, int name,
                                                   const void *value, size_t n_bytes) {
    attribute to = {0};
    if (!preference) return CUBLAS_STATUS_INVALID_VALUE;
    switch (name) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE: to = ATTRIBUTE(preference->search_mode); break;
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        to = ATTRIBUTE(preference->workspace_bytes);
        break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        to = ATTRIBUTE(preference->reduction_schemes);
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        to = ATTRIBUTE(
            preference->alignments[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES]);
        break;
    default: break;
    }
    return set_attribute(to, value, n_bytes);
}

/* ---- the product ---- */

typedef struct matrix {
    uint8_t *data; /* as the program gave it */
    struct cublaslt_matrix_layout layout;
} matrix;

/* d = alpha op(a) op(b) + beta c */
typedef struct product {
    matrix a, b, c, d;
    struct cublaslt_matmul_desc desc;
    uint64_t inner_len;
    float alpha, beta;
} product;

static size_t element_bytes(const struct cublaslt_matrix_layout *layout) {
    return layout->type == CUDA_R_32F ? sizeof(float) : sizeof(uint16_t);
}

/* Bytes from the first element to the end of the last. */
static size_t extent(const struct cublaslt_matrix_layout *layout) {
    return ((layout->n_cols - 1) * (size_t)layout->ld + layout->n_rows) * element_bytes(layout);
}

static bool layout_is_whole(const struct cublaslt_matrix_layout *layout) {
    return layout->n_rows > 0 && layout->n_cols > 0 && layout->n_rows <= INT32_MAX &&
           layout->n_cols <= INT32_MAX && layout->ld >= (int64_t)layout->n_rows;
}

static bool layout_is_known(const struct cublaslt_matrix_layout *layout) {
    return layout->order == CUBLASLT_ORDER_COL && layout->n_batches == 1;
}

static bool same_layout(const struct cublaslt_matrix_layout *x,
                        const struct cublaslt_matrix_layout *y) {
    return x->type == y->type && x->n_rows == y->n_rows && x->n_cols == y->n_cols;
}

/* Checks shapes and types, and sets the length of the sums. */
static cublas_status check_product(product *p) {
    const struct cublaslt_matmul_desc *desc = &p->desc;
    const struct cublaslt_matrix_layout *a = &p->a.layout, *b = &p->b.layout, *d = &p->d.layout;
    if (!layout_is_whole(a) || !layout_is_whole(b) || !layout_is_whole(&p->c.layout) ||
        !layout_is_whole(d) || !same_layout(&p->c.layout, d))
        return CUBLAS_STATUS_INVALID_VALUE;
    const bool ta = desc->transposes_a != CUBLAS_OP_N, tb = desc->transposes_b != CUBLAS_OP_N;
    p->inner_len = ta ? a->n_rows : a->n_cols;
    if ((ta ? a->n_cols : a->n_rows) != d->n_rows ||
        (tb ? b->n_rows : b->n_cols) != d->n_cols ||
        (tb ? b->n_cols : b->n_rows) != p->inner_len)
        return CUBLAS_STATUS_INVALID_VALUE;
    const bool known =
        layout_is_known(a) && layout_is_known(b) && layout_is_known(&p->c.layout) &&
        layout_is_known(d) && a->type == CUDA_R_16F && b->type == CUDA_R_16F &&
        (d->type == CUDA_R_16F || d->type == CUDA_R_32F) &&
        desc->compute_type == CUBLAS_COMPUTE_32F && desc->scale_type == CUDA_R_32F &&
        desc->pointer_mode == CUBLASLT_POINTER_MODE_HOST &&
        desc->epilogue == CUBLASLT_EPILOGUE_DEFAULT && desc->transposes_c == CUBLAS_OP_N &&
        (unsigned)desc->transposes_a <= CUBLAS_OP_T &&
        (unsigned)desc->transposes_b <= CUBLAS_OP_T;
    return known ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* The address at which a job may touch a matrix; NULL: it is not all there. */
static uint8_t *find_matrix(const matrix *m) {
    uintptr_t begin;
    size_t n_bytes;
    uint8_t *view = m->data;
    if (!runtime.find_pinned(m->data, &begin, &n_bytes)) {
        if (!runtime.find_allocation(m->data, &begin, &n_bytes)) return NULL;
        view += runtime.alias_delta();
    }
    return (uintptr_t)view - begin + extent(&m->layout) <= n_bytes ? view : NULL;
}

static float element(const uint8_t *data, const struct cublaslt_matrix_layout *layout,
                     uint64_t row, uint64_t col) {
    const size_t at = row + col * (size_t)layout->ld;
    if (layout->type == CUDA_R_32F) return ((const float *)(const void *)data)[at];
    return lmd_half_to_float(((const uint16_t *)(const void *)data)[at]);
}

/* Computes one element of d: in fp32, the sum in ascending order. */
static float compute(const product *p, const uint8_t *a, const uint8_t *b, uint64_t row,
                     uint64_t col) {
    const bool ta = p->desc.transposes_a == CUBLAS_OP_T;
    const bool tb = p->desc.transposes_b == CUBLAS_OP_T;
    float sum = 0.0f;
    for (uint64_t k = 0; k < p->inner_len; k++) {
        const float x = element(a, &p->a.layout, ta ? k : row, ta ? row : k);
        const float y = element(b, &p->b.layout, tb ? col : k, tb ? k : col);
        sum += x * y;
    }
    return p->alpha * sum;
}

static void run_product(void *arg) {
    const product *p = arg;
    const uint8_t *a = find_matrix(&p->a), *b = find_matrix(&p->b), *c = find_matrix(&p->c);
    uint8_t *d = find_matrix(&p->d);
    if (!a || !b || !c || !d) {
        runtime.raise(cudaErrorIllegalAddress, "a matrix of cublasLtMatmul is not all there");
        return;
    }
    const struct cublaslt_matrix_layout *layout = &p->d.layout;
    for (uint64_t col = 0; col < layout->n_cols; col++) {
        uint8_t *begin = d + col * (size_t)layout->ld * element_bytes(layout);
        for (uint64_t row = 0; row < layout->n_rows; row++) {
            float value = compute(p, a, b, row, col);
            /* With beta 0, c is not read: it may hold anything. */
            if (p->beta != 0.0f) value += p->beta * element(c, &p->c.layout, row, col);
            if (layout->type == CUDA_R_32F)
                ((float *)(void *)begin)[row] = value;
            else
                ((uint16_t *)(void *)begin)[row] = lmd_float_to_half(value);
        }
        runtime.job_wrote(begin, layout->n_rows * element_bytes(layout));
    }
}

/* ---- calls ---- */

cublas_status cublasLtMatmulAlgoGetHeuristic(cublaslt_handle handle, cublaslt_desc desc,
                                             cublaslt_layout a, cublaslt_layout b,
                                             cublaslt_layout c, cublaslt_layout d,
                                             cublaslt_preference preference, int n_wanted,
                                             cublaslt_heuristic_result *results, int *n_found) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!desc || !a || !b || !c || !d || !preference || !results || !n_found || n_wanted < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    product p = {.a.layout = *a, .b.layout = *b, .c.layout = *c, .d.layout = *d, .desc = *desc};
    *n_found = 0;
    const cublas_status status = check_product(&p);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    *results = (cublaslt_heuristic_result){.workspace_bytes = preference->workspace_bytes,
                                           .state = CUBLAS_STATUS_SUCCESS,
                                           .n_waves = 1.0f};
    results->algo.data[0] = ALGO_TAG;
    results->algo.data[1] = preference->workspace_bytes;
    for (int i = 0; i < 4; i++) results->algo.data[2 + i] = preference->alignments[i];
    *n_found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

/* Says whether a call keeps what was promised when its algorithm was looked for. */
static bool keeps_promises(const product *p, const cublaslt_algo *algo, const void *workspace,
                           size_t workspace_bytes) {
    if ((uintptr_t)workspace % WORKSPACE_ALIGNMENT != 0 || (workspace_bytes > 0 && !workspace))
        return false;
    if (!algo) return true;
    if (algo->data[0] != ALGO_TAG || algo->data[1] > workspace_bytes) return false;
    const uint8_t *matrices[] = {p->a.data, p->b.data, p->c.data, p->d.data};
    for (int i = 0; i < 4; i++) {
        const uint64_t alignment = algo->data[2 + i];
        if (alignment > 0 && (uintptr_t)matrices[i] % alignment != 0) return false;
    }
    return true;
}

cublas_status cublasLtMatmul(cublaslt_handle handle, cublaslt_desc desc, const void *alpha,
                             const void *a, cublaslt_layout a_layout, const void *b,
                             cublaslt_layout b_layout, const void *beta, const void *c,
                             cublaslt_layout c_layout, void *d, cublaslt_layout d_layout,
                             const cublaslt_algo *algo, void *workspace, size_t workspace_bytes,
                             cudaStream_t stream) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!desc || !alpha || !a || !a_layout || !b || !b_layout || !beta || !c || !c_layout ||
        !d || !d_layout)
        return CUBLAS_STATUS_INVALID_VALUE;
    product p = {.a = {(uint8_t *)(uintptr_t)a, *a_layout},
                 .b = {(uint8_t *)(uintptr_t)b, *b_layout},
                 .c = {(uint8_t *)(uintptr_t)c, *c_layout},
                 .d = {d, *d_layout},
                 .desc = *desc};
    const cublas_status status = check_product(&p);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    memcpy(&p.alpha, alpha, sizeof p.alpha);
    memcpy(&p.beta, beta, sizeof p.beta);
    const bool in_place_is_right = c != d || p.c.layout.ld == p.d.layout.ld;
    if (!keeps_promises(&p, algo, workspace, workspace_bytes) || !in_place_is_right)
        return CUBLAS_STATUS_INVALID_VALUE;
    product *copy = malloc(sizeof *copy);
    if (!copy) return CUBLAS_STATUS_ALLOC_FAILED;
    *copy = p;
    const emu_job job = {.run = run_product,
                         .drop = free,
                         .arg = copy,
                         .name = "cublasLtMatmul",
                         .params = copy,
                         .params_len = sizeof *copy};
    const bool ok = runtime.enqueue(stream, job) == cudaSuccess;
    return ok ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
