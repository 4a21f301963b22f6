/* Runs launches: blocks one after another, each CUDA thread of a block on a fiber of its own.
 * Owns: the fibers, who runs next, the block barrier, launches and their arguments. A thread
 * runs until it waits; then the next ready one continues. Must not know: what is checked or
 * counted. The thread that runs launches, but for launch(). */
#include "shadow.h"

#include "runtime.h"
#include "simt.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace emu {

options wishes;
launch_state now;

uint8_t *stacks; /* [MAX_THREADS][STACK_BYTES], a page without access below each */
static fiber_context scheduler;
static sigjmp_buf launch_exit;
static uint64_t random_state;

/* Threads that can run. A ring; the order says which end, or which element, is next. */
static thread *ready[MAX_THREADS];
static unsigned ready_begin, n_ready;

/* The block barrier. */
static int n_arrived, barrier_line, barrier_value;
static barrier_kind barrier_now;

/* ---- the order of threads and blocks ---- */

uint32_t random_below(uint32_t n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 32) * n >> 32);
}

static void make_ready(thread *t) {
    t->state = READY;
    ready[(ready_begin + n_ready++) % MAX_THREADS] = t;
}

static thread *next_ready() {
    if (wishes.order == 0) {
        thread *t = ready[ready_begin];
        ready_begin = (ready_begin + 1) % MAX_THREADS;
        n_ready--;
        return t;
    }
    if (wishes.order > 1) { /* any one changes places with the last */
        thread **any = &ready[(ready_begin + random_below(n_ready)) % MAX_THREADS];
        thread **last = &ready[(ready_begin + n_ready - 1) % MAX_THREADS];
        thread *t = *any;
        *any = *last;
        *last = t;
    }
    return ready[(ready_begin + --n_ready) % MAX_THREADS];
}

void wake(thread *t) { make_ready(t); }

/* ---- waiting ---- */

[[noreturn]] void abandon_launch() { siglongjmp(launch_exit, 1); }

/* Says of each run of neighbouring threads what they wait for; at: where the first of them
 * does. */
static std::string list_waits(void **at) {
    std::string text;
    for (int i = 0; i < now.n_threads;) {
        const thread *t = &now.threads[i];
        int end = i + 1;
        while (end < now.n_threads && now.threads[end].state == t->state &&
               (t->state == EXITED || now.threads[end].waits_at == t->waits_at))
            end++;
        text += "\n    threads " + std::to_string(i) + " to " + std::to_string(end - 1);
        i = end;
        if (t->state == EXITED) {
            text += " have exited";
            continue;
        }
        text += std::string(" wait in ") + t->waits_for + " at " + place_of(t->waits_at);
        if (!*at) *at = t->waits_at;
    }
    return text;
}

[[noreturn]] static void deadlock() {
    static char text[2000]; /* not of this stack, which is left for good */
    void *at = NULL;
    snprintf(text, sizeof text, "%s", list_waits(&at).c_str());
    fault(cudaErrorLaunchFailure, "deadlock", at, "nobody can run:%s", text);
}

static void run_next() {
    thread *const me = now.current;
    if (n_ready == 0) deadlock();
    thread *const next = next_ready();
    if (next == me) return;
    now.current = next;
    fiber_switch(&me->context, &next->context);
}

void wait_as(const char *what, void *at) {
    now.current->state = WAITING;
    now.current->waits_for = what;
    now.current->waits_at = at;
    run_next();
}

/* ---- the block barrier ---- */

static void release_barrier() {
    const int n = n_arrived;
    int result = barrier_value;
    if (barrier_now == BARRIER_OR) result = barrier_value != 0;
    if (barrier_now == BARRIER_AND) result = barrier_value == n;
    n_arrived = 0;
    if (wishes.check) shadow_barrier();
    if (wishes.profile) count_flush(-1);
    for (int i = 0; i < now.n_threads; i++) {
        thread *t = &now.threads[i];
        if (t->state == EXITED) continue;
        t->result = (uint64_t)result;
        if (t != now.current) make_ready(t);
    }
}

int barrier(barrier_kind kind, int value, int line) {
    thread *const me = now.current;
    void *const at = __builtin_return_address(0);
    if (n_arrived == 0) {
        barrier_now = kind;
        barrier_line = line;
        barrier_value = 0;
    }
    if (kind != barrier_now || line != barrier_line)
        fault(cudaErrorLaunchFailure, "divergent barrier", at,
              "other threads wait at the __syncthreads() of line %d", barrier_line);
    barrier_value += value;
    if (++n_arrived < now.n_live)
        wait_as("__syncthreads", at);
    else
        release_barrier();
    return (int)me->result;
}

/* ---- threads and blocks ---- */

/* A thread's life; it ends by switching away for good. */
static void thread_main() {
    now.arguments->call(now.arguments);
    thread *const me = now.current;
    check_exit();
    me->state = EXITED;
    now.warps[me->warp].live &= ~(1u << me->lane);
    now.n_live--;
    /* A barrier waits for those that have not exited. */
    if (now.n_live > 0 && n_arrived == now.n_live) release_barrier();
    if (now.n_live > 0) run_next();
    fiber_switch(&me->context, &scheduler);
}

