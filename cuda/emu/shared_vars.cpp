/* Finds static __shared__ variables: they are the thread-local variables of C++ functions in
 * the module (the program or a library) that holds the kernel, and its symbol table names them.
 * Those of functions that were not inlined belong to other kernels. Must not know: what becomes
 * of them. The thread that runs launches. */
#include "internal.h"

#include <algorithm>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <map>
#include <set>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The C library's way to the calling thread's copy of a module's variables; it makes the copy.
 */
struct tls_index {
    unsigned long module, offset;
};
extern "C" void *__tls_get_addr(tls_index *);

namespace emu {

/* Where code lies. */
struct module {
    uintptr_t code; /* an address in it */
    uintptr_t base; /* what its symbols' values count from */
    const char *path;
    size_t tls_id; /* 0: it has no such variables */
};

/* A thread-local variable of a function, at an offset from the module's. */
struct symbol {
    size_t offset, n_bytes;
    std::string name;  /* mangled: _ZZ, the function's name, E, its own */
    std::string owner; /* the function, if there is one of this name that was not inlined */
};

struct symbols {
    std::vector<symbol> vars;
    std::map<uintptr_t, std::string> functions; /* by value */
};

/* Is called for each module until it returns 1. */
static int match_module(dl_phdr_info *info, size_t, void *arg) {
    module *m = (module *)arg;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        const uintptr_t begin = info->dlpi_addr + part->p_vaddr;
        if (part->p_type != PT_LOAD || m->code - begin >= part->p_memsz) continue;
        m->base = info->dlpi_addr;
        m->path = info->dlpi_name[0] ? info->dlpi_name : "/proc/self/exe";
        m->tls_id = info->dlpi_tls_modid;
        return 1;
    }
    return 0;
}

/* Lists a symbol table. C++ names a function's variables _ZZ..., C does not. */
static void list_symbols(const uint8_t *file, const ElfW(Shdr) * table, const char *names,
                         symbols *out) {
    const ElfW(Sym) *all = (const ElfW(Sym) *)(file + table->sh_offset);
    for (size_t i = 0; i < table->sh_size / sizeof *all; i++) {
        const ElfW(Sym) *s = &all[i];
        const char *const name = names + s->st_name;
        if (s->st_shndx == SHN_UNDEF) continue;
        if (ELF64_ST_TYPE(s->st_info) == STT_FUNC) out->functions[s->st_value] = name;
        if (ELF64_ST_TYPE(s->st_info) == STT_TLS && strncmp(name, "_ZZ", 3) == 0)
            out->vars.push_back({s->st_value, s->st_size, name, ""});
    }
}

/* Finds the functions of the variables: of _ZZ3sumPfE4part it is _Z3sumPf. */
static void find_owners(symbols *all) {
    std::set<std::string> names;
    for (const auto &f : all->functions) names.insert(f.second);
    for (symbol &var : all->vars)
        for (size_t e = var.name.find('E'); e != std::string::npos;
             e = var.name.find('E', e + 1)) {
            const std::string owner = "_Z" + var.name.substr(3, e - 3);
            if (names.count(owner)) var.owner = owner;
        }
}

static symbols read_symbols(const char *path) {
    symbols found;
    struct stat status;
    const int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &status) != 0) return found;
    const size_t n_bytes = (size_t)status.st_size;
    const uint8_t *file = (const uint8_t *)mmap(NULL, n_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (file == MAP_FAILED) return found;
    const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)file;
    const ElfW(Shdr) *sections = (const ElfW(Shdr) *)(file + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const ElfW(Shdr) *strings = &sections[sections[i].sh_link];
        list_symbols(file, &sections[i], (const char *)file + strings->sh_offset, &found);
    }
    munmap((void *)file, n_bytes);
    find_owners(&found);
    std::sort(found.vars.begin(), found.vars.end(),
              [](const symbol &a, const symbol &b) { return a.offset < b.offset; });
    return found;
}

std::vector<shared_var> find_shared_vars(const void *kernel) {
    static std::map<std::string, symbols> of_module;
    std::vector<shared_var> vars;
    module m = {(uintptr_t)kernel, 0, NULL, 0};
    dl_iterate_phdr(match_module, &m);
    if (!m.tls_id) return vars;
    if (!of_module.count(m.path)) of_module[m.path] = read_symbols(m.path);
    const symbols &all = of_module[m.path];
    const auto name = all.functions.find((uintptr_t)kernel - m.base);
    for (const symbol &s : all.vars) {
        const bool is_ours =
            s.owner.empty() || name == all.functions.end() || s.owner == name->second;
        tls_index index = {m.tls_id, s.offset};
        vars.push_back({(uint8_t *)__tls_get_addr(&index), s.n_bytes, is_ours});
    }
    return vars;
}

} // namespace emu
