/* Checks that every backend shares: see backend.h. Pure functions. */
#include "backend/backend.h"

#include "quant/packed_check.h"

enum { MAX_GROUPS = 1 << 20 }; /* of one row; far above any model's, keeps sizes in int64 */

/* ---- a workspace's config ---- */

static bool kv_bits_are_served(int32_t k_bits, int32_t v_bits) {
    const bool floats = k_bits == v_bits && (k_bits == 16 || k_bits == 32);
    return floats || ((k_bits == 8 || k_bits == 4) && (v_bits == 8 || v_bits == 4));
}

/* A power of two, so that a chunk of 256 positions holds whole blocks. */
static bool block_len_is_served(int32_t block_len) {
    return block_len >= 16 && block_len <= 256 && (block_len & (block_len - 1)) == 0;
}

lmd_status lmd_workspace_config_check(const lmd_workspace_config *config, lmd_err *err) {
    if (!kv_bits_are_served(config->k_bits, config->v_bits))
        return lmd_fail(
            err, LMD_UNSUPPORTED,
            "kv_bits must be 16, or 8 or 4 for keys and values each, or 32; keys of "
            "%d with values of %d bits are not served",
            config->k_bits, config->v_bits);
    if (!block_len_is_served(config->block_len))
        return lmd_fail(err, LMD_INVALID,
                        "cache_block_seq_len must be 16, 32, 64, 128 or 256, not %d",
                        config->block_len);
    if (config->head_dim < 8 || config->head_dim > 256 || config->head_dim % 8)
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "head_dim must be a multiple of 8 up to 256, not %d", config->head_dim);
    return LMD_OK;
}

/* ---- a weight's source ---- */

static const char *part_name(const lmd_weight_part *part) {
    return part->packed.packing ? part->packed.qweight->name : part->tensor->name;
}

/* Whether the rows of a packed part come in whole runs of those that are decoded together. */
static bool has_whole_runs(const lmd_weight_part *part) {
    if (part->n_rows % LMD_PACKED_ROWS) return false;
    for (int32_t i = 0; part->row_map && i < part->n_rows; i++) {
        int32_t in_run = i % LMD_PACKED_ROWS, first = part->row_map[i - in_run];
        if (first % LMD_PACKED_ROWS || part->row_map[i] != first + in_run) return false;
    }
    return true;
}

static lmd_status find_format(const lmd_weight_part *part, lmd_weight_format *out,
                              lmd_err *err) {
    if (part->codes.bits) {
        const bool is_u4 = part->codes.bits == 4;
        *out = (lmd_weight_format){is_u4 ? LMD_WEIGHT_U4 : LMD_WEIGHT_I8,
                                   is_u4 ? LMD_OFFSET_ZERO : LMD_OFFSET_NONE,
                                   part->codes.group_size, LMD_F32};
        return LMD_OK;
    }
    if (!part->packed.packing) return lmd_weight_format_of(part->tensor, out, err);
    if (!has_whole_runs(part))
        return lmd_fail(err, LMD_UNSUPPORTED,
                        "tensor \"%s\": packed rows are taken in runs of %d, not one by one",
                        part_name(part), LMD_PACKED_ROWS);
    *out = lmd_packed_format(&part->packed);
    return LMD_OK;
}

lmd_status lmd_weight_source_check(const lmd_weight_source *src,
                                   lmd_weight_format formats[LMD_MAX_WEIGHT_PARTS],
                                   lmd_err *err) {
    int32_t common = 0; /* the group size of all parts that have groups */
    for (int32_t i = 0; i < src->n_parts; i++) {
        const lmd_weight_part *part = &src->parts[i];
        LMD_TRY(find_format(part, &formats[i], err));
        const int32_t group_size = formats[i].group_size;
        if (part->packed.order != lmd_weight_order(src))
            return lmd_fail(err, LMD_INTERNAL,
                            "tensor \"%s\" has an order of columns of its own",
                            part_name(part));
        if (src->n_cols <= 0 || part->n_rows <= 0 ||
            (group_size && (src->n_cols % group_size || src->n_cols / group_size > MAX_GROUPS)))
            return lmd_fail(err, LMD_BAD_FILE,
                            "tensor \"%s\": %d x %d values cannot be packed in groups of %d",
                            part_name(part), part->n_rows, src->n_cols, group_size);
        if (group_size && common && group_size != common)
            return lmd_fail(err, LMD_UNSUPPORTED,
                            "tensor \"%s\" has groups of %d values, what lies above it in one "
                            "matrix has %d",
                            part_name(part), group_size, common);
        if (group_size) common = group_size;
    }
    return LMD_OK;
}
