/* Shadow memory: see shadow.h. A cell says who wrote last and who read since; an access that is
 * neither by the same thread, nor ordered by a barrier, __syncwarp or mbarrier, is a race.
 * There is a cell for each word of 4 bytes; a word that is not always used whole is split into
 * cells of its bytes. Must not know: allocations, addresses. */
#include "shadow.h"

#include "runtime.h"
#include "simt.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace emu {

/* Who wrote last, and who read since; of readers before the last barrier, only when. */
struct cell {
    uint64_t written : 40; /* the moment; 0: never */
    uint64_t writer : 11;
    uint64_t by_atomic : 1, under_way : 1, is_split : 1, is_freed : 1;
    uint64_t read : 40; /* the newest */
    uint64_t reader_warp : 5;
    uint64_t has_many : 1;    /* readers are of several warps: see the list */
    uint64_t other_block : 1; /* read by an earlier block of this launch, too */
    uint32_t lanes;           /* of reader_warp */
    uint32_t list;            /* its number */
};
static_assert(sizeof(cell) == 24, "a cell is 24 bytes");

struct lanes_read {
    moment when; /* the newest */
    uint32_t lanes;
};
struct reader_list {
    lanes_read warps[MAX_THREADS / 32];
};

/* The cells of one memory; pages of them exist once they are used. */
struct shadow {
    cell *words, *bytes;
};

constexpr moment BY_HOST = 1;
constexpr size_t MAX_LISTS = 1 << 18;

static knowledge *known; /* [MAX_THREADS], of each thread */
static moment newest = BY_HOST, clocks[MAX_THREADS];
static moment launch_begin, block_begin, interval_begin; /* interval: since the last barrier */
static reader_list *lists;                               /* [MAX_LISTS], of the interval */
static uint32_t n_lists;
static bool has_mbarriers; /* of the block: what threads know reaches other warps */

static void *map(size_t n_bytes) {
    void *p = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}

static shadow make_shadow(size_t n_bytes) {
    return {(cell *)map((n_bytes + 3) / 4 * sizeof(cell)), (cell *)map(n_bytes * sizeof(cell))};
}

/* Any thread: allocations and copies come from several. */
static const shadow *shadow_of(memory_kind memory) {
    static const shadow dynamic_smem = make_shadow(MAX_SMEM);
    static const shadow static_smem = make_shadow(MAX_STATIC_SMEM);
    static const shadow device = [] {
        uintptr_t begin, end;
        return emu_device_range(&begin, &end) ? make_shadow(end - begin) : shadow();
    }();
    return memory == DEVICE_MEMORY  ? &device
           : memory == DYNAMIC_SMEM ? &dynamic_smem
                                    : &static_smem;
}

/* ---- order ---- */

void shadow_begin_launch() {
    if (!known) known = (knowledge *)map(sizeof(knowledge) * MAX_THREADS);
    if (!lists) lists = (reader_list *)map(sizeof(reader_list) * MAX_LISTS);
    launch_begin = ++newest;
}

void shadow_barrier() {
    interval_begin = ++newest;
    n_lists = 0;
    for (int i = 0; i < now.n_threads; i++) clocks[i] = newest;
}

void shadow_begin_block() {
    shadow_barrier();
    block_begin = interval_begin;
    has_mbarriers = false;
}

/* Threads [first, end). */
static void join(knowledge *to, const knowledge *from, int first, int end) {
    for (int i = first; i < end; i++) to->until[i] = std::max(to->until[i], from->until[i]);
    to->until[COPY_ENGINE] = std::max(to->until[COPY_ENGINE], from->until[COPY_ENGINE]);
}

void shadow_give(knowledge *to) {
    const int me = now.current->id;
    has_mbarriers = true;
    known[me].until[me] = clocks[me];
    join(to, &known[me], 0, now.n_threads);
    clocks[me] = ++newest;
}

void shadow_take(const knowledge *from) {
    join(&known[now.current->id], from, 0, now.n_threads);
}

void shadow_sync_warp(unsigned mask) {
    static knowledge all;
    const int warp = now.current->warp * 32;
    const int first = has_mbarriers ? 0 : warp;
    const int end = has_mbarriers ? now.n_threads : std::min(now.n_threads, warp + 32);
    memset(&all, 0, sizeof all);
    ++newest;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const int i = warp + __builtin_ctz(rest);
        known[i].until[i] = clocks[i];
        join(&all, &known[i], first, end);
        clocks[i] = newest;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1)
        join(&known[warp + __builtin_ctz(rest)], &all, first, end);
}

/* Does the running thread know of an access? */
static bool is_known(int by, moment when) {
    const int me = now.current->id;
    return when < interval_begin || by == me || known[me].until[by] >= when;
}

