/* Makes contexts, and switches them where fiber_x86_64.S does not: see fiber.h. */
#include "fiber.h"

#include <stdint.h>

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)

void fiber_prepare(fiber_context *context, void *stack, size_t stack_bytes,
                   void (*entry)(void)) {
    /* What fiber_switch pops: six registers, then the address to return to. A function expects
     * the stack pointer to be 8 more than a multiple of 16, as after a call. */
    uint64_t *top = (uint64_t *)(((uintptr_t)stack + stack_bytes) & ~(uintptr_t)15);
    *--top = 0;
    *--top = (uint64_t)(uintptr_t)entry;
    for (int i = 0; i < 6; i++) *--top = 0;
    context->stack_pointer = top;
}

#else

void fiber_prepare(fiber_context *context, void *stack, size_t stack_bytes,
                   void (*entry)(void)) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = stack_bytes;
    context->uc_link = NULL;
    makecontext(context, entry, 0);
}

void fiber_switch(fiber_context *from, const fiber_context *to) { swapcontext(from, to); }

#endif
