/* The kernel suite's harness and its program: see suite.h.
 * usage: check_cuda [ROW] [SUITE], e.g. check_cuda sm80 linear */
#include "suite.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "cuda_blas.h"

enum { GUARD = 256, MAX_ARRAYS = 64 };

static pair arrays[MAX_ARRAYS];
static int n_arrays;
static bool case_failed;

static void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

static void fail(suite *self, const char *name, const char *what) {
    (void)self;
    printf("FAILED %s: %s\n", name, what);
    case_failed = true;
}

pair suite_array(suite *self, size_t n_bytes) {
    pair array = {.n_bytes = n_bytes};
    if (n_arrays == MAX_ARRAYS) abort();
    check(cudaHostAlloc(&array.host, n_bytes + GUARD, cudaHostAllocDefault), "host memory");
    check(self->kernels->on_host
              ? cudaHostAlloc(&array.device, n_bytes + GUARD, cudaHostAllocDefault)
              : cudaMalloc(&array.device, n_bytes + GUARD),
          "device memory");
    memset(array.host, 0xff, n_bytes + GUARD);
    check(cudaMemcpy(array.device, array.host, n_bytes + GUARD, cudaMemcpyDefault), "a copy");
    arrays[n_arrays++] = array;
    return array;
}

void suite_upload(suite *self, pair array) {
    (void)self;
    check(cudaMemcpy(array.device, array.host, array.n_bytes, cudaMemcpyDefault), "a copy");
}

static void drain(suite *self, lmd_cuda_queue *queue, const char *name) {
    lmd_cuda_note(queue, cudaGetLastError(), "a launch");
    lmd_cuda_note(queue, cudaStreamSynchronize(queue->stream), "a kernel");
    if (queue->error != cudaSuccess) {
        char text[200];
        snprintf(text, sizeof text, "%s: %s", queue->error_at,
                 cudaGetErrorString(queue->error));
        fail(self, name, text);
    }
    queue->error = cudaSuccess;
    queue->args_len = 0;
}

void suite_run(suite *self, const char *name) {
    drain(self, &self->host_queue, name);
    drain(self, &self->device_queue, name);
}

/* The device's copy, with its guard; the caller frees it. */
static uint8_t *fetch(suite *self, const char *name, pair array) {
    uint8_t *bytes = malloc(array.n_bytes + GUARD);
    if (!bytes) abort();
    check(cudaMemcpy(bytes, array.device, array.n_bytes + GUARD, cudaMemcpyDefault), "a copy");
    for (size_t i = 0; i < GUARD; i++) {
        if (bytes[array.n_bytes + i] == 0xff &&
            ((const uint8_t *)array.host)[array.n_bytes + i] == 0xff)
            continue;
        fail(self, name, "bytes behind an array were written");
        break;
    }
    return bytes;
}

/* Compares n values, of which `at` reads one. */
static void compare(suite *self, const char *name, pair array, size_t n, double tolerance,
                    float (*at)(const void *values, size_t i)) {
    uint8_t *bytes = fetch(self, name, array);
    double worst = 0, largest = 0;
    size_t worst_at = 0, n_nan = 0;
    for (size_t i = 0; i < n; i++) {
        const float want = at(array.host, i), got = at(bytes, i);
        if (isnan(want) && isnan(got)) continue;
        if (want == got) { /* infinities too */
            if (isfinite(want)) largest = fmax(largest, fabs(want));
            continue;
        }
        if (!isfinite(want) || !isfinite(got)) {
            if (n_nan++ == 0) worst_at = i;
            continue;
        }
        largest = fmax(largest, fabs(want));
        if (fabs((double)want - got) > worst) {
            worst = fabs((double)want - got);
            if (!n_nan) worst_at = i;
        }
    }
    if (n_nan || worst > tolerance * largest) {
        char text[240];
        snprintf(text, sizeof text,
                 "%zu not finite on one side; |difference| up to %.3g of %.3g, tolerance %.3g; "
                 "first at %zu: ref %.6g, device %.6g",
                 n_nan, worst, largest, tolerance * largest, worst_at, at(array.host, worst_at),
                 at(bytes, worst_at));
        fail(self, name, text);
    }
    free(bytes);
}

