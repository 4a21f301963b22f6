/* What the lanes of a warp do together: each brings its operands and waits; the last to come
 * computes for all and wakes them. Also the arithmetic of halves. Must not know: who runs next,
 * what is checked. */
#include "shadow.h"

#ifdef __F16C__
#include <immintrin.h>
#else
#include "base/half.h"
#endif

namespace emu {

/* Finds those who wait for the running thread to come with this mask, or begins to wait; lanes
 * that wait for each other at different places never meet. */
static gathering *find_gathering(warp *w, operation what, const char *name, unsigned mask,
                                 void *at) {
    const thread *const me = now.current;
    for (int i = 0; i < w->n_gatherings; i++) {
        gathering *const g = &w->gatherings[i];
        if (g->mask == mask && g->what == what) return g;
        if ((g->mask >> me->lane & 1) && (mask & g->arrived))
            fault(
                cudaErrorLaunchFailure, "divergent warp", at,
                "lane %d comes to %s with mask %08x; lanes %08x wait elsewhere with mask %08x",
                me->lane, name, mask, g->arrived, g->mask);
    }
    gathering *const g = &w->gatherings[w->n_gatherings++];
    *g = {mask, 0, what};
    return g;
}

static void check_mask(const char *name, unsigned mask, void *at) {
    const thread *const me = now.current;
    const unsigned live = now.warps[me->warp].live;
    if (!(mask >> me->lane & 1))
        fault(cudaErrorLaunchFailure, "mask without its lane", at, "lane %d, mask %08x in %s",
              me->lane, mask, name);
    if (mask & ~live)
        fault(cudaErrorLaunchFailure, "exited lane in a mask", at,
              "lanes %08x of mask %08x in %s have exited", mask & ~live, mask, name);
}

/* Gathers the lanes of mask; the last calls compute(threads of the warp). */
template <class F>
static inline void gather(operation what, const char *name, unsigned mask, void *at,
                          F compute) {
    thread *const me = now.current;
    warp *const w = &now.warps[me->warp];
    check_mask(name, mask, at);
    gathering *const g = find_gathering(w, what, name, mask, at);
    g->arrived |= 1u << me->lane;
    if (g->arrived != mask) {
        wait_as(name, at);
        return;
    }
    *g = w->gatherings[--w->n_gatherings];
    if (wishes.profile && mask == w->live) count_flush(me->warp);
    thread *const lanes = now.threads + me->warp * 32;
    compute(lanes);
    for (unsigned rest = mask & ~(1u << me->lane); rest; rest &= rest - 1)
        wake(&lanes[__builtin_ctz(rest)]);
}

void check_exit() {
    const thread *const me = now.current;
    const warp *const w = &now.warps[me->warp];
    for (int i = 0; i < w->n_gatherings; i++) {
        const gathering *const g = &w->gatherings[i];
        if (!(g->mask >> me->lane & 1)) continue;
        const thread *const other = &now.threads[me->warp * 32 + __builtin_ctz(g->arrived)];
        fault(cudaErrorLaunchFailure, "exited lane in a mask", other->waits_at,
              "lane %d exits, but lanes %08x wait for mask %08x in %s", me->lane, g->arrived,
              g->mask, other->waits_for);
    }
}

void sync_warp(unsigned mask) {
    gather(SYNC_WARP, "__syncwarp", mask, __builtin_return_address(0), [=](thread *) {
        if (wishes.check) shadow_sync_warp(mask);
    });
}

/* The lane that a lane's shuffle reads; of the operand, five bits count. */
static int shuffle_source(shuffle_kind kind, int lane, int operand, int width) {
    const int begin = lane & ~(width - 1), end = begin + width;
    int source = lane;
    operand &= 31;
    switch (kind) {
    case SHUFFLE: return begin + (operand & (width - 1));
    case SHUFFLE_UP: source = lane - operand; break;
    case SHUFFLE_DOWN: source = lane + operand; break;
    case SHUFFLE_XOR: return (lane ^ operand) >= end ? lane : lane ^ operand;
    }
    return source < begin || source >= end ? lane : source;
}

uint64_t shuffle(shuffle_kind kind, unsigned mask, uint64_t value, int operand, int width) {
    thread *const me = now.current;
    void *const at = __builtin_return_address(0);
    me->value = value;
    me->operand = operand;
    me->width = width;
    gather(A_SHUFFLE, "a shuffle", mask, at, [=](thread *lanes) {
        for (unsigned rest = mask; rest; rest &= rest - 1) {
            const int lane = __builtin_ctz(rest);
            thread *const t = &lanes[lane];
            const int source = shuffle_source(kind, lane, t->operand, t->width);
            if (!(mask >> source & 1))
                fault(cudaErrorLaunchFailure, "shuffle from outside its mask", at,
                      "lane %d reads lane %d, mask %08x", lane, source, mask);
            t->result = lanes[source].value;
        }
    });
    return me->result;
}

unsigned ballot(unsigned mask, bool predicate) {
    thread *const me = now.current;
    me->value = predicate;
    gather(A_BALLOT, "a vote", mask, __builtin_return_address(0), [=](thread *lanes) {
        unsigned votes = 0;
        for (unsigned rest = mask; rest; rest &= rest - 1)
            votes |= (unsigned)lanes[__builtin_ctz(rest)].value << __builtin_ctz(rest);
        for (unsigned rest = mask; rest; rest &= rest - 1)
            lanes[__builtin_ctz(rest)].result = votes;
    });
    return (unsigned)me->result;
}

static uint32_t combine(reduce_kind kind, uint32_t a, uint32_t b) {
    switch (kind) {
    case REDUCE_ADD: return a + b;
    case REDUCE_MIN: return (int32_t)a < (int32_t)b ? a : b;
    case REDUCE_MAX: return (int32_t)a > (int32_t)b ? a : b;
    case REDUCE_UMIN: return a < b ? a : b;
    case REDUCE_UMAX: return a > b ? a : b;
    case REDUCE_AND: return a & b;
    case REDUCE_OR: return a | b;
    case REDUCE_XOR: break;
    }
    return a ^ b;
}

uint32_t reduce(reduce_kind kind, unsigned mask, uint32_t value) {
    thread *const me = now.current;
    me->value = value;
    gather(A_REDUCE, "a reduction", mask, __builtin_return_address(0), [=](thread *lanes) {
        const int first = __builtin_ctz(mask);
        uint32_t all = (uint32_t)lanes[first].value;
        for (unsigned rest = mask & (mask - 1); rest; rest &= rest - 1)
            all = combine(kind, all, (uint32_t)lanes[__builtin_ctz(rest)].value);
        for (unsigned rest = mask; rest; rest &= rest - 1)
            lanes[__builtin_ctz(rest)].result = all;
    });
    return (uint32_t)me->result;
}

/* ---- matrices ---- */

/* The two halves that a lane gets of one matrix. */
static uint32_t matrix_pair(const thread *rows, int lane, bool transposed) {
    uint32_t pair;
    if (!transposed) {
        memcpy(&pair, (const uint8_t *)rows[lane / 4].row + lane % 4 * 4, sizeof pair);
        return pair;
    }
    uint16_t halves[2];
    for (int i = 0; i < 2; i++)
        memcpy(&halves[i], (const uint8_t *)rows[lane % 4 * 2 + i].row + lane / 4 * 2, 2);
    return halves[0] | (uint32_t)halves[1] << 16;
}

void ldmatrix(uint32_t *r, const void *row, int n_matrices, bool transposed) {
    thread *const me = now.current;
    void *const at = __builtin_return_address(0);
    if (me->lane < n_matrices * 8) access(row, 16, READ, SHARED, SITE_MATRIX, at);
    me->row = row;
    me->registers = r;
    gather(n_matrices == 4 ? LDMATRIX_X4 : LDMATRIX_X2, "ldmatrix", ~0u, at,
           [=](thread *lanes) {
               for (int i = 0; i < n_matrices; i++)
                   for (int lane = 0; lane < 32; lane++)
                       lanes[lane].registers[i] = matrix_pair(lanes + i * 8, lane, transposed);
           });
}

static void unpack(float *out, uint32_t pair) {
    out[0] = half_to_float((uint16_t)pair);
    out[1] = half_to_float((uint16_t)(pair >> 16));
}

/* Multiplies for a whole warp; dev.h says where the elements lie. */
static void multiply(thread *lanes) {
    float a[16][16], b[16][8], c[16][8], column[2];
    for (int lane = 0; lane < 32; lane++) {
        const thread *t = &lanes[lane];
        const int g = lane / 4, i = lane % 4 * 2;
        unpack(&a[g][i], t->a[0]);
        unpack(&a[g + 8][i], t->a[1]);
        unpack(&a[g][i + 8], t->a[2]);
        unpack(&a[g + 8][i + 8], t->a[3]);
        unpack(column, t->b0);
        b[i][g] = column[0], b[i + 1][g] = column[1];
        unpack(column, t->b1);
        b[i + 8][g] = column[0], b[i + 9][g] = column[1];
        memcpy(&c[g][i], t->c, 8);
        memcpy(&c[g + 8][i], t->c + 2, 8);
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int col = 0; col < 8; col++) c[row][col] += a[row][k] * b[k][col];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, i = lane % 4 * 2;
        memcpy(lanes[lane].c, &c[g][i], 8);
        memcpy(lanes[lane].c + 2, &c[g + 8][i], 8);
    }
}

