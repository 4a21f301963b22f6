/* The words of kernels beyond CUDA C++: every PTX instruction that a kernel may use, as a
 * function. The only file with inline assembly. Each word has two bodies, PTX for nvcc and one
 * for the emulator (emu/), which calls its SIMT half. Halves are bits: uint16_t, or pairs in a
 * uint32_t with the first in the low half. Must not know: layouts, launchers, the engine. */
#ifndef LMD_CUDA_DEV_H
#define LMD_CUDA_DEV_H

#include <stdint.h>

#define LMD_DEVICE static __device__ __forceinline__

/* A kernel for blocks of n_threads: LMD_KERNEL(128) name(arguments) { ... } */
#define LMD_KERNEL(n_threads) __global__ void __launch_bounds__(n_threads)
/* The same, with registers few enough for min_blocks on each multiprocessor. */
#define LMD_KERNEL2(n_threads, min_blocks)                                                     \
    __global__ void __launch_bounds__(n_threads, min_blocks)

#define LMD_INFINITY __int_as_float(0x7f800000)

/* ---- copies from global to shared memory that nobody waits for at once ---- */

/* Starts a copy of 16 bytes; !valid: of 16 zeros, and global is not read. Both 16-byte aligned.
 * The bytes are there, for this thread, after a wait for its group; for others, after a barrier
 * behind that wait. */
LMD_DEVICE void cp_async16(void *smem, const void *global, bool valid);
/* Makes a group of this thread's copies since the last commit; it may be empty. */
LMD_DEVICE void cp_async_commit();
/* Waits until at most N of this thread's groups, the newest, are under way. */
template <int N> LMD_DEVICE void cp_async_wait();

/* A barrier in shared memory that counts arrivals and bytes; only sm_90 and later. A phase ends
 * when `count` arrivals came and as many bytes as expected. One thread inits it; then
 * fence_proxy_async() and a barrier, before anyone uses it. */
LMD_DEVICE void mbarrier_init(uint64_t *barrier, int count);
/* Expects n_bytes more in the current phase; this is no arrival. At most 2^20 - 1 in a phase.
 */
LMD_DEVICE void mbarrier_expect_bytes(uint64_t *barrier, uint32_t n_bytes);
LMD_DEVICE void mbarrier_arrive(uint64_t *barrier);
/* Waits for the end of the phase of this parity: 0 for the first phase, 1, 0 and so on. */
LMD_DEVICE void mbarrier_wait(uint64_t *barrier, uint32_t parity);
/* Starts a copy by the copy engine, whose bytes count at the barrier. Addresses and n_bytes are
 * multiples of 16. One thread starts a copy for all. */
LMD_DEVICE void bulk_copy(void *smem, const void *global, uint32_t n_bytes, uint64_t *barrier);
/* Lets the copy engine see what this thread did to shared memory (and to its barriers). */
LMD_DEVICE void fence_proxy_async();

/* ---- matrices: all 32 lanes of a warp together ---- */

/* Loads four matrices of 8 rows of 8 halves: lane l names row l % 8 of matrix l / 8, 16 bytes
 * and so aligned. Lane l gets, of matrix i in r[i], row l / 4, columns l % 4 * 2 and the next.
 */
LMD_DEVICE void ldmatrix_x4(uint32_t r[4], const void *smem_row);
/* The same, of the transposed matrices: rows l % 4 * 2 and the next of column l / 4. */
LMD_DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *smem_row);
/* Two matrices, named by lanes 0 to 15. Other lanes give any valid address. */
LMD_DEVICE void ldmatrix_x2(uint32_t r[2], const void *smem_row);
LMD_DEVICE void ldmatrix_x2_trans(uint32_t r[2], const void *smem_row);

/* c += a b with a [16, 16], b [16, 8] halves and c [16, 8] fp32. With g = lane / 4, t = lane %
 * 4: a[0], a[1], a[2], a[3]: rows g, g + 8, g, g + 8; columns t * 2 and the next, + 8 in a[2],
 * a[3]; b0, b1: rows t * 2 and the next, + 8 in b1; column g; c[0], c[1]: row g, columns t * 2
 * and the next; c[2], c[3]: row g + 8. */
LMD_DEVICE void mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);

/* ---- halves: rounded to nearest even, subnormal numbers kept ---- */

LMD_DEVICE uint32_t hfma2(uint32_t a, uint32_t b, uint32_t c); /* a * b + c, rounded once */
LMD_DEVICE uint32_t hadd2(uint32_t a, uint32_t b);
LMD_DEVICE uint32_t hsub2(uint32_t a, uint32_t b);
LMD_DEVICE uint32_t hmul2(uint32_t a, uint32_t b);
LMD_DEVICE uint32_t pack_half2(float low, float high);
LMD_DEVICE uint16_t float_to_half(float x);
LMD_DEVICE float half_to_float(uint16_t h);

LMD_DEVICE float low_half(uint32_t pair) { return half_to_float((uint16_t)pair); }
LMD_DEVICE float high_half(uint32_t pair) { return half_to_float((uint16_t)(pair >> 16)); }

