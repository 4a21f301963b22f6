/* How much memory this process may use: the machine's, the limits of its cgroups, and its own
 * (ulimit).
 * Owns: the reading of /proc and /sys/fs/cgroup. Must not know: what the memory is for. No
 * state. Any thread. Every function takes the folder that holds proc and sys: "/", or a copy
 * of such a tree in a test. */
#ifndef LMD_BASE_HOST_MEMORY_H
#define LMD_BASE_HOST_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

/* In bytes. */
typedef struct lmd_memory_size {
    uint64_t total, available;
} lmd_memory_size;

/* Of the machine, as /proc/meminfo says; zeros where that cannot be read. */
lmd_memory_size lmd_machine_memory(const char *root);

/* Of the cgroup of this process, or of one above it, that leaves the least: total is its limit,
 * and page cache that the kernel can reclaim counts as available. Versions 1 and 2. False where
 * no limit is set. */
bool lmd_cgroup_memory(const char *root, lmd_memory_size *out);

/* Of this process's own limits on address space (RLIMIT_AS) and on writable memory
 * (RLIMIT_DATA) one: total is the limit, and available what is left of it. False where it is
 * not set. */
bool lmd_address_space(const char *root, lmd_memory_size *out);
bool lmd_data_size(const char *root, lmd_memory_size *out);

/* What leaves a process the least. */
typedef enum lmd_memory_bound {
    LMD_BOUND_MACHINE,
    LMD_BOUND_CGROUP,
    LMD_BOUND_ADDRESS_SPACE,
    LMD_BOUND_DATA_SIZE
} lmd_memory_bound;

/* Of this process: the least of all of these, for each field; *bound (may be NULL): which of
 * them leaves the least. */
lmd_memory_size lmd_process_memory(const char *root, lmd_memory_bound *bound);

#endif
