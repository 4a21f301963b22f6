/* Cases of write_kv and attention: see suite.h.
 * A case writes the keys and values of random sequences into a poisoned cache, first their
 * history, then the tokens of a step, as an engine does, and attends with the step's tokens
 * through that cache. Bytes of the cache must be ref's. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/half.h"
#include "suite.h"
#include "tolerances.h"

enum {
    MAX_SEQS = 8,
    MAX_CONTEXT = 400,
    MAX_BLOCKS = MAX_CONTEXT / 16, /* of a sequence */
    MAX_NAME = 160,
    N_INTS = 1 << 15, /* for the arrays of all steps of a case */
    HOST = 0,
    DEVICE = 1
};

/* ---- what is asked of a case ---- */

/* How the rows of a step become units. */
typedef enum unit_kind {
    NARROW_IF_FEW, /* as the engine does it */
    ALL_NARROW,
    ALL_WIDE
} unit_kind;

typedef enum input_kind {
    NORMAL,
    OUTLIER,   /* one column of K is much larger */
    EXACT,     /* small multiples of 1/16: norms have the same bits in any order */
    NOT_FINITE /* some keys and values of sequence 0 */
} input_kind;

typedef struct attention_case {
    int32_t head_dim, k_bits, v_bits, block_len;
    int32_t n_head, n_kv_head;
    unit_kind units;
    input_kind input;
    bool has_norms;
    int32_t n_sms; /* many: the context is split into many parts */
} attention_case;

/* The tokens of a sequence in a step; seq -1: padding. */
typedef struct piece {
    int32_t seq, history_len, n_tokens;
} piece;

/* ---- a case ---- */

/* A step's arrays, and its units, on both sides. */
typedef struct plan {
    lmd_cuda_step step[2];
    const lmd_cuda_unit *narrow[2], *wide[2];
    int32_t n_narrow, n_wide;
} plan;

typedef struct bench {
    suite *self;
    const attention_case *spec;
    char name[MAX_NAME];
    pair ints, pool, rope, q_norm, k_norm, scratch;
    int32_t n_ints; /* taken */
    int32_t block_ids[MAX_SEQS][MAX_BLOCKS];
    int64_t block_stride; /* bytes: two layers, of which the case uses the second */
    int32_t qkv_stride, out_stride;
} bench;

static lmd_cuda_kv_format format_of(const attention_case *spec) {
    return (lmd_cuda_kv_format){spec->block_len, spec->head_dim, spec->k_bits, spec->v_bits};
}

static int64_t layer_bytes(const attention_case *spec) {
    const lmd_cuda_kv_format format = format_of(spec);
    return (int64_t)spec->n_kv_head * lmd_kv_part_bytes(&format);
}

static pair halves(suite *self, int32_t n_rows, int32_t stride) {
    return suite_array(self, (size_t)n_rows * (size_t)stride * sizeof(uint16_t));
}

/* Gives each sequence its blocks, scattered over the pool, of which some stay unused. */
static void share_blocks(bench *b, int32_t n_blocks) {
    int32_t order[MAX_SEQS * MAX_BLOCKS], n = 0;
    for (int32_t i = 0; i < n_blocks; i++) order[i] = i;
    for (int32_t i = n_blocks - 1; i > 0; i--) {
        const int32_t j = suite_below(b->self, i + 1), id = order[i];
        order[i] = order[j];
        order[j] = id;
    }
    for (int32_t s = 0; s < MAX_SEQS; s++)
        for (int32_t i = 0; i < n_blocks / MAX_SEQS; i++) b->block_ids[s][i] = order[n++];
}

static void fill_rope(bench *b) {
    const int32_t n = b->spec->head_dim / 2;
    float *cos_sin = b->rope.host;
    for (int32_t position = 0; position < MAX_CONTEXT; position++)
        for (int32_t d = 0; d < n; d++) {
            const float angle = (float)position * powf(10000.0f, -(float)d / (float)n);
            *cos_sin++ = cosf(angle);
            *cos_sin++ = sinf(angle);
        }
}

