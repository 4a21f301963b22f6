/* RoPE tables: see rope.h. */
#define _GNU_SOURCE /* M_PI */
#include "model/rope.h"

#include <math.h>

static double clamp01(double x) { return x < 0.0 ? 0.0 : x > 1.0 ? 1.0 : x; }

/* The base of dynamic NTK, for sequences of up to n_positions. */
static double dynamic_theta(const lmd_model_config *config, int32_t n_positions) {
    const lmd_rope_config *rope = &config->rope;
    double max_position = rope->original_max_position, dim = config->head_dim;
    double len = n_positions > max_position ? n_positions : max_position;
    double stretch = rope->factor * len / max_position - (rope->factor - 1.0);
    return rope->theta * pow(stretch, dim / (dim - 2.0));
}

static double llama3_frequency(const lmd_rope_config *rope, double frequency) {
    double wavelength = 2.0 * M_PI / frequency, old_len = rope->original_max_position;
    if (wavelength > old_len / rope->low_freq_factor) return frequency / rope->factor;
    if (wavelength < old_len / rope->high_freq_factor) return frequency;
    double smooth = (old_len / wavelength - rope->low_freq_factor) /
                    (rope->high_freq_factor - rope->low_freq_factor);
    return (1.0 - smooth) * frequency / rope->factor + smooth * frequency;
}

/* The dimension that turns n_rotations times within the original context. */
static double yarn_dim(const lmd_model_config *config, double n_rotations) {
    const lmd_rope_config *rope = &config->rope;
    return config->head_dim * log(rope->original_max_position / (n_rotations * 2.0 * M_PI)) /
           (2.0 * log(rope->theta));
}

static double yarn_frequency(const lmd_model_config *config, int32_t i, double frequency) {
    const lmd_rope_config *rope = &config->rope;
    double low = yarn_dim(config, rope->beta_fast), high = yarn_dim(config, rope->beta_slow);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = low < 0.0 ? 0.0 : low;
    high = high > config->head_dim - 1 ? config->head_dim - 1 : high;
    if (low == high) high += 0.001;
    double interpolated = clamp01((i - low) / (high - low));
    return frequency / rope->factor * interpolated + frequency * (1.0 - interpolated);
}

static double frequency_of(const lmd_model_config *config, int32_t i, int32_t n_positions) {
    const lmd_rope_config *rope = &config->rope;
    double theta =
        rope->type == LMD_ROPE_DYNAMIC ? dynamic_theta(config, n_positions) : rope->theta;
    double frequency = pow(theta, -2.0 * i / config->head_dim);
    switch (rope->type) {
    case LMD_ROPE_LINEAR: return frequency / rope->factor;
    case LMD_ROPE_LLAMA3: return llama3_frequency(rope, frequency);
    case LMD_ROPE_YARN: return yarn_frequency(config, i, frequency);
    case LMD_ROPE_DEFAULT:
    case LMD_ROPE_DYNAMIC: break;
    }
    return frequency;
}

void lmd_rope_table(const lmd_model_config *config, const float *freq_factors,
                    int32_t n_positions, float *table) {
    int32_t half = config->head_dim / 2;
    double scale = config->rope.type == LMD_ROPE_YARN ? config->rope.attention_factor : 1.0;
    for (int32_t i = 0; i < half; i++) {
        double exact = frequency_of(config, i, n_positions);
        float frequency = (float)(freq_factors ? exact / freq_factors[i] : exact);
        for (int32_t p = 0; p < n_positions; p++) {
            float angle = (float)p * frequency;
            float *out = table + ((int64_t)p * half + i) * 2;
            out[0] = (float)(cos(angle) * scale);
            out[1] = (float)(sin(angle) * scale);
        }
    }
}
