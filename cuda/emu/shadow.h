/* Shadow memory: what is known of every byte that kernels can share, and which of two accesses
 * came first for certain. Only with EMU_CHECK=1. The thread that runs launches, but for the
 * three notes of the runtime. */
#ifndef EMU_SHADOW_H
#define EMU_SHADOW_H

#include "internal.h"

namespace emu {

/* Moments are counted, across all launches; each act that orders memory is a new moment. */
typedef uint64_t moment;

/* Until which moment one knows of the accesses of every thread, and of the copy engine. */
struct knowledge {
    moment until[MAX_THREADS + 1];
};
constexpr int COPY_ENGINE = MAX_THREADS;

enum shadow_kind {
    SHADOW_READ,
    SHADOW_WRITE,
    SHADOW_ATOMIC,
    SHADOW_COPY /* a write that takes its time: until the same bytes land */,
    SHADOW_LAND
};

constexpr size_t MAX_STATIC_SMEM = 1 << 26; /* of a module */

enum memory_kind { DEVICE_MEMORY, DYNAMIC_SMEM, STATIC_SMEM };

/* Checks and notes an access to bytes that exist; offset: from the start of that memory. */
void shadow_access(memory_kind memory, size_t offset, size_t n_bytes, shadow_kind kind,
                   void *at);
/* The bytes of a bulk copy are there: those who know of the copy engine's acts until the
 * returned moment may read them. */
moment shadow_land_bulk(memory_kind memory, size_t offset, size_t n_bytes);
/* Was this byte of device memory freed? */
bool shadow_is_freed(size_t offset);

void shadow_begin_launch();
void shadow_begin_block();
/* All threads, or these lanes of the running thread's warp, know of each other's accesses. */
void shadow_barrier();
void shadow_sync_warp(unsigned mask);
/* The running thread gives what it knows; it takes what others gave. */
void shadow_give(knowledge *to);
void shadow_take(const knowledge *from);

/* checker.cpp: the same, of an address. */
moment note_bulk_landing(const void *smem, size_t n_bytes);

} // namespace emu

#endif
