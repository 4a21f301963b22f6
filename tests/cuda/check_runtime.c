/* Checks the emulator's CUDA runtime: that it refuses what CUDA refuses, that it is as late as
 * CUDA may be, and that faults come when asked for. Here: memory, copies, faults, the
 * environment. usage: check_runtime; with an argument it is its own child, see
 * check_environment. */
#define _GNU_SOURCE
#include "check_runtime.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static atomic_int n_passed, n_failed; /* some checks are made by threads */

void check(bool ok, const char *what, const char *file, int line) {
    if (ok)
        n_passed++;
    else {
        n_failed++;
        printf("FAILED %s:%d: %s\n", file, line, what);
    }
}

void check_error(cudaError_t got, cudaError_t want, const char *what, const char *file,
                 int line) {
    check(got == want, what, file, line);
    if (got != want) printf("  %s, wanted %s\n", cudaGetErrorName(got), cudaGetErrorName(want));
    if (got == want && want != cudaSuccess && want != cudaErrorInitializationError)
        check(cudaGetLastError() == want, "the last error", file, line);
}

/* ---- what most checks need ---- */

bench open_bench(void) {
    bench b;
    OK(cudaStreamCreateWithFlags(&b.stream, cudaStreamNonBlocking));
    OK(cudaMalloc((void **)&b.device, N));
    OK(cudaMalloc((void **)&b.other, N));
    OK(cudaHostAlloc((void **)&b.pinned, N, cudaHostAllocDefault));
    return b;
}

void close_bench(const bench *b) {
    OK(cudaStreamSynchronize(b->stream));
    OK(cudaFreeHost(b->pinned));
    OK(cudaFree(b->other));
    OK(cudaFree(b->device));
    OK(cudaStreamDestroy(b->stream));
}

bool device_is(const uint8_t *device, int value) {
    uint8_t bytes[N], want[N];
    memset(want, value, N);
    if (cudaMemcpy(bytes, device, N, cudaMemcpyDeviceToHost) != cudaSuccess) return false;
    return memcmp(bytes, want, N) == 0;
}

static void pass_gate(void *arg) {
    gate *self = arg;
    while (!atomic_load(&self->is_open)) usleep(100);
}

void close_gate(gate *self, cudaStream_t stream) {
    atomic_store(&self->is_open, false);
    OK(cudaLaunchHostFunc(stream, pass_gate, self));
}

void open_gate(gate *self) { atomic_store(&self->is_open, true); }

static void *open_later(void *arg) {
    usleep(20000);
    open_gate(arg);
    return NULL;
}

void open_gate_later(gate *self) {
    CHECK(pthread_create(&self->opener, NULL, open_later, self) == 0);
}

bool has_waited(gate *self) {
    const bool was_open = atomic_load(&self->is_open);
    pthread_join(self->opener, NULL);
    return was_open;
}

void count(void *arg) { atomic_fetch_add((atomic_int *)arg, 1); }

static void run_job(void *arg) { atomic_fetch_add(&((job_state *)arg)->n_run, 1); }
static void drop_job(void *arg) { atomic_fetch_add(&((job_state *)arg)->n_dropped, 1); }

void enqueue(cudaStream_t stream, job_state *state) {
    emu_enqueue(stream, (emu_job){.run = run_job,
                                  .drop = drop_job,
                                  .arg = state,
                                  .name = "a job",
                                  .params = &state->memory,
                                  .params_len = sizeof state->memory});
}

/* ---- memory ---- */

