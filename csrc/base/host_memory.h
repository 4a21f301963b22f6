/* How much memory this process may use: the machine's, and the limits of its cgroups.
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

/* Of this process: the lesser of the machine's and the cgroup's, for each field. */
lmd_memory_size lmd_process_memory(const char *root);

#endif
