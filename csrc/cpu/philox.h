/* Philox4x32-10, the counter-based random numbers of Salmon et al., "Parallel random numbers:
 * as easy as 1, 2, 3" (2011): the same key and counter give the same four words on every
 * backend. Owns no state. Must not know: sampling. Any thread. */
#ifndef LMD_CPU_PHILOX_H
#define LMD_CPU_PHILOX_H

#include <stdint.h>

/* Encrypts the counter in place. */
static inline void lmd_philox4x32_10(uint32_t counter[4], uint64_t key) {
    uint32_t key_lo = (uint32_t)key, key_hi = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * counter[0];
        uint64_t b = (uint64_t)0xCD9E8D57u * counter[2];
        uint32_t c1 = counter[1], c3 = counter[3];
        counter[0] = (uint32_t)(b >> 32) ^ c1 ^ key_lo;
        counter[1] = (uint32_t)b;
        counter[2] = (uint32_t)(a >> 32) ^ c3 ^ key_hi;
        counter[3] = (uint32_t)a;
        key_lo += 0x9E3779B9u;
        key_hi += 0xBB67AE85u;
    }
}

/* Draws a double in [0, 1): the top 53 bits of words 0 (high) and 1 (low). */
static inline double lmd_philox_uniform(uint64_t seed, uint32_t position, uint32_t sample_idx,
                                        uint32_t draw_idx) {
    uint32_t words[4] = {position, sample_idx, draw_idx, 0};
    lmd_philox4x32_10(words, seed);
    uint64_t bits = (uint64_t)words[0] << 32 | words[1];
    return (double)(bits >> 11) * 0x1p-53;
}

#endif
