/* Runs the kernels of bugs.cu on the emulator: a bug must be reported, its twin must not. Each
 * run is a process of its own, because a fault breaks the device for good. usage: check_bugs
 * [NAME]; check_bugs NAME bug|twin is one run */
#define _GNU_SOURCE
#include "bugs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_ORDERS = 4, TEXT = 8000 };

static void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    exit(2);
}

/* ---- one run ---- */

static int run_one(const bug *b, bool is_buggy) {
    static float values[BUGS_FLOATS];
    lmd_cuda_queue queue = {0};
    float *in, *out;
    for (int i = 0; i < BUGS_FLOATS; i++) values[i] = (float)(i % 37 - 18);
    check(cudaStreamCreateWithFlags(&queue.stream, cudaStreamNonBlocking), "a stream");
    check(cudaMalloc((void **)&in, sizeof values), "memory");
    check(cudaMalloc((void **)&out, sizeof values), "memory");
    check(cudaMemcpy(in, values, sizeof values, cudaMemcpyHostToDevice), "a copy");
    b->run(&queue, is_buggy, in, out);
    /* The emulator makes it a failure if there were errors. */
    return cudaStreamSynchronize(queue.stream) != cudaSuccess;
}

/* ---- all runs ---- */

/* How a case is run. */
typedef struct how {
    bool is_buggy, checks, profiles;
    int order;
} how;

/* Runs this program again for one case; leaves its text, and tells whether it succeeded. */
static bool run_again(const char *program, const bug *b, how h, char *text) {
    char command[600];
    snprintf(command, sizeof command,
             "EMU_ORDER=%d EMU_CHECK=%d EMU_PROFILE=%d EMU_PROFILE_FILE=/dev/stdout "
             "'%s' %s %s 2>&1",
             h.order, h.checks, h.profiles, program, b->name, h.is_buggy ? "bug" : "twin");
    FILE *pipe = popen(command, "r");
    if (!pipe) return false;
    const size_t n = fread(text, 1, TEXT - 1, pipe);
    text[n] = 0;
    return pclose(pipe) == 0;
}

/* The largest ratio of what was got to the least, among the JSON lines of a run. */
static double worst_ratio(const char *text) {
    double worst = 0;
    unsigned long got, least;
    for (const char *at = text; (at = strstr(at, "\"got\": ")) != NULL; at++) {
        if (sscanf(at, "\"got\": %lu, \"least\": %lu", &got, &least) != 2 || least == 0)
            continue;
        const double ratio = (double)got / (double)least;
        if (ratio > worst) worst = ratio;
    }
    return worst;
}

/* Copies the first report of a run's text. */
static void first_report(const char *text, char *out, size_t room) {
    const char *at = strstr(text, "emulator: ");
    snprintf(out, room, "%.*s", at ? (int)strcspn(at + 10, "\n") : 0, at ? at + 10 : "");
}

/* Tells whether a bug was found, and where. */
static bool finds(const char *program, const bug *b, how h, char *text, char *where,
                  size_t room) {
    h.is_buggy = true;
    const bool succeeded = run_again(program, b, h, text);
    if (b->report) {
        first_report(text, where, room);
        return !succeeded && strstr(text, b->report) != NULL;
    }
    snprintf(where, room, "ratio %.2f", worst_ratio(text));
    return succeeded && worst_ratio(text) >= 2;
}

/* Tells whether the twin gave no cause for a report. */
static bool is_silent(const char *program, const bug *b, how h, char *text) {
    h.is_buggy = false;
    if (!run_again(program, b, h, text)) return false;
    if (b->report && h.checks) return strstr(text, "emulator: 0 errors") != NULL;
    return b->report || worst_ratio(text) == 1;
}

static bool check_case(const char *program, const bug *b) {
    char text[TEXT], where[120], first[120] = "";
    bool all_fine = true;
    for (int order = 0; order < N_ORDERS + b->is_fault; order++) {
        how h = {.checks = b->report != NULL, .profiles = b->report == NULL, .order = order};
        if (order == N_ORDERS) h.checks = false;
        const bool found = finds(program, b, h, text, where, sizeof where);
        if (!found) printf("MISSED %s, order %d:\n%s\n", b->name, order, text);
        if (order == 0) memcpy(first, where, sizeof first);
        const bool silent = is_silent(program, b, h, text);
        if (!silent) printf("FALSE ALARM %s, order %d:\n%s\n", b->name, order, text);
        all_fine &= found && silent;
    }
    printf("%-7s %-26s %s\n", all_fine ? "passed" : "FAILED", b->name, first);
    return all_fine;
}

int main(int argc, char **argv) {
    int n_passed = 0, n_failed = 0;
    for (int i = 0; i < n_bugs; i++) {
        if (argc > 1 && strcmp(argv[1], bugs[i].name) != 0) continue;
        if (argc > 2) return run_one(&bugs[i], strcmp(argv[2], "bug") == 0);
        if (check_case(argv[0], &bugs[i]))
            n_passed++;
        else
            n_failed++;
    }
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0 || n_passed == 0;
}
