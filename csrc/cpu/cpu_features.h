/* Which instruction sets this machine and its operating system offer, and which table of
 * kernels to use.
 * Owns: the choice, which a backend makes once; the environment's LMDEPLOY_C_ISA overrides it.
 * Must not know: what kernels compute. Any thread. */
#ifndef LMD_CPU_CPU_FEATURES_H
#define LMD_CPU_CPU_FEATURES_H

#include <stdbool.h>

#include "base/status.h"
#include "cpu/kernels/kernels.h"

enum { LMD_MAX_ISAS = 8 };

typedef struct lmd_isa {
    const lmd_cpu_kernels *kernels;
    bool usable; /* the processor has it and the operating system saves its registers */
} lmd_isa;

/* Lists the kernel tables of this build, from the reference to the best; returns how many. */
int lmd_cpu_isas(lmd_isa isas[LMD_MAX_ISAS]);

/* Picks the best usable table, or the one that LMDEPLOY_C_ISA names. LMD_INVALID where that is
 * unknown or not usable; the message lists the usable ones. */
lmd_status lmd_cpu_kernels_select(const lmd_cpu_kernels **out, lmd_err *err);

/* Writes the machine's relevant features into text as words: "avx2 fma f16c avx512f ...". */
void lmd_cpu_feature_names(char *text, size_t n_bytes);

#endif
