/* The memory of the emulated device, and pinned memory of the host: which ranges are whose.
 * The device's memory is a file without a name that is mapped twice: at the addresses that the
 * program sees, where nothing may be touched, and at the alias, where kernels and copies work.
 * Must not know: streams. Any thread; one lock. */
#define _GNU_SOURCE
#include "state.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "simt.h"

enum {
    PAGE = 4096,
    /* An allocation is 256-byte aligned and no better, which is all that cudaMalloc promises.
     */
    BEFORE = PAGE + 256, /* from the start of its pages to its first byte */
    AFTER = PAGE,        /* at least, behind it */
    FENCE = 256,         /* bytes on each side that must keep their value until it is freed */
    FENCE_BYTE = 0xa5,
    POISON = 0xff, /* new memory: a NaN in every float type, and -1 */
    PINNED_ALIGN = 256
};

/* Poison costs real memory: of a larger allocation only both ends get it. */
static const size_t most_poison = (size_t)64 << 20;

/* So many times its size are there addresses, so that those of freed memory stay unused. */
static const size_t addresses_per_byte = 8;
static const size_t least_addresses = (size_t)1 << 30;

typedef struct region {
    uint8_t *begin; /* as the program sees it */
    size_t n_bytes;
} region;

/* Regions in the order of their addresses. */
typedef struct regions {
    region *items;
    size_t n, room;
} regions;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t *range, *alias; /* set once, before any other use */
static size_t range_len, total, used;
static size_t next; /* offset in the range; a freed address is used again only after the last */
static int file = -1;
static regions allocations, pinned;

/* Without the part that runs kernels nobody wants to hear of memory. */
__attribute__((weak)) void emu_note_allocation(const void *view, size_t n_bytes) {
    (void)view, (void)n_bytes;
}
__attribute__((weak)) void emu_note_free(const void *view, size_t n_bytes) {
    (void)view, (void)n_bytes;
}
__attribute__((weak)) void emu_note_write(const void *view, size_t n_bytes) {
    (void)view, (void)n_bytes;
}

/* ---- tables ---- */

