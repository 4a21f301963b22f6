/* Copies from global to shared memory that run on their own: cp.async and its groups, bulk
 * copies and the barriers that count their bytes. The destination is poisoned when a copy
 * starts, and the bytes arrive as late as the rules allow: at the wait that covers them, never
 * before. A copy that nobody waits for never arrives. Must not know: who runs next. */
#include "shadow.h"

#include <list>

namespace emu {

/* ---- cp.async ---- */

void cp_async16(void *smem, const void *global, bool valid) {
    thread *const me = now.current;
    void *const at = __builtin_return_address(0);
    access(smem, 16, COPY, SHARED, SITE_PLAIN, at);
    if ((uintptr_t)global % 16)
        fault(cudaErrorMisalignedAddress, "misaligned address", at,
              "cp_async16 reads 16 bytes at %p", global);
    if (valid) access(global, 16, READ, GLOBAL, SITE_PLAIN, at);
    memset(smem, 0xff, 16);
    me->copies.push_back({(uint8_t *)smem, valid ? (const uint8_t *)global : NULL, me->group});
}

void cp_async_commit() { now.current->group++; }

void cp_async_wait(int n_pending) {
    thread *const me = now.current;
    void *const at = __builtin_return_address(0);
    size_t n = 0;
    while (n < me->copies.size() && me->copies[n].group < me->group - n_pending) {
        const async_copy &copy = me->copies[n++];
        if (copy.from)
            memcpy(copy.to, copy.from, 16);
        else
            memset(copy.to, 0, 16);
        note_landing(copy.to, 16, at);
    }
    me->copies.erase(me->copies.begin(), me->copies.begin() + (ptrdiff_t)n);
}

/* ---- barriers that count bytes ---- */

struct bulk {
    uint8_t *to;
    const uint8_t *from;
    uint32_t n_bytes;
};

struct mbarrier {
    uint64_t *address;
    int count, n_missing; /* arrivals of a phase, and those that have not come */
    int64_t n_bytes;      /* expected and not there */
    uint32_t phase;
    bool fenced;             /* since mbarrier_init */
    std::vector<bulk> bulks; /* on their way */
    std::vector<thread *> waiting;
    knowledge given, ended; /* what arrivals give in this phase, and gave until the last */
};

/* What the barrier's word in shared memory holds: whoever overwrites it is found. */
constexpr uint64_t BARRIER_WORD = 0x6d62617272696572;
constexpr int64_t MAX_EXPECTED = (1 << 20) - 1; /* bytes of a phase */

static std::list<mbarrier> mbarriers; /* of the block */

void reset_copies() { mbarriers.clear(); }

static mbarrier *find(uint64_t *address, void *at) {
    for (mbarrier &b : mbarriers) {
        if (b.address != address) continue;
        if (*address != BARRIER_WORD)
            fault(cudaErrorLaunchFailure, "overwritten mbarrier", at, "its word was changed");
        return &b;
    }
    fault(cudaErrorLaunchFailure, "mbarrier without init", at, "at %p", (void *)address);
}

/* One of the copies on their way arrives. */
static void land_one(mbarrier *b) {
    const size_t n = b->bulks.size();
    const size_t i = wishes.order == 0   ? 0
                     : wishes.order == 1 ? n - 1
                                         : random_below((uint32_t)n);
    const bulk copy = b->bulks[i];
    memcpy(copy.to, copy.from, copy.n_bytes);
    b->n_bytes -= copy.n_bytes;
    if (wishes.check) b->given.until[COPY_ENGINE] = note_bulk_landing(copy.to, copy.n_bytes);
    b->bulks.erase(b->bulks.begin() + (ptrdiff_t)i);
}

/* Ends the phase if nothing is missing. Copies arrive only once bytes are all that is missing,
 * and someone waits. */
static void advance(mbarrier *b) {
    while (b->n_missing != 0 || b->n_bytes != 0) {
        if (b->n_missing != 0 || b->waiting.empty() || b->bulks.empty()) return;
        land_one(b);
    }
    b->phase++;
    b->ended = b->given;
    b->n_missing = b->count;
    for (thread *t : b->waiting) wake(t);
    b->waiting.clear();
}

void mbarrier_init(uint64_t *barrier, int count) {
    void *const at = __builtin_return_address(0);
    access(barrier, 8, WRITE, SHARED, SITE_PLAIN, at);
    *barrier = BARRIER_WORD;
    mbarrier *b = NULL;
    for (mbarrier &other : mbarriers)
        if (other.address == barrier) b = &other;
    if (!b) b = &*mbarriers.emplace(mbarriers.end());
    *b = {};
    b->address = barrier;
    b->count = b->n_missing = count;
}

void mbarrier_expect_bytes(uint64_t *barrier, uint32_t n_bytes) {
    void *const at = __builtin_return_address(0);
    mbarrier *const b = find(barrier, at);
    b->n_bytes += n_bytes;
    if (b->n_bytes > MAX_EXPECTED)
        fault(cudaErrorLaunchFailure, "too many bytes for an mbarrier", at, "%ld are expected",
              (long)b->n_bytes);
}

void mbarrier_arrive(uint64_t *barrier) {
    void *const at = __builtin_return_address(0);
    mbarrier *const b = find(barrier, at);
    if (b->n_missing == 0)
        fault(cudaErrorLaunchFailure, "too many arrivals at an mbarrier", at,
              "all %d of the phase came, bytes are still missing", b->count);
    b->n_missing--;
    if (wishes.check) shadow_give(&b->given);
    advance(b);
}

void mbarrier_wait(uint64_t *barrier, uint32_t parity) {
    void *const at = __builtin_return_address(0);
    mbarrier *const b = find(barrier, at);
    if ((b->phase & 1) == parity) {
        b->waiting.push_back(now.current);
        advance(b); /* may wake this thread: it is its turn again after others */
        wait_as("mbarrier_wait", at);
    }
    if (wishes.check) shadow_take(&b->ended);
}

void bulk_copy(void *smem, const void *global, uint32_t n_bytes, uint64_t *barrier) {
    void *const at = __builtin_return_address(0);
    mbarrier *b = find(barrier, at);
    if ((uintptr_t)smem % 16 || (uintptr_t)global % 16 || n_bytes % 16)
        fault(cudaErrorMisalignedAddress, "misaligned address", at,
              "bulk_copy of %u bytes from %p to %p", n_bytes, global, smem);
    access(smem, n_bytes, COPY, SHARED, SITE_PLAIN, at);
    access(global, n_bytes, READ, GLOBAL, SITE_PLAIN, at);
    if (!b->fenced)
        report("no fence_proxy_async after mbarrier_init", at,
               "the copy engine may not see it");
    memset(smem, 0xff, n_bytes);
    b->bulks.push_back({(uint8_t *)smem, (const uint8_t *)global, n_bytes});
    advance(b);
}

void fence_proxy_async() {
    for (mbarrier &b : mbarriers) b.fenced = true;
}

} // namespace emu
