/* Counts what accesses cost a GPU (EMU_PROFILE=1): bank conflicts of shared memory, and sectors
 * of global memory, for each place in each kernel. The lanes of a warp run one after another
 * here; their n-th accesses at a place, between two meetings of the warp, count as one
 * instruction. Must not know: whether accesses are right. The thread that runs launches. */
#include "internal.h"

#include <algorithm>
#include <map>
#include <stdio.h>
#include <stdlib.h>
#include <unordered_map>

namespace emu {

/* An instruction of a warp. */
struct request {
    uint32_t lanes, n_bytes; /* of each lane */
    uintptr_t addresses[32];
};

/* What is counted of a place. */
struct site {
    std::string where; /* once it is printed */
    bool is_shared;
    site_kind kind;
    access_kind act;
    uint32_t n_bytes; /* of a lane */
    uint64_t n_requests, n_bytes_used;
    uint64_t got, least; /* shared: passes over the banks; global: sectors of 32 bytes */
};

/* A place in a kernel, as a key: there may be several accesses to one call. */
typedef std::pair<void *, int> place;

struct place_hash {
    size_t operator()(const place &p) const { return (size_t)p.first * 31 + (size_t)p.second; }
};

/* The instructions at a place that may lack some lanes. */
struct open_site {
    site *total;
    std::vector<request> requests;
    uint16_t n_done[32]; /* of each lane */
};

struct kernel_total {
    uint64_t n_launches;
    std::map<place, site> sites;
};

static std::map<std::string, kernel_total> &totals = *new std::map<std::string, kernel_total>;
static kernel_total *current; /* the kernel that runs */
static std::unordered_map<place, open_site, place_hash> open_sites[MAX_THREADS / 32];

enum { SECTOR = 32, N_BANKS = 32, BANK = 4 };

/* ---- what one instruction costs ---- */

/* The banks are passed over for 32 lanes of up to 4 bytes, 16 of 8 or 8 of 16; and for each of
 * the matrices of ldmatrix. In a pass, each bank gives one word. */
static void measure_shared(const request *r, site_kind kind, uint64_t *got, uint64_t *least) {
    const int together = kind == SITE_MATRIX || r->n_bytes >= 16 ? 8
                         : r->n_bytes == 8                       ? 16
                                                                 : 32;
    for (int first = 0; first < 32; first += together) {
        std::vector<uintptr_t> words;
        for (int lane = first; lane < first + together; lane++) {
            if (!(r->lanes >> lane & 1)) continue;
            const uintptr_t begin = r->addresses[lane] / BANK;
            for (uintptr_t w = begin; w * BANK < r->addresses[lane] + r->n_bytes; w++)
                words.push_back(w);
        }
        if (words.empty()) continue;
        std::sort(words.begin(), words.end());
        words.erase(std::unique(words.begin(), words.end()), words.end());
        uint64_t of_bank[N_BANKS] = {};
        for (uintptr_t w : words) of_bank[w % N_BANKS]++;
        *got += *std::max_element(of_bank, of_bank + N_BANKS);
        *least += (words.size() + N_BANKS - 1) / N_BANKS;
    }
}

/* Sectors touched, and the fewest that could hold as many bytes. */
static void measure_global(const request *r, uint64_t *got, uint64_t *least) {
    uintptr_t sorted[32];
    int n = 0;
    for (int lane = 0; lane < 32; lane++)
        if (r->lanes >> lane & 1) sorted[n++] = r->addresses[lane];
    std::sort(sorted, sorted + n);
    uintptr_t end = 0, next_sector = 0; /* behind what was seen */
    uint64_t n_bytes = 0;
    for (int i = 0; i < n; i++) {
        const uintptr_t begin = std::max(sorted[i], end);
        end = std::max(end, sorted[i] + r->n_bytes);
        if (begin >= end) continue;
        n_bytes += end - begin;
        const uintptr_t first = std::max(begin / SECTOR, next_sector);
        next_sector = (end - 1) / SECTOR + 1;
        *got += next_sector - std::min(first, next_sector);
    }
    *least += (n_bytes + SECTOR - 1) / SECTOR;
}

static void add(site *s, const request *r) {
    s->n_requests++;
    s->n_bytes = std::max(s->n_bytes, r->n_bytes);
    s->n_bytes_used += (uint64_t)__builtin_popcount(r->lanes) * r->n_bytes;
    if (!s->is_shared)
        measure_global(r, &s->got, &s->least);
    else if (r->n_bytes <= 16)
        measure_shared(r, s->kind, &s->got, &s->least);
}

/* ---- gathering ---- */

void count_begin_launch() {
    current = &totals[now.config->name];
    current->n_launches++;
    for (auto &of_warp : open_sites) of_warp.clear();
}

void count_access(bool is_shared, uintptr_t address, size_t n_bytes, access_kind kind,
                  site_kind what, void *at) {
    const thread *me = now.current;
    const place key = {at, is_shared * 64 + what * 8 + kind};
    open_site *open = &open_sites[me->warp][key];
    if (!open->total) {
        open->total = &current->sites[key];
        open->total->is_shared = is_shared;
        open->total->kind = what;
        open->total->act = kind;
    }
    const size_t i = open->n_done[me->lane]++;
    if (i == open->requests.size()) open->requests.push_back({});
    request *r = &open->requests[i];
    r->lanes |= 1u << me->lane;
    r->n_bytes = (uint32_t)n_bytes;
    r->addresses[me->lane] = address;
}

static void flush_warp(int warp) {
    for (auto &of_place : open_sites[warp]) {
        open_site *open = &of_place.second;
        for (const request &r : open->requests) add(open->total, &r);
        open->requests.clear();
        memset(open->n_done, 0, sizeof open->n_done);
    }
}

void count_flush(int warp) {
    if (warp >= 0) {
        flush_warp(warp);
        return;
    }
    for (int w = 0; w * 32 < now.n_threads; w++) flush_warp(w);
}

/* ---- the table ---- */

static const char *act_name(const site *s) {
    return s->kind == SITE_MATRIX ? "ldmatrix"
           : s->act == READ       ? "read"
           : s->act == WRITE      ? "write"
           : s->act == COPY       ? "copy to"
                                  : "atomic";
}

static void print_site(const site *s, const char *kernel, FILE *json) {
    const char *const memory = s->is_shared ? "shared" : "global";
    fprintf(stderr, "  %-32s %-6s %-8s %5u %10lu %10lu %10lu %6.2f\n", s->where.c_str(), memory,
            act_name(s), s->n_bytes, (unsigned long)s->n_requests, (unsigned long)s->got,
            (unsigned long)s->least, s->least ? (double)s->got / (double)s->least : 1.0);
    if (!json) return;
    fprintf(json,
            "{\"kernel\": \"%s\", \"place\": \"%s\", \"memory\": \"%s\", \"act\": \"%s\", "
            "\"bytes\": %u, \"requests\": %lu, \"got\": %lu, \"least\": %lu}\n",
            kernel, s->where.c_str(), memory, act_name(s), s->n_bytes,
            (unsigned long)s->n_requests, (unsigned long)s->got, (unsigned long)s->least);
}

/* Adds up what one line of source became: it may be several places. */
static std::map<std::string, site> by_line(const kernel_total *k) {
    std::map<std::string, site> lines;
    for (const auto &of_place : k->sites) {
        const site *s = &of_place.second;
        if (s->n_requests == 0) continue;
        const std::string where = place_of(of_place.first.first);
        site *line = &lines[where + "|" + (s->is_shared ? "s" : "g") + act_name(s) +
                            std::to_string(s->n_bytes)];
        const site before = *line;
        *line = *s;
        line->where = where;
        line->n_requests += before.n_requests;
        line->n_bytes_used += before.n_bytes_used;
        line->got += before.got;
        line->least += before.least;
    }
    return lines;
}

static void print_kernel(const char *name, const kernel_total *k, FILE *json) {
    const std::map<std::string, site> lines = by_line(k);
    uint64_t used[2] = {}, moved[2] = {}; /* read, written: bytes of global memory */
    for (const auto &line : lines) {
        const site *s = &line.second;
        if (s->is_shared) continue;
        used[s->act != READ] += s->n_bytes_used;
        moved[s->act != READ] += s->got * SECTOR;
    }
    fprintf(stderr,
            "kernel %s: %lu launches; asked for %lu bytes, read %lu; wanted to write %lu, "
            "wrote %lu\n  %-32s %-6s %-8s %5s %10s %10s %10s %6s\n",
            name, (unsigned long)k->n_launches, (unsigned long)used[0], (unsigned long)moved[0],
            (unsigned long)used[1], (unsigned long)moved[1], "place", "memory", "act", "bytes",
            "requests", "got", "least", "ratio");
    if (json)
        fprintf(json,
                "{\"kernel\": \"%s\", \"launches\": %lu, \"bytes_asked\": %lu, "
                "\"bytes_read\": %lu, \"bytes_to_write\": %lu, \"bytes_written\": %lu}\n",
                name, (unsigned long)k->n_launches, (unsigned long)used[0],
                (unsigned long)moved[0], (unsigned long)used[1], (unsigned long)moved[1]);
    for (const auto &line : lines) print_site(&line.second, name, json);
}

void print_counters() {
    if (!wishes.profile) return;
    const char *path = getenv("EMU_PROFILE_FILE");
    FILE *json = path ? fopen(path, "w") : NULL;
    for (const auto &k : totals) print_kernel(k.first.c_str(), &k.second, json);
    if (json) fclose(json);
}

} // namespace emu