static bool are_known(int warp, uint32_t lanes, moment when) {
    for (; lanes; lanes &= lanes - 1)
        if (!is_known(warp * 32 + __builtin_ctz(lanes), when)) return false;
    return true;
}

/* ---- what is wrong with an access ---- */

struct problem {
    const char *kind; /* NULL: nothing */
    const char *where;
    int by; /* the thread of the earlier access; -1: unknown */
};
static const problem FINE = {NULL, NULL, -1};

static problem compare_with_write(const cell *c, shadow_kind kind, bool is_shared) {
    const moment first = is_shared ? block_begin : 1; /* shared memory begins with the block */
    const bool reads = kind == SHADOW_READ || kind == SHADOW_ATOMIC;
    const int by = (int)c->writer;
    if (c->written < first) return reads ? problem{"uninitialised read", "", -1} : FINE;
    if (c->under_way && c->written >= block_begin && kind != SHADOW_LAND)
        return {reads ? "read of a copy that nobody waited for"
                      : "write to the destination of a copy that nobody waited for",
                "", by};
    if (c->written < launch_begin || (c->by_atomic && kind == SHADOW_ATOMIC)) return FINE;
    const char *const race = reads ? "race: read after write" : "race: write after write";
    if (c->written < block_begin) return {race, " of another block", by};
    return is_known(by, c->written) ? FINE : problem{race, "", by};
}

static problem compare_with_reads(const cell *c, bool is_shared) {
    const char *const race = "race: write after read";
    if (c->read < (is_shared ? block_begin : launch_begin)) return FINE;
    if (c->read < block_begin || (c->other_block && !is_shared))
        return {race, " of another block", -1};
    if (c->read < interval_begin) return FINE;
    if (!c->has_many) {
        const bool fine = are_known((int)c->reader_warp, c->lanes, c->read);
        return fine ? FINE
                    : problem{race, "", (int)c->reader_warp * 32 + __builtin_ctz(c->lanes)};
    }
    for (int w = 0; w * 32 < now.n_threads; w++) {
        const lanes_read *r = &lists[c->list].warps[w];
        if (!are_known(w, r->lanes, r->when))
            return {race, "", w * 32 + __builtin_ctz(r->lanes)};
    }
    return FINE;
}

/* ---- what a cell remembers ---- */

/* Adds the running thread to the lanes that read; those that it knows of are no longer needed,
 * because whoever knows of this read knows of them. */
static void add_lane(moment *when, uint32_t *lanes, int warp) {
    const thread *me = now.current;
    const moment clock = clocks[me->id];
    if (*when != clock && are_known(warp, *lanes, *when)) *lanes = 0;
    *when = *lanes ? std::max(*when, clock) : clock;
    *lanes |= 1u << me->lane;
}

static void remember_read(cell *c, bool is_shared) {
    const thread *me = now.current;
    const bool is_old = c->read < interval_begin;
    moment when = c->read;
    if (!is_shared && c->read >= launch_begin && c->read < block_begin) c->other_block = 1;
    if (c->read < launch_begin) c->other_block = 0;
    if (is_old || (!c->has_many && are_known((int)c->reader_warp, c->lanes, c->read))) {
        c->has_many = 0;
        c->reader_warp = (unsigned)me->warp;
        c->lanes = 0;
    }
    if (!c->has_many && (int)c->reader_warp != me->warp) {
        if (n_lists == MAX_LISTS) return; /* forgets this reader */
        reader_list *list = &lists[n_lists];
        memset(list, 0, sizeof *list);
        list->warps[c->reader_warp] = {c->read, c->lanes};
        c->list = n_lists++;
        c->has_many = 1;
    }
    if (c->has_many) {
        lanes_read *mine = &lists[c->list].warps[me->warp];
        add_lane(&mine->when, &mine->lanes, me->warp);
        when = std::max(when, mine->when);
    } else {
        uint32_t lanes = c->lanes;
        add_lane(&when, &lanes, me->warp);
        c->lanes = lanes;
    }
    c->read = when;
}

static problem touch(cell *c, shadow_kind kind, bool is_shared) {
    problem p = compare_with_write(c, kind, is_shared);
    if (kind == SHADOW_READ) {
        remember_read(c, is_shared);
        return p;
    }
    if (!p.kind) p = compare_with_reads(c, is_shared);
    c->written = clocks[now.current->id];
    c->writer = (unsigned)now.current->id;
    c->by_atomic = kind == SHADOW_ATOMIC;
    c->under_way = kind == SHADOW_COPY;
    c->read = 0;
    return p;
}

/* ---- words and bytes ---- */

