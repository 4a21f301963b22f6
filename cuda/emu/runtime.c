/* The frame of every call of the emulated CUDA runtime: how the device starts, which errors a
 * call returns, faults on demand, and the table of handles. Must not know: what a call does. */
#define _GNU_SOURCE
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_FAULTS = 16, CALL_ROOM = 64 };

typedef struct fault {
    char call[CALL_ROOM];
    long countdown; /* 0: has happened */
    cudaError_t error;
} fault;

emu_state emu = {
    .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .random = 1};
_Thread_local bool emu_on_worker;

static _Thread_local cudaError_t last_error;
static fault faults[MAX_FAULTS];
static int n_faults;

/* ---- the start ---- */

static long env_number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtol(text, NULL, 10) : otherwise;
}

static bool parse_faults(const char *text);

static void start(void) {
    const char *driver = getenv("EMU_DRIVER");
    emu.pid = getpid();
    emu.arch = (int)env_number("EMU_ARCH", 80);
    emu.n_sms = (int)env_number("EMU_SMS", 8);
    emu.late = env_number("EMU_LATE", 0) != 0;
    if (!parse_faults(getenv("EMU_FAIL"))) {
        fprintf(stderr, "emu: EMU_FAIL is not N:CALL or N:CALL=ERROR, with commas between\n");
        exit(2);
    }
    if (env_number("EMU_DEVICES", 1) == 0)
        emu.start_error = cudaErrorNoDevice;
    else if (driver && strcmp(driver, "old") == 0)
        emu.start_error = cudaErrorInsufficientDriver;
    else if (!emu_reserve_memory((size_t)env_number("EMU_MEMORY_MB", 8192) << 20))
        emu.start_error = cudaErrorInitializationError;
}

/* ---- calls ---- */

