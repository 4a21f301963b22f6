/* Large buffers: what one of them frees is its own and nothing else's. Sizes end anywhere in a
 * page, neighbours are small mappings of the same process. Exits 1 on a wrong byte; a page that
 * was taken away ends the process. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/memory.h"

enum { N = 64, ROUNDS = 400, PAGE = 4096 };

static uint32_t random_state = 1;

static uint32_t random_u32(void) { return random_state = random_state * 1664525u + 1013904223u; }

int main(void) {
    unsigned char *large[N] = {0}, *small[N] = {0};
    size_t sizes[N] = {0};
    int n_wrong = 0;
    for (int round = 0; round < ROUNDS; round++) {
        int i = (int)(random_u32() >> 16) % N;
        lmd_free_large(large[i], sizes[i]);
        if (small[i]) munmap(small[i], PAGE);
        sizes[i] = (size_t)(2 << 20) + random_u32() % (1 << 20);
        large[i] = lmd_alloc_large(sizes[i]);
        small[i] = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (!large[i] || small[i] == MAP_FAILED) return 1;
        n_wrong += (uintptr_t)large[i] % LMD_CACHE_LINE != 0;
        n_wrong += large[i][0] != 0 || large[i][sizes[i] - 1] != 0;
        large[i][0] = large[i][sizes[i] - 1] = (unsigned char)i;
        memset(small[i], i, PAGE);
        for (int j = 0; j < N; j++) {
            if (!large[j]) continue;
            n_wrong += large[j][0] != j || large[j][sizes[j] - 1] != j;
            n_wrong += small[j][0] != j || small[j][PAGE - 1] != j;
        }
    }
    printf("%d large buffers made and freed: %d wrong\n", ROUNDS, n_wrong);
    return n_wrong != 0;
}
