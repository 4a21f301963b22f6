/* Measuring read bandwidth: see bandwidth.h. */
#include "base/bandwidth.h"

#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

enum { SLICE = 256 << 10 /* bytes of an item */, MIN_PASSES = 3 };

typedef uint64_t lanes __attribute__((vector_size(64)));

typedef struct sweep {
    uint8_t *bytes;                 /* [n_bytes] whole slices */
    uint64_t sums[LMD_MAX_THREADS]; /* of what was read, so that no read is optimised away */
} sweep;

static void write_slice(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                        bool is_first) {
    sweep *self = arg;
    (void)stage, (void)thread_idx, (void)is_first;
    memset(self->bytes + (size_t)item * SLICE, 1, SLICE);
}

static void read_slice(void *arg, const lmd_stage *stage, int32_t item, int32_t thread_idx,
                       bool is_first) {
    sweep *self = arg;
    (void)stage, (void)is_first;
    const lanes *from = (const lanes *)(const void *)(self->bytes + (size_t)item * SLICE);
    lanes sums[4] = {{0}};
    for (size_t i = 0; i < SLICE / sizeof *from; i += 4)
        for (size_t j = 0; j < 4; j++) sums[j] += from[i + j];
    sums[0] += sums[1] + sums[2] + sums[3];
    for (int32_t j = 0; j < 8; j++) self->sums[thread_idx] += sums[0][j];
}

static int64_t timed(lmd_threads *threads, sweep *self, int32_t n_slices,
                     void (*run)(void *, const lmd_stage *, int32_t, int32_t, bool)) {
    lmd_stage stage = {.run = run, .n_items = n_slices};
    int64_t start = lmd_now_ns();
    lmd_threads_run(threads, &stage, sizeof stage, 1, self);
    return lmd_now_ns() - start;
}

lmd_status lmd_read_bandwidth(lmd_threads *threads, size_t n_bytes, double seconds,
                              double *bytes_per_second, lmd_err *err) {
    const int32_t n_slices = (int32_t)((n_bytes + SLICE - 1) / SLICE);
    const size_t used = (size_t)n_slices * SLICE;
    sweep *self = lmd_calloc(1, sizeof *self);
    uint8_t *bytes = self ? lmd_alloc_large(used) : NULL;
    if (!bytes) {
        lmd_free(self);
        return lmd_no_memory(err, "a buffer of %zu bytes", used);
    }
    self->bytes = bytes;
    timed(threads, self, n_slices,
          write_slice); /* a page never written has no memory to read */
    const int64_t end = lmd_now_ns() + (int64_t)(seconds * 1e9);
    int64_t best = INT64_MAX;
    for (int32_t pass = 0; pass < MIN_PASSES || lmd_now_ns() < end; pass++) {
        int64_t n_ns = timed(threads, self, n_slices, read_slice);
        if (n_ns < best) best = n_ns;
    }
    *bytes_per_second = 1e9 * (double)used / (double)(best > 0 ? best : 1);
    lmd_free_large(bytes, used);
    lmd_free(self);
    return LMD_OK;
}
