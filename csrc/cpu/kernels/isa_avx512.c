/* The AVX-512 kernels: vpdpbusd on digits, two for W4A16 and one for fast activations. */
#define ISA avx512

#include "cpu/kernels/vector_avx512.h"

#include "cpu/kernels/table_digits.h"
