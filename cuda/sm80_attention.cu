/* The launcher attention: softmax(q k^T / sqrt(head_dim)) v over the paged cache.
 * A thread block takes one unit and one KV head: 16 rows (narrow: each warp sees a quarter of a
 * tile, and they merge what they found) or 64 (wide: each warp has 16 rows and sees all of a
 * tile). Owns: the split of a narrow unit's context over thread blocks, its scratch, and the
 * order in which parts are merged. Must not know: who made the units or wrote the cache. */
#include "sm80_attention.h"

enum {
    MAX_SPLITS = 32,     /* a lane of the merging warp for each */
    MIN_SPLIT_TILES = 2, /* less is not worth a thread block and its share of the merge */
    BLOCKS_PER_SM = 2    /* that the splits aim at */
};

/* ---- the rows of a thread block ---- */

/* A unit's rows of one KV head. */
typedef struct unit_rows {
    int32_t index, kv_head;
    int32_t seq, first;  /* attention row of the sequence */
    int32_t n_rows;      /* that exist */
    int32_t group;       /* heads that share the KV head */
    int32_t first_token; /* of the sequence: row of the step */
    int32_t history_len;
    bool is_padding; /* its rows see nothing */
} unit_rows;

LMD_DEVICE unit_rows find_unit(const lmd_cuda_attention_args *args, const lmd_cuda_unit *units,
                               int32_t index, int32_t unit_len) {
    const lmd_cuda_step *step = &args->step;
    const lmd_cuda_unit unit = units[index];
    unit_rows found;
    found.index = index;
    found.kv_head = blockIdx.y;
    found.seq = unit.seq;
    found.first = unit.first;
    found.group = args->n_head / args->kv.n_kv_head;
    found.first_token = step->token_offsets[unit.seq];
    found.history_len = step->history_lens[unit.seq];
    found.is_padding = step->slots[unit.seq] < 0;
    const int32_t n_tokens = step->token_offsets[unit.seq + 1] - found.first_token;
    found.n_rows = min(n_tokens * found.group - unit.first, unit_len);
    return found;
}

/* Positions that row i of the unit sees. */
LMD_DEVICE int32_t context_len_of(const unit_rows *unit, int32_t i) {
    return unit->is_padding ? 0 : unit->history_len + (unit->first + i) / unit->group + 1;
}

/* The offset of row i of the unit, in q or in out. */
LMD_DEVICE int64_t offset_of(const unit_rows *unit, int32_t i, int32_t stride,
                             int32_t head_dim) {
    const int32_t at = unit->first + i;
    const int32_t head = unit->kv_head * unit->group + at % unit->group;
    return (int64_t)(unit->first_token + at / unit->group) * stride + head * head_dim;
}

/* The row of the unit that is row h of a lane. */
template <class S> LMD_DEVICE int32_t lane_row(int32_t h) {
    const int32_t warp_row = S::WIDE ? threadIdx.x / 32 * WARP_ROWS : 0;
    return warp_row + threadIdx.x % 32 / 4 + 8 * h;
}

/* Begins a lane's two rows. */
template <class S>
LMD_DEVICE void start_rows(softmax_rows *rows, q_parts<S> *q,
                           const lmd_cuda_attention_args *args, const unit_rows *unit) {
    const uint16_t *q_rows[2];
    rows->to_log2 = 1.44269504f / sqrtf((float)S::HEAD_DIM);
    rows->all_see = context_len_of(unit, S::WIDE ? threadIdx.x / 32 * WARP_ROWS : 0);
#pragma unroll
    for (int32_t h = 0; h < 2; h++) {
        const int32_t i = lane_row<S>(h);
        const bool exists = i < unit->n_rows;
        const int64_t offset = offset_of(unit, i, args->q_stride, S::HEAD_DIM);
        q_rows[h] = exists ? args->q + offset : NULL;
        rows->context_lens[h] = context_len_of(unit, exists ? i : unit->n_rows - 1);
        rows->max[h] = -LMD_INFINITY;
        rows->sum[h] = 0.0f;
    }
    load_q<S>(q, q_rows);
}

/* ---- parts of a split, in scratch ---- */

/* What a narrow unit found in its part of the context, for one KV head. An empty part has max
 * -infinity and sum 0, and no values. */
