/* Checks the library that stands for libcublasLt on the emulator: products against sums in
 * double, in a stream and in a graph, and what it refuses. One thread. usage: check_cublaslt
 * path-of-libcublasLt.so */
#define _GNU_SOURCE
#include "cublaslt_abi.h"

#include <dlfcn.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

static int n_passed, n_failed;

static void check(bool ok, const char *what, int line) {
    if (ok)
        n_passed++;
    else {
        n_failed++;
        printf("FAILED line %d: %s\n", line, what);
    }
}

#define CHECK(condition) check(condition, #condition, __LINE__)
#define CUDA(call)       CHECK((call) == cudaSuccess)
#define LT(call)         CHECK((call) == CUBLAS_STATUS_SUCCESS)

/* The library's functions, by the names that it must export. */
static struct {
    __typeof__(&cublasLtGetVersion) version;
    __typeof__(&cublasLtCreate) create;
    __typeof__(&cublasLtDestroy) destroy;
    __typeof__(&cublasLtMatmulDescCreate) desc_create;
    __typeof__(&cublasLtMatmulDescDestroy) desc_destroy;
    __typeof__(&cublasLtMatmulDescSetAttribute) desc_set;
    __typeof__(&cublasLtMatrixLayoutCreate) layout_create;
    __typeof__(&cublasLtMatrixLayoutDestroy) layout_destroy;
    __typeof__(&cublasLtMatrixLayoutSetAttribute) layout_set;
    __typeof__(&cublasLtMatmulPreferenceCreate) preference_create;
    __typeof__(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    __typeof__(&cublasLtMatmulPreferenceSetAttribute) preference_set;
    __typeof__(&cublasLtMatmulAlgoGetHeuristic) heuristic;
    __typeof__(&cublasLtMatmul) matmul;
} lt;

static void *load(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    const struct {
        const char *name;
        void *place;
    } functions[] = {
        {"cublasLtGetVersion", &lt.version},
        {"cublasLtCreate", &lt.create},
        {"cublasLtDestroy", &lt.destroy},
        {"cublasLtMatmulDescCreate", &lt.desc_create},
        {"cublasLtMatmulDescDestroy", &lt.desc_destroy},
        {"cublasLtMatmulDescSetAttribute", &lt.desc_set},
        {"cublasLtMatrixLayoutCreate", &lt.layout_create},
        {"cublasLtMatrixLayoutDestroy", &lt.layout_destroy},
        {"cublasLtMatrixLayoutSetAttribute", &lt.layout_set},
        {"cublasLtMatmulPreferenceCreate", &lt.preference_create},
        {"cublasLtMatmulPreferenceDestroy", &lt.preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", &lt.preference_set},
        {"cublasLtMatmulAlgoGetHeuristic", &lt.heuristic},
        {"cublasLtMatmul", &lt.matmul},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *function = dlsym(library, functions[i].name);
        CHECK(function != NULL);
        if (!function) exit(1);
        memcpy(functions[i].place, &function, sizeof function);
    }
    return library;
}

/* ---- one product ---- */

typedef struct shape {
    int n_rows, n_cols, inner_len; /* of d, and of the sums */
    bool transposes_a, transposes_b;
    int type;    /* of c and d */
    int padding; /* elements behind each column */
    float alpha, beta;
} shape;

typedef struct fixture {
    cublaslt_handle handle;
    cublaslt_desc desc;
    cublaslt_layout a, b, d;
    cublaslt_preference preference;
    cublaslt_heuristic_result found;
    void *data[3];    /* a, b, d on the device */
    uint8_t *host[3]; /* and on the host */
    size_t n_bytes[3];
    int lds[3];
    cudaStream_t stream;
} fixture;

static uint32_t random_state = 1;

static float random_value(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return (float)(random_state >> 8) * 0x1p-23f - 1.0f;
}

/* Makes one of the three arrays, full of random values. */
static void make_array(fixture *f, int i, int n_rows, int n_cols, int type, int padding) {
    const size_t element = type == CUDA_R_32F ? 4 : 2;
    f->lds[i] = n_rows + padding;
    const size_t n = (size_t)f->lds[i] * (size_t)n_cols;
    f->n_bytes[i] = n * element;
    f->host[i] = malloc(f->n_bytes[i]);
    if (!f->host[i]) abort();
    for (size_t k = 0; k < n; k++) {
        const float x = random_value();
        const uint16_t half = lmd_float_to_half(x);
        memcpy(f->host[i] + k * element, element == 4 ? (const void *)&x : &half, element);
    }
    CUDA(cudaMalloc(&f->data[i], f->n_bytes[i]));
    CUDA(cudaMemcpy(f->data[i], f->host[i], f->n_bytes[i], cudaMemcpyHostToDevice));
}

static fixture open_fixture(const shape *s) {
    fixture f = {0};
    const int32_t ta = s->transposes_a, tb = s->transposes_b;
    const uint32_t alignment = 16;
    int n_found = 0;
    CUDA(cudaStreamCreateWithFlags(&f.stream, cudaStreamNonBlocking));
    make_array(&f, 0, ta ? s->inner_len : s->n_rows, ta ? s->n_rows : s->inner_len, CUDA_R_16F,
               s->padding);
    make_array(&f, 1, tb ? s->n_cols : s->inner_len, tb ? s->inner_len : s->n_cols, CUDA_R_16F,
               s->padding);
    make_array(&f, 2, s->n_rows, s->n_cols, s->type, s->padding);
    LT(lt.create(&f.handle));
    LT(lt.desc_create(&f.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT(lt.desc_set(f.desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta));
    LT(lt.desc_set(f.desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb));
    LT(lt.layout_create(&f.a, CUDA_R_16F, (uint64_t)(ta ? s->inner_len : s->n_rows),
                        (uint64_t)(ta ? s->n_rows : s->inner_len), f.lds[0]));
    LT(lt.layout_create(&f.b, CUDA_R_16F, (uint64_t)(tb ? s->n_cols : s->inner_len),
                        (uint64_t)(tb ? s->inner_len : s->n_cols), f.lds[1]));
    LT(lt.layout_create(&f.d, s->type, (uint64_t)s->n_rows, (uint64_t)s->n_cols, f.lds[2]));
    LT(lt.preference_create(&f.preference));
    for (int i = 0; i < 4; i++)
        LT(lt.preference_set(f.preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i,
                             &alignment, sizeof alignment));
    LT(lt.heuristic(f.handle, f.desc, f.a, f.b, f.d, f.d, f.preference, 1, &f.found, &n_found));
    CHECK(n_found == 1 && f.found.state == CUBLAS_STATUS_SUCCESS);
    return f;
}

static void close_objects(fixture *f) {
    for (int i = 0; i < 3; i++) free(f->host[i]);
    LT(lt.preference_destroy(f->preference));
    LT(lt.layout_destroy(f->a));
    LT(lt.layout_destroy(f->b));
    LT(lt.layout_destroy(f->d));
    LT(lt.desc_destroy(f->desc));
    LT(lt.destroy(f->handle));
}

static void close_fixture(fixture *f) {
    CUDA(cudaStreamDestroy(f->stream));
    for (int i = 0; i < 3; i++) CUDA(cudaFree(f->data[i]));
    close_objects(f);
}

static cublas_status multiply(fixture *f, const float *alpha, const float *beta) {
    return lt.matmul(f->handle, f->desc, alpha, f->data[0], f->a, f->data[1], f->b, beta,
                     f->data[2], f->d, f->data[2], f->d, &f->found.algo, NULL, 0, f->stream);
}

static double half_at(const uint8_t *data, size_t at) {
    uint16_t half;
    memcpy(&half, data + 2 * at, sizeof half);
    return lmd_half_to_float(half);
}

static double value_at(const uint8_t *data, size_t at, int type) {
    float x;
    if (type != CUDA_R_32F) return half_at(data, at);
    memcpy(&x, data + 4 * at, sizeof x);
    return x;
}

/* Compares d with sums in double; padding must be as it was. */
static bool product_is_right(const fixture *f, const shape *s) {
    uint8_t *got = malloc(f->n_bytes[2]);
    bool right = got != NULL;
    if (!got) return false;
    CUDA(cudaMemcpy(got, f->data[2], f->n_bytes[2], cudaMemcpyDeviceToHost));
    const size_t lda = (size_t)f->lds[0], ldb = (size_t)f->lds[1], ldd = (size_t)f->lds[2];
    for (size_t col = 0; col < (size_t)s->n_cols; col++) {
        for (size_t row = 0; row < ldd; row++) {
            const double old = value_at(f->host[2], row + col * ldd, s->type);
            double sum = 0;
            for (size_t k = 0; row < (size_t)s->n_rows && k < (size_t)s->inner_len; k++)
                sum += half_at(f->host[0], s->transposes_a ? k + row * lda : row + k * lda) *
                       half_at(f->host[1], s->transposes_b ? col + k * ldb : k + col * ldb);
            const double want = row < (size_t)s->n_rows
                                    ? s->alpha * sum + (s->beta != 0 ? s->beta * old : 0)
                                    : old;
            const double error = fabs(value_at(got, row + col * ldd, s->type) - want);
            const double unit = s->type == CUDA_R_32F ? 1e-5 : 1e-3;
            right = right && error <= unit * (1.0 + fabs(want));
        }
    }
    free(got);
    return right;
}

static void check_products(void) {
    for (int i = 0; i < 16; i++) {
        const shape s = {.n_rows = i % 2 ? 17 : 64,
                         .n_cols = i % 3 ? 5 : 1,
                         .inner_len = i % 5 ? 33 : 128,
                         .transposes_a = i & 1,
                         .transposes_b = i & 2,
                         .type = i & 4 ? CUDA_R_32F : CUDA_R_16F,
                         .padding = i & 8 ? 7 : 0,
                         .alpha = i & 8 ? -0.5f : 1.0f,
                         .beta = i & 1 ? 2.0f : 0.0f};
        fixture f = open_fixture(&s);
        LT(multiply(&f, &s.alpha, &s.beta));
        CUDA(cudaStreamSynchronize(f.stream));
        CHECK(product_is_right(&f, &s));
        close_fixture(&f);
    }
}

static const shape small = {
    .n_rows = 16, .n_cols = 3, .inner_len = 32, .type = CUDA_R_32F, .alpha = 1.0f};

static void check_graph(void) {
    fixture f = open_fixture(&small);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    float alpha = small.alpha, beta = 0.0f;
    CUDA(cudaStreamBeginCapture(f.stream, cudaStreamCaptureModeThreadLocal));
    CUDA(cudaMemsetAsync(f.data[2], 0xff, f.n_bytes[2], f.stream)); /* NaN: c is not read */
    LT(multiply(&f, &alpha, &beta));
    CUDA(cudaStreamEndCapture(f.stream, &graph));
    alpha = beta = 77.0f; /* were read at the call */
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaGraphDestroy(graph));
    for (int i = 0; i < 2; i++) {
        CUDA(cudaMemset(f.data[2], 0, f.n_bytes[2]));
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaGraphLaunch(exec, f.stream));
        CUDA(cudaStreamSynchronize(f.stream));
        CHECK(product_is_right(&f, &small));
    }
    CUDA(cudaGraphExecDestroy(exec));
    close_fixture(&f);
}

/* Gives what a changed attribute of a layout makes of a product that was right. */
static cublas_status with_layout(fixture *f, cublaslt_layout layout, int name, int64_t value,
                                 int64_t right, size_t n_bytes) {
    LT(lt.layout_set(layout, name, &value, n_bytes));
    const cublas_status status = multiply(f, &small.alpha, &small.beta);
    LT(lt.layout_set(layout, name, &right, n_bytes));
    return status;
}

static void check_refusals(void) {
    fixture f = open_fixture(&small);
    const int32_t bias = CUBLASLT_EPILOGUE_BIAS, none = CUBLASLT_EPILOGUE_DEFAULT;
    const int64_t wide = 0;
    const float one = 1.0f;
    cublaslt_algo foreign = {{0}};
    int n_found = 5;
    const cublas_status invalid = CUBLAS_STATUS_INVALID_VALUE;
    const cublas_status unsupported = CUBLAS_STATUS_NOT_SUPPORTED;
    CHECK(with_layout(&f, f.a, CUBLASLT_MATRIX_LAYOUT_ROWS, 15, 16, 8) == invalid);
    CHECK(with_layout(&f, f.b, CUBLASLT_MATRIX_LAYOUT_COLS, 4, 3, 8) == invalid);
    CHECK(with_layout(&f, f.b, CUBLASLT_MATRIX_LAYOUT_ROWS, 31, 32, 8) == invalid);
    CHECK(with_layout(&f, f.a, CUBLASLT_MATRIX_LAYOUT_LD, 15, 16, 8) == invalid);
    CHECK(with_layout(&f, f.a, CUBLASLT_MATRIX_LAYOUT_TYPE, CUDA_R_16BF, CUDA_R_16F, 4) ==
          unsupported);
    CHECK(with_layout(&f, f.d, CUBLASLT_MATRIX_LAYOUT_TYPE, CUDA_R_8I, CUDA_R_32F, 4) ==
          unsupported);
    CHECK(with_layout(&f, f.a, CUBLASLT_MATRIX_LAYOUT_ORDER, CUBLASLT_ORDER_ROW,
                      CUBLASLT_ORDER_COL, 4) == unsupported);
    CHECK(with_layout(&f, f.a, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, 2, 1, 4) == unsupported);
    LT(lt.desc_set(f.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, sizeof bias));
    CHECK(multiply(&f, &one, &one) == unsupported);
    CHECK(lt.heuristic(f.handle, f.desc, f.a, f.b, f.d, f.d, f.preference, 1, &f.found,
                       &n_found) == unsupported &&
          n_found == 0);
    LT(lt.desc_set(f.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &none, sizeof none));
    CHECK(lt.desc_set(f.desc, CUBLASLT_MATMUL_DESC_TRANSA, &wide, sizeof wide) == invalid);
    CHECK(lt.desc_set(f.desc, 99, &none, sizeof none) == invalid);
    CHECK(lt.layout_set(f.a, CUBLASLT_MATRIX_LAYOUT_LD, &none, sizeof none) == invalid);
    CHECK(lt.preference_set(f.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &none,
                            sizeof none) == invalid);
    CHECK(multiply(&f, NULL, &one) == invalid);
    CHECK(lt.matmul(NULL, f.desc, &one, f.data[0], f.a, f.data[1], f.b, &one, f.data[2], f.d,
                    f.data[2], f.d, NULL, NULL, 0, f.stream) == CUBLAS_STATUS_NOT_INITIALIZED);
    CHECK(lt.matmul(f.handle, f.desc, &one, f.data[0], f.a, f.data[1], f.b, &one, f.data[2],
                    f.d, f.data[2], f.d, &foreign, NULL, 0, f.stream) == invalid);
    CHECK(lt.matmul(f.handle, f.desc, &one, (uint8_t *)f.data[0] + 2, f.a, f.data[1], f.b, &one,
                    f.data[2], f.d, f.data[2], f.d, &f.found.algo, NULL, 0,
                    f.stream) == invalid);
    CHECK(lt.matmul(f.handle, f.desc, &one, f.data[0], f.a, f.data[1], f.b, &one, f.data[2],
                    f.d, f.data[2], f.d, NULL, NULL, 64, f.stream) == invalid);
    close_fixture(&f);
}

/* A matrix that ends before its shape does breaks the device when the product runs. */
static void check_overrun(void) {
    fixture f = open_fixture(&small);
    const float one = 1.0f;
    LT(lt.matmul(f.handle, f.desc, &one, (uint8_t *)f.data[0] + 16, f.a, f.data[1], f.b, &one,
                 f.data[2], f.d, f.data[2], f.d, &f.found.algo, NULL, 0, f.stream));
    CHECK(cudaStreamSynchronize(f.stream) == cudaErrorIllegalAddress);
    CHECK(multiply(&f, &one, &one) == CUBLAS_STATUS_EXECUTION_FAILED);
    CUDA(cudaDeviceReset());
    close_objects(&f);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: check_cublaslt path-of-libcublasLt.so\n");
        return 2;
    }
    void *library = load(argv[1]);
    CHECK(lt.version() >= 110000);
    check_products();
    check_graph();
    check_refusals();
    check_overrun();
    dlclose(library);
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0;
}
