/* What the warps of sm80_attention.cu do with one tile of keys and values: copy it to shared
 * memory, multiply q with the keys, update the softmax, multiply it with the values.
 * Owns: how a tile lies in shared memory, how codes become halves, and which lane has what.
 * Must not know: units, splits, launches. Lane l has g = l / 4 and t = l % 4, as mma_f16 says.
 */
#ifndef LMD_CUDA_SM80_ATTENTION_H
#define LMD_CUDA_SM80_ATTENTION_H

#include "cuda_kernels.h"
#include "dev.h"

enum {
    N_WARPS = 4,
    N_THREADS = N_WARPS * 32,
    WARP_ROWS = 16,         /* attention rows of a warp: those of mma_f16 */
    MOST_BYTES = 50 * 1024, /* two thread blocks fit the 100 KiB of a multiprocessor of sm_86 */
    MAX_SLOTS = 4
};

/* A kernel, as its template's arguments make it. Keys and values come through a ring of slots
 * in shared memory: keys of a tile, its values, keys of the next tile, and so on; while one
 * slot is read, the others are filled. */
template <int HEAD_DIM_, int K_BITS_, int V_BITS_, bool WIDE_> struct shape {
    enum {
        HEAD_DIM = HEAD_DIM_,
        K_BITS = K_BITS_,
        V_BITS = V_BITS_,
        WIDE = WIDE_,
        TILE = WIDE && HEAD_DIM == 256 ? 32 : 64,   /* tokens */
        WARP_TOKENS = WIDE ? TILE : TILE / N_WARPS, /* that a warp multiplies with its rows */
        OUT_RUN = 32 / V_BITS,                      /* see out_value */
        OUT_RUNS = HEAD_DIM / (4 * OUT_RUN),
        MAX_BITS = K_BITS > V_BITS ? K_BITS : V_BITS,
        CODES_BYTES = TILE * HEAD_DIM * MAX_BITS / 8,
        SLOT_BYTES = CODES_BYTES + (MAX_BITS < 16 ? TILE * 4 : 0),
        /* With head_dim 256, q and the sums would need more registers than there are. */
        Q_IN_SMEM = HEAD_DIM == 256,
        Q_ROWS = WIDE ? LMD_WIDE_ROWS : LMD_NARROW_ROWS,
        Q_BYTES = Q_IN_SMEM ? Q_ROWS * HEAD_DIM * 2 : 0,
        /* The warps of a narrow unit wait for themselves alone, as each keeps to the bytes of
         * its rows. Where these are others for keys than for values, an even number of slots
         * makes each slot one or the other for good. */
        STEP = K_BITS == V_BITS ? 1 : 2,
        FIT = (MOST_BYTES - Q_BYTES) / (SLOT_BYTES * STEP) * STEP,
        N_SLOTS = FIT < 2           ? 2
                  : FIT > MAX_SLOTS ? MAX_SLOTS
                                    : FIT,
        RING_BYTES = N_SLOTS * SLOT_BYTES,
        SMEM_BYTES = RING_BYTES + Q_BYTES
    };
};

/* ---- a tile's way to shared memory ---- */

/* Where the keys and values of one sequence and KV head are, and how far a warp's copies are.
 */
typedef struct kv_source {
    const lmd_cuda_kv *kv;
    const uint8_t *head;      /* of block 0 */
    const int32_t *block_ids; /* of the sequence */
    int32_t block_shift;      /* log2 of block_len, which is a power of two from 16 on */
    int32_t context_len;      /* what lies behind is stale and never read */
    const uint8_t *block;     /* the head in the block of the tile whose keys came last */
    int32_t next_block_id;    /* of the tile after it: read early, to be there in time */
} kv_source;

/* The block of a warp's rows of a tile. They lie in one block, as they are at most 16, and
 * their first is at a multiple of their number. */
template <int TILE> LMD_DEVICE int32_t find_block(const kv_source *from, int32_t tile) {
    const int32_t position = tile * TILE + threadIdx.x / 32 * (TILE / N_WARPS);
    return position < from->context_len ? from->block_ids[position >> from->block_shift] : 0;
}

/* Moves on to the block of a tile. */
template <int TILE> LMD_DEVICE void enter_tile(kv_source *from, int32_t tile) {
    from->block = from->head + from->next_block_id * from->kv->block_stride;
    from->next_block_id = find_block<TILE>(from, tile + 1);
}

