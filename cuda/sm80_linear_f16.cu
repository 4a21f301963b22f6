/* The linear of the row "sm80" for weights that are halves in rows: see sm80_linear.h.
 * Owns: the order of columns. A sum over columns may take them in any order that weights and x
 * share. The instruction wants of lane t (of four) columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of
 * 16; it gets instead columns 8 t + 4 s to 8 t + 4 s + 3 of 32, in steps s = 0 and 1, so that
 * each lane loads 16 bytes of a row at once. */
#include "sm80_linear.h"

/* A form, as sm80_linear_codes.cu says. */
struct form_f16 {
    static constexpr int LOADS = 4; /* [half slice][row g, row g + 8] */
    static constexpr int SLICE_BYTES = LMD_TILE_COLS * 2;
    static constexpr bool HAS_GROUPS = false, IN_ROWS = true;

    static __device__ __forceinline__ const uint8_t *find(const lmd_linear_job *job,
                                                          int32_t tile) {
        const int32_t lane = (int32_t)threadIdx.x % 32;
        const int64_t row = tile * LMD_TILE_ROWS + lane / 4;
        const int64_t at = row * job->n_slices * LMD_TILE_COLS + lane % 4 * 8;
        return job->args.weight.codes + at * sizeof(uint16_t);
    }
    static __device__ __forceinline__ void load(uint32_t words[16], const lmd_linear_job *job,
                                                const uint8_t *from) {
        const uint16_t *low = (const uint16_t *)from;
        const uint16_t *high = low + (int64_t)job->n_slices * (8 * LMD_TILE_COLS);
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const uint4 v = load16((i % 2 ? high : low) + i / 2 * 32);
            words[i * 4] = v.x, words[i * 4 + 1] = v.y;
            words[i * 4 + 2] = v.z, words[i * 4 + 3] = v.w;
        }
    }
    static __device__ __forceinline__ void decode(uint32_t a[4], const uint32_t words[16],
                                                  int step, uint32_t, uint32_t) {
        const uint32_t *low = words + step / 2 * 8 + step % 2 * 2, *high = low + 4;
        a[0] = low[0], a[1] = high[0], a[2] = low[1], a[3] = high[1];
    }
};

void lmd_sm80_linear_halves(const lmd_linear_job *job, lmd_linear_shape_id shape,
                            lmd_cuda_queue *queue) {
    linear_launch<form_f16>(job, shape, queue);
}

cudaError_t lmd_sm80_linear_halves_prepare(void) { return linear_prepare<form_f16>(); }
