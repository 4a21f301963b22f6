/* Looks at each access of a kernel to memory: which memory it is, whether it is there and
 * whose, and whether the address is aligned; then shadow memory and the counters hear of it.
 * What a GPU would trap ends the launch, as it does there. Must not know: what shadow memory
 * holds. */
#include "shadow.h"

#include "runtime.h"
#include "simt.h"

#include <algorithm>
#include <atomic>
#include <link.h>
#include <stdio.h>

namespace emu {

enum owner {
    NOBODY,
    OF_DEVICE,
    OF_DYNAMIC_SMEM,
    OF_STATIC_SMEM,
    OF_STACK,
    OF_ARGUMENTS,
    OF_CONSTANTS,
    OF_PINNED
};

/* Where an access goes. */
struct target {
    owner whose;
    size_t offset; /* in the device's, or in shared memory */
};

static std::atomic<uint64_t> generation{1}; /* of the allocations */
static bool has_hooks;                      /* a hook was called since the launch began */

void forget_allocations() { generation++; }

/* ---- allocations ---- */

struct extent {
    uintptr_t begin, end;
    uint64_t generation;
};

typedef bool (*finder)(const void *address, uintptr_t *begin, size_t *n_bytes);

/* Asks the runtime, which takes a lock; recent answers are kept by the page of the address. */
static bool is_within(extent *recent, finder find, uintptr_t address, size_t n_bytes) {
    extent *e = &recent[address >> 12 & 255];
    size_t length;
    if (e->generation != generation || address < e->begin || address + n_bytes > e->end) {
        if (!find((const void *)address, &e->begin, &length)) return false;
        e->end = e->begin + length;
        e->generation = generation;
    }
    return address + n_bytes <= e->end;
}

static bool is_allocated(uintptr_t address, size_t n_bytes) {
    static extent recent[256];
    return is_within(recent, emu_find_allocation, address, n_bytes);
}

static bool is_pinned(uintptr_t address, size_t n_bytes) {
    static extent recent[256];
    return is_within(recent, emu_find_pinned, address, n_bytes);
}

/* Says where a wrong address lies: in, behind or before the nearest allocation. */
static void describe(char *text, size_t room, uintptr_t address) {
    uintptr_t begin;
    size_t n_bytes;
    for (size_t distance = 0; distance <= 65536; distance++) {
        if (emu_find_allocation((const void *)(address - distance), &begin, &n_bytes)) {
            snprintf(text, room, "at offset %zu of an allocation of %zu bytes", address - begin,
                     n_bytes);
            return;
        }
        if (emu_find_allocation((const void *)(address + distance), &begin, &n_bytes)) {
            snprintf(text, room, "%zu bytes before an allocation of %zu bytes", distance,
                     n_bytes);
            return;
        }
    }
    snprintf(text, room, "near no allocation");
}

/* ---- which memory ---- */

struct constant_search {
    uintptr_t address;
    bool found;
};

static int match_constant(dl_phdr_info *info, size_t, void *arg) {
    constant_search *search = (constant_search *)arg;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        const uintptr_t begin = info->dlpi_addr + part->p_vaddr;
        const bool is_constant = part->p_type == PT_GNU_RELRO ||
                                 (part->p_type == PT_LOAD && !(part->p_flags & PF_W));
        if (!is_constant || search->address - begin >= part->p_memsz) continue;
        search->found = true;
    }
    return search->found;
}

/* Constants of a module are __constant__ memory. */
static bool is_constant(uintptr_t address) {
    constant_search search = {address, false};
    dl_iterate_phdr(match_constant, &search);
    return search.found;
}

/* Near the variables, too: an index out of bounds. */
static bool is_static_smem(uintptr_t address) {
    const std::vector<shared_var> &vars = now.shared_vars;
    return !vars.empty() && address + NEAR_SMEM >= (uintptr_t)vars.front().begin &&
           address < (uintptr_t)vars.back().begin + vars.back().n_bytes + NEAR_SMEM;
}

