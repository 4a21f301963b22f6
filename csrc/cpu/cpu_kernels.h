/* The table of CPU kernels and the layouts they share.
 * Every kernel takes pointers, sizes and strides. Its result for one row is one function of
 * that row's inputs: how many rows come together, and which thread computes them, never changes
 * a bit. Must not know: models, plans, threads. */
#ifndef LMD_CPU_CPU_KERNELS_H
#define LMD_CPU_CPU_KERNELS_H

#include <stdint.h>

#include "quant/weight_codec.h"

/* Weights lie in panels of 16 output rows, so that one vector holds the same column of 16 (or
 * 8) rows. float   [n_cols][16] elements of float_dtype codes   for each group: 16 half scales,
 * 16 half offsets unless LMD_OFFSET_NONE, then lines of 64 B: U4: a line holds 8 columns; byte
 * 4n+j is w[n][k+j] | w[n][k+4+j] << 4 I8, U8: a line holds 4 columns; byte 4n+j is w[n][k+j]
 * Rows past the matrix's last are zero with zero scales. */
enum { LMD_PANEL_ROWS = 16 };

/* Bytes of one panel of n_cols columns. */
int64_t lmd_panel_bytes(const lmd_weight_format *format, int32_t n_cols);

/* Activations of a step, quantised per group as int16 with |q| <= 32639, in blocks of 8 columns
 * whose order is 0 2 4 6 1 3 5 7: the pairs that meet one 32-bit lane of a panel's line. */
enum { LMD_ACT_MAX = 32639 };

typedef struct lmd_acts {
    const float *x;      /* [n_rows, n_cols] for float weights */
    const int16_t *q;    /* [n_rows, n_cols] */
    const float *scales; /* [n_rows, n_groups]; NaN where the group held a NaN or an infinity */
    const int32_t *sums; /* [n_rows, n_groups] sum of q */
    int32_t n_cols, n_groups;
} lmd_acts;

/* One tile of attention: n_rows query rows against the positions [begin, end) of one KV chunk.
 */
typedef struct lmd_attend_args {
    const float *q;          /* [n_rows, q_stride] already scaled by 1/sqrt(head_dim) */
    int32_t q_stride;        /* floats */
    int32_t n_rows;          /* at most LMD_ATTEND_ROWS */
    const int32_t *row_ends; /* [n_rows] positions visible to each row: 1 .. */
    int32_t begin, end;      /* positions; begin is a multiple of 256 */
    int32_t block_len, head_dim;
    const uint8_t *kv;        /* the pool, at this layer and KV head of block 0 */
    int64_t block_stride;     /* bytes from one block of the pool to the next */
    const int32_t *block_ids; /* block_ids[p / block_len] holds position p */
    int32_t kv_bits;          /* 16 or 32 */
} lmd_attend_args;

/* What a row knows after some chunks: o is not yet divided by l. */
enum {
    LMD_ATTEND_ROWS = 32,
    LMD_CHUNK_LEN = 256, /* positions; part of the numeric contract */
    LMD_MAX_HEAD_DIM = 256
};

typedef struct lmd_attend_state {
    float max[LMD_ATTEND_ROWS], sum[LMD_ATTEND_ROWS];
    _Alignas(64) float o[LMD_ATTEND_ROWS][LMD_MAX_HEAD_DIM];
    _Alignas(64) float keys[LMD_CHUNK_LEN * LMD_MAX_HEAD_DIM];   /* a block in fp32 */
    _Alignas(64) float values[LMD_CHUNK_LEN * LMD_MAX_HEAD_DIM]; /* a block in fp32 */
    _Alignas(64) float p[LMD_ATTEND_ROWS][LMD_CHUNK_LEN];
} lmd_attend_state;

typedef struct lmd_cpu_kernels {
    const char *isa;

    /* out[r][0..15] = rows [row0, row0 + n_rows) of the activations times one panel. */
    void (*panel)(float *out /* [n_rows, 16] */, const uint8_t *panel,
                  const lmd_weight_format *format, const lmd_acts *acts, int32_t row0,
                  int32_t n_rows);

    /* Quantises one row: n_cols is a multiple of group_size, group_size of 32. */
    void (*quantize)(int16_t *q, float *scales, int32_t *sums, const float *x, int32_t n_cols,
                     int32_t group_size);

    /* out = x / rms(x) * weight; n need not be a multiple of anything; out may be x. */
    void (*rms_norm)(float *out, const float *x, const float *weight, int32_t n, float eps);

    /* Rotates one head in place: pairs (i, i + head_dim / 2); cos_sin is [head_dim / 2][2]. */
    void (*rope)(float *x, const float *cos_sin, int32_t head_dim);

    /* out = silu(gate) * up; out may be gate. */
    void (*silu_mul)(float *out, const float *gate, const float *up, int32_t n);

    /* Writes one position's key and value into its block. Keys lie in panels of 16 positions,
     * [block_len / 16][head_dim][16], values as [block_len][head_dim] behind them. */
    void (*kv_write)(void *block, const float *key, const float *value,
                     int32_t position_in_block, int32_t block_len, int32_t head_dim,
                     int32_t kv_bits);

    /* Attends to one chunk: overwrites max, sum and o of the state's first n_rows rows. A row
     * that sees nothing of the chunk gets sum 0. */
    void (*attend_chunk)(lmd_attend_state *state, const lmd_attend_args *args);

    /* Folds a chunk's partial (max, sum, o) into a running one, left to right. */
    void (*attend_fold)(float *max, float *sum, float *o, float chunk_max, float chunk_sum,
                        const float *chunk_o, int32_t head_dim);
} lmd_cpu_kernels;

extern const lmd_cpu_kernels lmd_cpu_kernels_ref;
#if defined(__x86_64__)
extern const lmd_cpu_kernels lmd_cpu_kernels_avx2;
#endif

#endif