/* Starts the copy of a tile's rows, zeros behind the context. A slot has codes in the order of
 * cuda_layout.h, for TILE rows, and then params. Each warp copies a part, which is what it
 * multiplies if the unit is narrow. */
template <int HEAD_DIM, int BITS, int TILE>
LMD_DEVICE void copy_tile(uint8_t *slot, const kv_source *from, int32_t codes_at,
                          int32_t params_at, int32_t tile) {
    enum {
        ROW_BYTES = HEAD_DIM * BITS / 8,
        CHUNKS = ROW_BYTES / 16,
        ROWS = TILE / N_WARPS,
        UNROLL = HEAD_DIM == 256 ? 1 : 4 /* there are no registers for more addresses */
    };
    const int32_t lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * ROWS;
    const int32_t block_len = 1 << from->block_shift, position = tile * TILE + first_row;
    const int32_t row_in_block = position & (block_len - 1);
#pragma unroll UNROLL
    for (int32_t i = lane; i < ROWS * CHUNKS; i += 32) {
        const int32_t row = i / CHUNKS, byte = i % CHUNKS * 16;
        cp_async16(slot + lmd_kv_byte_at(TILE, ROW_BYTES, first_row + row, byte),
                   from->block + codes_at +
                       lmd_kv_byte_at(block_len, ROW_BYTES, row_in_block + row, byte),
                   position + row < from->context_len);
    }
    if (BITS < 16 && lane < ROWS / 4)
        cp_async16(slot + TILE * ROW_BYTES + (first_row + lane * 4) * 4,
                   from->block + params_at + (row_in_block + lane * 4) * 4,
                   position + lane * 4 < from->context_len);
}

/* ---- codes as halves: exactly, as 1024 + code is a half whose low bits are the code ---- */

/* Two bytes; the selector's nibbles 0 and 2 say which. */
LMD_DEVICE uint32_t bytes_as_halves(uint32_t word, uint32_t selector) {
    return hsub2(byte_perm(word, 0x64646464, selector), 0x64006400);
}

/* Nibbles i and i + 4. An odd one stands four bits too high: (1024 + 16 * code) / 16 - 64. */
LMD_DEVICE uint32_t nibbles_as_halves(uint32_t word, int32_t i) {
    enum { AND_OR = (0xf0 & 0xcc) | 0xaa };
    const uint32_t shifted = i / 2 ? word >> 8 : word;
    if (i % 2 == 0) return hsub2(lop3<AND_OR>(shifted, 0x000f000f, 0x64006400), 0x64006400);
    return hfma2(lop3<AND_OR>(shifted, 0x00f000f0, 0x64006400), 0x2c002c00, 0xd400d400);
}

/* ---- q times keys ---- */

/* A lane's part of q: operands a of mma_f16, one for each 16 columns. */
template <class S> struct q_parts {
    uint32_t steps[S::Q_IN_SMEM ? 1 : S::HEAD_DIM / 16][4];
    uint8_t *in_smem; /* or here, 512 bytes from one to the next */
    float sums[2];    /* of the lane's rows */
};

/* Where a lane's part is in shared memory: in the order of steps, warps of a wide unit apart.
 */
template <class S> LMD_DEVICE uint8_t *q_in_smem(uint8_t *smem) {
    const int32_t warp = S::WIDE ? threadIdx.x / 32 : 0;
    return smem + warp * WARP_ROWS * S::HEAD_DIM * 2 + threadIdx.x % 32 * 16;
}

/* Loads what a lane multiplies with a chunk of 16 bytes of keys, for row h. ldmatrix gives it
 * four bytes of a chunk, 2, 4 or 8 neighbouring columns, and multiply_keys makes them rows of b
 * in some order; the same columns of q become columns of a. A sum over all of them has any
 * order. */
template <int BITS>
LMD_DEVICE void load_q_chunk(uint32_t (*a)[4], int32_t chunk, int32_t h,
                             const uint16_t *columns) {
    if (BITS == 16) {
        a[chunk / 2][h + chunk % 2 * 2] = *(const uint32_t *)columns;
    } else if (BITS == 8) {
        const uint2 words = *(const uint2 *)columns;
        a[chunk][h] = words.x;
        a[chunk][h + 2] = words.y;
    } else { /* columns i and i + 4 stand together, as in nibbles_as_halves */
        const uint4 words = ldg16(columns);
        a[2 * chunk][h] = byte_perm(words.x, words.z, 0x5410);
        a[2 * chunk][h + 2] = byte_perm(words.x, words.z, 0x7632);
        a[2 * chunk + 1][h] = byte_perm(words.y, words.w, 0x5410);
        a[2 * chunk + 1][h + 2] = byte_perm(words.y, words.w, 0x7632);
    }
}