static void open_bench(bench *b, suite *self, const attention_case *spec) {
    const int32_t blocks_each = (MAX_CONTEXT + spec->block_len - 1) / spec->block_len;
    const size_t norm_bytes = (size_t)spec->head_dim * sizeof(float);
    *b = (bench){.self = self, .spec = spec, .block_stride = 2 * layer_bytes(spec)};
    b->qkv_stride = (spec->n_head + 2 * spec->n_kv_head) * spec->head_dim + 64;
    b->out_stride = spec->n_head * spec->head_dim + 8;
    b->ints = suite_array(self, N_INTS * sizeof(int32_t));
    b->pool = suite_array(self, (size_t)(blocks_each * MAX_SEQS * b->block_stride));
    b->rope = suite_array(self, (size_t)(MAX_CONTEXT * spec->head_dim) * sizeof(float));
    b->q_norm = suite_array(self, norm_bytes);
    b->k_norm = suite_array(self, norm_bytes);
    for (int32_t d = 0; d < spec->head_dim; d++) {
        ((float *)b->q_norm.host)[d] = suite_uniform(self, 0.5f, 1.5f);
        ((float *)b->k_norm.host)[d] = suite_uniform(self, 0.5f, 1.5f);
    }
    share_blocks(b, blocks_each * MAX_SEQS);
    fill_rope(b);
    const pair uploads[] = {b->rope, b->q_norm, b->k_norm};
    for (size_t i = 0; i < sizeof uploads / sizeof *uploads; i++)
        suite_upload(self, uploads[i]);
}

/* ---- steps ---- */

/* Takes n integers of the case's array. */
static int32_t *take(bench *b, int32_t n, const int32_t **on_device) {
    const int32_t at = b->n_ints;
    b->n_ints += n;
    *on_device = (const int32_t *)b->ints.device + at;
    return (int32_t *)b->ints.host + at;
}

static void add_units(bench *b, plan *out, const piece *pieces, int32_t n_pieces) {
    const int32_t group = b->spec->n_head / b->spec->n_kv_head;
    for (int32_t kind = 0; kind < 2; kind++) { /* narrow, wide */
        const int32_t unit_len = kind ? LMD_WIDE_ROWS : LMD_NARROW_ROWS;
        const int32_t *on_device;
        int32_t *units = take(b, 0, &on_device), n = 0;
        for (int32_t i = 0; i < n_pieces; i++) {
            const int32_t n_rows = pieces[i].n_tokens * group;
            const bool is_wide = b->spec->units == ALL_WIDE ||
                                 (b->spec->units == NARROW_IF_FEW && n_rows > LMD_NARROW_ROWS);
            for (int32_t r = 0; r < n_rows && is_wide == (kind == 1); r += unit_len) {
                units[2 * n] = i;
                units[2 * n++ + 1] = r;
            }
        }
        take(b, 2 * n, &on_device);
        *(kind ? &out->n_wide : &out->n_narrow) = n;
        (kind ? out->wide : out->narrow)[HOST] = (const lmd_cuda_unit *)units;
        (kind ? out->wide : out->narrow)[DEVICE] = (const lmd_cuda_unit *)on_device;
    }
}

