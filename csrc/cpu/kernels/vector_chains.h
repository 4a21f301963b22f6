/* Chains for an ISA that adds four products of bytes to an int32 in one instruction: the chain
 * is the sum itself. Owns: chain_v, chain_begin and chain_end of vector.h; the file that
 * includes this one defines chain_dot. */
#ifndef LMD_CPU_KERNELS_VECTOR_CHAINS_H
#define LMD_CPU_KERNELS_VECTOR_CHAINS_H

#include "cpu/kernels/vector.h"

typedef i32v chain_v;

INLINE chain_v chain_begin(i32v acc) { return acc; }

INLINE i32v chain_end(i32v acc, chain_v chain) {
    (void)acc; /* chain_begin put it into the chain */
    return chain;
}

#endif