static target find_target(uintptr_t address, size_t n_bytes) {
    uintptr_t begin, end;
    if (is_on_fiber((const void *)address)) return {OF_STACK, 0};
    if (address - (uintptr_t)now.smem + NEAR_SMEM < MAX_SMEM + 2 * NEAR_SMEM)
        return {OF_DYNAMIC_SMEM, address - (uintptr_t)now.smem};
    if (is_static_smem(address)) {
        const uintptr_t first = (uintptr_t)now.shared_vars.front().begin & ~(uintptr_t)15;
        return {OF_STATIC_SMEM, address - first};
    }
    if (emu_device_range(&begin, &end)) {
        begin += (uintptr_t)emu_alias_delta();
        end += (uintptr_t)emu_alias_delta();
        if (address >= begin && address < end) return {OF_DEVICE, address - begin};
    }
    if (address - (uintptr_t)now.arguments < now.arguments->n_bytes) return {OF_ARGUMENTS, 0};
    if (is_pinned(address, n_bytes)) return {OF_PINNED, 0};
    return {is_constant(address) ? OF_CONSTANTS : NOBODY, 0};
}

/* ---- whether it is there ---- */

static const char *verb(access_kind kind) {
    return kind == READ ? "read" : kind == ATOMIC ? "atomic" : "write";
}

static void check_device(uintptr_t address, size_t offset, size_t n_bytes, access_kind kind,
                         void *at) {
    char text[160];
    if (is_allocated(address, n_bytes)) return;
    describe(text, sizeof text, address);
    fault(cudaErrorIllegalAddress, shadow_is_freed(offset) ? "use after free" : "out of bounds",
          at, "%s of %zu bytes of device memory %s", verb(kind), n_bytes, text);
}

static void check_static_smem(uintptr_t address, size_t n_bytes, access_kind kind, void *at) {
    for (const shared_var &var : now.shared_vars)
        if (var.is_ours && address >= (uintptr_t)var.begin &&
            address + n_bytes <= (uintptr_t)var.begin + var.n_bytes)
            return;
    fault(cudaErrorIllegalAddress, "out of bounds", at,
          "%s of %zu bytes, not all of one __shared__ variable of the kernel", verb(kind),
          n_bytes);
}

static void check_bounds(const target *t, uintptr_t address, size_t n_bytes, access_kind kind,
                         void *at) {
    uintptr_t begin, end;
    switch (t->whose) {
    case OF_DEVICE: check_device(address, t->offset, n_bytes, kind, at); break;
    case OF_STATIC_SMEM: check_static_smem(address, n_bytes, kind, at); break;
    case OF_DYNAMIC_SMEM:
        if (t->offset <= MAX_SMEM && t->offset + n_bytes <= now.config->smem_bytes) break;
        fault(cudaErrorIllegalAddress, "out of bounds", at,
              "%s of %zu bytes at offset %zd of %zu bytes of dynamic shared memory", verb(kind),
              n_bytes, (ptrdiff_t)t->offset, now.config->smem_bytes);
    case NOBODY:
        if (emu_device_range(&begin, &end) && address >= begin && address < end)
            fault(cudaErrorIllegalAddress, "hidden device pointer", at,
                  "%p did not come as an argument of the launch", (void *)address);
        fault(cudaErrorIllegalAddress, "host pointer", at, "%s of %zu bytes at %p", verb(kind),
              n_bytes, (void *)address);
    case OF_CONSTANTS:
    case OF_ARGUMENTS:
        if (kind == READ) break;
        fault(cudaErrorIllegalAddress, "write to a constant", at, "%zu bytes at %p", n_bytes,
              (void *)address);
    case OF_STACK:
    case OF_PINNED: break;
    }
}

static bool is_shared(const target *t) {
    return t->whose == OF_DYNAMIC_SMEM || t->whose == OF_STATIC_SMEM;
}

static memory_kind memory_of(const target *t) {
    return t->whose == OF_DEVICE         ? DEVICE_MEMORY
           : t->whose == OF_DYNAMIC_SMEM ? DYNAMIC_SMEM
                                         : STATIC_SMEM;
}

static shadow_kind shadow_kind_of(access_kind kind) {
    return kind == READ    ? SHADOW_READ
           : kind == WRITE ? SHADOW_WRITE
           : kind == COPY  ? SHADOW_COPY
                           : SHADOW_ATOMIC;
}

/* ---- who comes here: the words of dev.h ---- */

/* Looks at an access of the running thread to memory that threads can share. */
static void reach(uintptr_t address, size_t n_bytes, access_kind kind, space where,
                  site_kind site, void *at) {
    const target t = find_target(address, n_bytes);
    if (t.whose == OF_STACK) return;
    if (wishes.check) {
        check_bounds(&t, address, n_bytes, kind, at);
        if (where != ANY && (where == SHARED) != is_shared(&t))
            fault(cudaErrorInvalidAddressSpace, "wrong memory", at, "%s wants %s memory",
                  verb(kind), where == SHARED ? "shared" : "global");
    }
    if (!is_shared(&t) && t.whose != OF_DEVICE) return;
    if (wishes.check) shadow_access(memory_of(&t), t.offset, n_bytes, shadow_kind_of(kind), at);
    if (wishes.profile) count_access(is_shared(&t), address, n_bytes, kind, site, at);
}