typedef struct split_part {
    float *stats;  /* [LMD_NARROW_ROWS, {max, sum}] max times to_log2 */
    float *values; /* [LMD_NARROW_ROWS, head_dim] sums of probability * value */
} split_part;

static __host__ __device__ __forceinline__ int64_t split_part_floats(int32_t head_dim) {
    return (int64_t)LMD_NARROW_ROWS * (head_dim + 2);
}

LMD_DEVICE split_part find_part(const lmd_cuda_attention_args *args, const unit_rows *unit,
                                int32_t split, int32_t n_splits) {
    const int64_t head = (int64_t)unit->index * args->kv.n_kv_head + unit->kv_head;
    const int64_t index = head * n_splits + split;
    split_part part;
    part.stats = args->scratch + index * split_part_floats(args->kv.format.head_dim);
    part.values = part.stats + LMD_NARROW_ROWS * 2;
    return part;
}

/* ---- the ring ---- */

/* Finds a unit's keys and values, before any tile. */
LMD_DEVICE kv_source find_source(const lmd_cuda_attention_args *args, const unit_rows *unit) {
    kv_source from;
    from.kv = &args->kv;
    from.head = args->kv.layer + (int64_t)unit->kv_head * lmd_kv_part_bytes(&args->kv.format);
    from.block_ids = args->step.block_ids + args->step.block_offsets[unit->seq];
    from.block_shift = 31 - __clz(args->kv.format.block_len);
    from.context_len = context_len_of(unit, unit->n_rows - 1);
    from.block = from.head;
    from.next_block_id = 0;
    return from;
}

/* Starts the copy of a tile's keys, or of its values, which come next; if there is such a tile.
 * Always makes a group, so that waiting for all but the newest n groups finds the same parts
 * everywhere. */
template <class S, bool VALUES>
LMD_DEVICE void start_part(uint8_t *slot, kv_source *from, int32_t tile, int32_t end_tile) {
    const lmd_cuda_kv_format *format = &from->kv->format;
    if (tile < end_tile && VALUES)
        copy_tile<S::HEAD_DIM, S::V_BITS, S::TILE>(slot, from, lmd_kv_v_codes(format),
                                                   lmd_kv_v_params(format), tile);
    if (tile < end_tile && !VALUES) {
        enter_tile<S::TILE>(from, tile);
        copy_tile<S::HEAD_DIM, S::K_BITS, S::TILE>(slot, from, 0, lmd_kv_k_params(format),
                                                   tile);
    }
    cp_async_commit();
}

/* Waits for the keys or the values of a tile, and starts the copy that takes the slot which was
 * read before. */
template <class S, bool VALUES>
LMD_DEVICE void turn_ring(uint8_t *ring, int32_t slot, kv_source *from, int32_t tile,
                          int32_t end_tile) {
    enum { AHEAD = VALUES + S::N_SLOTS - 1 }; /* parts from this tile's keys on */
    cp_async_wait<S::N_SLOTS - 2>();
    /* All copies of the part have come, and no one reads the last one any more. A narrow unit's
     * warps read only what they copied themselves. */
    if (S::WIDE)
        __syncthreads();
    else
        __syncwarp();
    const int32_t free_slot = slot == 0 ? S::N_SLOTS - 1 : slot - 1;
    start_part<S, AHEAD % 2 == 1>(ring + free_slot * S::SLOT_BYTES, from, tile + AHEAD / 2,
                                  end_tile);
}

/* Fills all slots but one. */
template <class S>
LMD_DEVICE void start_ring(uint8_t *ring, kv_source *from, int32_t tile, int32_t end_tile) {
    from->next_block_id = find_block<S::TILE>(from, tile);
    start_part<S, false>(ring, from, tile, end_tile);
    if (S::N_SLOTS > 2) start_part<S, true>(ring + S::SLOT_BYTES, from, tile, end_tile);
    if (S::N_SLOTS > 3)
        start_part<S, false>(ring + 2 * S::SLOT_BYTES, from, tile + 1, end_tile);
}

/* ---- what is left to do after the last tile ---- */

