/* Every word of dev.h, and what else kernels use of CUDA, on fixed inputs: each case is a
 * kernel (check_dev.cu), inputs and what plain C says of them (check_dev_reference.c). The
 * program (check_dev.c) runs on the emulator and on a GPU, which must agree. Only for tests. */
#ifndef TESTS_CUDA_CHECK_DEV_H
#define TESTS_CUDA_CHECK_DEV_H

#include "cuda_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Inputs and outputs are words of 32 bits. */
typedef enum word_kind {
    BITS,   /* must be equal */
    HALVES, /* two in a word; must be equal, but all NaNs are the same */
    FLOATS  /* |difference| <= tolerance * max(1, |value|); all NaNs are the same */
} word_kind;

typedef struct dev_case {
    const char *name;
    word_kind kind;
    double tolerance; /* FLOATS */
    int32_t n_in, n_out;
    int32_t min_arch; /* 0: any */
    void (*fill)(uint32_t *in);
    void (*want)(const uint32_t *in, uint32_t *out);
    void (*run)(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
} dev_case;

extern const dev_case dev_cases[];
extern const int32_t n_dev_cases;

/* Sizes that kernels and references share. */
enum {
    N_HALF_MATH = 1024, /* words of each operand */
    N_CONVERT = 1024,
    N_BIT_MATH = 256,
    N_APPROX = 512,
    N_ROWS = 64,             /* rows of 16 bytes that ldmatrix chooses from */
    N_MMA = 4,               /* products */
    MMA_IN = 128 + 64 + 128, /* words of a product: a, b (halves) and c (fp32) */
    N_SHUFFLES = 12,
    N_VOTES = 9,
    N_ATOMICS = 8,
    N_COPY_THREADS = 64,
    N_BULK_LINES = 4,
    BULK_LINE = 128 /* words */
};

void run_half_math(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_to_half(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_to_float(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_bit_math(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_exp2(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_approx(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_ldmatrix(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_mma(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_shuffles(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_votes(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_barriers(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_atomics(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_moves(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_copies(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_bulk_copies(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);
void run_geometry(lmd_cuda_queue *queue, const uint32_t *in, uint32_t *out);

#ifdef __cplusplus
}
#endif

#endif
