/* Instruction sets of this machine: see cpu_features.h. */
#define _GNU_SOURCE /* syscall */
#include "cpu/cpu_features.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool has_f16c(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 29)) != 0;
}

/* The builtin also checks that the operating system saves the wide registers (XCR0). */
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

/* gcc 12 has no name for AVX-VNNI, which is leaf 7, subleaf 1, EAX bit 4. */
static bool has_avxvnni(void) {
    unsigned eax, ebx, ecx, edx;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
           (eax & (1u << 4)) != 0;
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

/* Whether the operating system saves the tiles: XCR0 bits 17 (shapes) and 18 (contents). */
static bool saves_tiles(void) {
    enum { OSXSAVE = 1 << 27 };
    const unsigned tiles = 3u << 17;
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & OSXSAVE)) return false;
    __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return (eax & tiles) == tiles;
}

/* Asks Linux for permission to use the tiles; it grants that to the whole process and to its
 * children. */
static bool is_granted_tiles(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_CONTENTS = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_CONTENTS) == 0;
}

/* gcc 12 has no names for AMX, which is leaf 7, EDX bits 24 (TILE) and 25 (INT8). */
static bool has_amx(void) {
    const unsigned tile_and_int8 = 3u << 24;
    unsigned eax, ebx, ecx, edx;
    return has_avx512() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
           (edx & tile_and_int8) == tile_and_int8 && saves_tiles() && is_granted_tiles();
}
#elif defined(__aarch64__)
#include <sys/auxv.h>

/* Linux's names for them, in AT_HWCAP and AT_HWCAP2. */
enum { CAP_ATOMICS = 1 << 8, CAP_RDM = 1 << 12, CAP_DOTPROD = 1 << 20, CAP2_I8MM = 1 << 13 };

/* Dot products, and what else a compiler may use when it compiles for Armv8.2. */
static bool has_dotprod(void) {
    const unsigned long wanted = CAP_ATOMICS | CAP_RDM | CAP_DOTPROD;
    return (getauxval(AT_HWCAP) & wanted) == wanted;
}

static bool has_i8mm(void) { return has_dotprod() && (getauxval(AT_HWCAP2) & CAP2_I8MM) != 0; }
#endif

int lmd_cpu_isas(lmd_isa isas[LMD_MAX_ISAS]) {
    int n = 0;
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_ref, true};
#if defined(__x86_64__)
    __builtin_cpu_init();
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_avx2, has_avx2()};
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_avxvnni, has_avxvnni()};
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_avx512, has_avx512()};
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_amx, has_amx()};
#elif defined(__aarch64__)
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_neon, true};
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_neon_dotprod, has_dotprod()};
    isas[n++] = (lmd_isa){&lmd_cpu_kernels_neon_i8mm, has_i8mm()};
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

/* Appends a word if the machine has what it names. */
static void add_name(char *text, size_t n_bytes, const char *name, bool has) {
    size_t used = strlen(text);
    if (has) snprintf(text + used, n_bytes - used, "%s%s", used ? " " : "", name);
}

void lmd_cpu_feature_names(char *text, size_t n_bytes) {
    text[0] = '\0';
#if defined(__x86_64__)
    __builtin_cpu_init();
#define ADD(name) add_name(text, n_bytes, name, __builtin_cpu_supports(name))
    ADD("sse4.2");
    ADD("avx");
    ADD("avx2");
    ADD("fma");
    ADD("avx512f");
    ADD("avx512bw");
    ADD("avx512dq");
    ADD("avx512vl");
    ADD("avx512vnni");
#undef ADD
    add_name(text, n_bytes, "f16c", has_f16c());
    add_name(text, n_bytes, "avxvnni", has_avxvnni());
    add_name(text, n_bytes, "amx_int8", has_amx());
#elif defined(__aarch64__)
    add_name(text, n_bytes, "neon", true);
    add_name(text, n_bytes, "asimddp", has_dotprod());
    add_name(text, n_bytes, "i8mm", has_i8mm());
#endif
}
