/* Large buffers and arenas: each unmaps exactly what it has mapped. memory.c is compiled with
 * mmap and munmap replaced by the two functions below, which map a reserved range, at every
 * offset from a huge page that a system may choose, and count the pages. Exits 1 if a buffer
 * is wrong. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/memory.h"

enum { PAGE = 4096, HUGE_PAGE = 2 << 20, RESERVED = 12 * HUGE_PAGE };

void *test_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset);
int test_munmap(void *addr, size_t len);

static unsigned char *range;    /* aligned to a huge page */
static size_t next_offset;      /* of the next mapping, from the range's begin */
static size_t mapped, unmapped; /* bytes, in whole pages */
static int n_wrong;

static size_t whole_pages(size_t len) { return (len + PAGE - 1) / PAGE * PAGE; }

void *test_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset) {
    (void)addr, (void)prot, (void)flags, (void)fd, (void)offset;
    mapped = whole_pages(len);
    unmapped = 0;
    return range + next_offset;
}

int test_munmap(void *addr, size_t len) {
    unsigned char *begin = addr, *end = begin + whole_pages(len);
    n_wrong += begin < range + next_offset || end > range + next_offset + mapped;
    unmapped += whole_pages(len);
    return 0;
}

/* The buffers of an arena must be in one mapping, side by side, aligned and zeroed. */
static void check_arena(void) {
    lmd_arena self = {0};
    unsigned char *before = NULL;
    next_offset = HUGE_PAGE / 2;
    for (size_t n_bytes = 0; n_bytes < 4000; n_bytes += 77) {
        unsigned char *buffer = lmd_arena_alloc(&self, n_bytes);
        n_wrong += !buffer || (size_t)buffer % LMD_CACHE_LINE != 0;
        n_wrong += before && (buffer <= before || buffer > before + n_bytes + LMD_CACHE_LINE);
        for (size_t i = 0; buffer && i < n_bytes; i++) n_wrong += buffer[i] != 0;
        if (buffer) memset(buffer, 1, n_bytes);
        before = buffer;
    }
    n_wrong += lmd_arena_alloc(&self, SIZE_MAX - 100) != NULL;
    lmd_arena_free(&self);
    n_wrong += self.chunks != NULL || unmapped != mapped;
}

int main(void) {
    range = mmap(NULL, RESERVED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (range == MAP_FAILED) return 1;
    range += (HUGE_PAGE - (size_t)range % HUGE_PAGE) % HUGE_PAGE;
    for (size_t n_bytes = HUGE_PAGE; n_bytes < HUGE_PAGE + (200 << 10); n_bytes += 4095)
        for (next_offset = 0; next_offset < HUGE_PAGE; next_offset += PAGE) {
            unsigned char *buffer = lmd_alloc_large(n_bytes);
            n_wrong += !buffer || (size_t)buffer % HUGE_PAGE != 0;
            lmd_free_large(buffer, n_bytes);
            n_wrong += unmapped != mapped;
        }
    for (size_t n_bytes = 0; n_bytes < 200; n_bytes++) {
        unsigned char *buffer = lmd_alloc_large(n_bytes);
        n_wrong += !buffer || (size_t)buffer % LMD_CACHE_LINE != 0;
        for (size_t i = 0; buffer && i < n_bytes; i++) n_wrong += buffer[i] != 0;
        lmd_free_large(buffer, n_bytes);
    }
    check_arena();
    printf("large buffers at every offset: %d wrong\n", n_wrong);
    return n_wrong != 0;
}
