/* void fiber_switch(fiber_context *from, const fiber_context *to), for x86-64's System V ABI: the
 * six registers that a callee must keep go to the old stack, and come back from the new one. The
 * floating point control words are the same in all fibers and stay. */
#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
    .text
    .globl fiber_switch
    .hidden fiber_switch
    .type fiber_switch, @function
fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size fiber_switch, . - fiber_switch
#endif
    .section .note.GNU-stack, "", @progbits
