/* Where values lie in device memory: weights and KV blocks. The one definition, for packing,
 * for the reference kernels and for kernels that read single values.
 * Owns: formulas, no memory. Must not know: streams, plans. Pure functions; C11, and C++ under
 * nvcc. */
#ifndef LMD_CUDA_LAYOUT_H
#define LMD_CUDA_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define LMD_LAYOUT_FN static __host__ __device__ __forceinline__
#else
#define LMD_LAYOUT_FN static inline
#endif

/* ---- weights ----
 *
 * A weight multiplies as the A operand of mma.m16n8k16: 16 of its rows are a tile. Rows are
 * padded to LMD_TILE_ROWS and columns to LMD_TILE_COLS, with weights that are exactly 0.
 *
 * Codes lie as lanes hold them: [rows / 16][cols / tile_cols][32 lanes][16 bytes], where
 * tile_cols is 64 for 4 bits and 32 for 8. Lane l of a warp has g = l / 4 and t = l % 4. Of a
 * step of 16 columns it holds 8 values, element e being row g + 8 * (e / 2 % 2) and column
 * 2 * t + e % 2 + 8 * (e / 4): the registers a0 to a3 of the instruction.
 *   4 bits: step k of a tile is the lane's word k, element e in nibble {0,4,1,5,2,6,3,7}[e]: so
 *           a mask of 0x000f000f, shifted by 0, 4, 8 or 12, leaves a register's two codes.
 *   8 bits: step k of a tile is the lane's bytes 8 * k to 8 * k + 7, element e in byte e.
 * Each tile row has, for each group of columns, a pair of halves {scale, offset}:
 *   [rows / 16][n_groups][16] of lmd_cuda_group.
 *   ZERO: value = (code - zero) * scale, and the offset holds 1024 + zero (exact as a half)
 *   MIN:  value = code * scale + min, and the offset is min
 * Either is rounded once, to a half. Signed codes are stored as unsigned ones with a zero.
 *
 * Float weights are halves in rows, [padded rows][padded cols]: cuBLAS reads that too. A row
 * whose values a half cannot hold is divided by a power of two, its row_scale.
 *
 * Gate and up are one matrix: rows 0 to 7 of a tile are of gate, rows 8 to 15 the same rows of
 * up, so that one thread has both. */

enum {
    LMD_TILE_ROWS = 16,
    LMD_TILE_COLS = 64,
    LMD_HALF_TILE = 8 /* rows of gate, or of up, in a tile */
};

typedef enum lmd_cuda_form {
    LMD_FORM_F16,     /* halves in rows */
    LMD_FORM_U4_ZERO, /* 4-bit codes */
    LMD_FORM_U4_MIN,
    LMD_FORM_U8_ZERO, /* 8-bit codes */
    LMD_FORM_U8_MIN,
    LMD_FORM_COUNT
} lmd_cuda_form;

/* Halves, as bits. */
typedef struct lmd_cuda_group {
    uint16_t scale, offset;
} lmd_cuda_group;

LMD_LAYOUT_FN bool lmd_form_is_codes(lmd_cuda_form form) { return form != LMD_FORM_F16; }

LMD_LAYOUT_FN int32_t lmd_form_bits(lmd_cuda_form form) {
    return form == LMD_FORM_F16 ? 16 : form <= LMD_FORM_U4_MIN ? 4 : 8;
}

LMD_LAYOUT_FN int32_t lmd_pad_rows(int32_t n) {
    return (n + LMD_TILE_ROWS - 1) / LMD_TILE_ROWS * LMD_TILE_ROWS;
}

LMD_LAYOUT_FN int32_t lmd_pad_cols(int32_t n) {
    return (n + LMD_TILE_COLS - 1) / LMD_TILE_COLS * LMD_TILE_COLS;
}

/* Where a code is: the byte, and its shift within the byte. */
typedef struct lmd_code_place {
    int64_t byte;
    int32_t shift;
} lmd_code_place;

/* padded_cols: of the matrix. */
LMD_LAYOUT_FN lmd_code_place lmd_code_at(lmd_cuda_form form, int32_t padded_cols, int32_t row,
                                         int32_t col) {
    const int32_t r = row % 16, c = col % 16;
    const int32_t lane = r % 8 * 4 + c % 8 / 2;
    const int32_t e = c % 2 + r / 8 * 2 + c / 8 * 4;
    const int32_t tile_cols = lmd_form_bits(form) == 4 ? 64 : 32;
    const int64_t tile = (int64_t)(row / 16) * (padded_cols / tile_cols) + col / tile_cols;
    const int32_t step = col % tile_cols / 16;
    const int64_t lane_byte = (tile * 32 + lane) * 16;
    lmd_code_place place;
    if (tile_cols == 64) {
        const int32_t nibble = e % 2 * 4 + e / 2;
        place.byte = lane_byte + step * 4 + nibble / 2;
        place.shift = nibble % 2 * 4;
    } else {
        place.byte = lane_byte + step * 8 + e;
        place.shift = 0;
    }
    return place;
}