/* Makes the arrays of a step of these pieces. */
static plan add_plan(bench *b, const piece *pieces, int32_t n_pieces) {
    plan out = {.n_narrow = 0};
    lmd_cuda_step *device = &out.step[DEVICE];
    int32_t n_tokens = 0, n_block_ids = 0, row = 0;
    for (int32_t i = 0; i < n_pieces; i++) n_tokens += pieces[i].n_tokens;
    int32_t *positions = take(b, n_tokens, &device->positions);
    int32_t *row_seqs = take(b, n_tokens, &device->row_seqs);
    int32_t *slots = take(b, n_pieces, &device->slots);
    int32_t *history_lens = take(b, n_pieces, &device->history_lens);
    int32_t *token_offsets = take(b, n_pieces + 1, &device->token_offsets);
    int32_t *block_offsets = take(b, n_pieces + 1, &device->block_offsets);
    int32_t *block_ids = take(b, n_pieces * MAX_BLOCKS, &device->block_ids);
    token_offsets[0] = block_offsets[0] = 0;
    for (int32_t i = 0; i < n_pieces; i++) {
        const piece *it = &pieces[i];
        const int32_t context_len = it->seq < 0 ? 0 : it->history_len + it->n_tokens;
        for (int32_t t = 0; t < it->n_tokens; t++) {
            positions[row] = it->history_len + t;
            row_seqs[row++] = i;
        }
        for (int32_t k = 0; k * b->spec->block_len < context_len; k++)
            block_ids[n_block_ids++] = b->block_ids[it->seq][k];
        slots[i] = it->seq < 0 ? -1 : it->seq;
        history_lens[i] = it->history_len;
        token_offsets[i + 1] = row;
        block_offsets[i + 1] = n_block_ids;
    }
    device->n_tokens = n_tokens;
    device->n_seqs = n_pieces;
    out.step[HOST] = (lmd_cuda_step){.n_tokens = n_tokens,
                                     .n_seqs = n_pieces,
                                     .positions = positions,
                                     .row_seqs = row_seqs,
                                     .slots = slots,
                                     .history_lens = history_lens,
                                     .token_offsets = token_offsets,
                                     .block_offsets = block_offsets,
                                     .block_ids = block_ids};
    add_units(b, &out, pieces, n_pieces);
    suite_upload(b->self, b->ints);
    return out;
}

/* ---- rows of q, k and v ---- */

static float random_value(bench *b) {
    const float x = suite_normal(b->self);
    return b->spec->input == EXACT ? rintf(x * 16.0f) / 16.0f : x;
}

/* Fills the rows of a step; what lies between rows stays poison. */
static pair random_qkv(bench *b, const piece *pieces, int32_t n_pieces) {
    const attention_case *spec = b->spec;
    const int32_t n_heads = spec->n_head + 2 * spec->n_kv_head, head_dim = spec->head_dim;
    int32_t n_rows = 0;
    for (int32_t i = 0; i < n_pieces; i++) n_rows += pieces[i].n_tokens;
    const pair qkv = halves(b->self, n_rows, b->qkv_stride);
    uint16_t *row = qkv.host;
    for (int32_t i = 0; i < n_pieces; i++)
        for (int32_t t = 0; t < pieces[i].n_tokens; t++, row += b->qkv_stride) {
            for (int32_t d = 0; d < n_heads * head_dim; d++)
                row[d] = lmd_float_to_half(random_value(b));
            for (int32_t h = spec->n_head; h < spec->n_head + spec->n_kv_head; h++)
                if (spec->input == OUTLIER)
                    row[h * head_dim + 5] = lmd_float_to_half(100.0f * random_value(b));
            if (spec->input == NOT_FINITE && pieces[i].seq == 0 && t % 3 == 1) {
                row[spec->n_head * head_dim + 3] = 0x7c00;             /* a key: infinity */
                row[n_heads * head_dim - 1] = t % 2 ? 0xfc00 : 0x7e00; /* a value */
            }
        }
    suite_upload(b->self, qkv);
    return qkv;
}

/* ---- launches ---- */

static lmd_cuda_kv kv_on(const bench *b, int side) {
    uint8_t *pool = side == HOST ? b->pool.host : b->pool.device;
    return (lmd_cuda_kv){.format = format_of(b->spec),
                         .layer = pool + layer_bytes(b->spec),
                         .block_stride = b->block_stride,
                         .n_kv_head = b->spec->n_kv_head};
}

