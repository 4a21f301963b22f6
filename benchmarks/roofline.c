/* Measures what this machine can do at most, as one line of JSON: bytes read from memory and
 * int8 multiply-adds, a second, with all threads at once. Usage: roofline N_THREADS. Built for
 * the machine it runs on (make build/roofline); knows nothing of the engine. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { N_PASSES = 9, N_CHAINS = 12, N_ITERATIONS = 16000000, MAX_THREADS = 1024 };

typedef int64_t lanes __attribute__((vector_size(64)));

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- the work of one thread ---- */

typedef struct {
    const lanes *from;
    size_t n; /* vectors */
    lanes sum;
} part;

static void read_part(part *p) {
    lanes s[8] = {{0}};
    for (size_t i = 0; i + 8 <= p->n; i += 8)
        for (int j = 0; j < 8; j++) s[j] += p->from[i + (size_t)j];
    for (int j = 1; j < 8; j++) s[0] += s[j];
    p->sum = s[0];
}

/* Chains of multiply-adds between registers: enough of them to hide the latency. The empty asm
 * makes an operand and the sum unknown to the compiler after each link, so that no product is
 * moved out or shared. */
#define PEAK(isa, type, mac)                                                                   \
    static void peak_##isa(part *p) {                                                          \
        type a, b, s[N_CHAINS];                                                                \
        memset(&a, 1, sizeof a);                                                               \
        memset(&b, 1, sizeof b);                                                               \
        _Pragma("GCC unroll 12") for (int j = 0; j < N_CHAINS; j++) s[j] = a ^ a;              \
        for (int i = 0; i < N_ITERATIONS; i++) {                                               \
            __asm__ volatile("" : REGISTER(a), REGISTER(b));                                   \
            _Pragma("GCC unroll 12") for (int j = 0; j < N_CHAINS; j++) {                      \
                s[j] = mac;                                                                    \
                __asm__ volatile("" : REGISTER(s[j]), REGISTER(b));                            \
            }                                                                                  \
        }                                                                                      \
        _Pragma("GCC unroll 12") for (int j = 1; j < N_CHAINS; j++) s[0] ^= s[j];              \
        const type sum = s[0];                                                                 \
        memcpy(&p->sum, &sum, sizeof sum);                                                     \
    }

#if defined(__x86_64__)
#define REGISTER(x) "+x"(x)
#elif defined(__aarch64__)
#define REGISTER(x) "+w"(x)
#else
#define REGISTER(x) "+r"(x)
#endif

typedef struct {
    const char *isa;
    void (*run)(part *);
    int macs; /* multiply-adds of one link of a chain */
} peak;

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#undef REGISTER
#define REGISTER(x) "+v"(x)
PEAK(avx512vnni, __m512i, _mm512_dpbusd_epi32(s[j], a, b))
#endif
#if defined(__AVXVNNI__)
PEAK(avxvnni, __m256i, _mm256_dpbusd_avx_epi32(s[j], a, b))
#endif
#if defined(__AVX2__)
/* The u8 x s8 pairs of maddubs saturate; a kernel for operands up to 15 may use it. */
PEAK(avx2_maddubs, __m256i,
     _mm256_add_epi32(s[j],
                      _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1))))
PEAK(avx2_pmaddwd, __m256i, _mm256_add_epi32(s[j], _mm256_madd_epi16(a, b)))
#endif
#if defined(__ARM_FEATURE_DOTPROD)
PEAK(neon_dot, int32x4_t, vdotq_s32(s[j], vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)))
#endif

/* What the compiler makes of plain C. */
static void peak_portable(part *p) {
    int8_t a[1024], b[1024];
    memset(a, 1, sizeof a);
    memset(b, 1, sizeof b);
    int32_t s = 0;
    for (int i = 0; i < N_ITERATIONS / 64; i++) {
        __asm__ volatile("" : : "r"(a), "r"(b) : "memory");
        for (int j = 0; j < 1024; j++) s += a[j] * b[j];
    }
    p->sum[0] = s;
}

static const peak PEAKS[] = {
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
    {"AVX-512 VNNI", peak_avx512vnni, 64},
#endif
#if defined(__AVXVNNI__)
    {"AVX-VNNI", peak_avxvnni, 32},
#endif
#if defined(__AVX2__)
    {"AVX2 maddubs", peak_avx2_maddubs, 32}, {"AVX2 pmaddwd, int16", peak_avx2_pmaddwd, 16},
#endif
#if defined(__ARM_FEATURE_DOTPROD)
    {"NEON dot", peak_neon_dot, 16},
#endif
    {"portable C", peak_portable, 0},
};

