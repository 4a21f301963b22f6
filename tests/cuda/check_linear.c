/* Cases of linear: see suite.h. Each form and group size meets each number of tokens (rows of
 * x) once; what else a case has is drawn, and there are enough of them for pairs of anything to
 * meet. Then what needs more than a comparison: bits that must not change, and extreme values.
 */
#include <stdio.h>
#include <string.h>

#include "base/half.h"
#include "check_matrix.h"
#include "tolerances.h"

enum { MAX_NAME = 200, MAX_TOKENS = 130 };

typedef struct linear_case {
    lmd_cuda_form form;
    int32_t group_size, n_rows, n_cols, n_tokens;
    lmd_cuda_epilogue epilogue;
    bool has_bias, has_row_scales, batch_invariant;
    int32_t n_sms;
    float weight_size, x_size;
} linear_case;

static const char *name_of(const linear_case *c, char name[MAX_NAME]) {
    snprintf(name, MAX_NAME,
             "linear: form %d, groups of %d, %d rows, %d columns, %d tokens, epilogue %d, bias "
             "%d, row scales %d, invariant %d, %d multiprocessors, sizes %g and %g",
             c->form, c->group_size, c->n_rows, c->n_cols, c->n_tokens, c->epilogue,
             c->has_bias, c->has_row_scales, c->batch_invariant, c->n_sms, c->weight_size,
             c->x_size);
    return name;
}

static bool is_halves(lmd_cuda_epilogue epilogue) {
    return epilogue == LMD_CUDA_STORE || epilogue == LMD_CUDA_SILU_MUL;
}

/* ---- one launch ---- */

/* What launches of a case share: all but the output and the scratch. */
typedef struct inputs {
    matrix_pair weight;
    pair x, bias;
    int32_t x_stride;
} inputs;

/* Columns of x beyond the padded ones stay NaN. */
static inputs make_inputs(suite *self, const linear_case *c) {
    const matrix_spec spec = {.form = c->form,
                              .group_size = c->group_size,
                              .n_rows = c->n_rows,
                              .n_cols = c->n_cols,
                              .gated = c->epilogue == LMD_CUDA_SILU_MUL,
                              .has_row_scales = c->has_row_scales,
                              .size = c->weight_size};
    inputs in = {.weight = check_matrix(self, &spec),
                 .x_stride = lmd_pad_cols(c->n_cols) + 8 * suite_below(self, 3)};
    in.x = suite_array(self, (size_t)(c->n_tokens * in.x_stride) * sizeof(uint16_t));
    for (int32_t token = 0; token < c->n_tokens; token++)
        for (int32_t col = 0; col < lmd_pad_cols(c->n_cols); col++)
            ((uint16_t *)in.x.host)[token * in.x_stride + col] =
                col < c->n_cols ? lmd_float_to_half(suite_normal(self) * c->x_size) : 0;
    suite_upload(self, in.x);
    if (c->has_bias) in.bias = check_floats(self, (size_t)c->n_rows, 0.3f);
    return in;
}

/* The output: FIRST_COL columns before it and some after it belong to others. */
typedef struct output {
    pair values;
    int32_t stride;
    size_t n; /* values, with those of others */
} output;

enum { FIRST_COL = 3 };

/* As large for any number of tokens. */
static output make_output(suite *self, const linear_case *c) {
    const bool halves = is_halves(c->epilogue);
    output out = {.stride = FIRST_COL + c->n_rows + 2};
    out.n = (size_t)(MAX_TOKENS * out.stride);
    if (c->epilogue == LMD_CUDA_ADD)
        out.values = check_floats(self, out.n, 1.0f);
    else
        out.values = suite_array(self, out.n * (halves ? sizeof(uint16_t) : sizeof(float)));
    return out;
}

static pair make_scratch(suite *self, const linear_case *c) {
    const lmd_cuda_limits limits = {.max_tokens = c->n_tokens,
                                    .max_logits_rows = 1,
                                    .max_cols = c->n_rows > c->n_cols ? c->n_rows : c->n_cols,
                                    .vocab_size = c->n_rows,
                                    .n_sms = c->n_sms,
                                    .batch_invariant = c->batch_invariant};
    if (self->kernels == &lmd_cuda_ref) return (pair){0};
    return suite_array(self, lmd_sm80_linear_scratch(&limits));
}

static lmd_cuda_linear_args host_args(const linear_case *c, const inputs *in,
                                      const output *out) {
    const size_t first =
        FIRST_COL * (is_halves(c->epilogue) ? sizeof(uint16_t) : sizeof(float));
    return (lmd_cuda_linear_args){.weight = in->weight.host,
                                  .x = in->x.host,
                                  .n_rows = c->n_tokens,
                                  .x_stride = in->x_stride,
                                  .bias = in->bias.host,
                                  .scale = 0.5f,
                                  .epilogue = c->epilogue,
                                  .out = (uint8_t *)out->values.host + first,
                                  .out_stride = out->stride,
                                  .batch_invariant = c->batch_invariant};
}