/* Loads two rows of q, which are 16-byte aligned. */
template <class S>
LMD_DEVICE void load_q(q_parts<S> *q, const uint16_t *const *rows /* NULL: zeros */) {
    enum { COLUMNS = 128 / S::K_BITS, STEPS = S::HEAD_DIM / 16 }; /* COLUMNS: of a chunk */
    uint32_t a[STEPS][4] = {{0}};
#pragma unroll
    for (int32_t h = 0; h < 2; h++) {
        if (rows[h]) {
            const uint16_t *mine = rows[h] + threadIdx.x % 4 * (COLUMNS / 4);
#pragma unroll
            for (int32_t c = 0; c < S::HEAD_DIM / COLUMNS; c++)
                load_q_chunk<S::K_BITS>(a, c, h, mine + c * COLUMNS);
        }
        float sum = 0.0f;
#pragma unroll
        for (int32_t i = 0; i < 2 * STEPS; i++) {
            const uint32_t pair = a[i / 2][h + i % 2 * 2];
            sum += low_half(pair) + high_half(pair);
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        q->sums[h] = sum + __shfl_xor_sync(~0u, sum, 2);
    }
#pragma unroll
    for (int32_t k = 0; k < STEPS; k++) {
        if (S::Q_IN_SMEM && (S::WIDE || threadIdx.x < 32))
            store_smem16(q->in_smem + k * 512, make_uint4(a[k][0], a[k][1], a[k][2], a[k][3]));
#pragma unroll
        for (int32_t i = 0; i < 4 && !S::Q_IN_SMEM; i++) q->steps[k][i] = a[k][i];
    }
    /* The warps of a narrow unit have the same rows, and use what the first one wrote. */
    if (S::Q_IN_SMEM && !S::WIDE) __syncthreads();
}

/* The operand of step k. */
template <class S> LMD_DEVICE void q_step(uint32_t *a, const q_parts<S> *q, int32_t k) {
    if (!S::Q_IN_SMEM) {
#pragma unroll
        for (int32_t i = 0; i < 4; i++) a[i] = q->steps[k][i];
        return;
    }
    const uint4 four = load_smem16(q->in_smem + k * 512);
    a[0] = four.x, a[1] = four.y, a[2] = four.z, a[3] = four.w;
}

/* Adds products of q with keys of eight tokens, of which x has N chunks of 16 bytes. */
template <int BITS, int N>
LMD_DEVICE void multiply_keys(float *scores, const uint32_t (*q)[4] /* at the first chunk */,
                              const uint32_t *x) {
#pragma unroll
    for (int32_t c = 0; c < N; c++) {
        if (BITS == 16) {
            if (c % 2 == 0) mma_f16(scores, q[c / 2], x[c], x[c + 1]);
        } else if (BITS == 8) {
            mma_f16(scores, q[c], bytes_as_halves(x[c], 0x4140), bytes_as_halves(x[c], 0x4342));
        } else {
            mma_f16(scores, q[2 * c], nibbles_as_halves(x[c], 0), nibbles_as_halves(x[c], 1));
            mma_f16(scores, q[2 * c + 1], nibbles_as_halves(x[c], 2),
                    nibbles_as_halves(x[c], 3));
        }
    }
}

/* Computes q k^T of the warp's rows and tokens. Keys stay codes in the products:
 * q (scale * code + min) = scale * (q code) + min * (sum of q). */
template <class S>
LMD_DEVICE void score_tile(float (*scores)[4] /* [WARP_TOKENS / 8] */, const q_parts<S> *q,
                           const uint8_t *slot, int32_t first_row) {
    enum {
        ROW_BYTES = S::HEAD_DIM * S::K_BITS / 8,
        CHUNKS = ROW_BYTES / 16,
        N = CHUNKS < 4 ? CHUNKS : 4, /* chunks of a row in one ldmatrix_x4 */
        ROWS = 4 / N * 8             /* and its rows */
    };
    const int32_t lane = threadIdx.x % 32, t = lane % 4;
    const int32_t row = first_row + lane / 8 / N * 8 + lane % 8, chunk = lane / 8 % N;
#pragma unroll
    for (int32_t n = 0; n < S::WARP_TOKENS / 8; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++) scores[n][i] = 0.0f;
#pragma unroll
    for (int32_t c = 0; c < CHUNKS; c += N) {
        uint32_t a[N * 8 / S::K_BITS][4];
#pragma unroll
        for (int32_t k = 0; k < N * 8 / S::K_BITS; k++) q_step(a[k], q, c * 8 / S::K_BITS + k);
#pragma unroll
        for (int32_t r = 0; r < S::WARP_TOKENS; r += ROWS) {
            uint32_t x[4];
            ldmatrix_x4(x,
                        slot + lmd_kv_byte_at(S::TILE, ROW_BYTES, row + r, (c + chunk) * 16));
#pragma unroll
            for (int32_t i = 0; i < 4 / N; i++)
                multiply_keys<S::K_BITS, N>(scores[r / 8 + i], a, x + i * N);
        }
    }
    if (S::K_BITS == 16) return;
    const uint8_t *params = slot + S::TILE * ROW_BYTES + (first_row + 2 * t) * 4;
#pragma unroll
    for (int32_t n = 0; n < S::WARP_TOKENS / 8; n++) {
        const uint2 two = *(const uint2 *)(params + n * 8 * 4); /* {scale, min} of two tokens */
#pragma unroll
        for (int32_t i = 0; i < 4; i++) {
            const uint32_t pair = i % 2 ? two.y : two.x;
            scores[n][i] = fmaf(low_half(pair), scores[n][i], high_half(pair) * q->sums[i / 2]);
        }
    }
}

/* ---- softmax ---- */

/* The softmax of a lane's two rows so far. Scores are q k^T; a probability is
 * 2^(to_log2 * (score - max)), and its sum is of the lane's own columns. */
typedef struct softmax_rows {
    int32_t context_lens[2];
    int32_t all_see; /* positions that no row of the warp must not see */
    float to_log2;   /* log2(e) / sqrt(head_dim) */
    float max[2], sum[2];
} softmax_rows;

/* What a maximum counts as in a difference: infinity minus infinity is no number. */
LMD_DEVICE float finite_max(float max) { return max == -LMD_INFINITY ? 0.0f : max; }

/* By how much a sum relative to `before` shrinks when it becomes one relative to `max`: exactly
 * not at all if they are equal, so that a tile whose scores are all masked leaves no trace. */
LMD_DEVICE float shrink_of(const softmax_rows *rows, float before, float max) {
    return exp2_approx((before - finite_max(max)) * rows->to_log2);
}

/* Makes scores behind a row's context -infinity. */
template <int N>
LMD_DEVICE void mask_scores(float (*scores)[4] /* [N] */, const softmax_rows *rows,
                            int32_t first_position) {
    const int32_t first_column = first_position + threadIdx.x % 4 * 2;
    if (first_position + 8 * N <= rows->all_see) return;
#pragma unroll
    for (int32_t i = 0; i < 4 * N; i++)
        if (first_column + i / 4 * 8 + i % 2 >= rows->context_lens[i % 4 / 2])
            scores[i / 4][i % 4] = -LMD_INFINITY;
}

/* Makes scores probabilities, exactly 0 where a score is -infinity, and says by how much what
 * was summed before shrinks. */
template <int N>
LMD_DEVICE void soften(float (*scores)[4] /* [N] */, softmax_rows *rows, float *shrink) {
#pragma unroll
    for (int32_t h = 0; h < 2; h++) {
        float max = rows->max[h], sum = 0.0f;
#pragma unroll
        for (int32_t i = 0; i < 2 * N; i++) {
            const float score = scores[i / 2][h * 2 + i % 2];
            max = fmaxf(max, score);
        }
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
        const float base = finite_max(max) * rows->to_log2;
#pragma unroll
        for (int32_t i = 0; i < 2 * N; i++) {
            float *score = &scores[i / 2][h * 2 + i % 2];
            *score = exp2_approx(fmaf(*score, rows->to_log2, -base));
            sum += *score;
        }
        shrink[h] = shrink_of(rows, rows->max[h], max);
        rows->max[h] = max;
        rows->sum[h] = rows->sum[h] * shrink[h] + sum;
    }
}

/* ---- probabilities times values ---- */

/* {scale, scale} and {min, min} of a lane's tokens: rows 2t and 2t + 1 of b, and + 8. */
typedef struct token_params {
    uint32_t scales[2], mins[2];
} token_params;

/* n_left: tokens from the first on that are not stale. Stale params may be NaN, and 0 * NaN is
 * not 0. */
LMD_DEVICE token_params load_params(const uint8_t *params /* of the 16 tokens */,
                                    int32_t n_left) {
    const int32_t first = threadIdx.x % 4 * 2;
    token_params found;
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        const int32_t token = first + 8 * i;
        const uint2 two = *(const uint2 *)(params + token * 4);
        const uint32_t a = token < n_left ? two.x : 0, b = token + 1 < n_left ? two.y : 0;
        found.scales[i] = byte_perm(a, b, 0x5410);
        found.mins[i] = byte_perm(a, b, 0x7632);
    }
    return found;
}