void mma_f16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
    thread *const me = now.current;
    me->c = c;
    me->a = a;
    me->b0 = b0;
    me->b1 = b1;
    gather(A_MMA, "mma", ~0u, __builtin_return_address(0), multiply);
}

/* ---- halves ---- */

#ifdef __F16C__
float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
uint16_t float_to_half(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
#else
float half_to_float(uint16_t h) { return lmd_half_to_float(h); }
uint16_t float_to_half(float x) { return lmd_float_to_half(x); }
#endif

/* Rounds to fp32 towards zero, and sets the last bit where that lost anything: rounding the
 * result to a half then is as rounding x itself. */
static float round_to_odd(double x) {
    float y = (float)x;
    uint32_t bits;
    if ((double)y == x || isnan(x) || isinf(y)) return y;
    memcpy(&bits, &y, sizeof bits);
    if (fabs((double)y) > fabs(x)) bits--;
    bits |= 1;
    memcpy(&y, &bits, sizeof bits);
    return y;
}

uint16_t half_fma(uint16_t a, uint16_t b, uint16_t c) {
    const double product = (double)half_to_float(a) * half_to_float(b); /* exact */
    const double addend = half_to_float(c);
    double sum = product + addend;
    /* What the sum lost, exactly; it moves the sum's last bit to odd. */
    const double part = sum - product;
    const double lost = (product - (sum - part)) + (addend - part);
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if (isfinite(sum) && lost != 0 && !(bits & 1)) bits += (lost > 0) == (sum > 0) ? 1 : -1;
    memcpy(&sum, &bits, sizeof bits);
    return float_to_half(round_to_odd(sum));
}

float exp2_approx(float x) {
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}

float exp_approx(float x) { return exp2_approx(x * 1.44269504f); }

} // namespace emu
