/* Memory of the machine, of cgroups and of a process: see host_memory.h. */
#define _GNU_SOURCE
#include "base/host_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_LEN = 1024, LINE_LEN = 1024 };

/* A longer path names no file. */
static FILE *open_file(const char *folder, const char *name) {
    char path[PATH_LEN];
    const int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    return n > 0 && n < PATH_LEN ? fopen(path, "re") : NULL;
}

/* ---- the machine ---- */

lmd_memory_size lmd_machine_memory(const char *root) {
    unsigned long long total = 0, available = 0, unused = 0, kib;
    bool says_available = false;
    char line[LINE_LEN];
    FILE *file = open_file(root, "proc/meminfo");
    if (!file) return (lmd_memory_size){0, 0};
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "MemTotal: %llu kB", &kib) == 1) total = kib;
        if (sscanf(line, "MemFree: %llu kB", &kib) == 1) unused = kib;
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) {
            available = kib;
            says_available = true;
        }
    }
    fclose(file);
    return (lmd_memory_size){total << 10, (says_available ? available : unused) << 10};
}

/* ---- cgroups ---- */

/* The files of one version. */
typedef struct cgroup_version {
    const char *base; /* where its tree is mounted */
    const char *limit, *usage;
} cgroup_version;

static const cgroup_version version_1 = {"sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                         "memory.usage_in_bytes"};
static const cgroup_version version_2 = {"sys/fs/cgroup", "memory.max", "memory.current"};

/* Reads a file that holds one number; false where it is not there or says "max". */
static bool read_number(const char *folder, const char *name, int64_t *out) {
    char line[LINE_LEN];
    FILE *file = open_file(folder, name);
    if (!file) return false;
    const bool has_line = fgets(line, sizeof line, file) != NULL;
    fclose(file);
    if (!has_line) return false;
    char *end;
    const long long number = strtoll(line, &end, 10);
    if (end == line || end[strspn(end, " \t\n")]) return false;
    *out = number;
    return true;
}

/* Page cache that counts as used, though the kernel gives it back under pressure: of the cgroup
 * with those below it, where memory.stat has that sum. */
static int64_t read_reclaimable(const char *folder) {
    char line[LINE_LEN];
    long long own = 0, total = -1, n_bytes;
    FILE *file = open_file(folder, "memory.stat");
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "inactive_file %lld", &n_bytes) == 1) own = n_bytes;
        if (sscanf(line, "total_inactive_file %lld", &n_bytes) == 1) total = n_bytes;
    }
    fclose(file);
    return total >= 0 ? total : own;
}

/* What a cgroup's limit leaves; false where it has none. */
static bool read_cgroup(const char *folder, const cgroup_version *version,
                        lmd_memory_size *out) {
    enum { NO_LIMIT_BITS = 60 }; /* version 1 writes 2^63 - 4096 for none */
    int64_t limit, usage;
    if (!read_number(folder, version->limit, &limit) ||
        !read_number(folder, version->usage, &usage) || limit >= (int64_t)1 << NO_LIMIT_BITS)
        return false;
    const int64_t available = limit - usage + read_reclaimable(folder);
    *out = (lmd_memory_size){(uint64_t)limit, available > 0 ? (uint64_t)available : 0};
    return true;
}

/* The least available so far. */
typedef struct tightest_cgroup {
    lmd_memory_size size;
    bool is_set;
} tightest_cgroup;

/* Looks at a cgroup and at all above it. In a container the path may name folders that are not
 * mounted, of which the last ones up to the base still are. */
static void look_upwards(const char *root, const char *path, const cgroup_version *version,
                         tightest_cgroup *found) {
    char folder[PATH_LEN];
    const int base_len = snprintf(folder, sizeof folder, "%s/%s", root, version->base);
    if (base_len < 0 || base_len >= PATH_LEN) return;
    snprintf(folder + base_len, sizeof folder - (size_t)base_len, "/%s", path);
    for (;;) {
        lmd_memory_size size;
        if (read_cgroup(folder, version, &size) &&
            (!found->is_set || size.available < found->size.available))
            *found = (tightest_cgroup){size, true};
        char *slash = strrchr(folder + base_len, '/');
        if (!slash) return;
        *slash = '\0';
    }
}