/* Adds products of 16 tokens' probabilities with one chunk of 16 bytes of their values; x:
 * words of tokens 0 to 7, and 8 to 15. ldmatrix_x4_trans gives 2-byte units of two tokens: 1, 2
 * or 4 columns, so as many columns g of products: the values of column i of each unit. */
template <int BITS>
LMD_DEVICE void multiply_values(float (*out)[4] /* [16 / BITS] */, const uint32_t *p,
                                const uint32_t *x, const token_params *params) {
#pragma unroll
    for (int32_t i = 0; i < 16 / BITS; i++) {
        uint32_t b[2];
#pragma unroll
        for (int32_t j = 0; j < 2; j++) {
            if (BITS == 16) {
                b[j] = x[j];
                continue;
            }
            const uint32_t codes = BITS == 8 ? bytes_as_halves(x[j], i ? 0x4341 : 0x4240)
                                             : nibbles_as_halves(x[j], i);
            b[j] = hfma2(codes, params->scales[j], params->mins[j]);
        }
        mma_f16(out[i], p, b[0], b[1]);
    }
}

/* Value i of a run of neighbouring columns, OUT_RUNS of which a lane has of its row h; and the
 * first of its columns. */
template <class S>
LMD_DEVICE float out_value(const float (*out)[4], int32_t h, int32_t run, int32_t i) {
    enum { UNIT = 16 / S::V_BITS }; /* columns: see multiply_values */
    return out[run * UNIT + i % UNIT][h * 2 + i / UNIT];
}
template <class S> LMD_DEVICE int32_t out_column(int32_t run) {
    return (run * 4 + threadIdx.x % 4) * S::OUT_RUN;
}

