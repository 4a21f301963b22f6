/* The AVX-512 kernels: vpdpbusd on digits, two for W4A16 and one for fast activations. */
#include "cpu/kernels/vector_avx512.h"

#if defined(__AVX512VNNI__)
#define KERNELS_NAME lmd_cpu_kernels_avx512
#define KERNELS_ISA  "avx512"
#else
#define KERNELS_NAME lmd_portable_kernels_avx512
#define KERNELS_ISA  "avx512 (portable)"
#endif

#include "cpu/kernels/table_digits.h"
