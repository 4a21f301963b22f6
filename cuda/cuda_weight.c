/* Weights on a device: see cuda_weight.h, cuda_pack.h for the packing. */
#include "cuda_weight.h"

#include <string.h>

#include "base/ints.h"
#include "base/memory.h"
#include "cuda_pack.h"
#include "quant/packed_read.h"

enum {
    STAGE_BYTES = 8 << 20,  /* so that a copy takes far longer than its start */
    VECTOR_CHUNK = 1 << 20, /* bytes */
};

typedef struct lmd_cuda_chunk {
    struct lmd_cuda_chunk *next;
    uint8_t *data; /* on the device */
    size_t len, room;
} lmd_cuda_chunk;

/* ---- lifetime ---- */

lmd_status lmd_cuda_weights_init(lmd_cuda_weights *self, const lmd_cuda_device *device,
                                 lmd_threads *threads, lmd_err *err) {
    *self = (lmd_cuda_weights){.device = device, .threads = threads};
    LMD_TRY(lmd_cuda_enter(device, err));
    LMD_CUDA_TRY(cudaStreamCreateWithFlags(&self->stream, cudaStreamNonBlocking),
                 "making a stream", err);
    for (int32_t i = 0; i < LMD_CUDA_STAGES; i++)
        LMD_CUDA_TRY(cudaEventCreateWithFlags(&self->copied[i], cudaEventDisableTiming),
                     "making an event", err);
    return LMD_OK;
}

static void free_stages(lmd_cuda_weights *self) {
    for (int32_t i = 0; i < LMD_CUDA_STAGES; i++) {
        lmd_cuda_free_pinned(self->device, self->stages[i]);
        self->stages[i] = NULL;
    }
    self->stage_bytes = 0;
}

void lmd_cuda_weights_clear(lmd_cuda_weights *self) {
    if (!self->device) return;
    if (lmd_cuda_enter_to_free(self->device)) {
        if (self->stream) (void)cudaStreamDestroy(self->stream);
        for (int32_t i = 0; i < LMD_CUDA_STAGES; i++)
            if (self->copied[i]) (void)cudaEventDestroy(self->copied[i]);
    }
    free_stages(self);
    lmd_cuda_free(self->device, self->matrices);
    while (self->vectors) {
        lmd_cuda_chunk *chunk = self->vectors;
        self->vectors = chunk->next;
        lmd_cuda_free(self->device, chunk->data);
        lmd_free(chunk);
    }
}

lmd_status lmd_cuda_weights_reserve(lmd_cuda_weights *self, size_t n_bytes, lmd_err *err) {
    void *data = NULL;
    LMD_TRY(lmd_cuda_alloc(self->device, n_bytes, "the model's weights", &data, err));
    self->matrices = data;
    self->matrices_room = n_bytes;
    return LMD_OK;
}

/* ---- sizes ---- */

/* Bytes of a matrix's three arrays, each aligned. */
typedef struct matrix_sizes {
    size_t codes, groups, scales;
} matrix_sizes;

static matrix_sizes sizes_of(const lmd_pack_plan *plan) {
    const size_t n = (size_t)plan->n_tiles;
    return (matrix_sizes){lmd_cuda_aligned(n * plan->tile_codes),
                          lmd_cuda_aligned(n * plan->tile_groups),
                          lmd_cuda_aligned(n * plan->tile_scales)};
}

/* Bytes of a source's order of columns, aligned. */
static lmd_status order_size(const lmd_weight_source *src, size_t *out, lmd_err *err) {
    *out = 0;
    if (!lmd_weight_order(src)) return LMD_OK;
    if (src->n_cols > LMD_REORDER_COLS)
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "tensor \"%s\": %d columns in an order of their own (desc_act) are not "
                        "served on a GPU, at most %d",
                        src->parts[0].packed.qweight->name, src->n_cols, LMD_REORDER_COLS);
    *out = lmd_cuda_aligned((size_t)src->n_cols * sizeof *lmd_weight_order(src));
    return LMD_OK;
}

