/* Checks the order and the lateness of work in the emulator's CUDA runtime: streams, events,
 * jobs, captures and graphs. */
#define _GNU_SOURCE
#include "check_runtime.h"

#include <string.h>
#include <unistd.h>

/* ---- streams ---- */

/* What is enqueued behind a gate has not happened, though the call has returned. */
void check_lateness(void) {
    bench b = open_bench();
    gate g;
    uint8_t pageable[N];
    OK(cudaMemset(b.device, 1, N));
    OK(cudaDeviceSynchronize());

    close_gate(&g, b.stream);
    memset(b.pinned, 2, N);
    OK(cudaMemcpyAsync(b.pinned, b.device, N, cudaMemcpyDeviceToHost, b.stream));
    CHECK(b.pinned[0] == 2 && b.pinned[N - 1] == 2);
    GIVES(cudaStreamQuery(b.stream), cudaErrorNotReady);
    open_gate(&g);
    OK(cudaStreamSynchronize(b.stream));
    OK(cudaStreamQuery(b.stream));
    CHECK(b.pinned[0] == 1 && b.pinned[N - 1] == 1);

    close_gate(&g, b.stream);
    memset(pageable, 3, N);
    memset(b.pinned, 4, N);
    OK(cudaMemcpyAsync(b.device, pageable, N, cudaMemcpyHostToDevice, b.stream));
    OK(cudaMemcpyAsync(b.other, b.pinned, N, cudaMemcpyHostToDevice, b.stream));
    memset(pageable, 5, N); /* has been read */
    memset(b.pinned, 6, N); /* has not */
    open_gate(&g);
    OK(cudaStreamSynchronize(b.stream));
    CHECK(device_is(b.device, 3));
    CHECK(device_is(b.other, 6));

    close_gate(&g, b.stream);
    open_gate_later(&g);
    OK(cudaMemcpyAsync(pageable, b.device, N, cudaMemcpyDeviceToHost, b.stream));
    CHECK(has_waited(&g));
    CHECK(pageable[0] == 3 && pageable[N - 1] == 3);

    close_gate(&g, b.stream);
    OK(cudaMemsetAsync(b.device, 7, N, b.stream));
    CHECK(device_is(b.device, 3));
    open_gate(&g);
    OK(cudaStreamSynchronize(b.stream));
    CHECK(device_is(b.device, 7));
    close_bench(&b);
}

/* The legacy stream waits for blocking streams, and they for it; others do neither. */
void check_legacy_stream(void) {
    bench b = open_bench();
    gate g;
    cudaStream_t blocking;
    atomic_int n_run = 0;
    OK(cudaStreamCreateWithFlags(&blocking, cudaStreamDefault));
    close_gate(&g, blocking);
    open_gate_later(&g);
    OK(cudaMemcpy(b.device, b.pinned, N, cudaMemcpyHostToDevice));
    CHECK(has_waited(&g));

    close_gate(&g, NULL);
    OK(cudaMemcpy(b.other, b.device, N, cudaMemcpyDeviceToDevice)); /* does not wait */
    OK(cudaLaunchHostFunc(b.stream, count, &n_run));
    OK(cudaStreamSynchronize(b.stream));
    CHECK(n_run == 1);
    OK(cudaLaunchHostFunc(blocking, count, &n_run));
    usleep(5000);
    CHECK(n_run == 1);
    GIVES(cudaStreamQuery(cudaStreamLegacy), cudaErrorNotReady);
    open_gate(&g);
    OK(cudaStreamSynchronize(blocking));
    CHECK(n_run == 2);
    OK(cudaStreamDestroy(blocking));
    GIVES(cudaStreamDestroy(NULL), cudaErrorInvalidResourceHandle);
    GIVES(cudaStreamCreateWithFlags(&blocking, 8), cudaErrorInvalidValue);
    close_bench(&b);
}

/* ---- jobs, and memory in use ---- */

