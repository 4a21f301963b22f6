/* Instruction sets of this machine: see cpu_features.h. */
#include "cpu/cpu_features.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

static bool has_f16c(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 29)) != 0;
}

/* The builtin also asks whether the operating system saves the wide registers (XCR0). */
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

/* gcc 12 has no name for AVX-VNNI: leaf 7, subleaf 1, EAX bit 4. */
static bool has_avxvnni(void) {
    unsigned eax, ebx, ecx, edx;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
           (eax & (1u << 4)) != 0;
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

int lmd_cpu_isas(lmd_isa isas[LMD_MAX_ISAS]) {
    int n = 0;
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_ref, true};
#if defined(__x86_64__)
    __builtin_cpu_init();
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_avx2, has_avx2()};
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_avxvnni, has_avxvnni()};
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_avx512, has_avx512()};
#endif
    return n;
}

lmd_status lmd_cpu_kernels_select(const lmd_cpu_kernels **out, lmd_err *err) {
    lmd_isa isas[LMD_MAX_ISAS];
    int n = lmd_cpu_isas(isas);
    const char *wanted = getenv("LMDEPLOY_C_ISA");
    const lmd_cpu_kernels *best = NULL;
    char usable[128] = "";
    for (int i = 0; i < n; i++) {
        if (!isas[i].usable) continue;
        const char *name = isas[i].kernels->isa;
        size_t used = strlen(usable);
        snprintf(usable + used, sizeof usable - used, "%s%s", used ? ", " : "", name);
        if (!wanted || !*wanted || strcmp(wanted, name) == 0) best = isas[i].kernels;
    }
    if (!best)
        return lmd_fail(
            err, LMD_INVALID,
            "LMDEPLOY_C_ISA=%.40s is not an instruction set that this build can use here; "
            "usable: %s",
            wanted, usable);
    *out = best;
    return LMD_OK;
}

void lmd_cpu_feature_names(char *text, size_t n_bytes) {
    text[0] = '\0';
#if defined(__x86_64__)
    __builtin_cpu_init();
#define ADD(name)                                                                              \
    if (__builtin_cpu_supports(name)) {                                                        \
        size_t used = strlen(text);                                                            \
        snprintf(text + used, n_bytes - used, "%s%s", used ? " " : "", name);                  \
    }
    ADD("sse4.2")
    ADD("avx")
    ADD("avx2")
    ADD("fma")
    ADD("avx512f")
    ADD("avx512bw")
    ADD("avx512vl")
    ADD("avx512vnni")
#undef ADD
    if (has_f16c()) {
        size_t used = strlen(text);
        snprintf(text + used, n_bytes - used, "%sf16c", used ? " " : "");
    }
#elif defined(__aarch64__)
    snprintf(text, n_bytes, "neon");
#endif
}
