/* The kernel suite: each launcher of a row of the table against the row "ref", on random
 * inputs. The same program runs on the emulator and on a GPU. A case makes arrays that exist
 * twice, on the host for ref and on the device, launches both, and compares. One thread. */
#ifndef TESTS_CUDA_SUITE_H
#define TESTS_CUDA_SUITE_H

#include "cuda_kernels.h"

/* An array of a case, twice. Both copies have guard bytes behind them, which the comparison
 * checks. */
typedef struct pair {
    void *host, *device;
    size_t n_bytes;
} pair;

typedef struct suite {
    const lmd_cuda_kernels *kernels; /* the row under test */
    lmd_cuda_queue host_queue, device_queue;
    uint64_t random; /* state */
    int32_t n_passed, n_failed;
} suite;

/* Makes an array of the current case; its bytes are 0xff, NaNs in any float type. */
pair suite_array(suite *self, size_t n_bytes);
/* Copies the host's bytes to the device. */
void suite_upload(suite *self, pair array);
/* Waits for both queues, and fails the case if one has an error. */
void suite_run(suite *self, const char *name);
/* Compares elements [0, n) of an array after suite_run; the largest |difference| must be at
 * most tolerance * the largest |value| of ref. A NaN on one side alone fails. */
void suite_compare_half(suite *self, const char *name, pair array, size_t n, double tolerance);
void suite_compare_float(suite *self, const char *name, pair array, size_t n, double tolerance);
void suite_compare_bytes(suite *self, const char *name, pair array, size_t n_bytes);
/* Ends a case: prints its line if it failed, and frees its arrays. */
void suite_end_case(suite *self, const char *name);

uint32_t suite_bits(suite *self);            /* 32 random bits */
int32_t suite_below(suite *self, int32_t n); /* 0 to n - 1 */
float suite_uniform(suite *self, float lo, float hi);
float suite_normal(suite *self); /* mean 0, variance 1 */

/* One file for each launcher or group of launchers. */
void check_rows(suite *self); /* begin, embed, norm, reorder */
void check_linear(suite *self);
void check_attention(suite *self); /* write_kv, attention */
void check_sample(suite *self);

#endif