/* ---- bits and numbers ---- */

/* Bit i of the result is bit (a_i * 4 + b_i * 2 + c_i) of LUT: an expression of a, b, c has the
 * LUT that it makes of 0xf0, 0xcc, 0xaa. */
template <int LUT> LMD_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c);
LMD_DEVICE uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    return __byte_perm(a, b, selector);
}
/* 2^x within 2 units in the last place; results below 2^-126 become 0. */
LMD_DEVICE float exp2_approx(float x);

/* ---- 16 bytes at a time, 16-byte aligned ---- */

/* From global memory that no one writes while the kernel runs, and that is read once: it does
 * not stay in the L1 cache. */
LMD_DEVICE uint4 load16(const void *global);
LMD_DEVICE uint4 ldg16(const void *global);
LMD_DEVICE void store16(void *global, uint4 value);
LMD_DEVICE uint4 load_smem16(const void *smem);
LMD_DEVICE void store_smem16(void *smem, uint4 value);

#ifndef LMD_EMULATED

/* ==== PTX ==== */

/* Declares name, a uint8_t * to the dynamic shared memory. The 128-byte swizzles of tensor
 * copies need 1024-byte alignment. */
#define LMD_DYNAMIC_SMEM(name)                                                                 \
    extern __shared__ __align__(1024) uint8_t lmd_dynamic_smem[];                              \
    uint8_t *const name = lmd_dynamic_smem

/* Launches a kernel on the queue's stream; an error stays in the queue. A template instance
 * stands in parentheses: LMD_LAUNCH(queue, (name<1, 2>), ...). */
#define LMD_LAUNCH(queue, kernel, grid, n_threads, smem_bytes, ...)                            \
    do {                                                                                       \
        kernel<<<grid, n_threads, smem_bytes, (queue)->stream>>>(__VA_ARGS__);                 \
        lmd_cuda_note(queue, cudaGetLastError(), #kernel);                                     \
    } while (0)

/* An instruction of sm_90 and later; elsewhere the kernel stops: no launcher takes it there. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define LMD_SM90_ASM(...) asm volatile(__VA_ARGS__)
#else
#define LMD_SM90_ASM(...) __trap()
#endif

LMD_DEVICE uint32_t shared_address(const void *smem) {
    return (uint32_t)__cvta_generic_to_shared(smem);
}

LMD_DEVICE void cp_async16(void *smem, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(smem)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}

LMD_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N> LMD_DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

LMD_DEVICE void mbarrier_init(uint64_t *barrier, int count) {
    LMD_SM90_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(count)
                 : "memory");
}

LMD_DEVICE void mbarrier_expect_bytes(uint64_t *barrier, uint32_t n_bytes) {
    LMD_SM90_ASM("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(n_bytes)
                 : "memory");
}

LMD_DEVICE void mbarrier_arrive(uint64_t *barrier) {
    LMD_SM90_ASM("{\n"
                 ".reg .b64 state;\n"
                 "mbarrier.arrive.shared::cta.b64 state, [%0];\n"
                 "}" ::"r"(shared_address(barrier))
                 : "memory");
}

LMD_DEVICE void mbarrier_wait(uint64_t *barrier, uint32_t parity) {
    uint32_t done = 1;
    do { /* the instruction sleeps for as long as the hardware likes, not until it is done */
        LMD_SM90_ASM("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
    } while (!done);
}

LMD_DEVICE void bulk_copy(void *smem, const void *global, uint32_t n_bytes, uint64_t *barrier) {
    LMD_SM90_ASM("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(shared_address(smem)),
                 "l"(__cvta_generic_to_global(global)), "r"(n_bytes),
                 "r"(shared_address(barrier))
                 : "memory");
}

LMD_DEVICE void fence_proxy_async() {
    LMD_SM90_ASM("fence.proxy.async.shared::cta;" ::: "memory");
}

/* "memory": a load of shared memory must not pass stores that come before it. */
LMD_DEVICE void ldmatrix_x4(uint32_t r[4], const void *smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(smem_row))
                 : "memory");
}

LMD_DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(smem_row))
                 : "memory");
}

LMD_DEVICE void ldmatrix_x2(uint32_t r[2], const void *smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(smem_row))
                 : "memory");
}

LMD_DEVICE void ldmatrix_x2_trans(uint32_t r[2], const void *smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(smem_row))
                 : "memory");
}

/* volatile: it must not move into a branch that only some lanes take. */
LMD_DEVICE void mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* .rn: without it the assembler may fuse a product and a sum. */
LMD_DEVICE uint32_t hfma2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

LMD_DEVICE uint32_t hadd2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

LMD_DEVICE uint32_t hsub2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

LMD_DEVICE uint32_t hmul2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

/* The instruction's first source becomes the high half. */
LMD_DEVICE uint32_t pack_half2(float low, float high) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

LMD_DEVICE uint16_t float_to_half(float x) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}

LMD_DEVICE float half_to_float(uint16_t h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

template <int LUT> LMD_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(LUT));
    return d;
}

LMD_DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* volatile: loads that a kernel starts early must stay early. */
LMD_DEVICE uint4 load16(const void *global) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(global)));
    return v;
}

