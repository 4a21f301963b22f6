/* Memory of the engine's lifetimes: see memory.h. */
#define _GNU_SOURCE
#include "base/memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    HUGE_PAGE = 2 << 20, /* bytes: x86-64, and aarch64 with 4 KiB pages */
    PAGE = 64 << 10,     /* bytes: the largest base page of the supported machines */
    CHUNK = 16 << 20     /* bytes of an arena's chunk; a larger buffer has a chunk of its own */
};

static size_t round_to_page(size_t n_bytes) { return (n_bytes + PAGE - 1) / PAGE * PAGE; }

/* The only process-wide state of the core: counters that tests read and set. */
static atomic_uint_least64_t alloc_count, alloc_bytes;
static atomic_uint_least64_t fail_countdown;

static int alloc_may_proceed(size_t n_bytes) {
    atomic_fetch_add_explicit(&alloc_count, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&alloc_bytes, n_bytes, memory_order_relaxed);
    uint_least64_t left = atomic_load_explicit(&fail_countdown, memory_order_relaxed);
    while (left != 0)
        if (atomic_compare_exchange_weak(&fail_countdown, &left, left - 1)) return left != 1;
    return 1;
}

void *lmd_calloc(size_t n, size_t size) {
    return alloc_may_proceed(n * size) ? calloc(n ? n : 1, size ? size : 1) : NULL;
}

void *lmd_realloc(void *ptr, size_t n, size_t size) {
    size_t n_bytes;
    if (__builtin_mul_overflow(n ? n : 1, size ? size : 1, &n_bytes)) return NULL;
    return alloc_may_proceed(n_bytes) ? realloc(ptr, n_bytes) : NULL;
}

void lmd_free(void *ptr) { free(ptr); }

void *lmd_alloc_large(size_t n_bytes) {
    if (n_bytes > SIZE_MAX / 2 || !alloc_may_proceed(n_bytes)) return NULL;
    if (n_bytes < HUGE_PAGE) {
        size_t rounded = (n_bytes / LMD_CACHE_LINE + 1) * LMD_CACHE_LINE;
        void *small = aligned_alloc(LMD_CACHE_LINE, rounded);
        if (small) memset(small, 0, rounded);
        return small;
    }
    /* A mapping one huge page too long is trimmed at both ends, so that it starts on a huge
     * page. */
    const size_t used = round_to_page(n_bytes), length = used + HUGE_PAGE;
    unsigned char *raw =
        mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return NULL;
    size_t head = (HUGE_PAGE - (uintptr_t)raw % HUGE_PAGE) % HUGE_PAGE;
    if (head) munmap(raw, head);
    if (length > head + used) munmap(raw + head + used, length - head - used);
    madvise(raw + head, used, MADV_HUGEPAGE);
    return raw + head;
}

void lmd_free_large(void *ptr, size_t n_bytes) {
    if (!ptr) return;
    if (n_bytes < HUGE_PAGE)
        free(ptr);
    else
        munmap(ptr, round_to_page(n_bytes));
}

/* The header of a chunk; the buffers follow it in the same memory. */
typedef struct lmd_arena_chunk {
    _Alignas(LMD_CACHE_LINE) struct lmd_arena_chunk *next;
    size_t n_bytes, used;
} lmd_arena_chunk;

static size_t room(const lmd_arena_chunk *chunk) {
    return chunk ? chunk->n_bytes - chunk->used : 0;
}

static lmd_arena_chunk *add_chunk(lmd_arena *self, size_t wanted) {
    const size_t needed = sizeof(lmd_arena_chunk) + wanted;
    const size_t n_bytes = needed < CHUNK ? CHUNK : needed;
    lmd_arena_chunk *chunk = lmd_alloc_large(n_bytes);
    if (!chunk) return NULL;
    *chunk = (lmd_arena_chunk){.n_bytes = n_bytes, .used = sizeof *chunk};
    lmd_arena_chunk **at = &self->chunks;
    if (n_bytes - needed < room(*at)) at = &(*at)->next;
    chunk->next = *at;
    *at = chunk;
    return chunk;
}

void *lmd_arena_alloc(lmd_arena *self, size_t n_bytes) {
    if (n_bytes > SIZE_MAX / 2) return NULL;
    const size_t wanted = (n_bytes / LMD_CACHE_LINE + 1) * LMD_CACHE_LINE;
    lmd_arena_chunk *chunk = self->chunks;
    if (room(chunk) < wanted) chunk = add_chunk(self, wanted);
    if (!chunk) return NULL;
    void *out = (char *)chunk + chunk->used;
    chunk->used += wanted;
    return out;
}

void lmd_arena_free(lmd_arena *self) {
    while (self->chunks) {
        lmd_arena_chunk *chunk = self->chunks;
        self->chunks = chunk->next;
        lmd_free_large(chunk, chunk->n_bytes);
    }
}

uint64_t lmd_alloc_count(void) {
    return atomic_load_explicit(&alloc_count, memory_order_relaxed);
}

uint64_t lmd_alloc_bytes(void) {
    return atomic_load_explicit(&alloc_bytes, memory_order_relaxed);
}

void lmd_alloc_fail_after(uint64_t n) { atomic_store(&fail_countdown, n); }

lmd_status lmd_grow(void **array, size_t *capacity, size_t wanted, size_t size, lmd_err *err) {
    if (wanted <= *capacity) return LMD_OK;
    size_t n = *capacity ? *capacity : 8;
    while (n < wanted)
        if (__builtin_mul_overflow(n, 2, &n)) n = wanted;
    void *grown = lmd_realloc(*array, n, size);
    if (!grown) return lmd_no_memory(err, "%zu x %zu bytes", n, size);
    *array = grown;
    *capacity = n;
    return LMD_OK;
}