/* Whether a list of names that commas separate holds "memory". */
static bool controls_memory(char *controllers) {
    char *rest = NULL;
    for (char *name = strtok_r(controllers, ",", &rest); name;
         name = strtok_r(NULL, ",", &rest))
        if (strcmp(name, "memory") == 0) return true;
    return false;
}

/* A line of /proc/self/cgroup is "number:controllers:path", where version 2 names none. */
static void look_at_line(const char *root, char *line, tightest_cgroup *found) {
    line[strcspn(line, "\n")] = '\0';
    char *controllers = strchr(line, ':');
    char *path = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!path) return;
    *controllers++ = *path++ = '\0';
    path += strspn(path, "/");
    if (!*controllers)
        look_upwards(root, path, &version_2, found);
    else if (controls_memory(controllers))
        look_upwards(root, path, &version_1, found);
}

bool lmd_cgroup_memory(const char *root, lmd_memory_size *out) {
    char line[LINE_LEN];
    tightest_cgroup found = {{0, 0}, false};
    FILE *file = open_file(root, "proc/self/cgroup");
    if (!file) return false;
    while (fgets(line, sizeof line, file)) look_at_line(root, line, &found);
    fclose(file);
    if (found.is_set) *out = found.size;
    return found.is_set;
}

/* ---- the process's own limits ---- */

/* Reads the number behind a name at the start of a line; false where it is not there, or is a
 * word such as "unlimited". */
static bool read_named(const char *root, const char *file_name, const char *name,
                       uint64_t *out) {
    char line[LINE_LEN];
    bool is_found = false;
    const size_t name_len = strlen(name);
    FILE *file = open_file(root, file_name);
    if (!file) return false;
    while (!is_found && fgets(line, sizeof line, file)) {
        unsigned long long number;
        is_found =
            strncmp(line, name, name_len) == 0 && sscanf(line + name_len, "%llu", &number) == 1;
        if (is_found) *out = number;
    }
    fclose(file);
    return is_found;
}

/* limit: its name in proc/self/limits, where the soft limit comes first, in bytes. usage: that
 * of what counts against it in proc/self/status, in KiB. */
static bool read_own_limit(const char *root, const char *limit, const char *usage,
                           lmd_memory_size *out) {
    uint64_t n_bytes, used_kib;
    if (!read_named(root, "proc/self/limits", limit, &n_bytes) ||
        !read_named(root, "proc/self/status", usage, &used_kib))
        return false;
    const uint64_t used = used_kib << 10;
    *out = (lmd_memory_size){n_bytes, n_bytes > used ? n_bytes - used : 0};
    return true;
}

bool lmd_address_space(const char *root, lmd_memory_size *out) {
    return read_own_limit(root, "Max address space", "VmSize:", out);
}

bool lmd_data_size(const char *root, lmd_memory_size *out) {
    return read_own_limit(root, "Max data size", "VmData:", out);
}

/* ---- all of them ---- */

lmd_memory_size lmd_process_memory(const char *root, lmd_memory_bound *bound) {
    static const struct {
        bool (*read)(const char *root, lmd_memory_size *out);
        lmd_memory_bound bound;
    } limits[] = {{lmd_cgroup_memory, LMD_BOUND_CGROUP},
                  {lmd_address_space, LMD_BOUND_ADDRESS_SPACE},
                  {lmd_data_size, LMD_BOUND_DATA_SIZE}};
    lmd_memory_size least = lmd_machine_memory(root), one;
    lmd_memory_bound tightest = LMD_BOUND_MACHINE;
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        if (!limits[i].read(root, &one)) continue;
        if (one.total < least.total) least.total = one.total;
        if (one.available >= least.available) continue;
        least.available = one.available;
        tightest = limits[i].bound;
    }
    if (bound) *bound = tightest;
    return least;
}