/* ---- all threads at once ---- */

typedef struct {
    void (*run)(part *);
    part part;
    double begin[N_PASSES], end[N_PASSES]; /* seconds of the clock */
    pthread_barrier_t *start;
} worker;

static void *work(void *argument) {
    worker *w = argument;
    for (int pass = 0; pass < N_PASSES; pass++) {
        pthread_barrier_wait(w->start);
        w->begin[pass] = seconds();
        w->run(&w->part);
        w->end[pass] = seconds();
    }
    return NULL;
}

static int compare(const void *x, const void *y) {
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* Fills sorted[N_PASSES] with the seconds of each pass, from the first thread's begin to the
 * last one's end, by the workers' own clocks: this thread may wake late. */
static void measure(int n_threads, void (*run)(part *), const part *parts, double *sorted) {
    static worker workers[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, (unsigned)n_threads);
    for (int t = 0; t < n_threads; t++) {
        workers[t] = (worker){.run = run, .part = parts[t], .start = &start};
        if (pthread_create(&threads[t], NULL, work, &workers[t]) != 0) {
            fprintf(stderr, "roofline: no thread %d\n", t);
            exit(1);
        }
    }
    for (int t = 0; t < n_threads; t++) pthread_join(threads[t], NULL);
    for (int pass = 0; pass < N_PASSES; pass++) {
        double begin = workers[0].begin[pass], end = workers[0].end[pass];
        for (int t = 1; t < n_threads; t++) {
            if (workers[t].begin[pass] < begin) begin = workers[t].begin[pass];
            if (workers[t].end[pass] > end) end = workers[t].end[pass];
        }
        sorted[pass] = end - begin;
    }
    qsort(sorted, N_PASSES, sizeof *sorted, compare);
}

static void fill_part(part *p) { memset((void *)p->from, 1, p->n * sizeof(lanes)); }

/* 16 times the last-level cache, from 512 MiB to 4 GiB, and no more than half of free memory.
 */
static size_t buffer_bytes(void) {
    size_t n = 16 * (size_t)sysconf(_SC_LEVEL3_CACHE_SIZE);
    const size_t half = (size_t)sysconf(_SC_AVPHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / 2;
    if (n < (512ul << 20)) n = 512ul << 20;
    if (n > (4ul << 30)) n = 4ul << 30;
    if (n > half) n = half;
    return n & ~((2ul << 20) - 1);
}

int main(int argc, char **argv) {
    static part parts[MAX_THREADS];
    const int n_threads = argc > 1 ? atoi(argv[1]) : 1;
    if (n_threads < 1 || n_threads > MAX_THREADS) {
        fprintf(stderr, "roofline: wanted 1 to %d threads, not %s\n", MAX_THREADS, argv[1]);
        return 1;
    }
    const size_t n_bytes = buffer_bytes();
    char *buffer =
        mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) {
        fprintf(stderr, "roofline: no memory for %zu bytes\n", n_bytes);
        return 1;
    }
    madvise(buffer, n_bytes, MADV_HUGEPAGE);
    const size_t share = n_bytes / sizeof(lanes) / (size_t)n_threads & ~(size_t)7;
    for (int t = 0; t < n_threads; t++)
        parts[t] = (part){(const lanes *)buffer + share * (size_t)t, share, {0}};

    double times[N_PASSES];
    measure(n_threads, fill_part, parts, times);
    measure(n_threads, read_part, parts, times);
    const double n_read = (double)(share * (size_t)n_threads * sizeof(lanes));
    printf("{\"threads\": %d, \"buffer_bytes\": %zu, \"read_best_bytes_s\": %.6g, "
           "\"read_median_bytes_s\": %.6g, \"int8_macs_s\": {",
           n_threads, n_bytes, n_read / times[0], n_read / times[N_PASSES / 2]);
    for (size_t i = 0; i < sizeof PEAKS / sizeof *PEAKS; i++) {
        measure(n_threads, PEAKS[i].run, parts, times);
        const double macs = PEAKS[i].macs ? (double)N_ITERATIONS * N_CHAINS * PEAKS[i].macs
                                          : (double)(N_ITERATIONS / 64) * 1024;
        printf("%s\"%s\": %.6g", i ? ", " : "", PEAKS[i].isa, macs * n_threads / times[0]);
    }
    printf("}}\n");
    return 0;
}