void check_jobs(void) {
    bench b = open_bench();
    gate g;
    job_state state = {.memory = b.device + 8};
    void *memory = b.device, *alias = b.device + emu_alias_delta();
    close_gate(&g, b.stream);
    enqueue(b.stream, &state);
    OK(cudaGetLastError());
    CHECK(state.n_run == 0);
    GIVES(cudaFree(memory), cudaErrorInvalidValue);
    state.memory = alias;
    GIVES(cudaFree(memory), cudaErrorInvalidValue);
    OK(cudaMemcpyAsync(b.other, b.pinned, N, cudaMemcpyHostToDevice, b.stream));
    GIVES(cudaFree(b.other), cudaErrorInvalidValue);
    GIVES(cudaFreeHost(b.pinned), cudaErrorInvalidValue);
    open_gate(&g);
    OK(cudaStreamSynchronize(b.stream));
    CHECK(state.n_run == 1 && state.n_dropped == 1);

    enqueue((cudaStream_t)&state, &state);
    CHECK(cudaGetLastError() == cudaErrorInvalidResourceHandle);
    CHECK(state.n_run == 1 && state.n_dropped == 2);

    cudaStream_t stream;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (int i = 0; i < 100; i++) enqueue(stream, &state);
    OK(cudaStreamDestroy(stream)); /* waits */
    CHECK(state.n_run == 101 && state.n_dropped == 102);
    GIVES(cudaStreamDestroy(stream), cudaErrorInvalidResourceHandle);
    close_bench(&b);
}

static void call_runtime(void *arg) { *(cudaError_t *)arg = cudaStreamQuery(NULL); }

/* Two threads, each with a stream: for the thread sanitizer. */
static void *use_a_stream(void *arg) {
    atomic_int *n_wrong = arg;
    cudaStream_t stream;
    uint8_t *device, *pinned;
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess ||
        cudaMalloc((void **)&device, N) != cudaSuccess ||
        cudaHostAlloc((void **)&pinned, N, cudaHostAllocDefault) != cudaSuccess) {
        count(n_wrong);
        return NULL;
    }
    for (int i = 0; i < 50; i++) {
        cudaMemsetAsync(device, i, N, stream);
        cudaMemcpyAsync(pinned, device, N, cudaMemcpyDeviceToHost, stream);
        cudaStreamSynchronize(stream);
        if (pinned[0] != i || pinned[N - 1] != i) count(n_wrong);
    }
    if (cudaFree(device) != cudaSuccess || cudaFreeHost(pinned) != cudaSuccess ||
        cudaStreamDestroy(stream) != cudaSuccess)
        count(n_wrong);
    return NULL;
}

void check_threads(void) {
    bench b = open_bench();
    cudaError_t error = cudaSuccess;
    OK(cudaLaunchHostFunc(b.stream, call_runtime, &error));
    OK(cudaStreamSynchronize(b.stream));
    CHECK(error == cudaErrorNotPermitted);
    pthread_t threads[2];
    atomic_int n_wrong = 0;
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, use_a_stream, &n_wrong) == 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    CHECK(n_wrong == 0);
    close_bench(&b);
}

/* ---- events ---- */