static void write_both(bench *b, const plan *step, pair qkv) {
    lmd_cuda_write_kv_args args[2];
    for (int side = 0; side < 2; side++) {
        const float *q_norm = side == HOST ? b->q_norm.host : b->q_norm.device;
        const float *k_norm = side == HOST ? b->k_norm.host : b->k_norm.device;
        args[side] = (lmd_cuda_write_kv_args){
            .step = step->step[side],
            .kv = kv_on(b, side),
            .qkv = side == HOST ? qkv.host : qkv.device,
            .qkv_stride = b->qkv_stride,
            .n_head = b->spec->n_head,
            .q_norm = b->spec->has_norms ? q_norm : NULL,
            .k_norm = b->spec->has_norms ? k_norm : NULL,
            .norm_eps = 1e-6f,
            .rope = side == HOST ? b->rope.host : b->rope.device,
        };
    }
    lmd_cuda_ref.write_kv(&args[HOST], &b->self->host_queue);
    b->self->kernels->write_kv(&args[DEVICE], &b->self->device_queue);
    suite_run(b->self, b->name);
}

/* The arguments for q's rows from first_row on. */
static lmd_cuda_attention_args attention_on(const bench *b, int side, const plan *step,
                                            pair qkv, pair out, int32_t first_row) {
    const uint16_t *q = side == HOST ? qkv.host : qkv.device;
    uint16_t *to = side == HOST ? out.host : out.device;
    return (lmd_cuda_attention_args){
        .step = step->step[side],
        .kv = kv_on(b, side),
        .q = q + (int64_t)first_row * b->qkv_stride,
        .q_stride = b->qkv_stride,
        .n_head = b->spec->n_head,
        .narrow = step->narrow[side],
        .wide = step->wide[side],
        .n_narrow = step->n_narrow,
        .n_wide = step->n_wide,
        .out = to + (int64_t)first_row * b->out_stride,
        .out_stride = b->out_stride,
        .scratch = side == HOST ? b->scratch.host : b->scratch.device,
        .scratch_bytes = b->scratch.n_bytes,
    };
}

/* Runs the row under test alone. */
static void attend_on_device(bench *b, const plan *step, pair qkv, pair out, int32_t first_row,
                             bool batch_invariant) {
    lmd_cuda_attention_args args = attention_on(b, DEVICE, step, qkv, out, first_row);
    args.batch_invariant = batch_invariant;
    b->self->kernels->attention(&args, &b->self->device_queue);
    suite_run(b->self, b->name);
}

/* Scratch as large as the row says, and no larger, for a step of so many tokens. */
static void open_scratch(bench *b, int32_t n_tokens) {
    const lmd_cuda_limits limits = {.max_tokens = n_tokens,
                                    .max_seqs = n_tokens,
                                    .n_head = b->spec->n_head,
                                    .n_kv_head = b->spec->n_kv_head,
                                    .head_dim = b->spec->head_dim,
                                    .block_len = b->spec->block_len,
                                    .n_positions = MAX_CONTEXT,
                                    .n_sms = b->self->device_queue.n_sms};
    b->scratch = suite_array(b->self, b->self->kernels->scratch_bytes(&limits));
}

/* What one launch left on the device must be, byte for byte, what another did. */
static void compare_launches(bench *b, pair a, pair other) {
    if (cudaMemcpy(a.host, other.device, a.n_bytes, cudaMemcpyDefault) == cudaSuccess)
        suite_compare_bytes(b->self, b->name, a, a.n_bytes);
    else
        b->self->n_failed++;
}

/* ---- cases ---- */

static void name_case(bench *b, const char *what) {
    const attention_case *c = b->spec;
    snprintf(b->name, sizeof b->name,
             "%s: head_dim %d, bits %d and %d, block_len %d, %d heads, %d of kv, units %d, "
             "input %d, norms %d, n_sms %d",
             what, c->head_dim, c->k_bits, c->v_bits, c->block_len, c->n_head, c->n_kv_head,
             c->units, c->input, c->has_norms, c->n_sms);
}

