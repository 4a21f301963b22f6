/* The row "ref" of the table of launchers: plain C that says what each launcher computes.
 * Owns: how a host function gets its arguments, and what one weight is. Kernels here are host
 * functions in the stream's order, and every pointer is the host's. Never optimised: sums are
 * in double, and what they read is what cuda_layout.h says. Must not know: the other rows.
 * Launchers: the queue's thread; what they enqueue: a thread of CUDA's. */
#ifndef LMD_CUDA_REF_H
#define LMD_CUDA_REF_H

#include "cuda_kernels.h"

/* Enqueues run(a copy of args); the copy lies in the queue's args, and lives until they are
 * emptied. */
void lmd_ref_enqueue(lmd_cuda_queue *queue, void (*run)(void *args), const void *args,
                     size_t n_bytes, const char *name);

/* Reads a code of a matrix of codes. */
int32_t lmd_ref_code(const lmd_cuda_matrix *matrix, int32_t row, int32_t col);
/* Reads a weight as linear multiplies it: a half, without its row's scale. */
float lmd_ref_weight(const lmd_cuda_matrix *matrix, int32_t row, int32_t col);

void lmd_ref_begin(const lmd_cuda_begin_args *args, lmd_cuda_queue *queue);
void lmd_ref_embed(const lmd_cuda_embed_args *args, lmd_cuda_queue *queue);
void lmd_ref_norm(const lmd_cuda_norm_args *args, lmd_cuda_queue *queue);
void lmd_ref_reorder(const lmd_cuda_reorder_args *args, lmd_cuda_queue *queue);
void lmd_ref_linear(const lmd_cuda_linear_args *args, lmd_cuda_queue *queue);
void lmd_ref_write_kv(const lmd_cuda_write_kv_args *args, lmd_cuda_queue *queue);
void lmd_ref_attention(const lmd_cuda_attention_args *args, lmd_cuda_queue *queue);
void lmd_ref_sample(const lmd_cuda_sample_args *args, lmd_cuda_queue *queue);

#endif
