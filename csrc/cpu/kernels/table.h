/* The end of every table of kernels. An assembly (table_<kind>.h, isa_ref.c) includes it last
 * and has defined, as lmd_cpu_kernels describes them, tile_rows, scratch_bytes, quantize, and
 * panel_codes: `panel` for weights that are codes. The isa_<name>.c has defined ISA. */
#include "cpu/kernels/kv.h"
#include "cpu/kernels/linear.h"
#include "cpu/kernels/solve.h"
#include "quant/data_free_search.h"

static void panel(float *out, const uint8_t *weights, const lmd_weight_format *format,
                  const lmd_acts *acts, int32_t tile0, int32_t n_tiles, void *scratch) {
    if (format->kind == LMD_WEIGHT_FLOAT)
        panel_float(out, weights, format->float_dtype, acts, tile0, n_tiles);
    else
        panel_codes(out, weights, format, acts, tile0, n_tiles, scratch);
}

/* The table is lmd_cpu_kernels_<ISA>, or lmd_portable_kernels_<ISA>, which only the harness
 * uses. */
#define QUOTE(name)  #name
#define NAME_OF(isa) QUOTE(isa)
#ifdef IS_PORTABLE
#define TABLE PASTE(lmd_portable_kernels_, ISA)
#define NAME  NAME_OF(ISA) " (portable)"
#else
#define TABLE PASTE(lmd_cpu_kernels_, ISA)
#define NAME  NAME_OF(ISA)
#endif

const lmd_cpu_kernels TABLE = {
    .isa = NAME,
    .tile_rows = tile_rows,
    .scratch_bytes = scratch_bytes,
    .panel = panel,
    .quantize = quantize,
    .rms_norm = rms_norm,
    .rope = rope,
    .silu_mul = silu_mul,
    .weigh = weigh,
    .grid_error = grid_error,
    .matrix = {PRODUCT_ROWS, PRODUCT_COLS, product, round_block},
    .data_free_codes = data_free_codes,
    .kv_write = kv_write,
    .attend_chunk = attend_chunk,
    .attend_fold = attend_fold,
};