lmd_status lmd_cuda_weight_size(const lmd_weight_source *src, size_t *out, lmd_err *err) {
    lmd_pack_plan plans[LMD_MAX_WEIGHT_PARTS];
    int32_t n;
    size_t n_bytes;
    LMD_TRY(lmd_pack_plans(src, plans, &n, err));
    LMD_TRY(order_size(src, &n_bytes, err));
    for (int32_t i = 0; i < n; i++) {
        const matrix_sizes sizes = sizes_of(&plans[i]);
        n_bytes += sizes.codes + sizes.groups + sizes.scales;
    }
    *out = n_bytes;
    return LMD_OK;
}

/* ---- uploading ---- */

/* The tiles that travel together, and where they are packed. */
typedef struct batch {
    const lmd_pack_plan *plan;
    bool blank;
    int32_t first, n;                 /* tiles */
    uint8_t *codes, *groups, *scales; /* of tile `first`, in the stage */
    uint8_t *scratch;                 /* [n_threads][scratch_bytes] */
    size_t scratch_bytes;
    lmd_failure failure;
} batch;

static void pack_item(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                      bool is_first) {
    batch *self = arg;
    const lmd_pack_plan *plan = self->plan;
    lmd_err err;
    (void)stage, (void)is_first;
    uint8_t *codes = self->codes + (size_t)item * plan->tile_codes;
    lmd_cuda_group *groups =
        (lmd_cuda_group *)(void *)(self->groups + (size_t)item * plan->tile_groups);
    float *scales = (float *)(void *)(self->scales + (size_t)item * plan->tile_scales);
    if (self->blank)
        lmd_pack_blank_tile(plan, codes, groups, scales);
    else if (lmd_pack_tile(plan, self->first + item,
                           self->scratch + (size_t)thread_idx * self->scratch_bytes, codes,
                           groups, scales, &err) != LMD_OK)
        lmd_failure_note(&self->failure, &err);
}

static size_t tile_bytes(const lmd_pack_plan *plan) {
    return plan->tile_codes + plan->tile_groups + plan->tile_scales;
}

static lmd_status grow_stages(lmd_cuda_weights *self, size_t n_bytes, lmd_err *err) {
    if (n_bytes <= self->stage_bytes) return LMD_OK;
    free_stages(self);
    for (int32_t i = 0; i < LMD_CUDA_STAGES; i++) {
        void *stage = NULL;
        LMD_TRY(lmd_cuda_alloc_pinned(self->device, n_bytes, &stage, err));
        self->stages[i] = stage;
    }
    self->stage_bytes = n_bytes;
    return LMD_OK;
}

static lmd_status copy(lmd_cuda_weights *self, const void *to, const uint8_t *from,
                       size_t n_bytes, lmd_err *err) {
    if (n_bytes == 0) return LMD_OK;
    /* The matrix's pointers are const for the kernels; the upload is who fills them. */
    LMD_CUDA_TRY(
        cudaMemcpyAsync((void *)(uintptr_t)to, from, n_bytes, cudaMemcpyDefault, self->stream),
        "copying weights to the device", err);
    return LMD_OK;
}

/* Packs a batch into a stage and starts its copies. */
static lmd_status send_batch(lmd_cuda_weights *self, const lmd_cuda_matrix *matrix, batch *at,
                             int32_t stage_idx, lmd_err *err) {
    const lmd_pack_plan *plan = at->plan;
    const size_t n = (size_t)at->n, first = (size_t)at->first;
    LMD_CUDA_TRY(cudaEventSynchronize(self->copied[stage_idx]), "waiting for a copy", err);
    at->codes = self->stages[stage_idx];
    at->groups = at->codes + n * plan->tile_codes;
    at->scales = at->groups + n * plan->tile_groups;
    lmd_stage stage = {.run = pack_item, .n_items = at->n};
    lmd_threads_run(self->threads, &stage, sizeof stage, 1, at);
    LMD_TRY(lmd_failure_get(&at->failure, err));
    LMD_TRY(copy(self, matrix->codes + first * plan->tile_codes, at->codes,
                 n * plan->tile_codes, err));
    LMD_TRY(copy(self, (const uint8_t *)matrix->groups + first * plan->tile_groups, at->groups,
                 n * plan->tile_groups, err));
    LMD_TRY(copy(self, (const uint8_t *)matrix->row_scales + first * plan->tile_scales,
                 at->scales, n * plan->tile_scales, err));
    LMD_CUDA_TRY(cudaEventRecord(self->copied[stage_idx], self->stream), "recording an event",
                 err);
    return LMD_OK;
}

