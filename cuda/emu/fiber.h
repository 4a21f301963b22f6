/* Switching between stacks: each CUDA thread runs on one of its own.
 * On x86-64 a switch is a dozen instructions (fiber_x86_64.S); elsewhere, or with
 * -DEMU_UCONTEXT, the C library's ucontext does it, some fifty times slower. Knows nothing of
 * CUDA. */
#ifndef EMU_FIBER_H
#define EMU_FIBER_H

#include <stddef.h>

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
typedef struct fiber_context {
    void *stack_pointer;
} fiber_context;
#else
#include <ucontext.h>
typedef ucontext_t fiber_context;
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Makes a context that calls entry on the given stack when it is switched to. entry must never
 * return. */
void fiber_prepare(fiber_context *context, void *stack, size_t stack_bytes,
                   void (*entry)(void));
/* Leaves the running context in *from and continues *to. */
void fiber_switch(fiber_context *from, const fiber_context *to);

#ifdef __cplusplus
}
#endif

#endif
