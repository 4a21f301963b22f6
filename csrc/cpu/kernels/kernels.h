/* The table of CPU kernels and the layouts they share: what the rest of csrc/cpu/ knows of the
 * kernels.
 * Every kernel is given pointers, sizes and strides. Its result for one row is one function of
 * that row's inputs: how many rows are computed together, and by which thread, never changes a
 * bit. Owns no memory. Must not know: models, plans, threads. Any thread. */
#ifndef LMD_CPU_KERNELS_KERNELS_H
#define LMD_CPU_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "quant/data_free.h"
#include "quant/grid.h"
#include "quant/matrix_kernels.h"
#include "quant/weight_codec.h"

/* Prefetches a line that is read soon, into the second cache. In the first it would evict what
 * is being read, and occupy the few miss buffers that the loads themselves need. */
static inline void lmd_prefetch(const void *at) { __builtin_prefetch(at, 0, 2); }

/* Weights lie in panels of 16 output rows, so that one vector holds the same column of 16 (or
 * 8, or 4) rows.
 *   float  [n_cols][16] elements of float_dtype
 *   codes  for each group: 16 half scales; 16 half offsets, unless LMD_OFFSET_NONE; then
 *          lines of 64 bytes:
 *     U4      a line holds 8 columns; byte 4n+j is w[n][k+j] | w[n][k+4+j] << 4
 *     I8, U8  a line holds 4 columns; byte 4n+j is w[n][k+j]; I8 is stored plus 128
 * Rows after the matrix's last are zero, with zero scales. */
enum { LMD_PANEL_ROWS = 16, LMD_I8_BIAS = 128 };

static inline bool lmd_kind_is_nibbles(lmd_weight_kind kind) {
    return kind == LMD_WEIGHT_U4 || kind == LMD_WEIGHT_I4;
}

/* The number to subtract from every stored code of a signed kind. */
static inline int32_t lmd_kind_bias(lmd_weight_kind kind) {
    return kind == LMD_WEIGHT_I8 ? LMD_I8_BIAS : kind == LMD_WEIGHT_I4 ? LMD_I4_BIAS : 0;
}

/* Activations of a step: in fp32 for float weights, and for codes quantised by group, as
 * integers of |q| <= LMD_ACT16_MAX (W4A16) or LMD_ACT8_MAX (fast activations).
 * Quantised rows lie in tiles, which are the rows that a kernel computes together; tile t holds
 * rows [n_rows * t / n_tiles, n_rows * (t + 1) / n_tiles). How a tile is laid out inside is the
 * secret of a table's quantize and panel. q has n_cols * 2 bytes for each row, the other arrays
 * one value for each group of a row. */
enum { LMD_ACT16_MAX = 32639, LMD_ACT8_MAX = 127 };

typedef struct lmd_acts {
    float *x;           /* [n_rows, n_cols] */
    uint8_t *q;         /* the integers; aligned to 64 */
    float *scales;      /* of groups; NaN for a group that held a NaN or an infinity */
    int32_t *sums;      /* of q over a group */
    float *scaled_sums; /* scale * sum */
    int32_t n_rows, n_cols, group_size;
    int32_t bits;         /* 16 or 8 */
    int32_t n_tiles;      /* ceil(n_rows / tile_rows(bits, n_rows)) */
    const int32_t *order; /* [n_cols] column k of q is column order[k] of x; NULL: column k */
} lmd_acts;

static inline int32_t lmd_tile_begin(const lmd_acts *acts, int32_t tile) {
    return (int32_t)((int64_t)acts->n_rows * tile / acts->n_tiles);
}

static inline int32_t lmd_tile_of(const lmd_acts *acts, int32_t row) {
    return (int32_t)((((int64_t)row + 1) * acts->n_tiles - 1) / acts->n_rows);
}

/* How one KV head's part of a block is stored: its keys, then its values, each as elements (16
 * bits: halves; 32: floats) or as codes of kv_quant.h followed by their pairs. Keys lie in
 * panels of 16 positions, so that one vector holds the same column of 16 (or 8, or 4) keys:
 *   16, 32   keys [block_len / 16][head_dim][16], values [block_len][head_dim]
 *   8        keys [block_len / 16][head_dim / 4][16][4 columns],
 *            values [block_len / 4][head_dim][4 positions]
 *   4        keys [block_len / 16][head_dim / 8][16][8 columns],
 *            values [block_len / 4][head_dim / 2][4 positions][columns d, d + head_dim / 2]
 *   pairs    scales [block_len], mins [block_len], halves
 * Inside a 32-bit word the codes of elements 2i and 2i + 1 lie 16 bits apart, so that a shift
 * and a mask turn them into a pair of int16. A byte of 4-bit values holds two columns of one
 * position, so that writing a position changes no byte of another. */
typedef struct lmd_kv_format {
    int32_t block_len, head_dim;
    int32_t k_bits, v_bits; /* both 16, both 32, or each 8 or 4 */
} lmd_kv_format;

/* Bytes of a block's keys, or of its values, of one head: a multiple of 64. */
static inline int64_t lmd_kv_half_bytes(const lmd_kv_format *format, int32_t bits) {
    const int64_t pairs = bits < 16 ? format->block_len * 4 : 0;
    return (int64_t)format->block_len * format->head_dim * bits / 8 + pairs;
}

static inline int64_t lmd_kv_head_bytes(const lmd_kv_format *format) {
    return lmd_kv_half_bytes(format, format->k_bits) +
           lmd_kv_half_bytes(format, format->v_bits);
}

/* One tile of attention: n_rows query rows against the positions [begin, end) of one KV chunk.
 */
