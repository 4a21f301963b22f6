/* How many tokens to draft: see speculation.h. */
#include "engine/speculation.h"

#include "base/ints.h"

enum { MAX_AGE = 512 }; /* steps after which a measurement is void: the context has grown */

/* With more sequences than this, rows fill the machine without drafts, which then gain less
 * than wrong estimates cost. */
enum { MAX_SEQS = 8 };

/* The expected cost of one more row, relative to a step of one row, until it is measured:
 * little, so that drafts are tried. */
static const double ROW_COST = 0.1;
/* The least gain for which a draft is worth it: estimates are noisy, and a wrong one costs. */
static const double LEAST_GAIN = 1.12;
static const float FADE = 0.95f;

void lmd_acceptance_init(lmd_acceptance *self) {
    for (int32_t len = 0; len <= LMD_NGRAM_MAX_LEN; len++) {
        self->n_all[len] = 4.0f;
        self->n_right[len] = len < LMD_NGRAM_MIN_LEN ? 0.0f : (float)(len - 1);
    }
}

void lmd_acceptance_note(lmd_acceptance *self, int32_t match_len, bool right) {
    self->n_all[match_len] = self->n_all[match_len] * FADE + 1.0f;
    self->n_right[match_len] = self->n_right[match_len] * FADE + (right ? 1.0f : 0.0f);
}

void lmd_speculation_init(lmd_speculation *self, int32_t n_max, bool adaptive) {
    *self = (lmd_speculation){.n_max = n_max, .adaptive = adaptive};
}

/* ---- what a step costs ---- */

static bool is_fresh(const lmd_speculation *self, int32_t n_rows) {
    const lmd_step_cost *cost = &self->costs[n_rows];
    return cost->step_id > 0 && self->step_id - cost->step_id <= MAX_AGE;
}

/* The nearest number of rows that was measured, from `first` on in steps of `step`; 0: none. */
static int32_t find_fresh(const lmd_speculation *self, int32_t first, int32_t step) {
    for (int32_t n = first; n > 0 && n <= LMD_MAX_DRAFT_ROWS; n += step)
        if (is_fresh(self, n)) return n;
    return 0;
}

/* Estimates a step of n_rows, on the line through the measurements around n_rows, or else below
 * it. In seconds; without a unit while nothing was measured. */
static double estimate(const lmd_speculation *self, int32_t n_rows) {
    const lmd_step_cost *costs = self->costs;
    const double expected = 1.0 + ROW_COST * (n_rows - 1);
    int32_t below = find_fresh(self, n_rows, -1), above = find_fresh(self, n_rows, 1);
    if (below == n_rows) return costs[below].seconds;
    if (below == 0 && above == 0) return expected;
    if (below == 0) return costs[above].seconds * expected / (1.0 + ROW_COST * (above - 1));
    const int32_t other = above > 0 ? above : find_fresh(self, 1, 1);
    if (other == below) return costs[below].seconds * expected / (1.0 + ROW_COST * (below - 1));
    double slope = (costs[other].seconds - costs[below].seconds) / (other - below);
    return costs[below].seconds + (slope > 0.0 ? slope : 0.0) * (n_rows - below);
}

void lmd_speculation_note(lmd_speculation *self, int32_t n_rows, double seconds) {
    self->step_id++;
    if (n_rows < 1 || n_rows > LMD_MAX_DRAFT_ROWS) return;
    lmd_step_cost *cost = &self->costs[n_rows];
    const bool fresh = is_fresh(self, n_rows);
    const double most =
        4.0 * estimate(self, n_rows); /* a step that took longer was interrupted */
    if (self->step_id > 1 && seconds > most) seconds = most;
    /* Other processes make steps longer, never shorter: so shorter measurements weigh more. */
    const double weight = seconds < cost->seconds ? 0.5 : 0.125;
    cost->seconds = fresh ? cost->seconds + (seconds - cost->seconds) * weight : seconds;
    cost->step_id = self->step_id;
}

/* ---- a step's drafts ---- */

bool lmd_speculation_may_draft(const lmd_speculation *self, int32_t n_seqs) {
    return self->n_max > 0 && (!self->adaptive || n_seqs <= MAX_SEQS);
}

void lmd_speculation_begin(lmd_speculation *self, int32_t n_seqs) {
    self->n_seqs = self->n_rows = n_seqs;
    self->n_expected = n_seqs;
}

/* Tokens a second, with n_draft more rows that are expected to give n_more tokens. */
static double rate(const lmd_speculation *self, int32_t n_draft, double n_more) {
    return (self->n_expected + n_more) / estimate(self, self->n_rows + n_draft);
}

int32_t lmd_speculation_choose(lmd_speculation *self, const lmd_acceptance *acceptance,
                               int32_t match_len, int32_t n_max) {
    n_max = lmd_min_i32(n_max, self->n_max);
    if (!self->adaptive) return n_max;
    n_max = lmd_min_i32(n_max, LMD_MAX_DRAFT_ROWS - self->n_rows);
    /* What a step costs without drafts is measured first. */
    if (n_max <= 0 || !is_fresh(self, self->n_seqs)) return 0;
    double best_rate = rate(self, 0, 0.0) * LEAST_GAIN, best_more = 0.0;
    double n_more = 0.0,
           all_right = 1.0; /* the chance that every draft token so far is accepted */
    int32_t best = 0;
    for (int32_t n = 1; n <= n_max; n++) {
        all_right *= (double)(acceptance->n_right[match_len] / acceptance->n_all[match_len]);
        n_more += all_right;
        double now = rate(self, n, n_more);
        if (now > best_rate) {
            best_rate = now;
            best_more = n_more;
            best = n;
        }
        if (match_len < LMD_NGRAM_MAX_LEN) match_len++; /* an accepted token makes it longer */
    }
    self->n_rows += best;
    self->n_expected += best_more;
    return best;
}