static void check_allocations(void) {
    uint8_t *a, *b, *c;
    size_t n_free, n_total, n_less;
    uintptr_t begin, end, view;
    size_t n_bytes;
    OK(cudaMemGetInfo(&n_free, &n_total));
    CHECK(n_free == n_total);
    OK(cudaMalloc((void **)&a, N));
    OK(cudaMalloc((void **)&b, 1));
    CHECK((uintptr_t)a % 256 == 0 && (uintptr_t)b % 256 == 0 && a != b);
    OK(cudaMemGetInfo(&n_less, &n_total));
    CHECK(n_less < n_free);
    CHECK(device_is(a, 0xff));
    CHECK(emu_device_range(&begin, &end));
    CHECK((uintptr_t)a >= begin && (uintptr_t)a + N <= end);
    CHECK(emu_find_allocation(a + N - 1, &view, &n_bytes));
    CHECK(view == (uintptr_t)(a + emu_alias_delta()) && n_bytes == N);
    CHECK(emu_find_allocation(a + emu_alias_delta(), &view, &n_bytes));
    CHECK(!emu_find_allocation(a + N, &view, &n_bytes));
    CHECK(!emu_find_allocation(a - 1, &view, &n_bytes));
    CHECK(!emu_find_allocation(&a, &view, &n_bytes));
    GIVES(cudaMalloc((void **)&c, n_total), cudaErrorMemoryAllocation);
    GIVES(cudaMalloc((void **)&c, SIZE_MAX), cudaErrorMemoryAllocation);
    GIVES(cudaMalloc(NULL, 1), cudaErrorInvalidValue);
    GIVES(cudaFree(a + 256), cudaErrorInvalidValue);
    GIVES(cudaFree(&a), cudaErrorInvalidValue);
    GIVES(cudaFree(a + emu_alias_delta()), cudaErrorInvalidValue);
    OK(cudaFree(NULL));
    OK(cudaFree(a));
    GIVES(cudaFree(a), cudaErrorInvalidValue);
    CHECK(!emu_find_allocation(a, &view, &n_bytes));
    OK(cudaMalloc((void **)&c, N));
    CHECK(c != a);
    OK(cudaMalloc((void **)&a, 0));
    CHECK(a == NULL);
    OK(cudaFree(b));
    OK(cudaFree(c));
    OK(cudaMemGetInfo(&n_less, &n_total));
    CHECK(n_less == n_free);
}

static void check_pinned(void) {
    uint8_t *a;
    uintptr_t begin;
    size_t n_bytes;
    OK(cudaMallocHost((void **)&a, N));
    CHECK(emu_find_pinned(a + N - 1, &begin, &n_bytes) && begin == (uintptr_t)a &&
          n_bytes == N);
    CHECK(!emu_find_pinned(a + N, &begin, &n_bytes));
    CHECK(a[0] == 0xff && a[N - 1] == 0xff);
    GIVES(cudaFreeHost(a + 1), cudaErrorInvalidValue);
    GIVES(cudaHostAlloc((void **)&a, N, 0x100), cudaErrorInvalidValue);
    OK(cudaFreeHost(a));
    GIVES(cudaFreeHost(a), cudaErrorInvalidValue);
    OK(cudaFreeHost(NULL));
}

/* Gives how a forked child ends: its exit status, or 1000 and the signal. */
static int run_child(int (*body)(void *), void *arg) {
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) _exit(body(arg));
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int read_byte(void *address) {
    signal(SIGSEGV, SIG_DFL);
    return *(volatile uint8_t *)address == 0 ? 1 : 2;
}

static int write_byte(void *address) {
    signal(SIGSEGV, SIG_DFL);
    *(volatile uint8_t *)address = 1;
    return 0;
}

static int call_in_child(void *arg) {
    const bench *b = arg;
    void *memory;
    int n = 0;
    const cudaError_t errors[] = {
        cudaGetDeviceCount(&n),
        cudaSetDevice(0),
        cudaMalloc(&memory, 1),
        cudaFree(b->device),
        cudaMemcpy(b->pinned, b->device, N, cudaMemcpyDeviceToHost),
        cudaMemsetAsync(b->device, 0, N, b->stream),
        cudaStreamSynchronize(b->stream),
        cudaStreamDestroy(b->stream),
        cudaDeviceReset(),
        cudaGetLastError(),
    };
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i] != cudaErrorInitializationError) return 1 + (int)i;
    return 0;
}

