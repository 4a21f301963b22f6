/* CUDA C++ for g++: this file is put before every .cu (-include) and gives it what nvcc would
 * have. Keywords vanish or change, built-in variables and functions call the SIMT half of the
 * emulator. Here is what kernels see; how it works is in the .cpp files. No kernel may know
 * this file. */
#ifndef EMU_EMU_H
#define EMU_EMU_H

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <tuple>
#include <type_traits>
#include <utility>

#define LMD_EMULATED 1

/* Each place of a kernel that reaches memory is compiled with hooks for the checker, but
 * functions that belong to the emulator are not. */
#define EMU_UNCHECKED __attribute__((no_sanitize("thread"), noinline))
/* What kernels call is inlined, so that the address a call returns to is in the kernel. */
#define EMU_WORD static inline __attribute__((always_inline))

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __grid_constant__
#undef __forceinline__
#undef __noinline__
#undef __align__
#define __global__
#define __device__
#define __host__
/* All blocks run on one thread, one after another; shared_vars.cpp finds the variables. */
#define __shared__   static thread_local
#define __constant__ static const
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__    __attribute__((noinline))
#define __align__(n)    __attribute__((aligned(n)))

namespace emu {

/* ---- where a thread is ---- */

uint3 thread_idx();
uint3 block_idx();
dim3 block_dim();
dim3 grid_dim();
uint8_t *dynamic_smem();

/* ---- what threads do together; line: of the source ---- */

enum barrier_kind { BARRIER, BARRIER_OR, BARRIER_AND, BARRIER_COUNT };
int barrier(barrier_kind kind, int value, int line);
void sync_warp(unsigned mask);
enum shuffle_kind { SHUFFLE, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };
uint64_t shuffle(shuffle_kind kind, unsigned mask, uint64_t value, int operand, int width);
unsigned ballot(unsigned mask, bool predicate);
enum reduce_kind {
    REDUCE_ADD,
    REDUCE_MIN,
    REDUCE_MAX,
    REDUCE_UMIN,
    REDUCE_UMAX,
    REDUCE_AND,
    REDUCE_OR,
    REDUCE_XOR
};
uint32_t reduce(reduce_kind kind, unsigned mask, uint32_t value);
void ldmatrix(uint32_t *r, const void *row, int n_matrices, bool transposed);
void mma_f16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1);

/* ---- copies ---- */

void cp_async16(void *smem, const void *global, bool valid);
void cp_async_commit();
void cp_async_wait(int n_pending);
void mbarrier_init(uint64_t *barrier, int count);
void mbarrier_expect_bytes(uint64_t *barrier, uint32_t n_bytes);
void mbarrier_arrive(uint64_t *barrier);
void mbarrier_wait(uint64_t *barrier, uint32_t parity);
void bulk_copy(void *smem, const void *global, uint32_t n_bytes, uint64_t *barrier);
void fence_proxy_async();

/* ---- memory and numbers ---- */

enum space { GLOBAL, SHARED, ANY };
uint4 load16(const void *address, space where);
void store16(void *address, uint4 value, space where);
/* The running thread is about to read and write n_bytes at once. */
void note_atomic(const void *address, size_t n_bytes);

float half_to_float(uint16_t h);
uint16_t float_to_half(float x);
uint16_t half_fma(uint16_t a, uint16_t b, uint16_t c);
float exp2_approx(float x);
float exp_approx(float x);
void trap();

/* ---- launches ---- */

struct launch_config {
    const char *name;
    const void *kernel;
    dim3 grid;
    int n_threads;
    size_t smem_bytes;
    cudaStream_t stream;
};

/* A kernel's arguments, which live until nothing can run the launch again. */
struct launch_arguments {
    size_t n_bytes; /* of the object that this is the start of */
    void (*call)(const launch_arguments *self);
    void (*destroy)(launch_arguments *self);
};

/* Takes the arguments over. An error becomes cudaGetLastError's. */
void launch(const launch_config &config, launch_arguments *arguments);
/* The alias of a device address; any other word stays. */
uint64_t to_alias(uint64_t word);

/* Replaces the device addresses in an argument: a pointer, or the words of a struct. */
template <class T> EMU_UNCHECKED void translate(T &value) {
    if (!(std::is_pointer<T>::value || std::is_class<T>::value) || sizeof(T) < 8) return;
    for (size_t i = 0; i + 8 <= sizeof(T); i += 8) {
        uint64_t word;
        memcpy(&word, (char *)&value + i, 8);
        word = to_alias(word);
        memcpy((char *)&value + i, &word, 8);
    }
}

template <class... P> struct typed_arguments : launch_arguments {
    void (*kernel)(P...);
    std::tuple<P...> values;

    typed_arguments(void (*kernel_)(P...), std::tuple<P...> &&values_)
        : kernel(kernel_), values(std::move(values_)) {}
};

