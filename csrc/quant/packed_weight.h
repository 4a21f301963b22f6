/* Weights packed into 32-bit words, AWQ (gemm), GPTQ and compressed-tensors (pack-quantized),
 * or stored as bytes, compressed-tensors (int-quantized). Owns: which tensors a packed matrix
 * has, and how their values lie. Must not know: who checks them, what they are decoded into. */
#ifndef LMD_QUANT_PACKED_WEIGHT_H
#define LMD_QUANT_PACKED_WEIGHT_H

#include <stdbool.h>
#include <string.h>

#include "quant/weight_codec.h"

/* A matrix of N output rows and K columns in groups of g columns, which share a scale and a
 * zero. Codes follow one another from the lowest bits of a word on; those of 3 bits go on in
 * the next word, 32 codes in 3 words, and the last word may have bits to spare:
 *   AWQ          qweight [K][N/8]         rows 0 2 4 6 1 3 5 7 of a run of 8
 *                qzeros  [K/g][N/8]       in the same order
 *   GPTQ         qweight [K*bits/32][N]   columns in order
 *                qzeros  [K/g][N*bits/32] rows in order, each zero stored minus 1, wrapping
 *   GPTQ_BORROW  the same, but 1 was taken off all zeros of a word at once, as from one number:
 *                a zero of 0 borrows from the next one (gptqmodel writes this; its zeros of 3
 *                bits are GPTQ's)
 *   GPTQ_V2      the same, zeros as they are
 *   COMPRESSED   qweight [N][K*bits/32]   columns in order
 *                qzeros  [N*bits/32][K/g] rows in order
 *                or, of 8 bits, both I8, less 128: qweight [N][K], qzeros [N][K/g]
 * and scales [K/g][N], of COMPRESSED [N][K/g]. value = scale * (code - zero). Words are I32,
 * scales F16, BF16 or F32. Without qzeros every zero is the middle of the codes. g_idx [K],
 * where there is one, says the group of each column. */
typedef enum lmd_packing {
    LMD_PACKING_NONE, /* no packed tensors */
    LMD_PACKING_AWQ,
    LMD_PACKING_GPTQ,
    LMD_PACKING_GPTQ_BORROW,
    LMD_PACKING_GPTQ_V2,
    LMD_PACKING_COMPRESSED,
    LMD_PACKING_COUNT
} lmd_packing;

typedef struct lmd_packed_weight {
    lmd_packing packing;
    const lmd_tensor_view *qweight, *scales;
    const lmd_tensor_view *qzeros, *g_idx; /* or NULL */
    /* Set by the caller from lmd_packed_order where g_idx is left and there are groups: column
     * k of the canonical form is column order[k] of the tensors. NULL: columns are in order. */
    const int32_t *order;
    /* Set by lmd_packed_check: */
    int32_t bits;       /* 3, 4 or 8 */
    int32_t group_size; /* g */
    int32_t cut;        /* columns of a group in the canonical form: g, or what divides it */
    bool has_groups;    /* the canonical form has groups; if not, it is fp32 values */
    int32_t zero_row;   /* row 0 is this row of qzeros: not 0 in windows of 3 bits alone */
} lmd_packed_weight;

enum {
    LMD_PACKED_ROWS = 8,   /* output rows that are decoded together: a run of AWQ's */
    LMD_PACKED_COLS = 128, /* most columns of a group in the canonical form */
};

static inline bool lmd_packed_is_awq(const lmd_packed_weight *self) {
    return self->packing == LMD_PACKING_AWQ;
}

/* Whether the tensors' first dimension is the output rows, or words of them. */
static inline bool lmd_packed_by_rows(const lmd_packed_weight *self) {
    return self->packing == LMD_PACKING_COMPRESSED;
}

/* Whether codes and zeros are bytes, not words. */
static inline bool lmd_packed_is_bytes(const lmd_packed_weight *self) {
    return self->qweight->dtype == LMD_I8;
}

/* The zero of a weight that has no zeros. */
static inline int32_t lmd_packed_middle(const lmd_packed_weight *self) {
    return 1 << (self->bits - 1);
}

/* The group of a column of the tensors, by g_idx where there is one. */
static inline int32_t lmd_packed_group_of(const lmd_packed_weight *self, int32_t col) {
    if (!self->g_idx) return col / self->group_size;
    int32_t group;
    memcpy(&group, (const uint8_t *)self->g_idx->data + (int64_t)col * 4, sizeof group);
    return group;
}

#endif