static void check_children(void) {
    bench b = open_bench();
    CHECK(run_child(read_byte, b.device) == 1000 + SIGSEGV);
    CHECK(run_child(write_byte, b.device) == 1000 + SIGSEGV);
    CHECK(run_child(read_byte, b.device + emu_alias_delta()) == 1000 + SIGSEGV);
    CHECK(run_child(read_byte, b.pinned) == 2);
    CHECK(run_child(call_in_child, &b) == 0);
    CHECK(device_is(b.device, 0xff));
    close_bench(&b);
}

static void check_overrun(void) {
    uint8_t *a;
    for (int side = 0; side < 2; side++) {
        OK(cudaMalloc((void **)&a, N));
        a[emu_alias_delta() + (side ? N : -1)] = 0;
        GIVES(cudaFree(a), cudaErrorIllegalAddress);
        GIVES(cudaMalloc((void **)&a, N), cudaErrorIllegalAddress);
        OK(cudaDeviceReset());
    }
    OK(cudaMalloc((void **)&a, N));
    a[emu_alias_delta() + N - 1] = 0;
    OK(cudaFree(a));
}

/* ---- copies ---- */

static void check_directions(void) {
    bench b = open_bench();
    uint8_t host[N] = {1}, host2[N];
    OK(cudaMemcpy(b.device, host, N, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(b.other, b.device, N, cudaMemcpyDeviceToDevice));
    OK(cudaMemcpy(host2, b.other, N, cudaMemcpyDeviceToHost));
    CHECK(memcmp(host, host2, N) == 0);
    OK(cudaMemset(b.device, 5, N));
    CHECK(device_is(b.device, 5));
    OK(cudaMemcpy(b.pinned, b.other, N, cudaMemcpyDefault));
    CHECK(memcmp(host, b.pinned, N) == 0);
    OK(cudaMemcpy(host2, b.pinned, N, cudaMemcpyHostToHost));
    GIVES(cudaMemcpy(b.device, b.other, N, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    GIVES(cudaMemcpy(host, host2, N, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    GIVES(cudaMemcpy(host, b.device, N, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    GIVES(cudaMemcpy(host, b.device, N + 1, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    GIVES(cudaMemcpy(b.device - 1, host, 2, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    GIVES(cudaMemcpy(b.pinned + 1, b.device, N, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    GIVES(cudaMemcpy(b.device, NULL, N, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    GIVES(cudaMemcpy(b.device, host, N, (enum cudaMemcpyKind)9),
          cudaErrorInvalidMemcpyDirection);
    GIVES(cudaMemset(host, 0, N), cudaErrorInvalidValue);
    GIVES(cudaMemsetAsync(b.device + 1, 0, N, b.stream), cudaErrorInvalidValue);
    OK(cudaMemcpy(NULL, NULL, 0, cudaMemcpyHostToDevice));
    close_bench(&b);
}

/* ---- the device, and its functions ---- */

static void check_queries(void) {
    struct cudaDeviceProp prop;
    struct cudaFuncAttributes attributes;
    int value = 0, n_blocks = 0;
    const void *function = (const void *)(uintptr_t)0x1000; /* only its address counts */
    OK(cudaGetDeviceCount(&value));
    CHECK(value == 1);
    GIVES(cudaSetDevice(1), cudaErrorInvalidDevice);
    GIVES(cudaDeviceGetAttribute(&value, cudaDevAttrWarpSize, 1), cudaErrorInvalidDevice);
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0));
    OK(cudaGetDeviceProperties(&prop, 0));
    CHECK(value == 8 && prop.major == 8 && prop.minor == 0);
    CHECK(strcmp(prop.name, "Emulated GPU") == 0 && prop.multiProcessorCount == 8);
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    CHECK(value == 99 << 10);

    OK(emu_check_launch(function, 1024, 48 << 10));
    GIVES(emu_check_launch(function, 1025, 0), cudaErrorInvalidConfiguration);
    GIVES(emu_check_launch(function, 0, 0), cudaErrorInvalidConfiguration);
    GIVES(emu_check_launch(function, 32, (48 << 10) + 1), cudaErrorInvalidValue);
    OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n_blocks, function, 128, 99 << 10));
    CHECK(n_blocks == 0);
    GIVES(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               (99 << 10) + 1),
          cudaErrorInvalidValue);
    OK(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, 99 << 10));
    OK(emu_check_launch(function, 32, 99 << 10));
    OK(cudaFuncGetAttributes(&attributes, function));
    CHECK(attributes.maxDynamicSharedSizeBytes == 99 << 10 && attributes.binaryVersion == 80);
    OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n_blocks, function, 128, 99 << 10));
    CHECK(n_blocks == 1);
    OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n_blocks, function, 128, 24 << 10));
    CHECK(n_blocks == 4);
    OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n_blocks, function, 1024, 0));
    CHECK(n_blocks == 2);
    CHECK(strcmp(cudaGetErrorName(cudaErrorNotReady), "cudaErrorNotReady") == 0);
    CHECK(strcmp(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory") == 0);
}

/* ---- faults on demand ---- */

static void check_faults(void) {
    bench b = open_bench();
    void *memory;
    job_state job = {0};
    atomic_int n_run = 0;
    CHECK(!emu_set_faults("x:cudaMalloc") && !emu_set_faults("0:cudaMalloc"));
    CHECK(!emu_set_faults("1:cudaMalloc=") && !emu_set_faults("1:cudaMalloc x"));
    CHECK(emu_set_faults("2:cudaMalloc,1:cudaLaunchHostFunc=801,1:launch"));
    CHECK(emu_faults_left() == 3);
    OK(cudaMalloc(&memory, 1));
    OK(cudaFree(memory));
    GIVES(cudaMalloc(&memory, 1), cudaErrorMemoryAllocation);
    OK(cudaMalloc(&memory, 1));
    OK(cudaFree(memory));
    GIVES(cudaLaunchHostFunc(b.stream, count, &n_run), cudaErrorNotSupported);
    OK(cudaLaunchHostFunc(b.stream, count, &n_run));
    enqueue(b.stream, &job);
    CHECK(cudaGetLastError() == cudaErrorLaunchOutOfResources);
    OK(cudaStreamSynchronize(b.stream));
    CHECK(n_run == 1 && job.n_run == 0 && job.n_dropped == 1 && emu_faults_left() == 0);

    /* A broken device drops its work, refuses everything, and frees what it is told to. */
    gate g;
    CHECK(emu_set_faults("3:run")); /* the gate is the first */
    close_gate(&g, b.stream);
    OK(cudaMemsetAsync(b.device, 0, N, b.stream));
    enqueue(b.stream, &job);
    OK(cudaLaunchHostFunc(b.stream, count, &n_run));
    open_gate(&g);
    CHECK(cudaStreamSynchronize(b.stream) == cudaErrorIllegalAddress);
    CHECK(job.n_run == 0 && job.n_dropped == 2 && n_run == 1);
    CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
    CHECK(cudaPeekAtLastError() == cudaErrorIllegalAddress);
    CHECK(cudaMalloc(&memory, 1) == cudaErrorIllegalAddress);
    CHECK(cudaMemcpyAsync(b.pinned, b.device, N, cudaMemcpyDeviceToHost, b.stream) ==
          cudaErrorIllegalAddress);
    enqueue(b.stream, &job);
    CHECK(job.n_run == 0 && job.n_dropped == 3);
    CHECK(cudaFree(b.device) == cudaErrorIllegalAddress);
    CHECK(cudaFree(b.other) == cudaErrorIllegalAddress);
    CHECK(cudaFreeHost(b.pinned) == cudaErrorIllegalAddress);
    CHECK(cudaStreamDestroy(b.stream) == cudaErrorIllegalAddress);
    OK(cudaDeviceReset());
    check_allocations(); /* all memory is free again */
    CHECK(emu_set_faults(NULL));
}

/* ---- the environment ---- */

static void in_no_device(void) {
    int n = 7;
    void *memory;
    CHECK(cudaGetDeviceCount(&n) == cudaErrorNoDevice && n == 0);
    CHECK(cudaMalloc(&memory, 1) == cudaErrorNoDevice);
    CHECK(!emu_device_range(&(uintptr_t){0}, &(uintptr_t){0}));
}

static void in_old_driver(void) {
    int n = 7, driver = 0, runtime = 0;
    CHECK(cudaGetDeviceCount(&n) == cudaErrorInsufficientDriver && n == 0);
    OK(cudaDriverGetVersion(&driver));
    OK(cudaRuntimeGetVersion(&runtime));
    CHECK(driver < runtime && runtime == CUDART_VERSION);
}

static void in_old_device(void) {
    int major = 0, minor = 0;
    OK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    OK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
    CHECK(major == 7 && minor == 5);
}

/* Addresses are used again only when there are no others left. */
static void in_small_memory(void) {
    void *memory, *kept;
    size_t n_free, n_total;
    OK(cudaMemGetInfo(&n_free, &n_total));
    CHECK(n_total == (size_t)16 << 20);
    OK(cudaMalloc(&kept, 1));
    GIVES(cudaMalloc(&memory, n_total), cudaErrorMemoryAllocation);
    for (int i = 0; i < 300; i++) { /* 2.3 GiB of 1 GiB of addresses */
        if (cudaMalloc(&memory, (size_t)8 << 20) != cudaSuccess || memory == kept ||
            cudaFree(memory) != cudaSuccess) {
            CHECK(!"an allocation among many");
            break;
        }
    }
    OK(cudaFree(kept));
}

static void in_faults(void) {
    void *memory;
    GIVES(cudaMalloc(&memory, 1), cudaErrorMemoryAllocation);
    OK(cudaMalloc(&memory, 1));
    OK(cudaFree(memory));
}

/* Results that nobody waited for are not there. */
static void in_lateness(void) {
    bench b = open_bench();
    int n_early = 0;
    for (int i = 0; i < 20; i++) {
        OK(cudaMemset(b.device, i, N));
        OK(cudaDeviceSynchronize());
        OK(cudaMemcpyAsync(b.pinned, b.device, N, cudaMemcpyDeviceToHost, b.stream));
#ifndef __SANITIZE_THREAD__ /* this look is the race that it finds */
        n_early += *(volatile uint8_t *)b.pinned == i;
#endif
        OK(cudaStreamSynchronize(b.stream));
        CHECK(b.pinned[0] == i);
    }
    CHECK(n_early < 10);
    close_bench(&b);
}

static const struct environment {
    const char *name, *value;
    void (*check)(void);
} environments[] = {
    {"EMU_DEVICES", "0", in_no_device},      {"EMU_DRIVER", "old", in_old_driver},
    {"EMU_ARCH", "75", in_old_device},       {"EMU_MEMORY_MB", "16", in_small_memory},
    {"EMU_FAIL", "1:cudaMalloc", in_faults}, {"EMU_LATE", "1", in_lateness},
};

static int run_again(void *arg) {
    const struct environment *environment = arg;
    setenv(environment->name, environment->value, 1);
    execl("/proc/self/exe", "check_runtime", environment->name, (char *)NULL);
    return 127;
}

/* Runs this program once for each variable, which is read at the first call. */
static void check_environment(void) {
    for (size_t i = 0; i < sizeof environments / sizeof *environments; i++) {
        struct environment environment = environments[i];
        check(run_child(run_again, &environment) == 0, environment.name, __FILE__, __LINE__);
    }
}

int main(int argc, char **argv) {
    for (size_t i = 0; argc > 1 && i < sizeof environments / sizeof *environments; i++) {
        if (strcmp(argv[1], environments[i].name) != 0) continue;
        environments[i].check();
        return n_failed != 0;
    }
    check_allocations();
    check_pinned();
    check_children();
    check_overrun();
    check_directions();
    check_lateness();
    check_legacy_stream();
    check_jobs();
    check_threads();
    check_events();
    check_graphs();
    check_captures();
    check_queries();
    check_faults();
    check_environment();
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0;
}