/* The index of the first region that ends behind an address. */
static size_t first_ending_behind(const regions *self, const uint8_t *address) {
    size_t lo = 0, hi = self->n;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (self->items[mid].begin + self->items[mid].n_bytes > address)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

static region *find(const regions *self, const uint8_t *address) {
    const size_t i = first_ending_behind(self, address);
    return i < self->n && self->items[i].begin <= address ? &self->items[i] : NULL;
}

static bool insert(regions *self, uint8_t *begin, size_t n_bytes) {
    if (self->n == self->room) {
        const size_t room = self->room ? 2 * self->room : 64;
        region *items = realloc(self->items, room * sizeof *items);
        if (!items) return false;
        self->items = items;
        self->room = room;
    }
    const size_t at = first_ending_behind(self, begin);
    memmove(self->items + at + 1, self->items + at, (self->n - at) * sizeof *self->items);
    self->items[at] = (region){begin, n_bytes};
    self->n++;
    return true;
}

static void erase(regions *self, region *item) {
    const size_t at = (size_t)(item - self->items);
    self->n--;
    memmove(item, item + 1, (self->n - at) * sizeof *item);
    if (self->n > 0) return;
    free(self->items);
    *self = (regions){0};
}

/* ---- the device ---- */

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

bool emu_reserve_memory(size_t n_bytes) {
    total = n_bytes;
    range_len = round_up(addresses_per_byte * n_bytes, PAGE);
    if (range_len < least_addresses) range_len = least_addresses;
    file = memfd_create("emulated device memory", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)range_len) != 0) goto failed;
    range = mmap(NULL, range_len, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
    alias = mmap(NULL, range_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (range == MAP_FAILED || alias == MAP_FAILED) goto failed;
    /* A child that was forked must not write to this process's memory. */
    if (madvise(alias, range_len, MADV_DONTFORK) == 0) return true;
failed:
    perror("emu: no addresses for the device's memory");
    return false;
}

static bool in_range(const void *address) {
    return (uintptr_t)address - (uintptr_t)range < range_len;
}

static bool in_alias(const void *address) {
    return (uintptr_t)address - (uintptr_t)alias < range_len;
}

/* Where the pages of an allocation begin and end, as offsets in the range. */
static size_t pages_begin(const region *item) { return (size_t)(item->begin - range) - BEFORE; }

static size_t pages_end(const region *item) {
    return round_up((size_t)(item->begin - range) + item->n_bytes + AFTER, PAGE);
}

/* Finds an offset where n_pages bytes are free. */
static bool find_gap(size_t n_pages, size_t *at) {
    if (next + n_pages <= range_len) {
        *at = next;
        next += n_pages;
        return true;
    }
    size_t begin = 0;
    for (size_t i = 0; i <= allocations.n; i++) {
        const size_t end = i < allocations.n ? pages_begin(&allocations.items[i]) : range_len;
        if (end - begin >= n_pages) {
            *at = begin;
            return true;
        }
        if (i < allocations.n) begin = pages_end(&allocations.items[i]);
    }
    return false;
}

static void poison(uint8_t *memory, size_t n_bytes) {
    if (n_bytes <= most_poison) {
        memset(memory, POISON, n_bytes);
        return;
    }
    memset(memory, POISON, most_poison / 2);
    memset(memory + n_bytes - most_poison / 2, POISON, most_poison / 2);
}

void *emu_allocate(size_t n_bytes) {
    uint8_t *begin = NULL;
    pthread_mutex_lock(&lock);
    if (n_bytes <= total - used) {
        size_t at;
        if (find_gap(round_up(BEFORE + n_bytes + AFTER, PAGE), &at) &&
            insert(&allocations, range + at + BEFORE, n_bytes)) {
            begin = range + at + BEFORE;
            used += n_bytes;
        }
    }
    pthread_mutex_unlock(&lock);
    if (!begin) return NULL;
    uint8_t *view = emu_host_view(begin);
    memset(view - FENCE, FENCE_BYTE, FENCE);
    poison(view, n_bytes);
    memset(view + n_bytes, FENCE_BYTE, FENCE);
    emu_note_allocation(view, n_bytes);
    return begin;
}

static bool fence_is_whole(const uint8_t *fence) {
    for (int i = 0; i < FENCE; i++)
        if (fence[i] != FENCE_BYTE) return false;
    return true;
}

bool emu_release(void *device, bool *was_overrun) {
    pthread_mutex_lock(&lock);
    region *item = in_range(device) ? find(&allocations, device) : NULL;
    const bool found = item && item->begin == device;
    if (found) {
        const uint8_t *view = emu_host_view(device);
        emu_note_free(view, item->n_bytes);
        *was_overrun = !fence_is_whole(view - FENCE) || !fence_is_whole(view + item->n_bytes);
        const size_t begin = pages_begin(item), end = pages_end(item);
        /* The pages go back to the system, and read as zero if somebody still looks. */
        fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)begin,
                  (off_t)(end - begin));
        used -= item->n_bytes;
        erase(&allocations, item);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void emu_memory_info(size_t *n_free, size_t *n_total) {
    pthread_mutex_lock(&lock);
    *n_free = total - used;
    *n_total = total;
    pthread_mutex_unlock(&lock);
}

uint8_t *emu_host_view(const void *address) {
    return in_range(address) ? alias + ((const uint8_t *)address - range) : (uint8_t *)address;
}

/* ---- the host ---- */

void *emu_pin(size_t n_bytes) {
    uint8_t *begin = aligned_alloc(PINNED_ALIGN, round_up(n_bytes, PINNED_ALIGN));
    if (!begin) return NULL;
    poison(begin, n_bytes);
    pthread_mutex_lock(&lock);
    const bool ok = insert(&pinned, begin, n_bytes);
    pthread_mutex_unlock(&lock);
    if (ok) return begin;
    free(begin);
    return NULL;
}

bool emu_unpin(void *host) {
    pthread_mutex_lock(&lock);
    region *item = find(&pinned, host);
    const bool found = item && item->begin == host;
    if (found) erase(&pinned, item);
    pthread_mutex_unlock(&lock);
    if (found) free(host);
    return found;
}

void emu_release_all(void) {
    bool was_overrun;
    while (allocations.n > 0) emu_release(allocations.items[0].begin, &was_overrun);
    while (pinned.n > 0) emu_unpin(pinned.items[0].begin);
}

/* ---- whose is it? ---- */

static emu_place place_in(const regions *self, const uint8_t *address, size_t n_bytes,
                          emu_place inside, emu_place outside) {
    const size_t i = first_ending_behind(self, address);
    const region *item = &self->items[i];
    if (i == self->n || address + n_bytes <= item->begin) return outside;
    const bool is_inside =
        address >= item->begin && address + n_bytes <= item->begin + item->n_bytes;
    return is_inside ? inside : EMU_NOWHERE;
}

emu_place emu_place_of(const void *address, size_t n_bytes) {
    if (!address || in_alias(address)) return EMU_NOWHERE;
    pthread_mutex_lock(&lock);
    const emu_place place =
        in_range(address) ? place_in(&allocations, address, n_bytes, EMU_ON_DEVICE, EMU_NOWHERE)
                          : place_in(&pinned, address, n_bytes, EMU_PINNED, EMU_PAGEABLE);
    pthread_mutex_unlock(&lock);
    return place;
}

static bool find_in(const regions *self, const uint8_t *address, uintptr_t *begin,
                    size_t *n_bytes) {
    pthread_mutex_lock(&lock);
    const region *item = find(self, address);
    if (item) {
        *begin = (uintptr_t)item->begin;
        *n_bytes = item->n_bytes;
    }
    pthread_mutex_unlock(&lock);
    return item != NULL;
}

bool emu_find_allocation(const void *device_or_alias, uintptr_t *alias_begin, size_t *n_bytes) {
    const uint8_t *address = device_or_alias;
    if (in_alias(address)) address = range + (address - alias);
    uintptr_t begin;
    if (!in_range(address) || !find_in(&allocations, address, &begin, n_bytes)) return false;
    *alias_begin = begin + (uintptr_t)emu_alias_delta();
    return true;
}

bool emu_find_pinned(const void *host, uintptr_t *begin, size_t *n_bytes) {
    return find_in(&pinned, host, begin, n_bytes);
}

ptrdiff_t emu_alias_delta(void) { return alias - range; }

bool emu_device_range(uintptr_t *begin, uintptr_t *end) {
    if (emu_start() != cudaSuccess) return false;
    *begin = (uintptr_t)range;
    *end = (uintptr_t)range + range_len;
    return true;
}