static lmd_status send_matrix(lmd_cuda_weights *self, const lmd_cuda_matrix *matrix,
                              const lmd_pack_plan *plan, bool blank, lmd_err *err) {
    lmd_status status = LMD_OK;
    const size_t n_threads = (size_t)lmd_threads_count(self->threads);
    batch at = {.plan = plan, .blank = blank, .scratch_bytes = lmd_pack_scratch_bytes(plan)};
    const size_t stage_bytes =
        tile_bytes(plan) > STAGE_BYTES ? tile_bytes(plan) : (size_t)STAGE_BYTES;
    const int32_t per_batch = (int32_t)(stage_bytes / tile_bytes(plan));
    at.scratch = lmd_alloc_large(n_threads * at.scratch_bytes);
    if (!at.scratch) return lmd_no_memory(err, "the packing of weights");
    LMD_TRY_OUT(grow_stages(self, stage_bytes, err));
    for (int32_t i = 0; at.first < plan->n_tiles; i++, at.first += at.n) {
        at.n = lmd_min_i32(plan->n_tiles - at.first, per_batch);
        LMD_TRY_OUT(send_batch(self, matrix, &at, i % LMD_CUDA_STAGES, err));
    }
out:
    /* The stages are written again only after their event, and the source may go now. */
    lmd_free_large(at.scratch, n_threads * at.scratch_bytes);
    return status;
}

static uint8_t *take(lmd_cuda_weights *self, size_t n_bytes) {
    uint8_t *at = self->matrices + self->matrices_len;
    self->matrices_len += n_bytes;
    return at;
}

/* Whether so many bytes are left of what reserve made room for. */
static lmd_status check_room(const lmd_cuda_weights *self, size_t n_bytes, lmd_err *err) {
    if (n_bytes <= self->matrices_room - self->matrices_len) return LMD_OK;
    return lmd_fail(err, LMD_INTERNAL, "more weights than were reserved");
}

static lmd_status place_matrix(lmd_cuda_weights *self, const lmd_pack_plan *plan,
                               lmd_cuda_matrix *out, lmd_err *err) {
    const matrix_sizes sizes = sizes_of(plan);
    LMD_TRY(check_room(self, sizes.codes + sizes.groups + sizes.scales, err));
    *out = (lmd_cuda_matrix){.form = plan->form,
                             .n_rows = plan->n_rows,
                             .n_cols = plan->n_cols,
                             .group_size = plan->group_size};
    out->codes = take(self, sizes.codes);
    if (plan->form == LMD_FORM_F16) self->float_bytes += sizes.codes;
    if (sizes.groups) out->groups = (const lmd_cuda_group *)(void *)take(self, sizes.groups);
    if (sizes.scales) out->row_scales = (const float *)(void *)take(self, sizes.scales);
    return LMD_OK;
}

static lmd_status send_order(lmd_cuda_weights *self, const lmd_weight_source *src,
                             const int32_t **out, lmd_err *err) {
    const int32_t *order = lmd_weight_order(src);
    size_t n_bytes;
    LMD_TRY(order_size(src, &n_bytes, err));
    if (!order) return LMD_OK;
    LMD_TRY(check_room(self, n_bytes, err));
    *out = (const int32_t *)(void *)take(self, n_bytes);
    return copy(self, *out, (const uint8_t *)order, (size_t)src->n_cols * sizeof *order, err);
}

