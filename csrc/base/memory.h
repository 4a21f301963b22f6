/* Memory: zeroed heap objects, growing arrays, large aligned buffers, arenas of buffers.
 * Owns: the counters by which tests prove that a steady decode step makes no malloc and that
 * predicted sizes are right. Must not know: what is stored. Any thread. */
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

/* Allocates a zeroed, 64-byte aligned buffer: for weights, KV and scratch. A large one has
 * whole pages, huge ones where the system has them. 0 bytes give a valid pointer too. NULL on
 * exhaustion; lmd_free_large must be given the same n_bytes. */
void *lmd_alloc_large(size_t n_bytes);
void lmd_free_large(void *ptr, size_t n_bytes);

/* Large buffers that are freed together. They lie side by side, so that small ones share a huge
 * page. An arena of zeros is empty. One thread at a time. */
typedef struct lmd_arena {
    struct lmd_arena_chunk *chunks; /* list; the first has the most room */
} lmd_arena;

/* Allocates as lmd_alloc_large does. */
void *lmd_arena_alloc(lmd_arena *self, size_t n_bytes);
/* Frees all buffers; the arena is empty again. */
void lmd_arena_free(lmd_arena *self);

/* How many allocations this process has made through this header, and of how many bytes in
 * all, as they were asked for. */
uint64_t lmd_alloc_count(void);
uint64_t lmd_alloc_bytes(void);

/* Makes the n-th allocation from here on fail, once (n >= 1; 0: none). For fault injection. */
void lmd_alloc_fail_after(uint64_t n);

/* Makes room for `wanted` objects of `size` bytes in `*array`, doubling `*capacity`, which
 * counts objects. LMD_NO_MEMORY leaves both as they are. */
lmd_status lmd_grow(void **array, size_t *capacity, size_t wanted, size_t size, lmd_err *err);

#endif