static cudaError_t note(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

cudaError_t emu_start(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
    /* A forked child has no workers, and perhaps a lock that nobody will ever open. */
    return emu.pid == getpid() ? emu.start_error : cudaErrorInitializationError;
}

cudaError_t emu_enter(const char *call, int flags) {
    cudaError_t error = emu_start();
    if (error == cudaSuccess && emu_on_worker) error = cudaErrorNotPermitted;
    if (error != cudaSuccess) return note(error);
    pthread_mutex_lock(&emu.lock);
    error = emu_fault(call);
    if (error == cudaSuccess && !(flags & EMU_CLEANS)) error = emu.sticky;
    if (error == cudaSuccess && (flags & EMU_UNSAFE)) error = emu_unsafe_in_capture();
    if (error != cudaSuccess) pthread_mutex_unlock(&emu.lock);
    return note(error);
}

cudaError_t emu_leave(cudaError_t error) {
    if (emu.sticky != cudaSuccess) error = emu.sticky;
    pthread_mutex_unlock(&emu.lock);
    return note(error);
}

void emu_break(cudaError_t error, const char *what) {
    fprintf(stderr, "emu: %s: %s\n", cudaGetErrorString(error), what);
    if (emu.sticky == cudaSuccess) emu.sticky = error;
}

void emu_raise(cudaError_t error, const char *what) {
    pthread_mutex_lock(&emu.lock);
    emu_break(error, what);
    pthread_mutex_unlock(&emu.lock);
}

/* Gives the error of this thread's last call that failed, or of a broken device. */
static cudaError_t newest_error(void) {
    cudaError_t error = last_error;
    if (emu_start() != cudaSuccess) return error;
    pthread_mutex_lock(&emu.lock);
    if (emu.sticky != cudaSuccess) error = emu.sticky;
    pthread_mutex_unlock(&emu.lock);
    return error;
}

cudaError_t cudaPeekAtLastError(void) { return newest_error(); }

cudaError_t cudaGetLastError(void) {
    const cudaError_t error = newest_error();
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaDeviceReset(void) {
    const cudaError_t error = emu_enter(__func__, EMU_UNSAFE | EMU_CLEANS);
    if (error != cudaSuccess) return error;
    while (emu.handles) {
        emu_handle *handle = emu.handles;
        switch (handle->kind) {
        case EMU_STREAM: emu_destroy_stream((struct CUstream_st *)handle); break;
        case EMU_EVENT: emu_destroy_event((struct CUevent_st *)handle); break;
        case EMU_GRAPH: emu_destroy_graph((struct CUgraph_st *)handle); break;
        case EMU_GRAPH_EXEC: emu_destroy_graph_exec((struct CUgraphExec_st *)handle); break;
        }
    }
    emu_release_all();
    emu_forget_functions();
    emu.sticky = cudaSuccess;
    last_error = cudaSuccess;
    return emu_leave(cudaSuccess);
}

/* ---- handles ---- */

void emu_add_handle(emu_handle *handle, emu_kind kind) {
    *handle = (emu_handle){.kind = kind, .next = emu.handles};
    if (emu.handles) emu.handles->previous = handle;
    emu.handles = handle;
}

void emu_remove_handle(emu_handle *handle) {
    if (handle->previous)
        handle->previous->next = handle->next;
    else
        emu.handles = handle->next;
    if (handle->next) handle->next->previous = handle->previous;
}

bool emu_is_live(const void *handle, emu_kind kind) {
    for (const emu_handle *at = emu.handles; at; at = at->next)
        if (at == handle) return at->kind == kind;
    return false;
}

/* ---- faults on demand ---- */

/* The error that a call most likely has in real life. */
static cudaError_t likely_error(const char *call) {
    static const struct {
        const char *call;
        cudaError_t error;
    } table[] = {{"cudaMalloc", cudaErrorMemoryAllocation},
                 {"cudaHostAlloc", cudaErrorMemoryAllocation},
                 {"cudaMallocHost", cudaErrorMemoryAllocation},
                 {"cudaGraphInstantiate", cudaErrorMemoryAllocation},
                 {"launch", cudaErrorLaunchOutOfResources},
                 {"run", cudaErrorIllegalAddress}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(call, table[i].call) == 0) return table[i].error;
    return cudaErrorUnknown;
}

/* Reads one fault, up to the comma or the end. */
static bool parse_fault(const char *text, size_t len, fault *out) {
    char call[CALL_ROOM];
    int n = 0, error = 0;
    char copy[2 * CALL_ROOM];
    if (len >= sizeof copy) return false;
    memcpy(copy, text, len);
    copy[len] = '\0';
    fault self = {0};
    if (sscanf(copy, "%ld:%63[A-Za-z]%n", &self.countdown, call, &n) != 2) return false;
    if (self.countdown < 1) return false;
    self.error = likely_error(call);
    if (copy[n] == '=') {
        int more = 0;
        if (sscanf(copy + n, "=%d%n", &error, &more) != 1 || error <= 0) return false;
        self.error = (cudaError_t)error;
        n += more;
    }
    if (copy[n] != '\0') return false;
    memcpy(self.call, call, sizeof call);
    *out = self;
    return true;
}

static bool parse_faults(const char *text) {
    n_faults = 0;
    while (text && *text) {
        const size_t len = strcspn(text, ",");
        if (n_faults == MAX_FAULTS || !parse_fault(text, len, &faults[n_faults])) return false;
        n_faults++;
        text += len;
        if (*text == ',') text++;
    }
    return true;
}

cudaError_t emu_fault(const char *call) {
    cudaError_t error = cudaSuccess;
    for (int i = 0; i < n_faults; i++) {
        if (strcmp(faults[i].call, call) != 0 || faults[i].countdown == 0) continue;
        if (--faults[i].countdown == 0) error = faults[i].error;
    }
    return error;
}

bool emu_set_faults(const char *text) {
    if (emu_start() != cudaSuccess) return false;
    pthread_mutex_lock(&emu.lock);
    const bool ok = parse_faults(text);
    if (!ok) n_faults = 0;
    pthread_mutex_unlock(&emu.lock);
    return ok;
}

int emu_faults_left(void) {
    int n = 0;
    pthread_mutex_lock(&emu.lock);
    for (int i = 0; i < n_faults; i++) n += faults[i].countdown > 0;
    pthread_mutex_unlock(&emu.lock);
    return n;
}
