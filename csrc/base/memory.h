/* Memory: zeroed heap objects, growing arrays, large aligned buffers, arenas of them.
 * Owns: the allocation counter that proves a steady decode step makes no malloc.
 * Must not know: what is stored. Any thread. */
#ifndef LMD_BASE_MEMORY_H
#define LMD_BASE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { LMD_CACHE_LINE = 64 }; /* bytes; also the alignment of every large buffer */

/* Allocates n zeroed objects of `size` bytes. NULL on overflow or exhaustion; free with
 * lmd_free. */
void *lmd_calloc(size_t n, size_t size);
/* Grows `ptr` to n objects of `size` bytes (new bytes are not zeroed). On NULL `ptr` stays
 * valid. */
void *lmd_realloc(void *ptr, size_t n, size_t size);
void lmd_free(void *ptr);

/* Allocates a zeroed, 64-byte aligned buffer of whole pages, huge ones where the system has
 * them: for weights, KV and scratch; of 0 bytes too, as a valid pointer. lmd_free_large takes
 * the same n_bytes. */
void *lmd_alloc_large(size_t n_bytes);
void lmd_free_large(void *ptr, size_t n_bytes);

/* Large buffers that are freed together. They stand side by side, so that those too small for a
 * huge page of their own share one. Starts zeroed. One thread at a time. */
typedef struct lmd_arena {
    struct lmd_arena_chunk *chunks; /* list; the first has the most room */
} lmd_arena;

/* As lmd_alloc_large. */
void *lmd_arena_alloc(lmd_arena *self, size_t n_bytes);
/* Frees all of them; the arena is empty again. */
void lmd_arena_free(lmd_arena *self);

/* How many allocations the calling process has made through this header, and of how many bytes
 * in all. */
uint64_t lmd_alloc_count(void);
uint64_t lmd_alloc_bytes(void);

/* Makes the n-th allocation from now fail, once (n >= 1; 0 turns it off). For fault injection.
 */
void lmd_alloc_fail_after(uint64_t n);

/* Makes `*array` hold at least `wanted` objects, doubling; `*capacity` counts objects. */
lmd_status lmd_grow(void **array, size_t *capacity, size_t wanted, size_t size, lmd_err *err);

#endif
