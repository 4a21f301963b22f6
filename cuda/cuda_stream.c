/* The order of a step on a device: see cuda_stream.h. */
#include "cuda_stream.h"

#include "base/ints.h"
#include "base/memory.h"
#include "cuda_sampling.h"

static void note(lmd_workspace *self, cudaError_t error, const char *at) {
    lmd_cuda_note(&self->queue, error, at);
}

/* ---- graphs ---- */

/* The graph of a bucket, or an empty place for it; NULL: there is no place. */
static lmd_cuda_graph *find_graph(lmd_workspace *self, int32_t bucket) {
    for (int32_t i = 0; i < LMD_CUDA_MAX_GRAPHS; i++) {
        lmd_cuda_graph *graph = &self->graphs[i];
        if (graph->bucket == bucket || graph->bucket == 0) {
            graph->bucket = bucket;
            return graph;
        }
    }
    return NULL;
}

/* The first step of a bucket runs eagerly, so that whatever is loaded at first use is there;
 * the second is captured. */
static lmd_cuda_mode choose_mode(lmd_workspace *self, bool is_decode) {
    self->graph = NULL;
    if (!is_decode || !self->uses_graphs) return LMD_CUDA_EAGER;
    self->graph = find_graph(self, self->current->packed.n_seqs);
    if (!self->graph) return LMD_CUDA_EAGER;
    if (self->graph->exec) return LMD_CUDA_REPLAY;
    return self->graph->n_seen++ == 0 ? LMD_CUDA_EAGER : LMD_CUDA_CAPTURE;
}

static void begin_capture(lmd_workspace *self) {
    lmd_cuda_queue *queue = &self->queue;
    self->args_mark = queue->args_len;
    if (self->args_room) { /* arguments of host functions live as long as the graph */
        self->graph->args = lmd_calloc(self->args_room, 1);
        if (!self->graph->args) note(self, cudaErrorMemoryAllocation, "capturing a graph");
        queue->args = self->graph->args;
        queue->args_len = 0;
        if (!queue->args) queue->args_room = 0;
    }
    note(self, cudaStreamBeginCapture(queue->stream, cudaStreamCaptureModeThreadLocal),
         "capturing a graph");
}

static void end_capture(lmd_workspace *self) {
    cudaGraph_t captured = NULL;
    note(self, cudaStreamEndCapture(self->queue.stream, &captured), "capturing a graph");
    if (!captured) return;
    note(self, cudaGraphInstantiate(&self->graph->exec, captured, 0), "making a graph");
    note(self, cudaGraphDestroy(captured), "making a graph");
}

/* ---- a step ---- */

static void use_args_of(lmd_workspace *self, lmd_cuda_flight *flight, size_t len) {
    self->queue.args = flight->args;
    self->queue.args_len = len;
    self->queue.args_room = self->args_room;
}

static void send_plan(lmd_workspace *self) {
    lmd_cuda_flight *flight = self->current;
    const lmd_cuda_packed *packed = &flight->packed;
    note(self,
         cudaMemcpyAsync(self->ints, flight->ints, packed->len * sizeof *flight->ints,
                         cudaMemcpyDefault, self->queue.stream),
         "sending a plan");
    self->step = lmd_cuda_plan_step(packed, self->ints, self->newest);
    const lmd_cuda_begin_args args = {
        .step = self->step,
        .kv = self->kv,
        .block_stride = (int64_t)self->block_bytes,
        .copies = (const lmd_block_copy *)(const void *)(self->ints + packed->copies),
        .n_copies = packed->n_copies,
    };
    self->device->kernels->begin(&args, &self->queue);
}

void lmd_cuda_stream_begin(lmd_workspace *self, const lmd_plan *plan) {
    const lmd_workspace_config *config = &self->config;
    lmd_cuda_flight *flight = &self->flights[plan->plan_id % LMD_CUDA_FLIGHTS];
    const bool is_decode = lmd_cuda_plan_is_decode(plan);
    const int32_t max_bucket = lmd_min_i32(config->max_seqs, config->max_logits_rows);
    const int32_t n_padded =
        is_decode ? lmd_max_i32(lmd_cuda_bucket(plan->n_seqs, max_bucket), plan->n_seqs)
                  : plan->n_seqs;
    note(self, cudaSetDevice(self->device->idx), "running a step"); /* an earlier one's error */
    self->current = flight;
    self->forward_ended = false;
    flight->plan_id = plan->plan_id;
    flight->plan = plan;
    flight->n_rows = flight->n_tops = flight->n_tiles = 0;
    flight->lists_len = 0;
    use_args_of(self, flight, 0);
    lmd_cuda_plan_pack(plan, config, n_padded, flight->ints, &flight->packed);
    send_plan(self);
    self->mode = choose_mode(self, is_decode);
    if (self->mode == LMD_CUDA_CAPTURE) begin_capture(self);
}

void lmd_cuda_stream_end_forward(lmd_workspace *self) {
    if (self->forward_ended) return;
    self->forward_ended = true;
    if (self->mode == LMD_CUDA_EAGER) return;
    if (self->mode == LMD_CUDA_CAPTURE) {
        end_capture(self);
        use_args_of(self, self->current, self->args_mark);
    }
    if (self->graph->exec)
        note(self, cudaGraphLaunch(self->graph->exec, self->queue.stream), "starting a graph");
    self->mode = LMD_CUDA_EAGER;
}

void lmd_cuda_stream_end(lmd_workspace *self) {
    lmd_cuda_stream_end_forward(self);
    note(self, cudaEventRecord(self->current->done, self->queue.stream), "ending a step");
}

lmd_status lmd_cuda_stream_wait(lmd_workspace *self, int64_t plan_id, lmd_err *err) {
    lmd_cuda_flight *flight = &self->flights[plan_id % LMD_CUDA_FLIGHTS];
    if (flight->plan_id != plan_id)
        return lmd_fail(err, LMD_INTERNAL, "plan %lld was waited for, but is not in flight",
                        (long long)plan_id);
    if (self->queue.error == cudaSuccess)
        note(self, cudaEventSynchronize(flight->done), "running a step");
    if (self->queue.error != cudaSuccess) {
        /* Nothing may still read what the plan points to. */
        (void)cudaStreamSynchronize(self->queue.stream);
        lmd_cuda_fail(self->queue.error, self->queue.error_at, err);
        return lmd_err_prefix(err, LMD_IO, "device cuda:%d failed", (int)self->device->idx);
    }
    lmd_cuda_sampling_read(flight);
    return LMD_OK;
}