void check_events(void) {
    bench b = open_bench();
    gate g;
    cudaStream_t stream;
    cudaEvent_t start, end;
    float ms = -1.0f;
    atomic_int n_run = 0;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(cudaEventCreateWithFlags(&start, cudaEventDefault));
    OK(cudaEventCreateWithFlags(&end, cudaEventDefault));
    OK(cudaEventQuery(start)); /* was never recorded */
    OK(cudaEventSynchronize(start));
    GIVES(cudaEventElapsedTime(&ms, start, end), cudaErrorInvalidResourceHandle);
    OK(cudaEventRecord(start, b.stream));
    OK(cudaEventSynchronize(start));
    close_gate(&g, b.stream);
    OK(cudaEventRecord(end, b.stream));
    GIVES(cudaEventQuery(end), cudaErrorNotReady);
    OK(cudaStreamWaitEvent(stream, end, 0));
    OK(cudaLaunchHostFunc(stream, count, &n_run));
    /* The stream waits for the first record, whatever becomes of the event. */
    OK(cudaEventRecord(end, NULL));
    OK(cudaEventSynchronize(end));
    usleep(2000);
    CHECK(n_run == 0);
    OK(cudaEventRecord(end, b.stream));
    GIVES(cudaEventElapsedTime(&ms, start, end), cudaErrorNotReady);
    open_gate_later(&g);
    OK(cudaEventSynchronize(end));
    CHECK(has_waited(&g));
    OK(cudaStreamSynchronize(stream));
    CHECK(n_run == 1);
    OK(cudaEventElapsedTime(&ms, start, end));
    CHECK(ms >= 20.0f && ms < 20000.0f);

    close_gate(&g, b.stream);
    OK(cudaEventRecord(end, b.stream));
    OK(cudaStreamWaitEvent(stream, end, 0));
    OK(cudaEventDestroy(end)); /* in flight: allowed */
    GIVES(cudaEventDestroy(end), cudaErrorInvalidResourceHandle);
    GIVES(cudaEventRecord(end, b.stream), cudaErrorInvalidResourceHandle);
    open_gate(&g);
    OK(cudaStreamSynchronize(stream));
    OK(cudaEventDestroy(start));
    OK(cudaStreamDestroy(stream));
    close_bench(&b);
}

/* ---- graphs ---- */

static size_t n_nodes(cudaGraph_t graph) {
    size_t n = 0;
    OK(cudaGraphGetNodes(graph, NULL, &n));
    return n;
}

/* Captures a fill, a copy to pinned memory, a job and a host function. */
static cudaGraph_t capture_all(const bench *b, job_state *job, atomic_int *n_run) {
    cudaGraph_t graph = NULL;
    OK(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
    OK(cudaMemcpyAsync(b->device, b->pinned, N, cudaMemcpyHostToDevice, b->stream));
    OK(cudaMemsetAsync(b->device, 9, 1, b->stream));
    OK(cudaMemcpyAsync(b->other, b->device, N, cudaMemcpyDeviceToDevice, b->stream));
    enqueue(b->stream, job);
    OK(cudaGetLastError());
    OK(cudaLaunchHostFunc(b->stream, count, n_run));
    OK(cudaStreamEndCapture(b->stream, &graph));
    return graph;
}

void check_graphs(void) {
    bench b = open_bench();
    gate g;
    job_state job = {0};
    atomic_int n_run = 0;
    cudaGraphExec_t exec, exec2;
    cudaGraphNode_t nodes[8];
    size_t n = 8;
    uint8_t host[N];
    const cudaGraph_t graph = capture_all(&b, &job, &n_run);
    OK(cudaStreamSynchronize(b.stream));
    CHECK(job.n_run == 0 && n_run == 0 && device_is(b.other, 0xff));
    CHECK(n_nodes(graph) == 5);
    OK(cudaGraphGetNodes(graph, nodes, &n));
    CHECK(n == 5 && nodes[4] != NULL && nodes[5] == NULL);
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphInstantiate(&exec2, graph, 0));
    OK(cudaGraphDestroy(graph));
    GIVES(cudaGraphDestroy(graph), cudaErrorInvalidValue);
    GIVES(cudaGraphInstantiate(&exec2, graph, 0), cudaErrorInvalidValue);
    for (int i = 1; i <= 3; i++) {
        memset(b.pinned, i, N); /* is read at each replay */
        OK(cudaGraphLaunch(exec, b.stream));
        OK(cudaStreamSynchronize(b.stream));
        OK(cudaMemcpy(host, b.other, N, cudaMemcpyDeviceToHost));
        CHECK(job.n_run == i && n_run == i && host[0] == 9 && host[1] == i && host[N - 1] == i);
    }
    OK(cudaGraphExecDestroy(exec2));
    CHECK(job.n_dropped == 0);
    close_gate(&g, b.stream);
    OK(cudaGraphLaunch(exec, b.stream));
    OK(cudaGraphLaunch(exec, b.stream));
    GIVES(cudaFree(b.other), cudaErrorInvalidValue);
    OK(cudaGraphExecDestroy(exec)); /* in flight: its work is done all the same */
    GIVES(cudaGraphExecDestroy(exec), cudaErrorInvalidValue);
    GIVES(cudaGraphLaunch(exec, b.stream), cudaErrorInvalidValue);
    CHECK(job.n_run == 3 && job.n_dropped == 0);
    open_gate(&g);
    OK(cudaStreamSynchronize(b.stream));
    CHECK(job.n_run == 5 && job.n_dropped == 1 && n_run == 5);
    close_bench(&b);
}

