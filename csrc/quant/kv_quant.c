/* Quantisation of keys and values: see kv_quant.h. */
#include "quant/kv_quant.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/half.h"

enum { HALF_NAN = 0x7e00, CHAINS = 8 };

/* Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, ties to even. */
#define ROUND_MAGIC 12582912.0f

typedef struct range {
    float min, max;
    bool is_finite;
} range;

/* In chains that the compiler keeps in a vector: a minimum or maximum does not depend on the
 * order. */
static range range_of(const float *x, int32_t n) {
    float min[CHAINS], max[CHAINS], probe[CHAINS] = {0};
    for (int32_t j = 0; j < CHAINS; j++) min[j] = max[j] = x[j < n ? j : 0];
    int32_t i = 0;
    for (; i + CHAINS <= n; i += CHAINS)
        for (int32_t j = 0; j < CHAINS; j++) {
            min[j] = x[i + j] < min[j] ? x[i + j] : min[j];
            max[j] = x[i + j] > max[j] ? x[i + j] : max[j];
            probe[j] += x[i + j] * 0.0f; /* becomes NaN where x is not finite, and stays so */
        }
    for (; i < n; i++) {
        min[0] = x[i] < min[0] ? x[i] : min[0];
        max[0] = x[i] > max[0] ? x[i] : max[0];
        probe[0] += x[i] * 0.0f;
    }
    range found = {min[0], max[0], true};
    for (int32_t j = 0; j < CHAINS; j++) {
        found.min = min[j] < found.min ? min[j] : found.min;
        found.max = max[j] > found.max ? max[j] : found.max;
        found.is_finite = found.is_finite && probe[j] == 0.0f;
    }
    return found;
}

static bool half_is_finite(uint16_t h) { return (h & 0x7c00u) != 0x7c00u; }

lmd_kv_params lmd_kv_encode(const float *x, int32_t n, int32_t bits, uint8_t *codes) {
    const float most = (float)((1 << bits) - 1);
    const range found = range_of(x, n);
    const lmd_kv_params params = {lmd_float_to_half((found.max - found.min) / most),
                                  lmd_float_to_half(found.min)};
    if (!found.is_finite || !half_is_finite(params.scale) || !half_is_finite(params.min)) {
        memset(codes, 0, (size_t)n);
        return (lmd_kv_params){HALF_NAN, HALF_NAN};
    }
    const float scale = lmd_half_to_float(params.scale), min = lmd_half_to_float(params.min);
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (int32_t i = 0; i < n; i++) {
        float at = (x[i] - min) * inverse;
        at = at > 0.0f ? at : 0.0f;
        at = at < most ? at : most;
        codes[i] = (uint8_t)(int32_t)(at + ROUND_MAGIC - ROUND_MAGIC);
    }
    return params;
}

void lmd_kv_decode(const uint8_t *codes, int32_t n, lmd_kv_params params, float *x) {
    const float scale = lmd_half_to_float(params.scale), min = lmd_half_to_float(params.min);
    for (int32_t i = 0; i < n; i++) x[i] = fmaf(scale, (float)codes[i], min);
}