typedef struct lmd_attend_args {
    const float *q;          /* [n_rows][LMD_MAX_HEAD_DIM] already scaled by 1/sqrt(head_dim) */
    int32_t n_rows;          /* at most LMD_ATTEND_ROWS */
    const int32_t *row_ends; /* [n_rows] positions visible to each row: 1 .. */
    int32_t begin, end;      /* positions; begin is a multiple of 256 */
    int32_t last;            /* positions [end, last) are read next, so they are prefetched */
    const uint8_t *next;     /* the block that is read after those; NULL: none */
    lmd_kv_format format;
    const uint8_t *kv;        /* this layer's and KV head's part of the pool's block 0 */
    int64_t block_stride;     /* bytes from one block of the pool to the next */
    const int32_t *block_ids; /* block_ids[p / block_len] holds position p */
} lmd_attend_args;

enum {
    LMD_ATTEND_ROWS = 48,
    LMD_CHUNK_LEN = 256, /* positions; part of the numeric contract */
    LMD_MAX_HEAD_DIM = 256,
    LMD_KV_PADDING = 64 /* bytes after the last block of a pool that may be read */
};

/* The rows' state after a chunk, and scratch for computing it. o is not yet divided by sum. */
typedef struct lmd_attend_state {
    float max[LMD_ATTEND_ROWS], sum[LMD_ATTEND_ROWS];
    _Alignas(64) float o[LMD_ATTEND_ROWS][LMD_MAX_HEAD_DIM];
    _Alignas(64) float p[LMD_ATTEND_ROWS][LMD_CHUNK_LEN];
    _Alignas(64) float keys[LMD_CHUNK_LEN * LMD_MAX_HEAD_DIM]; /* a block in fp32 */
    _Alignas(64) float values[LMD_CHUNK_LEN * LMD_MAX_HEAD_DIM + LMD_KV_PADDING];
    /* For codes: queries as integers, made once for the chunk, and the softmax's weights, made
     * for each block. */
    _Alignas(64) int16_t q[LMD_ATTEND_ROWS][LMD_MAX_HEAD_DIM];
    _Alignas(64) int16_t weights[LMD_ATTEND_ROWS][LMD_CHUNK_LEN];
    float q_scale[LMD_ATTEND_ROWS], q_sum[LMD_ATTEND_ROWS]; /* q_sum: of scale * integer */
    float weight_scale[LMD_ATTEND_ROWS], offset[LMD_ATTEND_ROWS];
} lmd_attend_state;

typedef struct lmd_cpu_kernels {
    const char *isa;

    /* How many rows the panel kernel computes together, at most, in a step of n_rows rows of
     * `bits`. */
    int32_t (*tile_rows)(int32_t bits, int32_t n_rows);

    /* Bytes of scratch that `panel` needs for n_cols columns; they grow with n_cols. */
    size_t (*scratch_bytes)(int32_t n_cols);

    /* out[r][0..15] = one panel times row r, for the rows of n_tiles tiles from tile0 on. */
    void (*panel)(float *out, const uint8_t *panel, const lmd_weight_format *format,
                  const lmd_acts *acts, int32_t tile0, int32_t n_tiles, void *scratch);

    /* Quantises columns [col0, col0 + n) of one row; both are multiples of the group size. */
    void (*quantize)(const lmd_acts *acts, int32_t row, int32_t col0, int32_t n,
                     const float *x);

    /* out = x / rms(x) * weight; any n; out may be x. */
    void (*rms_norm)(float *out, const float *x, const float *weight, int32_t n, float eps);

    /* Rotates one head in place: pairs (i, i + head_dim / 2); cos_sin is [head_dim / 2][2]. */
    void (*rope)(float *x, const float *cos_sin, int32_t head_dim);

    /* out = silu(gate) * up; n is a multiple of 16; out may be gate. */
    void (*silu_mul)(float *out, const float *gate, const float *up, int32_t n);

    /* out = exp((x - max) / temperature), x <= max, with the bits of lmd_sample_exp
     * (backend/sampling.h). Returns the sum of lmd_sample_weight(out); n < 2^24. */
    uint64_t (*weigh)(float *out, const float *x, int32_t n, float max, float temperature);

    /* As lmd_grid_error (quant/grid.h), with its bits. */
    lmd_grid_error_fn grid_error;

    /* The quantizer's. */
    lmd_matrix_kernels matrix;

    /* As lmd_data_free_codes (quant/data_free.h), with its bits. */
    lmd_data_free_fn data_free_codes;

    /* Writes one position's key and value, [head_dim] each, into its head's part of a block. */
    void (*kv_write)(uint8_t *block, const float *key, const float *value,
                     int32_t position_in_block, const lmd_kv_format *format);

    /* Attends to one chunk: overwrites max, sum and o of the state's first n_rows rows. A row
     * to which no position of the chunk is visible gets sum 0. */
    void (*attend_chunk)(lmd_attend_state *state, const lmd_attend_args *args);

    /* Folds a chunk's partial (max, sum, o) into a running one, left to right. */
    void (*attend_fold)(float *max, float *sum, float *o, float chunk_max, float chunk_sum,
                        const float *chunk_o, int32_t head_dim);
} lmd_cpu_kernels;

extern const lmd_cpu_kernels lmd_cpu_kernels_ref;
#if defined(__x86_64__)
extern const lmd_cpu_kernels lmd_cpu_kernels_avx2;
extern const lmd_cpu_kernels lmd_cpu_kernels_avxvnni;
extern const lmd_cpu_kernels lmd_cpu_kernels_avx512;
extern const lmd_cpu_kernels lmd_cpu_kernels_amx;
#elif defined(__aarch64__)
extern const lmd_cpu_kernels lmd_cpu_kernels_neon;
extern const lmd_cpu_kernels lmd_cpu_kernels_neon_dotprod;
extern const lmd_cpu_kernels lmd_cpu_kernels_neon_i8mm;
#endif

#endif