static void prepare_threads() {
    const int n = now.config->n_threads;
    now.n_threads = now.n_live = n;
    memset(now.warps, 0, sizeof *now.warps * MAX_THREADS / 32);
    for (int i = 0; i < n; i++) {
        thread *t = &now.threads[i];
        t->id = i;
        t->lane = i % 32;
        t->warp = i / 32;
        t->copies.clear();
        t->group = 0;
        now.warps[t->warp].live |= 1u << t->lane;
        fiber_prepare(&t->context, stacks + (size_t)i * STACK_BYTES, STACK_BYTES, thread_main);
    }
    ready_begin = n_ready = 0;
    for (int i = 0; i < n; i++) make_ready(&now.threads[wishes.order == 1 ? n - 1 - i : i]);
}

static void run_block(uint3 block) {
    now.block = block;
    n_arrived = 0;
    memset(now.smem, 0xff, now.config->smem_bytes);
    for (const shared_var &var : now.shared_vars)
        if (var.is_ours) memset(var.begin, 0xff, var.n_bytes);
    reset_copies();
    prepare_threads();
    if (wishes.check) shadow_begin_block();
    now.current = next_ready();
    fiber_switch(&scheduler, &now.current->context);
    now.current = NULL;
    if (wishes.profile) count_flush(-1);
}

/* The index of the i-th block to run. */
static uint64_t block_at(uint64_t i, uint64_t n_blocks, uint64_t step) {
    if (wishes.order == 0) return i;
    if (wishes.order == 1) return n_blocks - 1 - i;
    return (uint64_t)((unsigned __int128)i * step % n_blocks);
}

/* A step without a common divisor visits every block once. */
static uint64_t random_step(uint64_t n_blocks) {
    for (;;) {
        const uint64_t step = 1 + random_below((uint32_t)(n_blocks > 1 ? n_blocks - 1 : 1));
        uint64_t a = n_blocks, b = step;
        while (b) {
            const uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1) return step;
    }
}

static void run_blocks() {
    const dim3 grid = now.config->grid;
    const uint64_t n_blocks = (uint64_t)grid.x * grid.y * grid.z;
    const uint64_t step = wishes.order > 1 ? random_step(n_blocks) : 1;
    for (uint64_t i = 0; i < n_blocks; i++) {
        const uint64_t b = block_at(i, n_blocks, step);
        run_block({(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y),
                   (unsigned)(b / grid.x / grid.y)});
    }
}

/* ---- set-up ---- */

static int wish(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

static uint8_t *map(size_t n_bytes) {
    void *p = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    return (uint8_t *)p;
}

__attribute__((constructor)) static void read_wishes() {
    wishes.check = wish("EMU_CHECK");
    wishes.profile = wish("EMU_PROFILE");
    wishes.order = wish("EMU_ORDER");
    random_state = (uint64_t)wishes.order;
}

static void set_up() {
    if (now.threads) return;
    stacks = map(STACKS_BYTES);
    for (size_t i = 0; i < MAX_THREADS; i++)
        mprotect(stacks + i * STACK_BYTES, 4096, PROT_NONE);
    now.smem = map(MAX_SMEM + 2 * NEAR_SMEM) + NEAR_SMEM;
    now.threads = new thread[MAX_THREADS]();
    now.warps = new warp[MAX_THREADS / 32]();
}

/* ---- launches ---- */

struct launch_job {
    launch_config config;
    launch_arguments *arguments;
};

static void run_launch(void *arg) {
    const launch_job *job = (const launch_job *)arg;
    set_up();
    catch_faults();
    now.config = &job->config;
    now.arguments = job->arguments;
    now.shared_vars = find_shared_vars(job->config.kernel);
    if (wishes.check) shadow_begin_launch();
    if (wishes.profile) count_begin_launch();
    if (sigsetjmp(launch_exit, 1) == 0) {
        run_blocks();
        if (wishes.check) check_hooks();
    }
    now.current = NULL;
}

static void drop_launch(void *arg) {
    launch_job *job = (launch_job *)arg;
    job->arguments->destroy(job->arguments);
    delete job;
}

void launch(const launch_config &config, launch_arguments *arguments) {
    const dim3 grid = config.grid;
    cudaError_t error = cudaErrorInvalidConfiguration;
    if (grid.x >= 1 && grid.x <= 0x7fffffff && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 &&
        grid.z <= 65535)
        error = emu_check_launch(config.kernel, config.n_threads, config.smem_bytes);
    if (error != cudaSuccess) {
        arguments->destroy(arguments);
        return;
    }
    emu_enqueue(config.stream, {run_launch, drop_launch, new launch_job{config, arguments},
                                config.name, arguments, arguments->n_bytes});
}

uint64_t to_alias(uint64_t word) {
    uintptr_t begin, end;
    if (!emu_device_range(&begin, &end) || word < begin || word >= end) return word;
    return word + (uint64_t)emu_alias_delta();
}

/* ---- what a thread knows of itself ---- */

uint3 thread_idx() { return {(unsigned)now.current->id, 0, 0}; }
uint3 block_idx() { return now.block; }
dim3 block_dim() { return dim3((unsigned)now.n_threads); }
dim3 grid_dim() { return now.config->grid; }
uint8_t *dynamic_smem() { return now.smem; }

} // namespace emu