/* Adds up the warps of a narrow unit, in their order, into the last one. */
template <class S>
LMD_DEVICE void merge_warps(uint8_t *smem, float (*out)[4], softmax_rows *rows) {
    float *stats = (float *)smem;                  /* [N_WARPS][WARP_ROWS][2] */
    float *sums = stats + N_WARPS * WARP_ROWS * 2; /* [HEAD_DIM / 2][32 lanes] */
    static_assert(S::WIDE ||
                      (N_WARPS * WARP_ROWS * 2 + S::HEAD_DIM / 2 * 32) * 4 <= S::RING_BYTES,
                  "room");
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads(); /* no warp reads its tile any more */
#pragma unroll
    for (int32_t h = 0; h < 2; h++) {
        float *mine = stats + (warp * WARP_ROWS + lane / 4 + 8 * h) * 2;
        if (lane % 4 == 0) mine[0] = rows->max[h];
        if (lane % 4 == 0) mine[1] = rows->sum[h];
    }
    __syncthreads();
    float shrink[2];
#pragma unroll
    for (int32_t h = 0; h < 2; h++) {
        const float *row = stats + (lane / 4 + 8 * h) * 2;
        float max = -LMD_INFINITY, sum = 0.0f;
        for (int32_t w = 0; w < N_WARPS; w++) max = fmaxf(max, row[w * WARP_ROWS * 2]);
        for (int32_t w = 0; w < N_WARPS; w++)
            sum += row[w * WARP_ROWS * 2 + 1] * shrink_of(rows, row[w * WARP_ROWS * 2], max);
        shrink[h] = shrink_of(rows, rows->max[h], max);
        rows->max[h] = max;
        rows->sum[h] = sum;
    }
    for (int32_t w = 0; w < N_WARPS; w++) {
        if (warp == w) {
#pragma unroll
            for (int32_t i = 0; i < S::HEAD_DIM / 2; i++) {
                float *sum = &sums[i * 32 + lane];
                out[i / 4][i % 4] *= shrink[i % 4 / 2];
                if (w > 0) out[i / 4][i % 4] += *sum;
                if (w < N_WARPS - 1) *sum = out[i / 4][i % 4];
            }
        }
        __syncthreads(); /* the next warp adds to what this one wrote */
    }
}

/* Writes N neighbouring words, aligned to all of them, or to 16 bytes. */
template <int N> LMD_DEVICE void store_words(void *to, const uint32_t *words) {
    if (N == 1) *(uint32_t *)to = words[0];
    if (N == 2) *(uint2 *)to = make_uint2(words[0], words[1]);
#pragma unroll
    for (int32_t i = 0; i + 4 <= N; i += 4)
        store16((uint32_t *)to + i,
                make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]));
}

/* Writes one of the lane's rows, divided by its sum. */
template <class S>
LMD_DEVICE void store_out(uint16_t *to, const float (*out)[4], int32_t h, float sum) {
    /* A row that sees nothing is 0; one with a NaN is NaN. */
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
    for (int32_t run = 0; run < S::OUT_RUNS; run++) {
        uint32_t words[S::OUT_RUN / 2];
#pragma unroll
        for (int32_t i = 0; i < S::OUT_RUN; i += 2)
            words[i / 2] = pack_half2(out_value<S>(out, h, run, i) * inverse,
                                      out_value<S>(out, h, run, i + 1) * inverse);
        store_words<S::OUT_RUN / 2>(to + out_column<S>(run), words);
    }
}

/* Writes what one of the lane's rows found in its part of a split. */
template <class S>
LMD_DEVICE void store_part(const split_part *part, int32_t row, const float (*out)[4],
                           int32_t h, const softmax_rows *rows) {
    if (threadIdx.x % 4 == 0)
        *(float2 *)(part->stats + row * 2) =
            make_float2(rows->max[h] * rows->to_log2, rows->sum[h]);
    if (rows->sum[h] == 0.0f) return; /* no one reads values of an empty part */
#pragma unroll
    for (int32_t run = 0; run < S::OUT_RUNS; run++) {
        uint32_t words[S::OUT_RUN];
#pragma unroll
        for (int32_t i = 0; i < S::OUT_RUN; i++)
            words[i] = __float_as_uint(out_value<S>(out, h, run, i));
        store_words<S::OUT_RUN>(part->values + row * S::HEAD_DIM + out_column<S>(run), words);
    }
}

