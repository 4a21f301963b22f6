/* Cases of begin, embed, norm and reorder: see suite.h. */
#include <stdio.h>
#include <string.h>

#include "check_matrix.h"
#include "tolerances.h"

enum { MAX_NAME = 96 };

/* ---- begin ---- */

static pair ints(suite *self, int32_t n) {
    return suite_array(self, (size_t)n * sizeof(int32_t));
}

/* Sequences of one to three rows, some of them padding, of which some want their newest token.
 */
static void check_begin(suite *self, int32_t n_seqs, int32_t n_copies, int64_t block_stride) {
    enum { N_BLOCKS = 12, MAX_SEQS = 40 };
    char name[MAX_NAME];
    snprintf(name, sizeof name, "begin: %d sequences, %d copies of %lld bytes", n_seqs,
             n_copies, (long long)block_stride);
    const pair token_ids = ints(self, n_seqs * 3), row_seqs = ints(self, n_seqs * 3);
    const pair slots = ints(self, n_seqs), newest = ints(self, MAX_SEQS);
    const pair kv = suite_array(self, (size_t)(block_stride * N_BLOCKS));
    const pair copies = suite_array(self, (size_t)(n_copies + 1) * sizeof(lmd_block_copy));
    lmd_cuda_begin_args host = {.block_stride = block_stride, .n_copies = n_copies};
    lmd_cuda_step *step = &host.step;

    for (int32_t i = 0; i < MAX_SEQS; i++)
        ((int32_t *)newest.host)[i] = i % 7 == 3 ? -1 : 1000 + i;
    for (int32_t s = 0; s < n_seqs; s++) {
        const bool padding = s % 5 == 4;
        const int32_t n_rows = padding ? 1 : 1 + suite_below(self, 3);
        ((int32_t *)slots.host)[s] = padding ? -1 : suite_below(self, MAX_SEQS);
        for (int32_t r = 0; r < n_rows; r++) {
            ((int32_t *)row_seqs.host)[step->n_tokens] = s;
            ((int32_t *)token_ids.host)[step->n_tokens++] =
                suite_below(self, 2) ? -1 : suite_below(self, 50000);
        }
    }
    for (size_t i = 0; i < kv.n_bytes; i++)
        ((uint8_t *)kv.host)[i] = (uint8_t)(suite_bits(self) >> 24);
    for (int32_t i = 0; i < n_copies; i++)
        ((lmd_block_copy *)copies.host)[i] = (lmd_block_copy){i, N_BLOCKS - 1 - i};
    const pair uploads[] = {token_ids, row_seqs, slots, newest, kv, copies};
    for (size_t i = 0; i < sizeof uploads / sizeof *uploads; i++)
        suite_upload(self, uploads[i]);

    step->n_seqs = n_seqs;
    lmd_cuda_begin_args device = host;
    step->token_ids = token_ids.host, device.step.token_ids = token_ids.device;
    step->row_seqs = row_seqs.host, device.step.row_seqs = row_seqs.device;
    step->slots = slots.host, device.step.slots = slots.device;
    step->newest = newest.host, device.step.newest = newest.device;
    host.kv = kv.host, device.kv = kv.device;
    host.copies = copies.host, device.copies = copies.device;
    lmd_cuda_ref.begin(&host, &self->host_queue);
    self->kernels->begin(&device, &self->device_queue);
    suite_run(self, name);
    suite_compare_bytes(self, name, token_ids, token_ids.n_bytes);
    suite_compare_bytes(self, name, newest, newest.n_bytes);
    suite_compare_bytes(self, name, kv, kv.n_bytes);
    suite_end_case(self, name);
}

/* ---- embed ---- */

static void check_embed(suite *self, lmd_cuda_form form, int32_t group_size, int32_t n_cols,
                        int32_t n_rows) {
    char name[MAX_NAME];
    snprintf(name, sizeof name, "embed: form %d, groups of %d, %d columns, %d rows", form,
             group_size, n_cols, n_rows);
    const matrix_spec spec = {.form = form,
                              .group_size = group_size,
                              .n_rows = 37,
                              .n_cols = n_cols,
                              .has_row_scales = n_rows % 2 == 1,
                              .size = 0.5f};
    const matrix_pair table = check_matrix(self, &spec);
    const int32_t out_stride = n_cols + suite_below(self, 5);
    const pair ids = ints(self, n_rows);
    const pair out = suite_array(self, (size_t)(n_rows * out_stride) * sizeof(float));
    for (int32_t r = 0; r < n_rows; r++)
        ((int32_t *)ids.host)[r] = r == 0 ? spec.n_rows - 1 : suite_below(self, spec.n_rows);
    suite_upload(self, ids);
    const lmd_cuda_embed_args host = {table.host, ids.host, n_rows, out.host, out_stride};
    const lmd_cuda_embed_args device = {table.device, ids.device, n_rows, out.device,
                                        out_stride};
    lmd_cuda_ref.embed(&host, &self->host_queue);
    self->kernels->embed(&device, &self->device_queue);
    suite_run(self, name);
    suite_compare_float(self, name, out, (size_t)(n_rows * out_stride), TOLERANCE_EMBED);
    suite_end_case(self, name);
}