static void check_alignment(uintptr_t address, size_t n_bytes, access_kind kind, void *at) {
    if (address % std::min<size_t>(n_bytes, 16) == 0) return;
    fault(cudaErrorMisalignedAddress, "misaligned address", at, "%s of %zu bytes at %p",
          verb(kind), n_bytes, (void *)address);
}

void access(const void *address, size_t n_bytes, access_kind kind, space where, site_kind site,
            void *at) {
    check_alignment((uintptr_t)address, n_bytes, kind, at);
    if (wishes.check || wishes.profile)
        reach((uintptr_t)address, n_bytes, kind, where, site, at);
}

void note_landing(const void *smem, size_t n_bytes, void *at) {
    if (!wishes.check) return;
    const target t = find_target((uintptr_t)smem, n_bytes);
    shadow_access(memory_of(&t), t.offset, n_bytes, SHADOW_LAND, at);
}

moment note_bulk_landing(const void *smem, size_t n_bytes) {
    const target t = find_target((uintptr_t)smem, n_bytes);
    return shadow_land_bulk(memory_of(&t), t.offset, n_bytes);
}

uint4 load16(const void *address, space where) {
    uint4 value;
    access(address, 16, READ, where, SITE_PLAIN, __builtin_return_address(0));
    memcpy(&value, address, sizeof value);
    return value;
}

void store16(void *address, uint4 value, space where) {
    access(address, 16, WRITE, where, SITE_PLAIN, __builtin_return_address(0));
    memcpy(address, &value, sizeof value);
}

void note_atomic(const void *address, size_t n_bytes) {
    access(address, n_bytes, ATOMIC, ANY, SITE_PLAIN, __builtin_return_address(0));
}

/* ---- who comes here: the hooks of plain C++ ---- */

/* is_aligned: g++ counts on it, for the types say so. */
static inline void plain(const void *address, size_t n_bytes, access_kind kind, bool is_aligned,
                         void *at) {
    if (!is_on_fiber(__builtin_frame_address(0))) return; /* a launcher, on the host */
    if (is_on_fiber(address)) return;
    if (is_aligned) check_alignment((uintptr_t)address, n_bytes, kind, at);
    if (wishes.check || wishes.profile)
        reach((uintptr_t)address, n_bytes, kind, ANY, SITE_PLAIN, at);
}

void check_hooks() {
    if (!has_hooks)
        report("unchecked kernel", (uint8_t *)now.config->kernel + 1,
               "it was not compiled with -fsanitize=thread");
    has_hooks = false;
}

} // namespace emu

/* g++ -fsanitize=thread calls these before each load and store. That sanitizer's own library is
 * not linked; where it is, to watch the emulator itself, kernels go unchecked. */
#ifndef __SANITIZE_THREAD__

#define HOOK(name, n_bytes, kind, is_aligned)                                                  \
    void __tsan_##name(void *address) {                                                        \
        emu::plain(address, n_bytes, kind, is_aligned, __builtin_return_address(0));           \
    }
#define HOOKS(n)                                                                               \
    HOOK(read##n, n, emu::READ, true)                                                          \
    HOOK(write##n, n, emu::WRITE, true)                                                        \
    HOOK(unaligned_read##n, n, emu::READ, false)                                               \
    HOOK(unaligned_write##n, n, emu::WRITE, false)

extern "C" {

HOOKS(1);
HOOKS(2);
HOOKS(4);
HOOKS(8);
HOOKS(16);

void __tsan_read_range(void *address, size_t n) {
    emu::plain(address, n, emu::READ, false, __builtin_return_address(0));
}

void __tsan_write_range(void *address, size_t n) {
    emu::plain(address, n, emu::WRITE, false, __builtin_return_address(0));
}

void __tsan_func_entry(void *) {
    emu::has_hooks |= emu::is_on_fiber(__builtin_frame_address(0));
}

void __tsan_func_exit(void) {}
void __tsan_init(void) {}
void __tsan_vptr_update(void *, void *) {}
}

#endif
