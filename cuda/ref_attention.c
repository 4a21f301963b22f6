/* The row "ref" of the launchers write_kv and attention: what they compute, in plain C.
 * Owns: the definition that other rows are compared with; it is never optimised. Must not know:
 * units' shapes beyond their number of rows, splits. Runs as host functions of a stream, one at
 * a time, on memory that the host can read. */
#include "ref.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "cuda_kernels.h"
#include "quant/kv_quant.h"

enum { MAX_HEAD_DIM = 256 };

/* ---- the cache ---- */

/* The keys, or the values, that one KV head has in one block. */
typedef struct cached {
    const lmd_cuda_kv_format *format;
    int32_t bits;
    uint8_t *codes;
    lmd_kv_params *params; /* [block_len]; unused where codes are halves */
} cached;

typedef enum which { KEYS, VALUES } which;

static cached cached_at(const lmd_cuda_kv *kv, which what, int32_t block_id, int32_t kv_head) {
    const lmd_cuda_kv_format *format = &kv->format;
    uint8_t *part =
        kv->layer + block_id * kv->block_stride + (int64_t)kv_head * lmd_kv_part_bytes(format);
    if (what == KEYS)
        return (cached){format, format->k_bits, part,
                        (lmd_kv_params *)(part + lmd_kv_k_params(format))};
    return (cached){format, format->v_bits, part + lmd_kv_v_codes(format),
                    (lmd_kv_params *)(part + lmd_kv_v_params(format))};
}

static uint8_t *byte_at(const cached *self, int32_t row, int32_t byte) {
    const lmd_cuda_kv_format *format = self->format;
    return self->codes + lmd_kv_byte_at(format->block_len,
                                        lmd_kv_row_bytes(format->head_dim, self->bits), row,
                                        byte);
}

static void store_row(const cached *self, int32_t row, const uint16_t *x /* [head_dim] */) {
    const int32_t head_dim = self->format->head_dim;
    float values[MAX_HEAD_DIM] = {0};
    uint8_t codes[MAX_HEAD_DIM];
    if (self->bits == 16) {
        for (int32_t d = 0; d < head_dim; d++)
            memcpy(byte_at(self, row, 2 * d), &x[d], sizeof x[d]);
        return;
    }
    for (int32_t d = 0; d < head_dim; d++) values[d] = lmd_half_to_float(x[d]);
    self->params[row] = lmd_kv_encode(values, head_dim, self->bits, codes);
    if (self->bits == 8)
        for (int32_t d = 0; d < head_dim; d++) *byte_at(self, row, d) = codes[d];
    else
        for (int32_t d = 0; d < head_dim; d += 2)
            *byte_at(self, row, d / 2) = (uint8_t)(codes[d] | codes[d + 1] << 4);
}

static void load_row(const cached *self, int32_t row, float *x /* [head_dim] */) {
    const int32_t head_dim = self->format->head_dim;
    uint8_t codes[MAX_HEAD_DIM];
    if (self->bits == 16) {
        for (int32_t d = 0; d < head_dim; d++) {
            uint16_t half;
            memcpy(&half, byte_at(self, row, 2 * d), sizeof half);
            x[d] = lmd_half_to_float(half);
        }
        return;
    }
    for (int32_t d = 0; d < head_dim; d++) {
        const uint8_t byte = *byte_at(self, row, d * self->bits / 8);
        codes[d] = self->bits == 8 ? byte : byte >> d % 2 * 4 & 15;
    }
    lmd_kv_decode(codes, head_dim, self->params[row], x);
}

/* ---- write_kv ---- */

/* x becomes x / sqrt(mean of squares + eps) * weight. */
static void normalise(float *x, const float *weight, float eps, int32_t n) {
    double sum = 0.0;
    for (int32_t d = 0; d < n; d++) sum += (double)x[d] * x[d];
    const float inverse = 1.0f / sqrtf((float)(sum / n) + eps);
    for (int32_t d = 0; d < n; d++) x[d] = x[d] * inverse * weight[d];
}

static void rotate(float *x, const float *cos_sin /* [n / 2][2] */, int32_t n) {
    for (int32_t d = 0; d < n / 2; d++) {
        const float a = x[d], b = x[d + n / 2];
        const float cosine = cos_sin[2 * d], sine = cos_sin[2 * d + 1];
        x[d] = a * cosine - b * sine;
        x[d + n / 2] = b * cosine + a * sine;
    }
}

/* Normalises and rotates one head of q or of k in place. */
static void turn_head(const lmd_cuda_write_kv_args *args, int32_t position, const float *norm,
                      uint16_t *head /* [head_dim] */) {
    const int32_t head_dim = args->kv.format.head_dim;
    float x[MAX_HEAD_DIM];
    for (int32_t d = 0; d < head_dim; d++) x[d] = lmd_half_to_float(head[d]);
    if (norm) normalise(x, norm, args->norm_eps, head_dim);
    rotate(x, args->rope + (int64_t)position * head_dim, head_dim);
    for (int32_t d = 0; d < head_dim; d++) head[d] = lmd_float_to_half(x[d]);
}