static void launch_device(suite *self, const linear_case *c, const inputs *in,
                          const output *out) {
    const size_t first =
        FIRST_COL * (is_halves(c->epilogue) ? sizeof(uint16_t) : sizeof(float));
    const pair scratch = make_scratch(self, c);
    lmd_cuda_linear_args args = host_args(c, in, out);
    args.weight = in->weight.device;
    args.x = in->x.device;
    args.bias = in->bias.device;
    args.out = (uint8_t *)out->values.device + first;
    args.scratch = scratch.device;
    args.scratch_bytes = scratch.n_bytes;
    const int32_t n_sms = self->device_queue.n_sms;
    self->device_queue.n_sms = c->n_sms;
    self->kernels->linear(&args, &self->device_queue);
    self->device_queue.n_sms = n_sms;
}

static void check_case(suite *self, const linear_case *c) {
    char name[MAX_NAME];
    name_of(c, name);
    const inputs in = make_inputs(self, c);
    const output out = make_output(self, c);
    const lmd_cuda_linear_args args = host_args(c, &in, &out);
    lmd_cuda_ref.linear(&args, &self->host_queue);
    launch_device(self, c, &in, &out);
    suite_run(self, name);
    if (is_halves(c->epilogue))
        suite_compare_half(self, name, out.values, out.n, TOLERANCE_LINEAR_F16);
    else
        suite_compare_float(self, name, out.values, out.n, TOLERANCE_LINEAR_F32);
    suite_end_case(self, name);
}

/* ---- cases that are drawn ---- */

static int32_t one_of(suite *self, const int32_t *values, size_t n) {
    return values[suite_below(self, (int32_t)n)];
}

#define ONE_OF(self, values) one_of(self, values, sizeof(values) / sizeof *(values))

static linear_case draw(suite *self, lmd_cuda_form form, int32_t group_size, int32_t n_tokens,
                        lmd_cuda_epilogue epilogue) {
    static const int32_t rows[] = {16, 40, 72, 128, 136, 200};
    static const int32_t cols[] = {64, 96, 128, 192, 320, 576, 896, 1280};
    static const int32_t sms[] = {1, 4, 132};
    linear_case c = {.form = form,
                     .group_size = group_size,
                     .n_tokens = n_tokens,
                     .epilogue = epilogue,
                     .n_rows = ONE_OF(self, rows),
                     .n_cols = ONE_OF(self, cols),
                     .has_bias = suite_below(self, 2),
                     .has_row_scales = suite_below(self, 2),
                     .batch_invariant = suite_below(self, 4) == 0,
                     .n_sms = ONE_OF(self, sms),
                     .weight_size = 0.05f,
                     .x_size = 1.0f};
    if (form == LMD_FORM_F16)
        c.n_cols -= suite_below(self, 30);
    else
        c.n_cols = (c.n_cols + group_size - 1) / group_size * group_size;
    return c;
}

static void check_drawn(suite *self) {
    static const int32_t tokens[] = {1, 2, 3, 5, 8, 9, 16, 17, 31, 33, 64, 65, MAX_TOKENS};
    for (int form = 0; form < LMD_FORM_COUNT; form++) {
        const bool codes = lmd_form_is_codes((lmd_cuda_form)form);
        for (int group = 0; group < (codes ? 3 : 1); group++)
            for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
                const int epilogue = (int)(i + (size_t)group) % LMD_CUDA_EPILOGUE_COUNT;
                const linear_case c = draw(self, (lmd_cuda_form)form, codes ? 32 << group : 0,
                                           tokens[i], (lmd_cuda_epilogue)epilogue);
                check_case(self, &c);
            }
    }
}

/* ---- long sums ---- */

/* So many columns that a block comes back to its first stage of x more than once; and the same
 * cut into splits, on a device that wants many blocks. And no tokens at all. */