/* Writes the history of a step's sequences, then the step's own tokens, and compares. */
static plan write_step(bench *b, const piece *pieces, int32_t n_pieces, pair *qkv) {
    piece history[MAX_SEQS];
    int32_t n = 0;
    for (int32_t i = 0; i < n_pieces; i++)
        if (pieces[i].seq >= 0 && pieces[i].history_len > 0)
            history[n++] = (piece){pieces[i].seq, 0, pieces[i].history_len};
    if (n > 0) {
        const plan before = add_plan(b, history, n);
        write_both(b, &before, random_qkv(b, history, n));
    }
    const plan step = add_plan(b, pieces, n_pieces);
    *qkv = random_qkv(b, pieces, n_pieces);
    write_both(b, &step, *qkv);
    if (b->spec->has_norms && b->spec->input != EXACT)
        suite_compare_half(b->self, b->name, b->pool, b->pool.n_bytes / 2,
                           TOLERANCE_WRITE_KV_Q);
    else
        suite_compare_bytes(b->self, b->name, b->pool, b->pool.n_bytes);
    suite_compare_half(b->self, b->name, *qkv, qkv->n_bytes / 2, TOLERANCE_WRITE_KV_Q);
    return step;
}

static void check_step(suite *self, const attention_case *spec, const piece *pieces,
                       int32_t n_pieces) {
    bench b;
    pair qkv;
    const int32_t n_sms = self->device_queue.n_sms;
    open_bench(&b, self, spec);
    name_case(&b, "attention");
    self->device_queue.n_sms = spec->n_sms;
    const plan step = write_step(&b, pieces, n_pieces, &qkv);
    const int32_t n_rows = step.step[HOST].n_tokens;
    const pair out = halves(self, n_rows, b.out_stride);
    const pair again = halves(self, n_rows, b.out_stride);
    open_scratch(&b, n_rows);
    const lmd_cuda_attention_args args = attention_on(&b, HOST, &step, qkv, out, 0);
    lmd_cuda_ref.attention(&args, &self->host_queue);
    attend_on_device(&b, &step, qkv, out, 0, false);
    attend_on_device(&b, &step, qkv, again, 0, false);
    suite_compare_half(self, b.name, out, out.n_bytes / 2, TOLERANCE_ATTENTION);
    compare_launches(&b, again, out);
    suite_compare_bytes(self, b.name, b.scratch, 0); /* nothing was written behind it */
    self->device_queue.n_sms = n_sms;
    suite_end_case(self, b.name);
}

/* With batch_invariant, a row has the same bits in a step, and alone in any chunk. */
static void check_batch_invariant(suite *self, const attention_case *spec, const piece *pieces,
                                  int32_t n_pieces) {
    bench b;
    pair qkv;
    open_bench(&b, self, spec);
    name_case(&b, "batch_invariant");
    const plan step = write_step(&b, pieces, n_pieces, &qkv);
    const int32_t n_rows = step.step[HOST].n_tokens;
    const pair together = halves(self, n_rows, b.out_stride);
    const pair apart = halves(self, n_rows, b.out_stride);
    b.scratch = suite_array(self, 0);
    const lmd_cuda_attention_args args = attention_on(&b, HOST, &step, qkv, together, 0);
    lmd_cuda_ref.attention(&args, &self->host_queue);
    attend_on_device(&b, &step, qkv, together, 0, true);
    suite_compare_half(self, b.name, together, together.n_bytes / 2, TOLERANCE_ATTENTION);
    for (int32_t i = 0, row = 0; i < n_pieces; i++)
        for (int32_t t = 0; t < pieces[i].n_tokens;) {
            const int32_t n_left = pieces[i].n_tokens - t;
            const piece chunk = {pieces[i].seq, pieces[i].history_len + t,
                                 1 + suite_below(self, n_left)};
            const plan alone = add_plan(&b, &chunk, 1);
            attend_on_device(&b, &alone, qkv, apart, row, true);
            t += chunk.n_tokens;
            row += chunk.n_tokens;
        }
    compare_launches(&b, apart, together);
    suite_end_case(self, b.name);
}

/* ---- what is tried ---- */

static const int32_t context_lens[] = {1, 2, 15, 16, 17, 63, 64, 65, 127, 200, 333};
static const int32_t block_lens[] = {16, 32, 64, 128, 256};
static const int32_t groups[] = {1, 2, 3, 4, 7, 8};
static const int32_t bits[][2] = {{16, 16}, {8, 8}, {4, 4}, {8, 4}, {4, 8}};