static float half_at(const void *values, size_t i) {
    return lmd_half_to_float(((const uint16_t *)values)[i]);
}

static float float_at(const void *values, size_t i) { return ((const float *)values)[i]; }

void suite_compare_half(suite *self, const char *name, pair array, size_t n, double tolerance) {
    compare(self, name, array, n, tolerance, half_at);
}

void suite_compare_float(suite *self, const char *name, pair array, size_t n,
                         double tolerance) {
    compare(self, name, array, n, tolerance, float_at);
}

void suite_compare_bytes(suite *self, const char *name, pair array, size_t n_bytes) {
    uint8_t *bytes = fetch(self, name, array);
    const uint8_t *want = array.host;
    for (size_t i = 0; i < n_bytes; i++) {
        if (want[i] == bytes[i]) continue;
        char text[120];
        snprintf(text, sizeof text, "byte %zu is %d, ref has %d", i, bytes[i], want[i]);
        fail(self, name, text);
        break;
    }
    free(bytes);
}

void suite_end_case(suite *self, const char *name) {
    (void)name;
    if (case_failed)
        self->n_failed++;
    else
        self->n_passed++;
    case_failed = false;
    while (n_arrays > 0) {
        n_arrays--;
        check(cudaFreeHost(arrays[n_arrays].host), "freeing host memory");
        check(self->kernels->on_host ? cudaFreeHost(arrays[n_arrays].device)
                                     : cudaFree(arrays[n_arrays].device),
              "freeing device memory");
    }
}

/* ---- random numbers ---- */

uint32_t suite_bits(suite *self) {
    self->random = self->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(self->random >> 32);
}

int32_t suite_below(suite *self, int32_t n) {
    return (int32_t)(suite_bits(self) % (uint32_t)n);
}

float suite_uniform(suite *self, float lo, float hi) {
    return lo + (hi - lo) * ((float)(suite_bits(self) >> 8) * 0x1p-24f);
}

float suite_normal(suite *self) {
    float sum = 0.0f; /* of 12 uniform numbers, near enough to normal */
    for (int i = 0; i < 12; i++) sum += suite_uniform(self, -0.5f, 0.5f);
    return sum;
}

/* ---- the program ---- */

/* cuBLAS, where LMDEPLOY_C_CUBLASLT names one. */
static void open_blas(lmd_cuda_queue *queue) {
    char why[200];
    if (!getenv("LMDEPLOY_C_CUBLASLT")) return;
    queue->blas = lmd_cuda_blas_open(why, sizeof why);
    if (!queue->blas) {
        fprintf(stderr, "%s\n", why);
        exit(1);
    }
}

static void open_queue(lmd_cuda_queue *queue, int32_t n_sms) {
    queue->n_sms = n_sms;
    queue->args_room = 1 << 20;
    queue->args = malloc(queue->args_room);
    if (!queue->args) abort();
    check(cudaStreamCreateWithFlags(&queue->stream, cudaStreamNonBlocking), "a stream");
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(suite *);
    } suites[] = {{"rows", check_rows},
                  {"linear", check_linear},
                  {"attention", check_attention},
                  {"sample", check_sample}};
    const char *row = argc > 1 ? argv[1] : "sm80", *only = argc > 2 ? argv[2] : NULL;
    suite self = {.kernels = strcmp(row, "ref") == 0 ? &lmd_cuda_ref : &lmd_cuda_sm80};
    int n_sms = 0;
    check(cudaSetDevice(0), "the device");
    check(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0), "the device");
    check(self.kernels->prepare(), "the kernels");
    open_queue(&self.host_queue, n_sms);
    open_queue(&self.device_queue, n_sms);
    open_blas(&self.device_queue);
    for (size_t i = 0; i < sizeof suites / sizeof *suites; i++) {
        if (only && strcmp(only, suites[i].name) != 0) continue;
        const int32_t before = self.n_passed + self.n_failed;
        self.random = 1 + i;
        suites[i].run(&self);
        printf("%s %s: %d cases\n", self.kernels->name, suites[i].name,
               self.n_passed + self.n_failed - before);
    }
    printf("%d passed, %d failed\n", self.n_passed, self.n_failed);
    return self.n_failed != 0;
}
