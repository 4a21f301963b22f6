/* Memory of the machine, of cgroups and of a process, read from made-up trees of proc and sys.
 * Exits 1 when one is read wrongly. */
#define _GNU_SOURCE
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/host_memory.h"

static char root[] = "/tmp/check_host_memory.XXXXXX";
static int n_wrong;

/* Writes a file of the tree, and the folders above it. */
static void write_file(const char *name, const char *text) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *slash = strchr(path + sizeof root, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0) {
        printf("%s cannot be written\n", path);
        exit(1);
    }
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *at) {
    (void)info, (void)kind, (void)at;
    return remove(path);
}

static void clear_tree(void) {
    nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    mkdir(root, 0700);
}

/* Compares what is read of the tree, in bytes, and clears it; limit 0: no cgroup has one. */
static void expect(const char *what, uint64_t total, uint64_t available, uint64_t limit,
                   uint64_t left) {
    lmd_memory_size cgroup = {0, 0}, process = lmd_process_memory(root, NULL);
    const bool has_limit = lmd_cgroup_memory(root, &cgroup);
    if (process.total != total || process.available != available || has_limit != (limit > 0) ||
        cgroup.total != limit || cgroup.available != left) {
        printf("%s: process %llu %llu, cgroup %llu %llu\n", what,
               (unsigned long long)process.total, (unsigned long long)process.available,
               (unsigned long long)cgroup.total, (unsigned long long)cgroup.available);
        n_wrong++;
    }
    clear_tree();
}

static void check_machine(void) {
    expect("nothing", 0, 0, 0, 0);
    write_file("proc/meminfo",
               "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 400 kB\nSwapTotal: 7 kB\n");
    write_file("proc/self/cgroup", "0::/\n");
    expect("no limit", 1000 << 10, 400 << 10, 0, 0);
    write_file("proc/meminfo", "MemTotal:        1000 kB\nMemFree:    10 kB\n");
    expect("an old kernel", 1000 << 10, 10 << 10, 0, 0);
}

static void check_version_2(void) {
    write_file("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n");
    write_file("proc/self/cgroup", "0::/outer/inner\n");
    write_file("sys/fs/cgroup/outer/memory.max", "1000000\n");
    write_file("sys/fs/cgroup/outer/memory.current", "700000\n");
    write_file("sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 50000\n");
    write_file("sys/fs/cgroup/outer/inner/memory.max", "max\n");
    write_file("sys/fs/cgroup/outer/inner/memory.current", "5\n");
    expect("the tightest parent", 1000000, 350000, 1000000, 350000);

    write_file("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 100 kB\n");
    write_file("proc/self/cgroup", "0::/\n");
    write_file("sys/fs/cgroup/memory.max", "1000000\n");
    write_file("sys/fs/cgroup/memory.current", "700000\n");
    expect("each the lesser", 1000000, 100 << 10, 1000000, 300000);

    write_file("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n");
    write_file("proc/self/cgroup", "0::/group\n");
    write_file("sys/fs/cgroup/group/memory.max", "1000\n");
    write_file("sys/fs/cgroup/group/memory.current", "2000\n");
    expect("more than the limit is used", 1000, 0, 1000, 0);
}

static void check_version_1(void) {
    write_file("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n");
    write_file("proc/self/cgroup", "5:cpu,memory:/docker/abc\n1:name=systemd:/\n");
    /* As seen from inside a container: the path is not mounted. */
    write_file("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n");
    write_file("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000\n");
    write_file("sys/fs/cgroup/memory/memory.stat",
               "inactive_file 1\ntotal_inactive_file 1000\n");
    expect("a container", 2000000, 1501000, 2000000, 1501000);

    write_file("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n");
    write_file("proc/self/cgroup", "5:cpu,memory:/\nno line of a cgroup\n");
    write_file("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    write_file("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000\n");
    expect("no limit", 9000 << 10, 8000 << 10, 0, 0);

    write_file("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n");
    write_file("proc/self/cgroup", "5:cpu,memory_of_another_kind:/\n");
    write_file("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n");
    write_file("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000\n");
    expect("another controller", 9000 << 10, 8000 << 10, 0, 0);
}

/* As proc/self/limits writes it. */
static void write_limits(const char *space, const char *data) {
    char text[1024];
    snprintf(text, sizeof text,
             "Limit                     Soft Limit           Hard Limit           Units     \n"
             "Max cpu time              unlimited            unlimited            seconds   \n"
             "Max data size             %-20s unlimited            bytes     \n"
             "Max address space         %-20s 7                    bytes     \n",
             data, space);
    write_file("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n");
    write_file("proc/self/cgroup", "0::/\n");
    write_file("proc/self/limits", text);
    write_file("proc/self/status",
               "Name:\tpython\nVmPeak:\t 9999 kB\nVmSize:\t 3000 kB\nVmData:\t 1000 kB\n");
}

static void expect_bound(lmd_memory_bound wanted) {
    lmd_memory_bound bound;
    lmd_process_memory(root, &bound);
    if (bound == wanted) return;
    printf("bound %d, not %d\n", (int)bound, (int)wanted);
    n_wrong++;
}

static void check_own_limits(void) {
    write_limits("unlimited", "unlimited");
    expect_bound(LMD_BOUND_MACHINE);
    expect("no limit", 9000 << 10, 8000 << 10, 0, 0);

    write_limits("4096000", "unlimited");
    expect_bound(LMD_BOUND_ADDRESS_SPACE);
    expect("address space", 4096000, 4096000 - (3000 << 10), 0, 0);

    write_limits("6144000", "2048000");
    expect_bound(LMD_BOUND_DATA_SIZE);
    expect("data size", 2048000, 2048000 - (1000 << 10), 0, 0);

    write_limits("1000", "unlimited");
    expect_bound(LMD_BOUND_ADDRESS_SPACE);
    expect("more than the limit is used", 1000, 0, 0, 0);

    write_limits("6144000", "6144000");
    write_file("sys/fs/cgroup/memory.max", "1000000\n");
    write_file("sys/fs/cgroup/memory.current", "700000\n");
    expect_bound(LMD_BOUND_CGROUP);
    expect("a cgroup that is tighter", 1000000, 300000, 1000000, 300000);
}

int main(void) {
    if (!mkdtemp(root)) return 1;
    check_machine();
    check_version_2();
    check_version_1();
    check_own_limits();
    nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    const lmd_memory_size here = lmd_process_memory("/", NULL);
    if (here.available == 0 || here.available > here.total) n_wrong++;
    printf("memory of the machine, of cgroups and of a process: %d wrong\n", n_wrong);
    return n_wrong != 0;
}