/* Writes the lane's rows that exist: to the output, or to their part of the split. */
template <class S>
LMD_DEVICE void store_rows(const lmd_cuda_attention_args *args, const unit_rows *unit,
                           const float (*out)[4], const softmax_rows *rows) {
    const int32_t n_splits = gridDim.z;
#pragma unroll /* `out` stays in registers only where its indices are known */
    for (int32_t h = 0; h < 2; h++) {
        const int32_t i = lane_row<S>(h);
        if (i >= unit->n_rows) continue;
        if (n_splits == 1) {
            const int64_t offset = offset_of(unit, i, args->out_stride, S::HEAD_DIM);
            store_out<S>(args->out + offset, out, h, rows->sum[h]);
        } else {
            const split_part part = find_part(args, unit, blockIdx.z, n_splits);
            store_part<S>(&part, i, out, h, rows);
        }
    }
}

/* ---- the kernels ---- */

/* Grid: units, KV heads, splits. unit_len: rows of a unit. */
template <int HEAD_DIM, int K_BITS, int V_BITS, bool WIDE>
static LMD_KERNEL(N_THREADS) attend(const lmd_cuda_attention_args args,
                                    const lmd_cuda_unit *units, const int32_t unit_len) {
    typedef shape<HEAD_DIM, K_BITS, V_BITS, WIDE> S;
    LMD_DYNAMIC_SMEM(ring);
    const int32_t warp = threadIdx.x / 32, n_splits = gridDim.z;
    /* Later units of a sequence see more: the long ones begin first. */
    const unit_rows unit = find_unit(&args, units, gridDim.x - 1 - blockIdx.x, unit_len);
    const bool has_rows = !WIDE || warp * WARP_ROWS < unit.n_rows;
    const int32_t warp_token = WIDE ? 0 : warp * S::WARP_TOKENS; /* of a tile */

    kv_source from = find_source(&args, &unit);
    const int32_t n_tiles = (from.context_len + S::TILE - 1) / S::TILE;
    const int32_t split_tiles = max((n_tiles + n_splits - 1) / n_splits, (int)MIN_SPLIT_TILES);
    const int32_t first_tile = blockIdx.z * split_tiles;
    const int32_t end_tile = n_splits == 1 ? n_tiles : min(first_tile + split_tiles, n_tiles);
    start_ring<S>(ring, &from, first_tile, end_tile);

    softmax_rows rows;
    q_parts<S> q;
    float out[HEAD_DIM / 8][4];
    q.in_smem = q_in_smem<S>(ring + S::RING_BYTES);
    start_rows<S>(&rows, &q, &args, &unit);
#pragma unroll
    for (int32_t i = 0; i < HEAD_DIM / 2; i++) out[i / 4][i % 4] = 0.0f;

    int32_t slot = 0;
    for (int32_t tile = first_tile; tile < end_tile; tile++) {
        const int32_t position = tile * S::TILE + warp_token;
        float scores[S::WARP_TOKENS / 8][4], shrink[2];
        turn_ring<S, false>(ring, slot, &from, tile, end_tile);
        if (has_rows) {
            score_tile<S>(scores, &q, ring + slot * S::SLOT_BYTES, warp_token);
            mask_scores<S::WARP_TOKENS / 8>(scores, &rows, position);
            soften<S::WARP_TOKENS / 8>(scores, &rows, shrink);
        }
        slot = slot == S::N_SLOTS - 1 ? 0 : slot + 1;
        turn_ring<S, true>(ring, slot, &from, tile, end_tile);
        if (has_rows)
            add_values<S>(out, shrink, scores, ring + slot * S::SLOT_BYTES, warp_token,
                          from.context_len - position);
        slot = slot == S::N_SLOTS - 1 ? 0 : slot + 1;
    }

#pragma unroll
    for (int32_t h = 0; h < 2; h++) { /* so far the sums of a lane's own columns */
        rows.sum[h] += __shfl_xor_sync(~0u, rows.sum[h], 1);
        rows.sum[h] += __shfl_xor_sync(~0u, rows.sum[h], 2);
    }
    if (!WIDE) merge_warps<S>(ring, out, &rows);
    if (WIDE || warp == N_WARPS - 1) store_rows<S>(&args, &unit, out, &rows);
}