/* One graph launched in two streams does not overlap itself. */
static void check_graph_order(void) {
    bench b = open_bench();
    gate g;
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    atomic_int n_run = 0;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    OK(cudaLaunchHostFunc(stream, count, &n_run));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    close_gate(&g, b.stream);
    OK(cudaGraphLaunch(exec, b.stream));
    OK(cudaGraphLaunch(exec, stream));
    usleep(5000);
    CHECK(n_run == 0);
    open_gate(&g);
    OK(cudaStreamSynchronize(stream));
    CHECK(n_run == 2);
    OK(cudaGraphExecDestroy(exec));
    OK(cudaStreamDestroy(stream));
    close_bench(&b);
}

/* Replays of a graph whose memory was freed break the device. */
static void check_graph_without_memory(void) {
    bench b = open_bench();
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    uint8_t *device;
    OK(cudaMalloc((void **)&device, N));
    OK(cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeThreadLocal));
    OK(cudaMemsetAsync(device, 0, N, b.stream));
    OK(cudaStreamEndCapture(b.stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphLaunch(exec, b.stream));
    OK(cudaStreamSynchronize(b.stream));
    OK(cudaFree(device));
    OK(cudaGraphLaunch(exec, b.stream));
    GIVES(cudaStreamSynchronize(b.stream), cudaErrorIllegalAddress);
    OK(cudaDeviceReset());
}

static enum cudaStreamCaptureStatus capture_status(cudaStream_t stream) {
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    OK(cudaStreamIsCapturing(stream, &status));
    return status;
}

/* What is illegal while a stream captures, and what it gives. */
typedef struct illegal_call {
    cudaError_t (*call)(bench *b);
    cudaError_t error;
} illegal_call;

static cudaEvent_t event;

static cudaError_t call_malloc(bench *b) {
    (void)b;
    void *memory;
    return cudaMalloc(&memory, 1);
}
static cudaError_t call_free(bench *b) { return cudaFree(b->other); }
static cudaError_t call_host_alloc(bench *b) {
    (void)b;
    void *memory;
    return cudaHostAlloc(&memory, 1, cudaHostAllocDefault);
}
static cudaError_t call_free_host(bench *b) { return cudaFreeHost(b->pinned); }
static cudaError_t call_synchronize(bench *b) { return cudaStreamSynchronize(b->stream); }
static cudaError_t call_query(bench *b) { return cudaStreamQuery(b->stream); }
static cudaError_t call_device_synchronize(bench *b) {
    (void)b;
    return cudaDeviceSynchronize();
}
static cudaError_t call_event_query(bench *b) {
    (void)b;
    return cudaEventQuery(event);
}
static cudaError_t call_event_synchronize(bench *b) {
    (void)b;
    return cudaEventSynchronize(event);
}
static cudaError_t call_memcpy(bench *b) {
    return cudaMemcpy(b->device, b->pinned, N, cudaMemcpyHostToDevice);
}
static cudaError_t call_memset(bench *b) { return cudaMemset(b->device, 0, N); }
static cudaError_t copy_pageable(bench *b) {
    uint8_t host[N] = {0};
    return cudaMemcpyAsync(b->device, host, N, cudaMemcpyHostToDevice, b->stream);
}
static cudaError_t wait_for_outside(bench *b) {
    return cudaStreamWaitEvent(b->stream, event, 0);
}