/* The index of a row's pair for a group. */
LMD_LAYOUT_FN int64_t lmd_group_at(int32_t n_groups, int32_t row, int32_t group) {
    return ((int64_t)(row / 16) * n_groups + group) * 16 + row % 16;
}

/* The row of the packed matrix that holds row i of gate (part 0) or of up (part 1). */
LMD_LAYOUT_FN int32_t lmd_gated_row(int32_t part, int32_t i) {
    return i / LMD_HALF_TILE * LMD_TILE_ROWS + part * LMD_HALF_TILE + i % LMD_HALF_TILE;
}

/* ---- KV blocks ----
 *
 * A pool is [block][layer][kv_head] of heads; a head's part of a block is
 *   K codes | V codes | K params | V params
 * K codes and V codes are [block_len][head_dim] of k_bits and v_bits (16: halves; 8: bytes; 4:
 * nibbles, the even one low). Where they have fewer than 16 bits, params are [block_len] pairs
 * {scale, min} of halves (quant/kv_quant.h).
 *
 * Codes lie in lines of 128 bytes. A row of 256 or 512 bytes is cut into slabs of 128, and all
 * rows of one slab come before those of the next; shorter rows share a line. In line i the
 * 16-byte chunk c is stored at chunk c ^ (i % 8), so that the eight rows that ldmatrix reads at
 * once lie in different banks. This is also how TMA and wgmma swizzle 128 bytes. Rows that
 * neither fill lines nor share one evenly (head_dim 80) lie one after another, as they are. */

typedef struct lmd_cuda_kv_format {
    int32_t block_len, head_dim, k_bits, v_bits;
} lmd_cuda_kv_format;

enum { LMD_KV_LINE = 128, LMD_KV_CHUNK = 16 }; /* bytes */

LMD_LAYOUT_FN int32_t lmd_kv_row_bytes(int32_t head_dim, int32_t bits) {
    return head_dim * bits / 8;
}

LMD_LAYOUT_FN int32_t lmd_kv_codes_bytes(const lmd_cuda_kv_format *format, int32_t bits) {
    return format->block_len * lmd_kv_row_bytes(format->head_dim, bits);
}

LMD_LAYOUT_FN int32_t lmd_kv_params_bytes(const lmd_cuda_kv_format *format, int32_t bits) {
    return bits < 16 ? format->block_len * 4 : 0;
}

/* Offsets within a head's part of a block. */
LMD_LAYOUT_FN int32_t lmd_kv_v_codes(const lmd_cuda_kv_format *format) {
    return lmd_kv_codes_bytes(format, format->k_bits);
}

LMD_LAYOUT_FN int32_t lmd_kv_k_params(const lmd_cuda_kv_format *format) {
    return lmd_kv_v_codes(format) + lmd_kv_codes_bytes(format, format->v_bits);
}

LMD_LAYOUT_FN int32_t lmd_kv_v_params(const lmd_cuda_kv_format *format) {
    return lmd_kv_k_params(format) + lmd_kv_params_bytes(format, format->k_bits);
}

LMD_LAYOUT_FN int32_t lmd_kv_part_bytes(const lmd_cuda_kv_format *format) {
    return lmd_kv_v_params(format) + lmd_kv_params_bytes(format, format->v_bits);
}

/* Where byte `byte` of a row lies among n_rows rows of row_bytes. */
LMD_LAYOUT_FN int32_t lmd_kv_byte_at(int32_t n_rows, int32_t row_bytes, int32_t row,
                                     int32_t byte) {
    int32_t line;
    if (row_bytes % LMD_KV_LINE && LMD_KV_LINE % row_bytes) return row * row_bytes + byte;
    if (row_bytes >= LMD_KV_LINE) {
        line = byte / LMD_KV_LINE * n_rows + row;
        byte %= LMD_KV_LINE;
    } else {
        const int32_t rows_per_line = LMD_KV_LINE / row_bytes;
        line = row / rows_per_line;
        byte += row % rows_per_line * row_bytes;
    }
    return line * LMD_KV_LINE + (byte ^ line % 8 * LMD_KV_CHUNK);
}

#endif
