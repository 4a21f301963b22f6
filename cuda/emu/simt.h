/* What C code may ask of the SIMT half of the emulator: the fake runtime tells it what happens
 * to memory outside kernels, and test programs ask what it found. C11 and C++; any thread. */
#ifndef EMU_SIMT_H
#define EMU_SIMT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the fake runtime calls these, with aliases ---- */

/* An allocation begins or ends: its bytes count as never written. */
void emu_note_allocation(const void *alias, size_t n_bytes);
void emu_note_free(const void *alias, size_t n_bytes);
/* A copy or a memset from outside kernels wrote these bytes. */
void emu_note_write(const void *alias, size_t n_bytes);

/* ---- test programs call these ---- */

/* Prints every error found so far, each place once, and the table of counters; then "N errors".
 */
void emu_report(void);
/* Faults, and with EMU_CHECK=1 races and the like. A test must fail if there are any. */
int64_t emu_error_count(void);

#ifdef __cplusplus
}
#endif

#endif
