/* Errors: notes and counts them, names their places in the source, and catches the faults of
 * the CPU, which become the errors that a GPU gives. Must not know: what the errors are.
 * Counting is for any thread; the rest is for the thread that runs launches. */
#include "internal.h"

#include "runtime.h"
#include "simt.h"

#include <atomic>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

namespace emu {

/* Errors of one kind at one place. */
struct finding {
    std::string place;
    int64_t count;
};

/* Never destroyed, because reports come at the very end. */
static auto &findings = *new std::map<std::pair<std::string, void *>, finding>;
static std::atomic<int64_t> n_errors;

/* ---- places ---- */

/* What addr2line says of an address: the places of the functions inlined there, innermost
 * first. */
static std::string ask_addr2line(const char *file, uintptr_t offset) {
    char command[1200], line[500];
    std::string chain, last;
    snprintf(command, sizeof command, "addr2line -i -s -e '%s' 0x%lx 2>/dev/null", file,
             (unsigned long)offset);
    FILE *pipe = popen(command, "r");
    if (!pipe) return chain;
    while (fgets(line, sizeof line, pipe)) {
        line[strcspn(line, " \n")] = 0; /* and without "(discriminator 2)" */
        if (strncmp(line, "dev.h:", 6) == 0 || strncmp(line, "emu.h:", 6) == 0 ||
            strstr(line, "vector_") || line[0] == '?' || last == line)
            continue;
        if (!chain.empty()) chain += " < ";
        chain += last = line;
    }
    pclose(pipe);
    return chain;
}

std::string place_of(void *at) {
    static auto &known = *new std::map<void *, std::string>;
    Dl_info info;
    link_map *module;
    if (!at || !dladdr1(at, &info, (void **)&module, RTLD_DL_LINKMAP)) return "?";
    const auto found = known.find(at);
    if (found != known.end()) return found->second;
    /* One byte back, because the address is behind the call. */
    std::string place = ask_addr2line(info.dli_fname, (uintptr_t)at - 1 - module->l_addr);
    if (place.empty()) place = info.dli_sname ? info.dli_sname : "?";
    return known[at] = place;
}

/* ---- errors ---- */

static void note(const char *kind, void *at, const char *format, va_list arguments) {
    n_errors++;
    finding *f = &findings[{kind, at}];
    if (f->count++) return;
    char text[2000];
    vsnprintf(text, sizeof text, format, arguments);
    f->place = place_of(at);
    fprintf(stderr, "emulator: %s at %s: %s\n", kind, f->place.c_str(), text);
    if (!now.current) return;
    fprintf(stderr, "    kernel %s, block (%u, %u, %u), thread %d\n", now.config->name,
            now.block.x, now.block.y, now.block.z, now.current->id);
}

void report(const char *kind, void *at, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    note(kind, at, format, arguments);
    va_end(arguments);
}

void fault(cudaError_t error, const char *kind, void *at, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    note(kind, at, format, arguments);
    va_end(arguments);
    emu_raise(error, now.config->name);
    abandon_launch();
}

/* ---- faults of the CPU ---- */

static struct sigaction before_us;
static thread_local bool has_stack; /* for the handler; a function's would be __shared__ */

/* The stack pointer and the instruction of a fault. */
static void find_fault(const ucontext_t *context, const void **stack, uintptr_t *code) {
#if defined(__x86_64__)
    *stack = (const void *)context->uc_mcontext.gregs[REG_RSP];
    *code = (uintptr_t)context->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
    *stack = (const void *)context->uc_mcontext.sp;
    *code = context->uc_mcontext.pc;
#else
#error "which registers?"
#endif
}

static void on_fault(int, siginfo_t *info, void *context) {
    uintptr_t begin, end;
    const uintptr_t address = (uintptr_t)info->si_addr;
    const void *stack;
    uintptr_t code;
    find_fault((const ucontext_t *)context, &stack, &code);
    void *const at = (void *)(code + 1); /* as if it were behind a call */
    const bool on_device = emu_device_range(&begin, &end) && address >= begin && address < end;
    if (now.current && is_on_fiber(info->si_addr))
        fault(cudaErrorLaunchFailure, "stack overflow", at, "%zu KiB are full",
              STACK_BYTES >> 10);
    if (now.current && is_on_fiber(stack))
        fault(cudaErrorIllegalAddress, "illegal address", at, "%p%s", info->si_addr,
              on_device ? ", a device pointer that did not come as an argument of the launch"
                        : "");
    if (on_device)
        fprintf(stderr, "emulator: the host touched device memory at %s, address %p\n",
                place_of(at).c_str(), info->si_addr);
    /* Not ours: it happens again, and whoever was here before us sees it. */
    sigaction(SIGSEGV, &before_us, NULL);
}

/* A kernel may have used up its own stack: the handler has another one. */
void catch_faults() {
    if (has_stack) return;
    has_stack = true;
    stack_t stack = {};
    stack.ss_size = 256 << 10;
    stack.ss_sp =
        mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack.ss_sp == MAP_FAILED) abort();
    sigaltstack(&stack, NULL);
}

__attribute__((constructor)) static void install() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before_us);
}

void trap() {
    fault(cudaErrorLaunchFailure, "__trap()", __builtin_return_address(0), "the kernel stops");
}

} // namespace emu

static std::atomic<bool> was_asked, was_reported;

extern "C" int64_t emu_error_count(void) {
    was_asked = true;
    return emu::n_errors;
}

extern "C" void emu_report(void) {
    was_reported = true;
    for (const auto &f : emu::findings)
        fprintf(stderr, "emulator: %8ld x %s at %s\n", (long)f.second.count,
                f.first.first.c_str(), f.second.place.c_str());
    emu::print_counters();
    fprintf(stderr, "emulator: %ld errors\n", (long)emu::n_errors);
}

/* A program that has not asked for the number of errors must fail as well. */
__attribute__((destructor)) static void report_at_exit() {
    const bool is_wanted = emu::wishes.check || emu::wishes.profile || emu::n_errors;
    if (is_wanted && !was_reported) emu_report();
    fflush(NULL);
    if (emu::n_errors && !was_asked) _exit(EXIT_FAILURE);
}