static void check_illegal_calls(bench *b) {
    static const illegal_call calls[] = {
        {call_malloc, cudaErrorStreamCaptureUnsupported},
        {call_free, cudaErrorStreamCaptureUnsupported},
        {call_host_alloc, cudaErrorStreamCaptureUnsupported},
        {call_free_host, cudaErrorStreamCaptureUnsupported},
        {call_synchronize, cudaErrorStreamCaptureUnsupported},
        {call_query, cudaErrorStreamCaptureUnsupported},
        {call_device_synchronize, cudaErrorStreamCaptureUnsupported},
        {call_event_query, cudaErrorStreamCaptureUnsupported},
        {call_event_synchronize, cudaErrorStreamCaptureUnsupported},
        {call_memcpy, cudaErrorStreamCaptureUnsupported},
        {call_memset, cudaErrorStreamCaptureUnsupported},
        {copy_pageable, cudaErrorStreamCaptureUnsupported},
        {wait_for_outside, cudaErrorStreamCaptureIsolation},
    };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        cudaGraph_t graph = (cudaGraph_t)b;
        job_state job = {0};
        OK(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
        enqueue(b->stream, &job);
        CHECK(capture_status(b->stream) == cudaStreamCaptureStatusActive);
        GIVES(calls[i].call(b), calls[i].error);
        CHECK(capture_status(b->stream) == cudaStreamCaptureStatusInvalidated);
        GIVES(cudaMemsetAsync(b->device, 0, N, b->stream), cudaErrorStreamCaptureInvalidated);
        GIVES(cudaStreamEndCapture(b->stream, &graph), cudaErrorStreamCaptureInvalidated);
        CHECK(graph == NULL && job.n_run == 0 && job.n_dropped == 1);
        CHECK(capture_status(b->stream) == cudaStreamCaptureStatusNone);
    }
}

static void *call_from_a_thread(void *arg) {
    bench *b = arg;
    cudaGraph_t graph;
    void *memory;
    static const cudaError_t illegal = cudaErrorStreamCaptureUnsupported;
    OK(cudaMalloc(&memory, 1)); /* the capture is another thread's */
    OK(cudaFree(memory));
    GIVES(cudaStreamEndCapture(b->stream, &graph), cudaErrorStreamCaptureWrongThread);
    GIVES(cudaStreamSynchronize(b->stream), illegal);
    return NULL;
}

void check_captures(void) {
    bench b = open_bench();
    pthread_t thread;
    cudaGraph_t graph;
    void *memory;
    OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    OK(cudaEventRecord(event, b.stream));
    check_illegal_calls(&b);

    GIVES(cudaStreamEndCapture(b.stream, &graph), cudaErrorIllegalState);
    GIVES(cudaStreamBeginCapture(NULL, cudaStreamCaptureModeGlobal),
          cudaErrorStreamCaptureUnsupported);
    OK(cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeThreadLocal));
    GIVES(cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeGlobal), cudaErrorIllegalState);
    CHECK(pthread_create(&thread, NULL, call_from_a_thread, &b) == 0);
    pthread_join(thread, NULL);
    GIVES(cudaStreamEndCapture(b.stream, &graph), cudaErrorStreamCaptureInvalidated);

    OK(cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeRelaxed));
    OK(cudaMalloc(&memory, 1));
    OK(cudaFree(memory));
    OK(cudaEventRecord(event, b.stream));
    GIVES(cudaEventQuery(event), cudaErrorCapturedEvent);
    OK(cudaStreamWaitEvent(b.stream, event, 0));
    OK(cudaStreamEndCapture(b.stream, &graph));
    CHECK(n_nodes(graph) == 0);
    OK(cudaGraphDestroy(graph));
    OK(cudaEventDestroy(event));
    close_bench(&b);
    check_graph_order();
    check_graph_without_memory();
}