/* Calls act for the cells of a range: of words where they are whole, else of bytes. */
template <class F>
static void for_cells(const shadow *s, size_t offset, size_t n_bytes, F act) {
    const size_t end = offset + n_bytes;
    while (offset < end) {
        cell *const word = &s->words[offset / 4];
        const size_t word_end = std::min(end, (offset | 3) + 1);
        if (offset % 4 == 0 && word_end % 4 == 0 && !word->is_split) {
            act(word);
            offset += 4;
            continue;
        }
        cell *const bytes = &s->bytes[offset / 4 * 4];
        if (!word->is_split) {
            for (int i = 0; i < 4; i++) bytes[i] = *word;
            word->is_split = 1;
        }
        for (; offset < word_end; offset++) act(&s->bytes[offset]);
    }
}

void shadow_access(memory_kind memory, size_t offset, size_t n_bytes, shadow_kind kind,
                   void *at) {
    const bool is_shared = memory != DEVICE_MEMORY;
    problem first = FINE;
    for_cells(shadow_of(memory), offset, n_bytes, [&](cell *c) {
        const problem p = touch(c, kind, is_shared);
        if (p.kind && !first.kind) first = p;
    });
    if (!first.kind) return;
    char by[40] = "";
    if (first.by == COPY_ENGINE)
        snprintf(by, sizeof by, ", the copy engine");
    else if (first.by >= 0)
        snprintf(by, sizeof by, ", thread %d", first.by);
    report(first.kind, at, "%zu bytes of %s memory%s%s", n_bytes,
           is_shared ? "shared" : "device", by, first.where);
}

moment shadow_land_bulk(memory_kind memory, size_t offset, size_t n_bytes) {
    const moment when = ++newest;
    for_cells(shadow_of(memory), offset, n_bytes, [&](cell *c) {
        c->written = when;
        c->writer = COPY_ENGINE;
        c->under_way = 0;
    });
    return when;
}

bool shadow_is_freed(size_t offset) {
    return shadow_of(DEVICE_MEMORY)->words[offset / 4].is_freed;
}

/* ---- memory outside kernels ---- */

/* Makes all cells of a range the same. */
static void fill(const void *alias, size_t n_bytes, cell value) {
    uintptr_t begin, end;
    if (!wishes.check || !emu_device_range(&begin, &end)) return;
    const shadow *s = shadow_of(DEVICE_MEMORY);
    size_t offset = (uintptr_t)alias - (begin + (uintptr_t)emu_alias_delta());
    while (n_bytes > 0) {
        const size_t n = std::min(n_bytes, 4 - offset % 4);
        if (n == 4)
            s->words[offset / 4] = value;
        else
            for_cells(s, offset, n, [&](cell *c) { *c = value; });
        offset += n;
        n_bytes -= n;
    }
}

/* Forgets a new allocation's cells: whole pages of them are given back to the system. */
static void clear(const void *alias, size_t n_bytes) {
    uintptr_t begin, end;
    if (!wishes.check || !emu_device_range(&begin, &end)) return;
    const size_t offset = (uintptr_t)alias - (begin + (uintptr_t)emu_alias_delta());
    const cell *first = &shadow_of(DEVICE_MEMORY)->words[offset / 4];
    const uintptr_t page = ((uintptr_t)first + 4095) & ~(uintptr_t)4095;
    const uintptr_t last = (uintptr_t)(first + n_bytes / 4) & ~(uintptr_t)4095;
    if (page >= last) {
        fill(alias, n_bytes, cell());
        return;
    }
    madvise((void *)page, last - page, MADV_DONTNEED);
    const size_t head = (page - (uintptr_t)first) / sizeof(cell) * 4 + 4;
    const size_t tail = (last - (uintptr_t)first) / sizeof(cell) * 4;
    fill(alias, head, cell());
    fill((const uint8_t *)alias + tail, n_bytes - tail, cell());
}

} // namespace emu

extern "C" void emu_note_allocation(const void *alias, size_t n_bytes) {
    emu::clear(alias, n_bytes);
    emu::forget_allocations();
}

/* Only the beginning of a large allocation is known to be freed: its cells would stay for good,
 * six times as large. An access behind that is out of bounds. */
extern "C" void emu_note_free(const void *alias, size_t n_bytes) {
    emu::cell freed = {};
    freed.is_freed = 1;
    emu::clear(alias, n_bytes);
    emu::fill(alias, std::min(n_bytes, (size_t)1 << 20), freed);
    emu::forget_allocations();
}

extern "C" void emu_note_write(const void *alias, size_t n_bytes) {
    emu::cell written = {};
    written.written = emu::BY_HOST;
    emu::fill(alias, n_bytes, written);
}