/* Adds up the parts of a narrow unit's rows, in their order. Grid: units times blocks of rows,
 * KV heads. A warp has one row; lane l knows part l. */
static LMD_KERNEL(N_THREADS)
    merge_splits(const lmd_cuda_attention_args args, const int32_t n_splits) {
    enum { BLOCKS = LMD_NARROW_ROWS / N_WARPS };
    const int32_t lane = threadIdx.x % 32, head_dim = args.kv.format.head_dim;
    const int32_t row = blockIdx.x % BLOCKS * N_WARPS + threadIdx.x / 32;
    const unit_rows unit = find_unit(&args, args.narrow, blockIdx.x / BLOCKS, LMD_NARROW_ROWS);
    if (row >= unit.n_rows) return;

    const split_part first = find_part(&args, &unit, 0, n_splits);
    const int64_t stride = split_part_floats(head_dim);
    float2 stats = make_float2(-LMD_INFINITY, 0.0f); /* max, sum */
    if (lane < n_splits) stats = *(const float2 *)(first.stats + lane * stride + row * 2);
    float max = stats.x;
    for (int32_t far = 16; far > 0; far /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, far));
    const float weight = exp2_approx(stats.x - finite_max(max));
    float sum = stats.y * weight;
    for (int32_t far = 16; far > 0; far /= 2) sum += __shfl_xor_sync(~0u, sum, far);
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;

    uint16_t *out = args.out + offset_of(&unit, row, args.out_stride, head_dim);
    for (int32_t column = 2 * lane; column < head_dim; column += 64) { /* head_dim % 64 == 0 */
        float2 total = make_float2(0.0f, 0.0f);
        for (int32_t split = 0; split < n_splits; split++) {
            const float share = __shfl_sync(~0u, weight, split);
            if (__shfl_sync(~0u, stats.y, split) == 0.0f) continue; /* it has no values */
            const float2 pair =
                *(const float2 *)(first.values + split * stride + row * head_dim + column);
            total.x += pair.x * share;
            total.y += pair.y * share;
        }
        *(uint32_t *)(out + column) = pack_half2(total.x * inverse, total.y * inverse);
    }
}

/* ---- launching ---- */

typedef void (*attend_kernel)(const lmd_cuda_attention_args, const lmd_cuda_unit *, int32_t);

typedef struct variant {
    int32_t head_dim, k_bits, v_bits;
    bool wide;
    attend_kernel kernel;
    size_t smem_bytes;
} variant;

#define VARIANT(dim, k, v, wide)                                                               \
    { dim, k, v, wide, attend<dim, k, v, wide>, shape<dim, k, v, wide>::SMEM_BYTES }
#define VARIANTS_OF_BITS(dim, k, v) VARIANT(dim, k, v, false), VARIANT(dim, k, v, true)
#define VARIANTS_OF_DIM(dim)                                                                   \
    VARIANTS_OF_BITS(dim, 16, 16), VARIANTS_OF_BITS(dim, 8, 8), VARIANTS_OF_BITS(dim, 4, 4),   \
        VARIANTS_OF_BITS(dim, 8, 4), VARIANTS_OF_BITS(dim, 4, 8)

static const variant variants[] = {VARIANTS_OF_DIM(64), VARIANTS_OF_DIM(128),
                                   VARIANTS_OF_DIM(256)};

enum { N_VARIANTS = sizeof variants / sizeof *variants };

static const variant *find_variant(const lmd_cuda_kv_format *format, bool wide) {
    for (int32_t i = 0; i < N_VARIANTS; i++) {
        const variant *it = &variants[i];
        if (it->head_dim == format->head_dim && it->k_bits == format->k_bits &&
            it->v_bits == format->v_bits && it->wide == wide)
            return it;
    }
    return NULL;
}

/* Parts of each narrow unit's context: enough for all multiprocessors. Depends on nothing that
 * a captured launch could meet changed. */
static int32_t count_splits(int64_t n_narrow, int32_t n_kv_head, int32_t n_sms) {
    const int64_t n = BLOCKS_PER_SM * n_sms / (n_narrow * n_kv_head);
    return n < 1 ? 1 : n > MAX_SPLITS ? MAX_SPLITS : (int32_t)n;
}