static void check_long(suite *self) {
    static const struct {
        int32_t n_tokens, n_rows, n_cols, n_sms;
    } sizes[] = {{3, 40, 5120, 1},   {4, 40, 3072, 132}, {12, 72, 1408, 1},
                 {7, 72, 1280, 132}, {30, 136, 1408, 1}, {19, 136, 1280, 132},
                 {64, 200, 640, 1},  {40, 128, 1280, 1}, {64, 200, 640, 132},
                 {0, 40, 128, 4}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int form = 0; form < LMD_FORM_COUNT; form++) {
            const bool codes = lmd_form_is_codes((lmd_cuda_form)form);
            const linear_case c = {.form = (lmd_cuda_form)form,
                                   .group_size = codes ? 32 << (i + (size_t)form) % 3 : 0,
                                   .n_rows = sizes[i].n_rows,
                                   .n_cols = sizes[i].n_cols,
                                   .n_tokens = sizes[i].n_tokens,
                                   .epilogue = (lmd_cuda_epilogue)((i / 3 + (size_t)form) %
                                                                   LMD_CUDA_EPILOGUE_COUNT),
                                   .has_bias = i % 2 == 0,
                                   .n_sms = sizes[i].n_sms,
                                   .weight_size = 0.05f,
                                   .x_size = 1.0f};
            check_case(self, &c);
        }
}

/* ---- bits that must not change ---- */

/* Compares the device's bytes of two outputs, the first being of more tokens or as many. */
static void compare_devices(suite *self, const char *name, const output *a, const output *b,
                            size_t n_bytes) {
    const cudaError_t error =
        cudaMemcpy(a->values.host, a->values.device, a->values.n_bytes, cudaMemcpyDeviceToHost);
    const pair both = {a->values.host, b->values.device, a->values.n_bytes};
    lmd_cuda_note(&self->device_queue, error, "a copy");
    suite_run(self, name);
    suite_compare_bytes(self, name, both, n_bytes);
}

/* Launches the first n_tokens tokens of a case again. */
static void check_same_bits(suite *self, const linear_case *c, const int32_t *n_tokens,
                            size_t n) {
    char name[MAX_NAME];
    name_of(c, name);
    const inputs in = make_inputs(self, c);
    const output first = make_output(self, c);
    launch_device(self, c, &in, &first);
    suite_run(self, name);
    for (size_t i = 0; i < n; i++) {
        const output again = make_output(self, c);
        const size_t row_bytes = again.values.n_bytes / MAX_TOKENS;
        linear_case fewer = *c;
        fewer.n_tokens = n_tokens[i];
        launch_device(self, &fewer, &in, &again);
        suite_run(self, name);
        compare_devices(self, name_of(&fewer, name), &first, &again,
                        (size_t)fewer.n_tokens * row_bytes);
    }
    suite_end_case(self, name);
}

/* With batch_invariant, for few tokens and many; without it, for the same launch twice. Both
 * with splits and without. */
static void check_bits(suite *self) {
    static const int32_t some[] = {1, 7, 64};
    static const linear_case cases[] = {
        {LMD_FORM_U4_ZERO, 128, 200, 1280, 0, LMD_CUDA_STORE, true, false, false, 132, 0.05f,
         1},
        {LMD_FORM_U4_MIN, 32, 72, 896, 0, LMD_CUDA_SILU_MUL, false, true, false, 16, 0.05f, 1},
        {LMD_FORM_U8_MIN, 32, 40, 576, 0, LMD_CUDA_STORE_F32, true, true, false, 1, 0.05f, 1},
        {LMD_FORM_F16, 0, 136, 1000, 0, LMD_CUDA_STORE_F32, false, false, false, 132, 0.05f, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        linear_case c = cases[i];
        c.batch_invariant = true;
        c.n_tokens = MAX_TOKENS;
        check_same_bits(self, &c, some, sizeof some / sizeof *some);
        c.batch_invariant = false;
        for (c.n_tokens = 3; c.n_tokens < MAX_TOKENS; c.n_tokens *= 5)
            check_same_bits(self, &c, &c.n_tokens, 1);
    }
}

/* ---- extreme values ---- */

static void check_extremes(suite *self) {
    for (int form = 0; form < LMD_FORM_COUNT; form++) {
        linear_case c = {.form = (lmd_cuda_form)form,
                         .group_size = lmd_form_is_codes((lmd_cuda_form)form) ? 64 : 0,
                         .n_rows = 72,
                         .n_cols = 320,
                         .n_tokens = 5 + 4 * form,
                         .n_sms = 4};
        /* Most outputs are more than a half holds. */
        c.epilogue = form % 2 ? LMD_CUDA_STORE : LMD_CUDA_SILU_MUL;
        c.weight_size = 40.0f, c.x_size = 2000.0f;
        check_case(self, &c);
        /* Weights and scales are subnormal halves. */
        c.epilogue = LMD_CUDA_STORE_F32;
        c.weight_size = 3e-5f, c.x_size = 100.0f;
        check_case(self, &c);
        /* Some weights are infinite, for those values that a half does not hold. */
        c.weight_size = 30000.0f, c.x_size = 1.0f;
        check_case(self, &c);
    }
}

void check_linear(suite *self) {
    check_drawn(self);
    check_long(self);
    check_bits(self);
    check_extremes(self);
}
