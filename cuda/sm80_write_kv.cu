/* The launcher write_kv: q and k heads are normalised and rotated, keys and values quantised
 * and written to the cache. Owns: arithmetic that gives the same codes as quant/kv_quant.h, bit
 * for bit, from the same halves. Products and sums that the compiler must not fuse are written
 * as calls, so that every architecture gives the same bits. Must not know: who reads the cache.
 */
#include "cuda_kernels.h"
#include "dev.h"

enum {
    N_THREADS = 128,
    /* A lane has eight values of a head: four neighbours in its first half, and the four that
     * RoPE pairs them with. So 8, 16 or 32 lanes share a head. */
    LANE_VALUES = 8,
    QUARTET = 4,
    HALF_EXPONENT = 0x7c00, /* all ones: not finite */
    HALF_NAN = 0x7e00
};

/* Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, ties to even. */
#define ROUND_MAGIC 12582912.0f

/* A lane's part of a head. */
typedef struct lane_part {
    int32_t head_dim, n_lanes; /* lanes that share the head */
    int32_t first;             /* columns first to first + 3, and those head_dim / 2 later */
} lane_part;

/* ---- q, k and v ---- */

LMD_DEVICE float sum_of_lanes(float x, int32_t n_lanes) {
    for (int32_t far = n_lanes / 2; far > 0; far /= 2) x += __shfl_xor_sync(~0u, x, far);
    return x;
}

LMD_DEVICE float max_of_lanes(float x, int32_t n_lanes) {
    for (int32_t far = n_lanes / 2; far > 0; far /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, far));
    return x;
}

LMD_DEVICE void load_values(float *x, const uint16_t *head, const lane_part *part) {
    for (int32_t half = 0; half < 2; half++) {
        const uint2 four = *(const uint2 *)(head + part->first + half * (part->head_dim / 2));
        x[half * QUARTET] = low_half(four.x);
        x[half * QUARTET + 1] = high_half(four.x);
        x[half * QUARTET + 2] = low_half(four.y);
        x[half * QUARTET + 3] = high_half(four.y);
    }
}

/* x becomes x / sqrt(mean of squares + eps) * weight; without a weight it stays. */
LMD_DEVICE void normalise(float *x, const float *weight, float eps, const lane_part *part) {
    float sum = 0.0f;
    for (int32_t i = 0; i < LANE_VALUES; i++) sum += x[i] * x[i];
    sum = sum_of_lanes(sum, part->n_lanes); /* before the return: all lanes of the warp */
    if (!weight) return;
    const float inverse = 1.0f / sqrtf(sum / (float)part->head_dim + eps);
    for (int32_t i = 0; i < LANE_VALUES; i++) {
        const int32_t column = part->first + i % QUARTET + i / QUARTET * (part->head_dim / 2);
        x[i] = __fmul_rn(__fmul_rn(x[i], inverse), weight[column]);
    }
}

LMD_DEVICE void rotate_pair(float *a, float *b, float cosine, float sine) {
    const float rotated = __fsub_rn(__fmul_rn(*a, cosine), __fmul_rn(*b, sine));
    *b = __fadd_rn(__fmul_rn(*b, cosine), __fmul_rn(*a, sine));
    *a = rotated;
}

LMD_DEVICE void rotate(float *x, const float *cos_sin /* [head_dim / 2][2] */,
                       const lane_part *part) {
    for (int32_t i = 0; i < QUARTET; i += 2) {
        const uint4 two = ldg16(cos_sin + 2 * (part->first + i));
        rotate_pair(&x[i], &x[i + QUARTET], __uint_as_float(two.x), __uint_as_float(two.y));
        rotate_pair(&x[i + 1], &x[i + 1 + QUARTET], __uint_as_float(two.z),
                    __uint_as_float(two.w));
    }
}

/* ---- the cache ---- */

typedef struct range {
    float min, max;
} range;

/* Finds the smallest and the largest half of a head. One that is not finite makes the range
 * infinite. */
LMD_DEVICE range range_of(const uint32_t *halves, const lane_part *part) {
    range found = {LMD_INFINITY, -LMD_INFINITY};
    for (int32_t i = 0; i < LANE_VALUES; i++) {
        const bool is_finite = (halves[i] & HALF_EXPONENT) != HALF_EXPONENT;
        const float x = low_half(halves[i]);
        found.min = fminf(found.min, is_finite ? x : -LMD_INFINITY);
        found.max = fmaxf(found.max, is_finite ? x : LMD_INFINITY);
    }
    found.min = -max_of_lanes(-found.min, part->n_lanes);
    found.max = max_of_lanes(found.max, part->n_lanes);
    return found;
}

/* Replaces halves by codes, as lmd_kv_encode does, and returns {scale, min}. */
LMD_DEVICE uint32_t encode(uint32_t *codes, range found, int32_t bits) {
    const float most = (float)((1 << bits) - 1);
    const uint32_t scale_half = float_to_half(__fdiv_rn(__fsub_rn(found.max, found.min), most));
    const uint32_t min_half = float_to_half(found.min);
    const float scale = low_half(scale_half), min = low_half(min_half);
    const float inverse = scale > 0.0f ? __fdiv_rn(1.0f, scale) : 0.0f;
    if ((scale_half & HALF_EXPONENT) == HALF_EXPONENT) {
        for (int32_t i = 0; i < LANE_VALUES; i++) codes[i] = 0;
        return HALF_NAN | HALF_NAN << 16;
    }
    for (int32_t i = 0; i < LANE_VALUES; i++) {
        const float at = __fmul_rn(__fsub_rn(low_half(codes[i]), min), inverse);
        const float clamped = fminf(fmaxf(at, 0.0f), most);
        codes[i] = (uint32_t)__fsub_rn(__fadd_rn(clamped, ROUND_MAGIC), ROUND_MAGIC);
    }
    return scale_half | min_half << 16;
}