/* Random sequences: decodes, whole prompts, chunks behind a history, and padding. */
static int32_t random_pieces(suite *self, piece *pieces) {
    const int32_t n = 2 + suite_below(self, MAX_SEQS - 3);
    for (int32_t i = 0; i < n; i++) {
        const int32_t context_len = context_lens[suite_below(self, 11)];
        int32_t n_tokens = suite_below(self, 2) ? 1 : 1 + suite_below(self, 20);
        if (context_len <= 65 && suite_below(self, 3) == 0) n_tokens = context_len;
        if (n_tokens > context_len) n_tokens = context_len;
        pieces[i] = (piece){i, context_len - n_tokens, n_tokens};
        if (i > 0 && suite_below(self, 5) == 0) pieces[i] = (piece){-1, 40, 1};
    }
    return n;
}

/* All pairs of bits in all head_dims, each with a few of everything else. */
static void check_formats(suite *self) {
    for (int32_t i = 0; i < 45; i++) {
        piece pieces[MAX_SEQS];
        const int32_t group = groups[(i + i / 15) % 6], n_kv_head = group > 4 ? 1 : 2;
        const bool batch_invariant = i >= 30;
        const attention_case spec = {
            .head_dim = 64 << i / 5 % 3,
            .k_bits = bits[i % 5][0],
            .v_bits = bits[i % 5][1],
            .block_len = block_lens[(i + i / 5) % 5],
            .n_head = group * n_kv_head,
            .n_kv_head = n_kv_head,
            .units = i < 15   ? NARROW_IF_FEW
                     : i < 30 ? ALL_NARROW
                     : i % 2  ? ALL_WIDE
                              : NARROW_IF_FEW,
            .n_sms = i % 2 ? 1 : 16,
        };
        const int32_t n_pieces = random_pieces(self, pieces);
        if (batch_invariant)
            check_batch_invariant(self, &spec, pieces, n_pieces);
        else
            check_step(self, &spec, pieces, n_pieces);
    }
}

/* Contexts in many parts, of which most are empty for short ones. */
static void check_splits(suite *self) {
    const piece pieces[] = {{0, 332, 1}, {1, 0, 1}, {-1, 0, 1}, {3, 127, 2}, {4, 191, 1}};
    for (int32_t i = 0; i < 15; i++) {
        const attention_case spec = {
            .head_dim = 64 << i / 5,
            .k_bits = bits[i % 5][0],
            .v_bits = bits[i % 5][1],
            .block_len = block_lens[i % 5],
            .n_head = 2 * groups[i % 6],
            .n_kv_head = 2,
            .units = ALL_NARROW,
            .n_sms = i % 3 ? 400 : 24, /* 32 parts, or few */
        };
        check_step(self, &spec, pieces, 5);
    }
}

static void check_inputs(suite *self) {
    const piece pieces[] = {{0, 199, 1}, {1, 0, 65}, {2, 16, 17}, {-1, 0, 1}, {4, 62, 1}};
    for (int32_t i = 0; i < 5; i++) {
        attention_case spec = {
            .head_dim = 64 << i % 3,
            .k_bits = bits[i % 5][0],
            .v_bits = bits[i % 5][1],
            .block_len = 64,
            .n_head = 4,
            .n_kv_head = 2,
            .n_sms = 8,
        };
        spec.input = OUTLIER;
        check_step(self, &spec, pieces, 5);
        spec.input = EXACT;
        spec.has_norms = true;
        check_step(self, &spec, pieces, 5);
        if (i < 3) { /* codes could differ by one */
            spec.k_bits = spec.v_bits = 16;
            spec.input = NORMAL;
            check_step(self, &spec, pieces, 5);
        }
        spec.has_norms = false;
        spec.input = NOT_FINITE;
        if (spec.k_bits < 16) check_step(self, &spec, pieces, 5);
    }
}

void check_attention(suite *self) {
    check_formats(self);
    check_splits(self);
    check_inputs(self);
}
