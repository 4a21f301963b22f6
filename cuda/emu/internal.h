/* What the files of the SIMT half share: the launch that runs, its block, its threads.
 * Everything here belongs to the one thread that runs launches; no locks. Kernels see emu.h. */
#ifndef EMU_INTERNAL_H
#define EMU_INTERNAL_H

#include "emu.h"
#include "fiber.h"

#include <string>
#include <vector>

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#undef warpSize

namespace emu {

constexpr int MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t MAX_SMEM = 227 << 10; /* dynamic */
constexpr size_t NEAR_SMEM = 4096;     /* an address so near is meant to be in it */

/* The environment's wishes. */
struct options {
    bool check;   /* EMU_CHECK: shadow memory */
    bool profile; /* EMU_PROFILE: counters */
    int order;    /* EMU_ORDER: 0 first come first run, 1 last come first run, n: random */
};

enum thread_state : uint8_t { READY, WAITING, EXITED };

/* A copy of 16 bytes on its way (cp.async). */
struct async_copy {
    uint8_t *to;
    const uint8_t *from; /* NULL: zeros */
    int group;
};

struct thread {
    fiber_context context;
    int id, lane, warp;
    thread_state state;
    const char *waits_for;
    void *waits_at; /* where the kernel called */

    /* What it brings to a collective, and gets. */
    uint64_t value, result;
    int operand, width;
    const void *row;
    uint32_t *registers;
    float *c;
    const uint32_t *a;
    uint32_t b0, b1;

    std::vector<async_copy> copies; /* oldest first */
    int group;                      /* the number of groups committed */
};

enum operation : uint8_t {
    SYNC_WARP,
    A_SHUFFLE,
    A_BALLOT,
    A_REDUCE,
    LDMATRIX_X2,
    LDMATRIX_X4,
    A_MMA
};

/* A collective that some lanes wait in, for the other lanes of the mask. */
struct gathering {
    unsigned mask, arrived;
    operation what;
};

struct warp {
    gathering gatherings[32];
    int n_gatherings;
    unsigned live; /* lanes that exist and have not exited */
};

/* A static __shared__ variable. */
struct shared_var {
    uint8_t *begin;
    size_t n_bytes;
    bool is_ours; /* of the kernel that runs, or of a function inlined in it */
};

/* The launch that runs. */
struct launch_state {
    const launch_config *config;
    const launch_arguments *arguments;
    uint3 block;
    thread *current; /* NULL: no kernel runs */
    thread *threads; /* [MAX_THREADS] */
    warp *warps;     /* [MAX_THREADS / 32] */
    int n_threads, n_live;
    uint8_t *smem; /* dynamic, config->smem_bytes of MAX_SMEM */
    std::vector<shared_var> shared_vars;
};

extern options wishes;
extern launch_state now;

/* ---- simt.cpp: scheduling ---- */

/* Lets others run until wake(thread) was called. */
void wait_as(const char *what, void *at);
void wake(thread *t);
/* Leaves the launch at once; its stacks are forgotten. */
[[noreturn]] void abandon_launch();
/* The stacks of CUDA threads. */
constexpr size_t STACKS_BYTES = MAX_THREADS * STACK_BYTES;
extern uint8_t *stacks;
static inline bool is_on_fiber(const void *address) {
    return (uintptr_t)address - (uintptr_t)stacks < STACKS_BYTES;
}
uint32_t random_below(uint32_t n); /* the schedule's own random numbers */

/* ---- warp.cpp ---- */

/* Nobody may wait for a lane that exits. */
void check_exit();

/* ---- copies.cpp ---- */

void reset_copies(); /* for a new block */

/* ---- shared_vars.cpp: static __shared__ ---- */

/* Those of the module that holds a kernel, ascending, as the calling thread sees them. */
std::vector<shared_var> find_shared_vars(const void *kernel);

/* ---- report.cpp ---- */

/* Notes an error at a place of a kernel, prints the first of each kind and place. */
__attribute__((format(printf, 3, 4))) void report(const char *kind, void *at,
                                                  const char *format, ...);
/* The same, and the launch ends as one that hit a fault. */
[[noreturn]] __attribute__((format(printf, 4, 5))) void
fault(cudaError_t error, const char *kind, void *at, const char *format, ...);
/* "norm.cu:38", from an address behind a call, or "?". */
std::string place_of(void *at);
/* Turns faults of this thread's kernels into reports. Once for each thread is enough. */
void catch_faults();

/* ---- checker.cpp: may a thread do this to memory, and has it? ---- */

enum site_kind { SITE_PLAIN, SITE_MATRIX /* a row of ldmatrix */ };
enum access_kind { READ, WRITE, ATOMIC, COPY /* to here, cp.async and bulk */ };
/* A thread reaches memory through a word of dev.h: alignment and, with EMU_CHECK, everything
 * else. A fault ends the launch. */
void access(const void *address, size_t n_bytes, access_kind kind, space where, site_kind site,
            void *at);
/* The bytes of a cp_async16 are there. */
void note_landing(const void *smem, size_t n_bytes, void *at);
/* The allocations have changed. Any thread. */
void forget_allocations();
/* The kernel that ran must have been compiled with hooks. */
void check_hooks();

/* ---- counters.cpp ---- */

/* With EMU_PROFILE: a lane's access, one of a warp's. */
void count_access(bool is_shared, uintptr_t address, size_t n_bytes, access_kind kind,
                  site_kind site, void *at);
/* The warp's lanes meet: what they did before are whole instructions. -1: all warps. */
void count_flush(int warp);
void count_begin_launch();
void print_counters();

} // namespace emu

#endif
