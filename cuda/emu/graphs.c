/* Captures of the emulated device, and the graphs that come of them: pieces of work in the
 * order of the capture. Must not know: what the work is. */
#define _GNU_SOURCE
#include "state.h"

#include <stdlib.h>
#include <string.h>

/* ---- captures ---- */

cudaError_t emu_spoil_capture(struct CUstream_st *stream, cudaError_t error) {
    if (stream->capture_invalid) return cudaErrorStreamCaptureInvalidated;
    stream->capture_invalid = true;
    return error;
}

cudaError_t emu_unsafe_in_capture(void) {
    cudaError_t error = cudaSuccess;
    for (emu_handle *at = emu.handles; at; at = at->next) {
        struct CUstream_st *stream = (struct CUstream_st *)at;
        if (at->kind != EMU_STREAM || !stream->capture) continue;
        const enum cudaStreamCaptureMode mode = stream->capture_mode;
        const bool is_ours = pthread_equal(stream->capture_thread, pthread_self());
        if (mode == cudaStreamCaptureModeRelaxed) continue;
        if (mode == cudaStreamCaptureModeThreadLocal && !is_ours) continue;
        stream->capture_invalid = true;
        error = cudaErrorStreamCaptureUnsupported;
    }
    return error;
}

cudaError_t emu_capture(struct CUstream_st *stream, emu_op *op) {
    struct CUgraph_st *graph = stream->capture;
    if (stream->capture_invalid) return cudaErrorStreamCaptureInvalidated;
    if (graph->n_ops == graph->room) {
        const size_t room = graph->room ? 2 * graph->room : 64;
        emu_op **ops = realloc(graph->ops, room * sizeof *ops);
        if (!ops) return emu_spoil_capture(stream, cudaErrorMemoryAllocation);
        graph->ops = ops;
        graph->room = room;
    }
    op->n_holders++;
    graph->ops[graph->n_ops++] = op;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    struct CUstream_st *self = emu_find_stream(stream, &error);
    if (!self) return emu_leave(error);
    if (self == emu.legacy) return emu_leave(cudaErrorStreamCaptureUnsupported);
    if (self->capture) return emu_leave(cudaErrorIllegalState);
    if ((unsigned)mode > cudaStreamCaptureModeRelaxed) return emu_leave(cudaErrorInvalidValue);
    self->capture = calloc(1, sizeof *self->capture);
    if (!self->capture) return emu_leave(cudaErrorMemoryAllocation);
    self->capture_mode = mode;
    self->capture_thread = pthread_self();
    self->capture_invalid = false;
    return emu_leave(cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *pGraph) {
    cudaError_t error = emu_enter(__func__, EMU_CLEANS);
    if (error != cudaSuccess) return error;
    struct CUstream_st *self = emu_find_stream(stream, &error);
    if (!self) return emu_leave(error);
    if (!pGraph) return emu_leave(cudaErrorInvalidValue);
    if (!self->capture) return emu_leave(cudaErrorIllegalState);
    if (self->capture_mode != cudaStreamCaptureModeRelaxed &&
        !pthread_equal(self->capture_thread, pthread_self()))
        return emu_leave(cudaErrorStreamCaptureWrongThread);
    struct CUgraph_st *graph = self->capture;
    self->capture = NULL;
    *pGraph = NULL;
    if (self->capture_invalid || emu.sticky != cudaSuccess) {
        emu_destroy_graph(graph);
        return emu_leave(cudaErrorStreamCaptureInvalidated);
    }
    emu_add_handle(&graph->handle, EMU_GRAPH);
    graph->is_listed = true;
    *pGraph = graph;
    return emu_leave(cudaSuccess);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                  enum cudaStreamCaptureStatus *pCaptureStatus) {
    cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    struct CUstream_st *self = emu_find_stream(stream, &error);
    if (!self) return emu_leave(error);
    if (!pCaptureStatus) return emu_leave(cudaErrorInvalidValue);
    *pCaptureStatus = !self->capture          ? cudaStreamCaptureStatusNone
                      : self->capture_invalid ? cudaStreamCaptureStatusInvalidated
                                              : cudaStreamCaptureStatusActive;
    return emu_leave(cudaSuccess);
}

/* ---- graphs ---- */

static void release_ops(emu_op **ops, size_t n) {
    for (size_t i = 0; i < n; i++) emu_release_op(ops[i]);
    free(ops);
}

void emu_destroy_graph(struct CUgraph_st *graph) {
    if (!graph) return;
    if (graph->is_listed) emu_remove_handle(&graph->handle);
    release_ops(graph->ops, graph->n_ops);
    free(graph);
}

void emu_destroy_graph_exec(struct CUgraphExec_st *exec) {
    emu_remove_handle(&exec->handle);
    release_ops(exec->ops, exec->n_ops);
    emu_release_mark(exec->last);
    free(exec);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    const cudaError_t error = emu_enter(__func__, EMU_CLEANS);
    if (error != cudaSuccess) return error;
    if (!emu_is_live(graph, EMU_GRAPH)) return emu_leave(cudaErrorInvalidValue);
    emu_destroy_graph(graph);
    return emu_leave(cudaSuccess);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graphExec) {
    const cudaError_t error = emu_enter(__func__, EMU_CLEANS);
    if (error != cudaSuccess) return error;
    if (!emu_is_live(graphExec, EMU_GRAPH_EXEC)) return emu_leave(cudaErrorInvalidValue);
    emu_destroy_graph_exec(graphExec);
    return emu_leave(cudaSuccess);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *numNodes) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!numNodes || !emu_is_live(graph, EMU_GRAPH)) return emu_leave(cudaErrorInvalidValue);
    /* Nodes that are asked for but are not there are NULL. */
    for (size_t i = 0; nodes && i < *numNodes; i++)
        nodes[i] = i < graph->n_ops ? (cudaGraphNode_t)graph->ops[i] : NULL;
    if (!nodes || *numNodes > graph->n_ops) *numNodes = graph->n_ops;
    return emu_leave(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *pGraphExec, cudaGraph_t graph,
                                 unsigned long long flags) {
    const cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!pGraphExec || !emu_is_live(graph, EMU_GRAPH) || flags)
        return emu_leave(cudaErrorInvalidValue);
    struct CUgraphExec_st *exec = calloc(1, sizeof *exec);
    emu_op **ops = calloc(graph->n_ops + 1, sizeof *ops);
    if (!exec || !ops) {
        free(exec);
        free(ops);
        return emu_leave(cudaErrorMemoryAllocation);
    }
    for (size_t i = 0; i < graph->n_ops; i++) {
        ops[i] = graph->ops[i];
        ops[i]->n_holders++;
    }
    exec->ops = ops;
    exec->n_ops = graph->n_ops;
    emu_add_handle(&exec->handle, EMU_GRAPH_EXEC);
    *pGraphExec = exec;
    return emu_leave(cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graphExec, cudaStream_t stream) {
    cudaError_t error = emu_enter(__func__, 0);
    if (error != cudaSuccess) return error;
    if (!emu_is_live(graphExec, EMU_GRAPH_EXEC)) return emu_leave(cudaErrorInvalidValue);
    struct CUstream_st *self = emu_find_stream(stream, &error);
    if (!self) return emu_leave(error);
    /* A graph within a graph is not emulated. */
    if (self->capture)
        return emu_leave(emu_spoil_capture(self, cudaErrorStreamCaptureUnsupported));
    error = emu_order_with_legacy(self);
    if (error != cudaSuccess) return emu_leave(error);
    /* Launches of one graph do not overlap, whatever their streams. */
    emu_append(self, graphExec->last, NULL, NULL);
    for (size_t i = 0; i < graphExec->n_ops; i++)
        emu_append(self, NULL, graphExec->ops[i], NULL);
    emu_release_mark(graphExec->last);
    graphExec->last = emu_new_mark();
    emu_append(self, NULL, NULL, graphExec->last);
    return emu_leave(cudaSuccess);
}
