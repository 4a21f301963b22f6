/* Runs the cases of check_dev.h on the device there is, an emulated one or a GPU, and compares
 * with plain C, or with what another device wrote. usage: check_dev; check_dev --write FILE;
 * check_dev --compare FILE The file is text: a line "case NAME N", then N words in hexadecimal.
 */
#include "check_dev.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

enum { MAX_WORDS = 8192 };

static uint32_t in[MAX_WORDS], want[MAX_WORDS], got[MAX_WORDS];

static void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    exit(2);
}

/* The device's compute capability, as 80. The emulator's kernels need none. */
static int32_t device_arch(void) {
    int major = 0, minor = 0;
    check(cudaSetDevice(0), "the device");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "the device");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "the device");
    return major * 10 + minor;
}

/* Leaves the case's outputs in got. */
static void run_case(const dev_case *c, lmd_cuda_queue *queue) {
    void *device_in, *device_out;
    const size_t in_bytes = (size_t)c->n_in * 4, out_bytes = (size_t)c->n_out * 4;
    if (c->n_in > MAX_WORDS || c->n_out > MAX_WORDS) abort();
    c->fill(in);
    check(cudaMalloc(&device_in, in_bytes), "memory");
    check(cudaMalloc(&device_out, out_bytes), "memory");
    check(cudaMemcpy(device_in, in, in_bytes, cudaMemcpyHostToDevice), "a copy");
    c->run(queue, device_in, device_out);
    check(queue->error, c->name);
    check(cudaStreamSynchronize(queue->stream), c->name);
    check(cudaMemcpy(got, device_out, out_bytes, cudaMemcpyDeviceToHost), "a copy");
    check(cudaFree(device_in), "memory");
    check(cudaFree(device_out), "memory");
}

/* ---- comparing ---- */

static bool same_half(uint16_t a, uint16_t b) {
    return a == b || ((a & 0x7fff) > 0x7c00 && (b & 0x7fff) > 0x7c00);
}

static bool same_float(float a, float b, double tolerance) {
    if (isnan(a) || isnan(b)) return isnan(a) && isnan(b);
    if (a == b) return true;
    return fabs((double)a - (double)b) <= tolerance * fmax(1.0, fabs((double)a));
}

static bool same_word(const dev_case *c, uint32_t a, uint32_t b) {
    if (c->kind == HALVES)
        return same_half((uint16_t)a, (uint16_t)b) &&
               same_half((uint16_t)(a >> 16), (uint16_t)(b >> 16));
    if (c->kind == FLOATS)
        return same_float(lmd_bits_to_float(a), lmd_bits_to_float(b), c->tolerance);
    return a == b;
}

/* Compares got with want. */
static bool compare(const dev_case *c, const char *with) {
    int32_t n_wrong = 0, first = 0;
    for (int32_t i = c->n_out - 1; i >= 0; i--) {
        if (same_word(c, want[i], got[i])) continue;
        n_wrong++;
        first = i;
    }
    printf("%-7s %-12s %5d words, %d differ from %s\n", n_wrong ? "FAILED" : "passed", c->name,
           c->n_out, n_wrong, with);
    if (n_wrong)
        printf("        word %d is %08x (%g), not %08x (%g)\n", first, got[first],
               (double)lmd_bits_to_float(got[first]), want[first],
               (double)lmd_bits_to_float(want[first]));
    return n_wrong == 0;
}

/* ---- files ---- */

static void write_case(FILE *file, const dev_case *c) {
    fprintf(file, "case %s %d\n", c->name, c->n_out);
    for (int32_t i = 0; i < c->n_out; i++)
        fprintf(file, "%08x%c", got[i], i % 8 == 7 || i + 1 == c->n_out ? '\n' : ' ');
}

/* Finds a case in a file; its words go to want. */
static bool read_case(FILE *file, const dev_case *c) {
    char name[40];
    int32_t n;
    rewind(file);
    while (fscanf(file, " case %39s %d", name, &n) == 2) {
        const bool is_ours = strcmp(name, c->name) == 0 && n == c->n_out;
        uint32_t word;
        for (int32_t i = 0; i < n; i++) {
            if (fscanf(file, "%x", &word) != 1) return false;
            if (is_ours) want[i] = word;
        }
        if (is_ours) return true;
    }
    return false;
}

int main(int argc, char **argv) {
    const bool writes = argc == 3 && strcmp(argv[1], "--write") == 0;
    const bool compares = argc == 3 && strcmp(argv[1], "--compare") == 0;
    int n_passed = 0, n_failed = 0, n_left_out = 0;
    lmd_cuda_queue queue = {0};
    FILE *file = argc == 3 ? fopen(argv[2], writes ? "w" : "r") : NULL;
    if ((argc != 1 && !writes && !compares) || (argc == 3 && !file)) {
        fprintf(stderr, "usage: check_dev; check_dev --write FILE; check_dev --compare FILE\n");
        return 2;
    }
    const int32_t arch = device_arch();
    check(cudaStreamCreateWithFlags(&queue.stream, cudaStreamNonBlocking), "a stream");
    for (int32_t i = 0; i < n_dev_cases; i++) {
        const dev_case *c = &dev_cases[i];
        if (arch < c->min_arch) {
            printf("left out %s: the device is sm_%d\n", c->name, arch);
            n_left_out++;
            continue;
        }
        run_case(c, &queue);
        if (writes) write_case(file, c);
        c->want(in, want);
        bool is_fine = compare(c, "plain C");
        if (compares && !read_case(file, c))
            printf("left out %s: it is not in the file\n", c->name);
        else if (compares)
            is_fine &= compare(c, "the file");
        if (is_fine)
            n_passed++;
        else
            n_failed++;
    }
    if (file) fclose(file);
    printf("%d passed, %d failed, %d left out\n", n_passed, n_failed, n_left_out);
    return n_failed != 0;
}