/* ---- norm ---- */

typedef struct norm_case {
    int32_t n_rows, n_cols, x_stride, out_stride;
    bool has_rows;
    float size; /* of x */
} norm_case;

static void check_norm(suite *self, const norm_case *c) {
    enum { N_X_ROWS = 9 };
    char name[MAX_NAME];
    snprintf(name, sizeof name,
             "norm: %d rows, %d columns, strides %d and %d, rows %d, size %g", c->n_rows,
             c->n_cols, c->x_stride, c->out_stride, c->has_rows, c->size);
    const pair x = check_floats(self, (size_t)(N_X_ROWS * c->x_stride), c->size);
    const pair weight = check_floats(self, (size_t)c->n_cols, 1.0f);
    const pair rows = ints(self, c->n_rows);
    const pair out = suite_array(self, (size_t)(c->n_rows * c->out_stride) * sizeof(uint16_t));
    memset(x.host, 0, (size_t)c->n_cols * sizeof(float)); /* of row 0 */
    ((float *)x.host)[c->x_stride] = c->size * 10000.0f;  /* an outlier of row 1 */
    for (int32_t r = 0; r < c->n_rows; r++)
        ((int32_t *)rows.host)[r] = suite_below(self, N_X_ROWS);
    suite_upload(self, x);
    suite_upload(self, rows);
    lmd_cuda_norm_args host = {.eps = 1e-6f,
                               .n_rows = c->n_rows,
                               .n_cols = c->n_cols,
                               .x_stride = c->x_stride,
                               .out_stride = c->out_stride};
    lmd_cuda_norm_args device = host;
    host.x = x.host, device.x = x.device;
    host.weight = weight.host, device.weight = weight.device;
    host.out = out.host, device.out = out.device;
    if (c->has_rows) host.rows = rows.host, device.rows = rows.device;
    lmd_cuda_ref.norm(&host, &self->host_queue);
    self->kernels->norm(&device, &self->device_queue);
    suite_run(self, name);
    suite_compare_half(self, name, out, (size_t)(c->n_rows * c->out_stride), TOLERANCE_NORM);
    suite_end_case(self, name);
}

/* ---- reorder ---- */

static void check_reorder(suite *self, int32_t n_rows, int32_t n_cols, int32_t x_stride) {
    char name[MAX_NAME];
    snprintf(name, sizeof name, "reorder: %d rows, %d columns, stride %d", n_rows, n_cols,
             x_stride);
    const pair x = suite_array(self, (size_t)(n_rows * x_stride) * sizeof(uint16_t));
    const pair order = ints(self, n_cols);
    int32_t *columns = order.host;
    for (int32_t i = 0; i < n_rows * x_stride; i++)
        ((uint16_t *)x.host)[i] = (uint16_t)suite_bits(self);
    for (int32_t c = 0; c < n_cols; c++) { /* a random permutation */
        const int32_t other = suite_below(self, c + 1);
        columns[c] = columns[other];
        columns[other] = c;
    }
    suite_upload(self, x);
    suite_upload(self, order);
    const lmd_cuda_reorder_args host = {x.host, order.host, n_rows, n_cols, x_stride};
    const lmd_cuda_reorder_args device = {x.device, order.device, n_rows, n_cols, x_stride};
    lmd_cuda_ref.reorder(&host, &self->host_queue);
    self->kernels->reorder(&device, &self->device_queue);
    suite_run(self, name);
    suite_compare_bytes(self, name, x, x.n_bytes);
    suite_end_case(self, name);
}

void check_rows(suite *self) {
    static const norm_case norms[] = {
        {1, 64, 64, 64, false, 1.0f},       {9, 96, 96, 128, false, 1.0f},
        {5, 896, 896, 896, true, 100.0f},   {3, 2052, 2056, 2056, false, 1e-3f},
        {4, 33, 33, 35, true, 1.0f},        {2, 1023, 1024, 1024, false, 1.0f},
        {0, 64, 64, 64, false, 1.0f},       {7, 4096, 4096, 4096, true, 10.0f},
        {3, 1025, 1026, 1088, false, 1e4f},
    };
    check_begin(self, 1, 0, 16);
    check_begin(self, 7, 1, 4096);
    check_begin(self, 33, 3, 16 * 1024 - 16);
    check_begin(self, 200, 6, 3 * 16 * 1024 + 48);
    for (int32_t group_size = 32; group_size <= 128; group_size *= 2)
        for (int form = LMD_FORM_U4_ZERO; form < LMD_FORM_COUNT; form++)
            check_embed(self, (lmd_cuda_form)form, group_size, group_size * (form + 2),
                        form + group_size / 64);
    check_embed(self, LMD_FORM_F16, 0, 64, 2);
    check_embed(self, LMD_FORM_F16, 0, 200, 5);
    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++) check_norm(self, &norms[i]);
    check_reorder(self, 5, 32, 64);
    check_reorder(self, 2, 896, 896);
    check_reorder(self, 3, 4128, 4160);
    check_reorder(self, 1, LMD_REORDER_COLS, LMD_REORDER_COLS);
    check_reorder(self, 0, 64, 64);
}
