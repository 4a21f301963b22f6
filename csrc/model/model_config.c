/* A model's shape: see model_config.h. */
#include "model/model_config.h"

#include <math.h>
#include <string.h>

#include "backend/sampling.h" /* LMD_MAX_VOCAB_SIZE */

/* Bounds far above any model, low enough that products of two sizes fit int64 and of rows
 * int32. */
enum { MAX_LAYERS = 1024, MAX_HEADS = 1024, MAX_WIDTH = 1 << 20 };

static lmd_status check_size(const char *name, int32_t value, int32_t max, lmd_err *err) {
    if (value >= 1 && value <= max) return LMD_OK;
    return lmd_fail(err, LMD_INVALID, "model config: %s must be 1 to %d, not %d", name, max,
                    value);
}

static lmd_status check_rope(const lmd_rope_config *rope, lmd_err *err) {
    if (!(rope->theta > 0.0) || !isfinite(rope->theta))
        return lmd_fail(err, LMD_INVALID, "model config: rope_theta must be positive, not %g",
                        rope->theta);
    if (!(rope->factor > 0.0) || !isfinite(rope->factor))
        return lmd_fail(err, LMD_INVALID, "model config: rope_factor must be positive, not %g",
                        rope->factor);
    LMD_TRY(
        check_size("rope_original_max_position", rope->original_max_position, INT32_MAX, err));
    if (rope->type == LMD_ROPE_LLAMA3 &&
        !(rope->low_freq_factor > 0.0 && rope->high_freq_factor > rope->low_freq_factor))
        return lmd_fail(err, LMD_INVALID,
                        "model config: llama3 RoPE wants 0 < rope_low_freq_factor < "
                        "rope_high_freq_factor, not %g and %g",
                        rope->low_freq_factor, rope->high_freq_factor);
    if (rope->type == LMD_ROPE_YARN &&
        !(rope->beta_fast > 0.0 && rope->beta_slow > 0.0 && isfinite(rope->attention_factor)))
        return lmd_fail(
            err, LMD_INVALID,
            "model config: yarn RoPE wants positive rope_beta_fast and rope_beta_slow, "
            "not %g and %g",
            rope->beta_fast, rope->beta_slow);
    return LMD_OK;
}

lmd_status lmd_model_config_check(const lmd_model_config *config, lmd_err *err) {
    LMD_TRY(check_size("n_layer", config->n_layer, MAX_LAYERS, err));
    LMD_TRY(check_size("n_head", config->n_head, MAX_HEADS, err));
    LMD_TRY(check_size("n_kv_head", config->n_kv_head, config->n_head, err));
    LMD_TRY(check_size("hidden_dim", config->hidden_dim, MAX_WIDTH, err));
    LMD_TRY(check_size("ffn_dim", config->ffn_dim, MAX_WIDTH, err));
    LMD_TRY(check_size("vocab_size", config->vocab_size, LMD_MAX_VOCAB_SIZE, err));
    LMD_TRY(check_size("max_position", config->max_position, INT32_MAX, err));
    if (config->head_dim < 8 || config->head_dim > 256 || config->head_dim % 8)
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "model config: head_dim must be a multiple of 8 from 8 to 256, not %d",
                        config->head_dim);
    if (config->n_head % config->n_kv_head)
        return lmd_fail(err, LMD_INVALID,
                        "model config: n_head %d is no multiple of n_kv_head %d",
                        config->n_head, config->n_kv_head);
    if (!(config->norm_eps >= 0.0 && config->norm_eps < 1.0))
        return lmd_fail(err, LMD_INVALID, "model config: norm_eps must be 0 to 1, not %g",
                        config->norm_eps);
    if (config->quantize_bits && lmd_quantize_group_size(config) == 0)
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "quantize: rows of %d, %d and %d weights do not all divide into groups "
                        "of 32; leave quantize out",
                        config->hidden_dim, config->n_head * config->head_dim, config->ffn_dim);
    return check_rope(&config->rope, err);
}

lmd_status lmd_rope_type_of(const char *name, lmd_rope_type *out, lmd_err *err) {
    static const char *const names[] = {"default", "linear", "dynamic", "llama3", "yarn"};
    for (int32_t i = 0; i < 5; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (lmd_rope_type)i;
            return LMD_OK;
        }
    return lmd_fail(
        err, LMD_UNSUPPORTED,
        "RoPE type \"%.40s\" is not served; served: default, linear, dynamic, llama3, "
        "yarn",
        name);
}

lmd_status lmd_packing_of(const char *name, lmd_packing *out, lmd_err *err) {
    static const char *const names[LMD_PACKING_COUNT] = {
        [LMD_PACKING_NONE] = "none",       [LMD_PACKING_AWQ] = "awq",
        [LMD_PACKING_GPTQ] = "gptq",       [LMD_PACKING_GPTQ_BORROW] = "gptq_borrow",
        [LMD_PACKING_GPTQ_V2] = "gptq_v2", [LMD_PACKING_COMPRESSED] = "compressed-tensors",
    };
    for (int32_t i = 0; i < LMD_PACKING_COUNT; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (lmd_packing)i;
            return LMD_OK;
        }
    return lmd_fail(err, LMD_UNSUPPORTED,
                    "quant_method \"%.40s\" is not served; served: none, awq, gptq, "
                    "gptq_borrow, gptq_v2, compressed-tensors",
                    name);
}

int32_t lmd_quantize_group_size(const lmd_model_config *config) {
    const int32_t n_q_rows = config->n_head * config->head_dim;
    for (int32_t size = 128; size >= 32; size /= 2)
        if (config->hidden_dim % size == 0 && n_q_rows % size == 0 &&
            config->ffn_dim % size == 0)
            return size;
    return 0;
}

lmd_status lmd_quantize_bits_of(const char *name, int32_t *out, lmd_err *err) {
    const bool is_w4 = strcmp(name, "w4") == 0;
    if (!is_w4 && strcmp(name, "w8") != 0)
        return lmd_fail(err, LMD_INVALID, "quantize must be \"w4\" or \"w8\", not \"%.40s\"",
                        name);
    *out = is_w4 ? 4 : 8;
    return LMD_OK;
}