static size_t split_bytes(int64_t n_narrow, int32_t n_kv_head, int32_t head_dim,
                          int32_t n_sms) {
    const int32_t n_splits = count_splits(n_narrow, n_kv_head, n_sms);
    if (n_splits == 1) return 0;
    return (size_t)(n_narrow * n_kv_head * n_splits * split_part_floats(head_dim)) *
           sizeof(float);
}

typedef struct unit_list {
    const lmd_cuda_unit *units; /* [n] on the device */
    int32_t n, unit_len;
} unit_list;

static void launch_attend(const lmd_cuda_attention_args *args, const unit_list *list, bool wide,
                          int32_t n_splits, lmd_cuda_queue *queue) {
    const variant *found = find_variant(&args->kv.format, wide);
    if (list->n == 0) return;
    if (!found) {
        lmd_cuda_note(queue, cudaErrorInvalidValue, "attention of this format");
        return;
    }
    const attend_kernel attention = found->kernel; /* the name of errors */
    LMD_LAUNCH(queue, attention, dim3(list->n, args->kv.n_kv_head, n_splits), N_THREADS,
               found->smem_bytes, *args, list->units, list->unit_len);
}

static void launch_narrow(const lmd_cuda_attention_args *args, const unit_list *list,
                          lmd_cuda_queue *queue) {
    const int32_t n_kv_head = args->kv.n_kv_head, head_dim = args->kv.format.head_dim;
    if (list->n == 0) return;
    const int32_t n_splits = count_splits(list->n, n_kv_head, queue->n_sms);
    if (split_bytes(list->n, n_kv_head, head_dim, queue->n_sms) > args->scratch_bytes) {
        lmd_cuda_note(queue, cudaErrorInvalidValue, "attention's scratch");
        return;
    }
    launch_attend(args, list, false, n_splits, queue);
    if (n_splits == 1) return;
    const dim3 grid(list->n * (LMD_NARROW_ROWS / N_WARPS), n_kv_head);
    LMD_LAUNCH(queue, merge_splits, grid, N_THREADS, 0, *args, n_splits);
}

void lmd_sm80_attention(const lmd_cuda_attention_args *args, lmd_cuda_queue *queue) {
    const unit_list narrow = {args->narrow, args->n_narrow, LMD_NARROW_ROWS};
    const unit_list wide = {args->wide, args->n_wide, LMD_WIDE_ROWS};
    /* Wide kernels alone add up a row in an order that no other launch changes. */
    if (args->batch_invariant)
        launch_attend(args, &narrow, true, 1, queue);
    else
        launch_narrow(args, &narrow, queue);
    launch_attend(args, &wide, true, 1, queue);
}

size_t lmd_sm80_attention_scratch(const lmd_cuda_limits *limits) {
    const int32_t group = limits->n_head / limits->n_kv_head;
    const int32_t n_seqs =
        limits->max_seqs < limits->max_tokens ? limits->max_seqs : limits->max_tokens;
    /* Each sequence has one unit that need not be full. */
    const int64_t most_units =
        ((int64_t)limits->max_tokens * group + (int64_t)n_seqs * (LMD_NARROW_ROWS - 1)) /
        LMD_NARROW_ROWS;
    size_t most = 0;
    if (limits->batch_invariant) return 0;
    for (int64_t n = 1; n <= most_units; n++) {
        const size_t bytes = split_bytes(n, limits->n_kv_head, limits->head_dim, limits->n_sms);
        most = bytes > most ? bytes : most;
    }
    return most;
}

cudaError_t lmd_sm80_attention_prepare(void) {
    for (int32_t i = 0; i < N_VARIANTS; i++) {
        const variant *it = &variants[i];
        int n_blocks = 0;
        cudaError_t error = cudaFuncSetAttribute((const void *)it->kernel,
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 (int)it->smem_bytes);
        if (error == cudaSuccess)
            error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                &n_blocks, (const void *)it->kernel, N_THREADS, it->smem_bytes);
        if (error != cudaSuccess) return error;
        if (n_blocks == 0) return cudaErrorLaunchOutOfResources;
    }
    return cudaSuccess;
}