static void write_row(const lmd_cuda_write_kv_args *args, int32_t row) {
    const lmd_cuda_step *step = &args->step;
    const lmd_cuda_kv *kv = &args->kv;
    const int32_t head_dim = kv->format.head_dim, block_len = kv->format.block_len;
    const int32_t seq = step->row_seqs[row], position = step->positions[row];
    if (step->slots[seq] < 0) return;
    const int32_t block_id = step->block_ids[step->block_offsets[seq] + position / block_len];
    uint16_t *q = args->qkv + (int64_t)row * args->qkv_stride;
    uint16_t *k = q + args->n_head * head_dim, *v = k + kv->n_kv_head * head_dim;
    for (int32_t head = 0; head < args->n_head; head++)
        turn_head(args, position, args->q_norm, q + head * head_dim);
    for (int32_t head = 0; head < kv->n_kv_head; head++) {
        uint16_t key[MAX_HEAD_DIM]; /* only q is left rotated in place */
        const cached keys = cached_at(kv, KEYS, block_id, head);
        const cached values = cached_at(kv, VALUES, block_id, head);
        memcpy(key, k + head * head_dim, (size_t)head_dim * sizeof *key);
        turn_head(args, position, args->k_norm, key);
        store_row(&keys, position % block_len, key);
        store_row(&values, position % block_len, v + head * head_dim);
    }
}

static void run_write_kv(void *data) {
    const lmd_cuda_write_kv_args *args = data;
    for (int32_t row = 0; row < args->step.n_tokens; row++) write_row(args, row);
}

void lmd_ref_write_kv(const lmd_cuda_write_kv_args *args, lmd_cuda_queue *queue) {
    lmd_ref_enqueue(queue, run_write_kv, args, sizeof *args, "write_kv");
}

/* ---- attention ---- */

/* What an attention row has seen so far: softmax's largest score and its sums relative to it.
 */
typedef struct seen {
    double largest, sum;
    double weighted[MAX_HEAD_DIM]; /* [head_dim] sum of probability * value */
} seen;

static void see(seen *self, double score, const float *value, int32_t head_dim) {
    if (score > self->largest) {
        const double shrink = exp(self->largest - score); /* 0 for the first */
        self->sum *= shrink;
        for (int32_t d = 0; d < head_dim; d++) self->weighted[d] *= shrink;
        self->largest = score;
    }
    const double probability = exp(score - self->largest);
    self->sum += probability;
    for (int32_t d = 0; d < head_dim; d++) self->weighted[d] += probability * value[d];
}

/* Attends with one head of one token over context_len positions. */
static void attend(const lmd_cuda_attention_args *args, int32_t seq, int32_t row, int32_t head,
                   int32_t context_len) {
    const lmd_cuda_step *step = &args->step;
    const int32_t head_dim = args->kv.format.head_dim, block_len = args->kv.format.block_len;
    const int32_t kv_head = head / (args->n_head / args->kv.n_kv_head);
    const uint16_t *q = args->q + (int64_t)row * args->q_stride + head * head_dim;
    uint16_t *out = args->out + (int64_t)row * args->out_stride + head * head_dim;
    seen all = {.largest = -INFINITY};
    for (int32_t position = 0; position < context_len; position++) {
        const int32_t block_id =
            step->block_ids[step->block_offsets[seq] + position / block_len];
        const cached keys = cached_at(&args->kv, KEYS, block_id, kv_head);
        const cached values = cached_at(&args->kv, VALUES, block_id, kv_head);
        float key[MAX_HEAD_DIM], value[MAX_HEAD_DIM];
        load_row(&keys, position % block_len, key);
        load_row(&values, position % block_len, value);
        double score = 0.0;
        for (int32_t d = 0; d < head_dim; d++)
            score += lmd_half_to_float(q[d]) * (double)key[d];
        see(&all, score / sqrt(head_dim), value, head_dim);
    }
    for (int32_t d = 0; d < head_dim; d++)
        out[d] = lmd_float_to_half(context_len ? (float)(all.weighted[d] / all.sum) : 0.0f);
}

static void attend_units(const lmd_cuda_attention_args *args, const lmd_cuda_unit *units,
                         int32_t n_units, int32_t rows_per_unit) {
    const lmd_cuda_step *step = &args->step;
    const int32_t group = args->n_head / args->kv.n_kv_head;
    for (int32_t u = 0; u < n_units; u++) {
        const int32_t seq = units[u].seq, first_row = step->token_offsets[seq];
        const int32_t n_rows = (step->token_offsets[seq + 1] - first_row) * group;
        const int32_t end = units[u].first + rows_per_unit;
        for (int32_t i = units[u].first; i < end && i < n_rows; i++) {
            const int32_t token = i / group;
            const int32_t context_len =
                step->slots[seq] < 0 ? 0 : step->history_lens[seq] + token + 1;
            for (int32_t kv_head = 0; kv_head < args->kv.n_kv_head; kv_head++)
                attend(args, seq, first_row + token, kv_head * group + i % group, context_len);
        }
    }
}

static void run_attention(void *data) {
    const lmd_cuda_attention_args *args = data;
    attend_units(args, args->narrow, args->n_narrow, LMD_NARROW_ROWS);
    attend_units(args, args->wide, args->n_wide, LMD_WIDE_ROWS);
}

void lmd_ref_attention(const lmd_cuda_attention_args *args, lmd_cuda_queue *queue) {
    lmd_ref_enqueue(queue, run_attention, args, sizeof *args, "attention");
}
