/* libFuzzer target of the GGUF reader: parses bytes, then reads all that a parsed file offers.
 * Every metadata value and every row of every tensor is touched, in fp32 and in group form, so
 * that the address sanitizer sees a length that was not checked. `make fuzz` builds and runs
 * it. */
#include <stdlib.h>

#include "io/gguf.h"
#include "quant/weight_codec.h"

enum { MAX_COLS = 1 << 16 }; /* values of a row; longer ones are skipped, to keep runs fast */

static volatile uint64_t sink; /* keeps the reads */

static void read_string(lmd_gguf_string string) {
    for (size_t i = 0; i < string.len; i++) sink += (uint8_t)string.data[i];
}

static void read_value(const lmd_gguf_value *value) {
    uint64_t natural;
    int64_t integer;
    double real;
    bool truth;
    lmd_gguf_string string;
    for (size_t i = 0; i < value->n_bytes; i++) sink += value->data[i];
    sink += lmd_gguf_value_uint(value, &natural) + lmd_gguf_value_int(value, &integer) +
            lmd_gguf_value_float(value, &real) + lmd_gguf_value_bool(value, &truth);
    if (lmd_gguf_value_string(value, &string)) read_string(string);
    if (value->type != LMD_GGUF_ARRAY || value->item_type != LMD_GGUF_STRING) return;
    const uint8_t *at = value->data;
    for (uint64_t i = 0; i < value->n_items; i++) read_string(lmd_gguf_next_string(&at));
    if (at != value->data + value->n_bytes) abort();
}

static void read_tensor(const lmd_tensor_view *view) {
    int64_t n_cols = view->dims[view->n_dims - 1];
    int64_t row_bytes = lmd_dtype_row_bytes(view->dtype, n_cols);
    lmd_weight_format format;
    if (n_cols > MAX_COLS || lmd_weight_format_of(view, &format, NULL) != LMD_OK) return;
    /* Sized to the byte, so that a write past a row's end is seen. */
    size_t n_groups = (size_t)n_cols / 32;
    float *values = malloc((size_t)n_cols * sizeof *values);
    uint8_t *codes = malloc((size_t)n_cols);
    uint16_t *scales = malloc(n_groups * sizeof *scales + 1);
    uint16_t *offsets = malloc(n_groups * sizeof *offsets + 1);
    if (!values || !codes || !scales || !offsets) abort();
    for (size_t at = 0; at < view->n_bytes; at += (size_t)row_bytes) {
        const uint8_t *row = (const uint8_t *)view->data + at;
        lmd_weight_row_to_float(view->dtype, row, n_cols, values);
        if (format.kind == LMD_WEIGHT_FLOAT) continue;
        lmd_weight_decode_row(view->dtype, row, n_cols, codes, scales,
                              format.offset == LMD_OFFSET_NONE ? NULL : offsets);
        for (int64_t i = 0; i < n_cols && format.kind == LMD_WEIGHT_U4; i++)
            if (codes[i] > 15) abort();
    }
    free(values);
    free(codes);
    free(scales);
    free(offsets);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    lmd_gguf *gguf = NULL;
    lmd_err err;
    if (lmd_gguf_parse(data, n_bytes, &gguf, &err) != LMD_OK) return 0;
    for (size_t i = 0; i < lmd_gguf_n_pairs(gguf); i++) {
        const lmd_gguf_pair *pair = lmd_gguf_pair_at(gguf, i);
        read_string(pair->key);
        read_value(&pair->value);
    }
    const lmd_checkpoint *checkpoint = lmd_gguf_checkpoint(gguf);
    for (size_t i = 0; i < lmd_checkpoint_n_tensors(checkpoint); i++) {
        const lmd_tensor_view *view = lmd_checkpoint_tensor(checkpoint, i);
        if (lmd_checkpoint_find(checkpoint, view->name) != view) abort();
        read_tensor(view);
    }
    lmd_gguf_free(gguf);
    return 0;
}