/* Stores four neighbouring halves, or codes, at a place aligned to their bits together. */
LMD_DEVICE void store_four(uint8_t *to, const uint32_t *x, int32_t bits) {
    if (bits == 16)
        *(uint2 *)to = make_uint2(x[0] | x[1] << 16, x[2] | x[3] << 16);
    else if (bits == 8)
        *(uint32_t *)to = x[0] | x[1] << 8 | x[2] << 16 | x[3] << 24;
    else
        *(uint16_t *)to = (uint16_t)(x[0] | x[1] << 4 | x[2] << 8 | x[3] << 12);
}

/* Writes the lane's part of a row of keys, or of values. */
LMD_DEVICE void write_row(const lmd_cuda_kv *kv, uint8_t *head /* its part of the block */,
                          bool is_value, int32_t row, uint32_t *codes, range found,
                          const lane_part *part) {
    const lmd_cuda_kv_format *format = &kv->format;
    const int32_t bits = is_value ? format->v_bits : format->k_bits;
    const int32_t row_bytes = lmd_kv_row_bytes(format->head_dim, bits);
    uint8_t *rows = is_value ? head + lmd_kv_v_codes(format) : head;
    if (bits < 16) {
        uint8_t *params = head + (is_value ? lmd_kv_v_params(format) : lmd_kv_k_params(format));
        const uint32_t pair = encode(codes, found, bits);
        if (part->first == 0) ((uint32_t *)params)[row] = pair;
    }
    for (int32_t half = 0; half < 2; half++) {
        const int32_t column = part->first + half * (format->head_dim / 2);
        uint8_t *to =
            rows + lmd_kv_byte_at(format->block_len, row_bytes, row, column * bits / 8);
        store_four(to, codes + half * QUARTET, bits);
    }
}

/* ---- the kernel ---- */

static LMD_KERNEL(N_THREADS) write_kv(const lmd_cuda_write_kv_args args) {
    const lmd_cuda_step *step = &args.step;
    const lmd_cuda_kv *kv = &args.kv;
    const int32_t head_dim = kv->format.head_dim, block_len = kv->format.block_len;
    const int32_t n_heads = args.n_head + 2 * kv->n_kv_head;
    const int32_t n_lanes = head_dim / LANE_VALUES;
    const int32_t thread = (int32_t)(blockIdx.x * N_THREADS + threadIdx.x);
    const int32_t row = thread / n_lanes / n_heads, head = thread / n_lanes % n_heads;
    const bool is_q = head < args.n_head, is_value = head >= args.n_head + kv->n_kv_head;
    const lane_part part = {head_dim, n_lanes, thread % n_lanes * QUARTET};
    const int32_t seq = row < step->n_tokens ? step->row_seqs[row] : -1;
    const bool is_padding = seq < 0 || step->slots[seq] < 0;
    const int32_t position = is_padding ? 0 : step->positions[row];
    uint16_t *values = args.qkv + (int64_t)row * args.qkv_stride + head * head_dim;

    /* Lanes of padding stay, with zeros: the other heads of their warp exchange values. */
    float x[LANE_VALUES] = {0};
    if (!is_padding) load_values(x, values, &part);
    if (args.q_norm || args.k_norm)
        normalise(x, is_q ? args.q_norm : is_value ? NULL : args.k_norm, args.norm_eps, &part);
    if (!is_value) rotate(x, args.rope + (int64_t)position * head_dim, &part);
    uint32_t halves[LANE_VALUES];
    for (int32_t i = 0; i < LANE_VALUES; i++) halves[i] = float_to_half(x[i]);
    const range found = range_of(halves, &part);
    if (is_padding) return;

    if (is_q) {
        store_four((uint8_t *)(values + part.first), halves, 16);
        store_four((uint8_t *)(values + part.first + head_dim / 2), halves + QUARTET, 16);
        return;
    }
    const int32_t kv_head = (head - args.n_head) % kv->n_kv_head;
    const int64_t block_id = step->block_ids[step->block_offsets[seq] + position / block_len];
    uint8_t *in_block = kv->layer + block_id * kv->block_stride +
                        (int64_t)kv_head * lmd_kv_part_bytes(&kv->format);
    write_row(kv, in_block, is_value, position % block_len, halves, found, &part);
}

void lmd_sm80_write_kv(const lmd_cuda_write_kv_args *args, lmd_cuda_queue *queue) {
    const int64_t n_heads = args->n_head + 2 * args->kv.n_kv_head;
    const int64_t n_threads =
        args->step.n_tokens * n_heads * (args->kv.format.head_dim / LANE_VALUES);
    const dim3 grid((unsigned)((n_threads + N_THREADS - 1) / N_THREADS));
    LMD_LAUNCH(queue, write_kv, grid, N_THREADS, 0, *args);
}