template <class... P, size_t... I>
EMU_UNCHECKED void call_kernel(const typed_arguments<P...> *self, std::index_sequence<I...>) {
    self->kernel(std::get<I>(self->values)...);
}

template <class... P, size_t... I>
EMU_UNCHECKED void translate_all(typed_arguments<P...> *self, std::index_sequence<I...>) {
    (translate(std::get<I>(self->values)), ...);
}

/* What LMD_LAUNCH calls with the kernel's arguments. */
template <class... P> struct launcher {
    launch_config config;
    void (*kernel)(P...);

    template <class... A> EMU_UNCHECKED void operator()(A... arguments) const {
        auto *typed =
            new typed_arguments<P...>(kernel, std::tuple<P...>(static_cast<P>(arguments)...));
        typed->n_bytes = sizeof *typed;
        typed->call = [](const launch_arguments *self) EMU_UNCHECKED {
            call_kernel((const typed_arguments<P...> *)self, std::index_sequence_for<P...>());
        };
        typed->destroy = [](launch_arguments *self) { delete (typed_arguments<P...> *)self; };
        translate_all(typed, std::index_sequence_for<P...>());
        launch(config, typed);
    }
};

template <class... P>
launcher<P...> launch_of(const char *name, void (*kernel)(P...), dim3 grid, int n_threads,
                         size_t smem_bytes, cudaStream_t stream) {
    return {{name, (const void *)kernel, grid, n_threads, smem_bytes, stream}, kernel};
}

template <class T, class F> EMU_UNCHECKED T atomic(T *address, F change) {
    const T before = *address;
    *address = change(before);
    return before;
}

template <class T> struct same { typedef T type; }; /* an argument that names no type */

} // namespace emu

#define threadIdx (emu::thread_idx())
#define blockIdx  (emu::block_idx())
#define blockDim  (emu::block_dim())
#define gridDim   (emu::grid_dim())
#define warpSize  32

/* ---- barriers ---- */

EMU_WORD void __syncthreads(int line = __builtin_LINE()) {
    emu::barrier(emu::BARRIER, 0, line);
}
EMU_WORD int __syncthreads_or(int p, int line = __builtin_LINE()) {
    return emu::barrier(emu::BARRIER_OR, p != 0, line);
}
EMU_WORD int __syncthreads_and(int p, int line = __builtin_LINE()) {
    return emu::barrier(emu::BARRIER_AND, p != 0, line);
}
EMU_WORD int __syncthreads_count(int p, int line = __builtin_LINE()) {
    return emu::barrier(emu::BARRIER_COUNT, p != 0, line);
}
EMU_WORD void __syncwarp(unsigned mask = 0xffffffffu) { emu::sync_warp(mask); }
/* Other blocks have ended or have not begun. */
EMU_WORD void __threadfence() {}
EMU_WORD void __threadfence_block() {}

/* ---- warps ---- */

template <class T>
EMU_WORD T emu_shuffle(emu::shuffle_kind kind, unsigned mask, T value, int operand, int width) {
    static_assert(sizeof(T) <= 8, "a shuffle takes numbers");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emu::shuffle(kind, mask, bits, operand, width);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> EMU_WORD T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
    return emu_shuffle(emu::SHUFFLE, mask, v, lane, width);
}
template <class T>
EMU_WORD T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    return emu_shuffle(emu::SHUFFLE_UP, mask, v, (int)delta, width);
}
template <class T>
EMU_WORD T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    return emu_shuffle(emu::SHUFFLE_DOWN, mask, v, (int)delta, width);
}
template <class T>
EMU_WORD T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32) {
    return emu_shuffle(emu::SHUFFLE_XOR, mask, v, lane_mask, width);
}
EMU_WORD unsigned __ballot_sync(unsigned mask, int p) { return emu::ballot(mask, p != 0); }
EMU_WORD int __any_sync(unsigned mask, int p) { return emu::ballot(mask, p != 0) != 0; }
EMU_WORD int __all_sync(unsigned mask, int p) { return emu::ballot(mask, p != 0) == mask; }