LMD_DEVICE uint4 ldg16(const void *global) { return *(const uint4 *)global; }
LMD_DEVICE void store16(void *global, uint4 value) { *(uint4 *)global = value; }
LMD_DEVICE uint4 load_smem16(const void *smem) { return *(const uint4 *)smem; }
LMD_DEVICE void store_smem16(void *smem, uint4 value) { *(uint4 *)smem = value; }

#else

/* ==== the emulator ==== */

#define LMD_DYNAMIC_SMEM(name) uint8_t *const name = emu::dynamic_smem()

#define LMD_LAUNCH(queue, kernel, grid, n_threads, smem_bytes, ...)                            \
    do {                                                                                       \
        emu::launch_of(#kernel, kernel, grid, n_threads, smem_bytes,                           \
                       (queue)->stream)(__VA_ARGS__);                                          \
        lmd_cuda_note(queue, cudaGetLastError(), #kernel);                                     \
    } while (0)

LMD_DEVICE void cp_async16(void *smem, const void *global, bool valid) {
    emu::cp_async16(smem, global, valid);
}
LMD_DEVICE void cp_async_commit() { emu::cp_async_commit(); }
template <int N> LMD_DEVICE void cp_async_wait() { emu::cp_async_wait(N); }

LMD_DEVICE void mbarrier_init(uint64_t *barrier, int count) {
    emu::mbarrier_init(barrier, count);
}
LMD_DEVICE void mbarrier_expect_bytes(uint64_t *barrier, uint32_t n_bytes) {
    emu::mbarrier_expect_bytes(barrier, n_bytes);
}
LMD_DEVICE void mbarrier_arrive(uint64_t *barrier) { emu::mbarrier_arrive(barrier); }
LMD_DEVICE void mbarrier_wait(uint64_t *barrier, uint32_t parity) {
    emu::mbarrier_wait(barrier, parity);
}
LMD_DEVICE void bulk_copy(void *smem, const void *global, uint32_t n_bytes, uint64_t *barrier) {
    emu::bulk_copy(smem, global, n_bytes, barrier);
}
LMD_DEVICE void fence_proxy_async() { emu::fence_proxy_async(); }

LMD_DEVICE void ldmatrix_x4(uint32_t r[4], const void *smem_row) {
    emu::ldmatrix(r, smem_row, 4, false);
}
LMD_DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *smem_row) {
    emu::ldmatrix(r, smem_row, 4, true);
}
LMD_DEVICE void ldmatrix_x2(uint32_t r[2], const void *smem_row) {
    emu::ldmatrix(r, smem_row, 2, false);
}
LMD_DEVICE void ldmatrix_x2_trans(uint32_t r[2], const void *smem_row) {
    emu::ldmatrix(r, smem_row, 2, true);
}
LMD_DEVICE void mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    emu::mma_f16(c, a, b0, b1);
}

LMD_DEVICE uint16_t float_to_half(float x) { return emu::float_to_half(x); }
LMD_DEVICE float half_to_float(uint16_t h) { return emu::half_to_float(h); }
LMD_DEVICE uint32_t pack_half2(float low, float high) {
    return emu::float_to_half(low) | (uint32_t)emu::float_to_half(high) << 16;
}
LMD_DEVICE uint32_t hfma2(uint32_t a, uint32_t b, uint32_t c) {
    return emu::half_fma((uint16_t)a, (uint16_t)b, (uint16_t)c) |
           (uint32_t)emu::half_fma((uint16_t)(a >> 16), (uint16_t)(b >> 16),
                                   (uint16_t)(c >> 16))
               << 16;
}
/* fp32 has twice the digits of a half, and two more: rounding to it first changes nothing. */
LMD_DEVICE uint32_t hadd2(uint32_t a, uint32_t b) {
    return pack_half2(low_half(a) + low_half(b), high_half(a) + high_half(b));
}
LMD_DEVICE uint32_t hsub2(uint32_t a, uint32_t b) {
    return pack_half2(low_half(a) - low_half(b), high_half(a) - high_half(b));
}
LMD_DEVICE uint32_t hmul2(uint32_t a, uint32_t b) {
    return pack_half2(low_half(a) * low_half(b), high_half(a) * high_half(b));
}

template <int LUT> LMD_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d = 0;
    for (int i = 0; i < 8; i++)
        if (LUT >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return d;
}
LMD_DEVICE float exp2_approx(float x) { return emu::exp2_approx(x); }

LMD_DEVICE uint4 load16(const void *global) { return emu::load16(global, emu::GLOBAL); }
LMD_DEVICE uint4 ldg16(const void *global) { return emu::load16(global, emu::GLOBAL); }
LMD_DEVICE void store16(void *global, uint4 value) { emu::store16(global, value, emu::GLOBAL); }
LMD_DEVICE uint4 load_smem16(const void *smem) { return emu::load16(smem, emu::SHARED); }
LMD_DEVICE void store_smem16(void *smem, uint4 value) {
    emu::store16(smem, value, emu::SHARED);
}

#endif

#endif