/* out = out * shrink + probabilities * values, of the warp's rows and tokens. */
template <class S>
LMD_DEVICE void add_values(float (*out)[4] /* [HEAD_DIM / 8] */, const float *shrink,
                           const float (*probabilities)[4] /* [WARP_TOKENS / 8] */,
                           const uint8_t *slot, int32_t first_row, int32_t n_left) {
    enum { ROW_BYTES = S::HEAD_DIM * S::V_BITS / 8, CHUNKS = ROW_BYTES / 16 };
    const int32_t lane = threadIdx.x % 32;
    /* Most tiles change no maximum. */
    if (__any_sync(~0u, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
        for (int32_t i = 0; i < S::HEAD_DIM / 2; i++) out[i / 4][i % 4] *= shrink[i % 4 / 2];
    }
#pragma unroll
    for (int32_t k = 0; k < S::WARP_TOKENS; k += 16) {
        const float(*s)[4] = probabilities + k / 8;
        const uint32_t p[4] = {pack_half2(s[0][0], s[0][1]), pack_half2(s[0][2], s[0][3]),
                               pack_half2(s[1][0], s[1][1]), pack_half2(s[1][2], s[1][3])};
        token_params params = {{0, 0}, {0, 0}};
        if (S::V_BITS < 16)
            params = load_params(slot + S::TILE * ROW_BYTES + (first_row + k) * 4, n_left - k);
#pragma unroll
        for (int32_t c = 0; c < CHUNKS; c += 2) {
            const int32_t row = first_row + k + lane % 16;
            uint32_t x[4]; /* chunk c of 16 tokens, then chunk c + 1 */
            ldmatrix_x4_trans(
                x, slot + lmd_kv_byte_at(S::TILE, ROW_BYTES, row, (c + lane / 16) * 16));
#pragma unroll
            for (int32_t i = 0; i < 2; i++)
                multiply_values<S::V_BITS>(out + (c + i) * (16 / S::V_BITS), p, x + 2 * i,
                                           &params);
        }
    }
}

#endif