static lmd_status fill(lmd_cuda_weights *self, const lmd_weight_source *src, bool blank,
                       lmd_weight *weight, lmd_err *err) {
    lmd_pack_plan plans[LMD_MAX_WEIGHT_PARTS];
    int32_t n;
    LMD_TRY(lmd_cuda_enter(self->device, err));
    LMD_TRY(lmd_pack_plans(src, plans, &n, err));
    weight->n_cols = src->n_cols;
    weight->n_segments = n;
    for (int32_t i = 0; i < n; i++) {
        lmd_cuda_segment *segment = &weight->segments[i];
        segment->first_row = plans[i].first_row;
        weight->n_rows += plans[i].n_rows;
        LMD_TRY(place_matrix(self, &plans[i], &segment->matrix, err));
        LMD_TRY(send_matrix(self, &segment->matrix, &plans[i], blank, err));
    }
    LMD_TRY(send_order(self, src, &weight->order, err));
    /* The workspace's stream does not wait for this one. */
    LMD_CUDA_TRY(cudaStreamSynchronize(self->stream), "copying weights to the device", err);
    return LMD_OK;
}

/* The same, with the packed tensors of the source in memory, unless nothing will be read. */
static lmd_status load_and_fill(lmd_cuda_weights *self, lmd_weight_source src, bool blank,
                                lmd_weight *weight, lmd_err *err) {
    lmd_packed_in_memory packed[LMD_MAX_WEIGHT_PARTS] = {0};
    lmd_status status = LMD_OK;
    for (int32_t i = 0; !blank && status == LMD_OK && i < src.n_parts; i++)
        status = lmd_packed_load(&src.parts[i].packed, &packed[i], err);
    if (status == LMD_OK) status = fill(self, &src, blank, weight, err);
    for (int32_t i = 0; i < src.n_parts; i++) lmd_packed_free(&packed[i]);
    return status;
}

lmd_status lmd_cuda_weights_upload(lmd_cuda_weights *self, const lmd_weight_source *src,
                                   bool blank, lmd_weight **out, lmd_err *err) {
    lmd_weight *weight = lmd_calloc(1, sizeof *weight);
    if (!weight) return lmd_no_memory(err, "a weight");
    const lmd_status status = load_and_fill(self, *src, blank, weight, err);
    if (status == LMD_OK)
        *out = weight;
    else
        lmd_free(weight);
    return status;
}

/* ---- vectors ---- */

/* Memory for a vector, from the newest chunk or from a new one. */
static lmd_status take_vector(lmd_cuda_weights *self, size_t n_bytes, uint8_t **out,
                              lmd_err *err) {
    lmd_cuda_chunk *chunk = self->vectors;
    if (!chunk || chunk->room - chunk->len < n_bytes) {
        void *data = NULL;
        const size_t room = n_bytes > VECTOR_CHUNK ? n_bytes : (size_t)VECTOR_CHUNK;
        chunk = lmd_calloc(1, sizeof *chunk);
        if (!chunk) return lmd_no_memory(err, "a chunk of vectors");
        const lmd_status status =
            lmd_cuda_alloc(self->device, room, "the model's vectors", &data, err);
        if (status != LMD_OK) {
            lmd_free(chunk);
            return status;
        }
        *chunk = (lmd_cuda_chunk){.next = self->vectors, .data = data, .room = room};
        self->vectors = chunk;
    }
    *out = chunk->data + chunk->len;
    chunk->len += n_bytes;
    return LMD_OK;
}

lmd_status lmd_cuda_weights_upload_vector(lmd_cuda_weights *self, const float *values,
                                          int32_t n, lmd_weight **out, lmd_err *err) {
    const size_t n_bytes = (size_t)n * sizeof *values;
    uint8_t *data = NULL;
    LMD_TRY(lmd_cuda_enter(self->device, err));
    LMD_TRY(take_vector(self, lmd_cuda_aligned(n_bytes), &data, err));
    LMD_CUDA_TRY(cudaMemcpy(data, values, n_bytes, cudaMemcpyDefault),
                 "copying a vector to the device", err);
    lmd_weight *weight = lmd_calloc(1, sizeof *weight);
    if (!weight) return lmd_no_memory(err, "a vector of %d values", n);
    *weight = (lmd_weight){.n_rows = 1, .n_cols = n, .vector = (float *)(void *)data};
    *out = weight;
    return LMD_OK;
}