EMU_WORD unsigned __reduce_add_sync(unsigned mask, unsigned v) {
    return emu::reduce(emu::REDUCE_ADD, mask, v);
}
EMU_WORD int __reduce_add_sync(unsigned mask, int v) {
    return (int)emu::reduce(emu::REDUCE_ADD, mask, (uint32_t)v);
}
EMU_WORD unsigned __reduce_min_sync(unsigned mask, unsigned v) {
    return emu::reduce(emu::REDUCE_UMIN, mask, v);
}
EMU_WORD int __reduce_min_sync(unsigned mask, int v) {
    return (int)emu::reduce(emu::REDUCE_MIN, mask, (uint32_t)v);
}
EMU_WORD unsigned __reduce_max_sync(unsigned mask, unsigned v) {
    return emu::reduce(emu::REDUCE_UMAX, mask, v);
}
EMU_WORD int __reduce_max_sync(unsigned mask, int v) {
    return (int)emu::reduce(emu::REDUCE_MAX, mask, (uint32_t)v);
}
EMU_WORD unsigned __reduce_and_sync(unsigned mask, unsigned v) {
    return emu::reduce(emu::REDUCE_AND, mask, v);
}
EMU_WORD unsigned __reduce_or_sync(unsigned mask, unsigned v) {
    return emu::reduce(emu::REDUCE_OR, mask, v);
}
EMU_WORD unsigned __reduce_xor_sync(unsigned mask, unsigned v) {
    return emu::reduce(emu::REDUCE_XOR, mask, v);
}

/* ---- atomics: a block's threads take turns, so a plain change is one ---- */

#define EMU_ATOMIC(name, expression)                                                           \
    template <class T> EMU_WORD T name(T *address, typename emu::same<T>::type v) {            \
        emu::note_atomic(address, sizeof(T));                                                  \
        return emu::atomic(address, [v](T old) EMU_UNCHECKED -> T { return expression; });     \
    }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicMax, old > v ? old : v)
EMU_ATOMIC(atomicMin, old < v ? old : v)
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicAnd, old &v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicXor, old ^ v)
#undef EMU_ATOMIC

template <class T>
EMU_WORD T atomicCAS(T *address, typename emu::same<T>::type expected,
                     typename emu::same<T>::type v) {
    emu::note_atomic(address, sizeof(T));
    return emu::atomic(
        address, [expected, v](T old) EMU_UNCHECKED -> T { return old == expected ? v : old; });
}

template <class T> EMU_WORD T __ldg(const T *address) { return *address; }

/* ---- numbers ---- */

/* The C library has functions of these names. */
#define __expf  emu::exp_approx
#define __logf  logf
#define __log2f log2f
EMU_WORD float __fdividef(float a, float b) { return a / b; }
EMU_WORD float __frcp_rn(float x) { return 1.0f / x; }
EMU_WORD float __fsqrt_rn(float x) { return sqrtf(x); }
EMU_WORD float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMU_WORD float __fadd_rn(float a, float b) { return a + b; }
EMU_WORD float __fsub_rn(float a, float b) { return a - b; }
EMU_WORD float __fmul_rn(float a, float b) { return a * b; }
EMU_WORD float __fdiv_rn(float a, float b) { return a / b; }
EMU_WORD float rsqrtf(float x) { return 1.0f / sqrtf(x); }

EMU_WORD float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
EMU_WORD int __float_as_int(float x) {
    int bits;
    memcpy(&bits, &x, sizeof x);
    return bits;
}
EMU_WORD float __uint_as_float(unsigned bits) { return __int_as_float((int)bits); }
EMU_WORD unsigned __float_as_uint(float x) { return (unsigned)__float_as_int(x); }

EMU_WORD int __float2int_rn(float x) { return (int)lrintf(x); }
EMU_WORD int __float2int_rz(float x) { return (int)x; }
EMU_WORD unsigned __float2uint_rn(float x) { return (unsigned)llrintf(x); }
EMU_WORD float __int2float_rn(int x) { return (float)x; }
EMU_WORD float __uint2float_rn(unsigned x) { return (float)x; }
EMU_WORD unsigned long long __double2ull_rz(double x) { return (unsigned long long)x; }

EMU_WORD int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_WORD int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_WORD int __ffs(int x) { return __builtin_ffs(x); }
EMU_WORD int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
EMU_WORD int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
EMU_WORD unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
EMU_WORD unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
EMU_WORD unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned nibble = selector >> 4 * i & 15;
        unsigned byte = (unsigned)(bytes >> 8 * (nibble & 7)) & 0xff;
        if (nibble & 8) byte = byte & 0x80 ? 0xff : 0; /* the byte's sign, eight times */
        out |= byte << 8 * i;
    }
    return out;
}
EMU_WORD int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}
EMU_WORD unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; i++) c += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
    return c;
}
EMU_WORD void __trap() { emu::trap(); }
EMU_WORD void __nanosleep(unsigned) {}

/* nvcc has these for device code without a header. */
template <class T>
EMU_WORD typename std::enable_if<std::is_arithmetic<T>::value, T>::type min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
EMU_WORD typename std::enable_if<std::is_arithmetic<T>::value, T>::type max(T a, T b) {
    return a < b ? b : a;
}
EMU_WORD float min(float a, float b) { return fminf(a, b); }
EMU_WORD float max(float a, float b) { return fmaxf(a, b); }

#endif
