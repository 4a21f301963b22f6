/* Groups of weights to codes without data: see data_free.h. */
#include "quant/data_free.h"

#define INLINE static inline __attribute__((always_inline))
enum { LANES = 4 }; /* what every machine's vectors have */
#include "quant/data_free_search.h"

float lmd_row_square(const float *weights, int32_t n_cols) {
    chains squares, probes; /* probes become NaN with what is not finite */
    for (int32_t lane = 0; lane < LMD_GRID_UNIT; lane += LANES) {
        lanes square = {0}, probe = {0};
        for (int32_t k = lane; k < n_cols; k += LMD_GRID_UNIT) {
            const lanes w = load_lanes(weights + k);
            square += w * w;
            probe += w * 0.0f;
        }
        store_lanes(squares.at + lane, square);
        store_lanes(probes.at + lane, probe);
    }
    return chains_sum(squares) / (float)n_cols + chains_sum(probes);
}

lmd_grid lmd_data_free_codes(const float *weights, int32_t n, float row_square,
                             lmd_grid_form form, uint8_t *codes) {
    return data_free_codes(weights, n, row_square, form, codes);
}
