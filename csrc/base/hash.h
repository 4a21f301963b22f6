/* Hashes of tokens, for tables that compare the tokens too. No state. Any thread. */
#ifndef LMD_BASE_HASH_H
#define LMD_BASE_HASH_H

#include <stdint.h>

/* Steele, Lea, Flood: Fast splittable pseudorandom number generators (its mixing function). */
static inline uint64_t lmd_hash_mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* The hash of a list whose first part has the hash `hash` and whose last n tokens are given. */
static inline uint64_t lmd_hash_tokens(uint64_t hash, const int32_t *tokens, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        hash = lmd_hash_mix(hash + 0x9e3779b97f4a7c15u + (uint32_t)tokens[i]);
    return hash;
}

#endif
