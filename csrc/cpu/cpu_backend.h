/* The CPU backend, behind the table of backend.h.
 * Owns: the thread pool, the weights' memory and the choice of kernels. Workspaces and weights
 * end before it does. Must not know: models, engines. Threads: as backend.h says. */
#ifndef LMD_CPU_CPU_BACKEND_H
#define LMD_CPU_CPU_BACKEND_H

#include "backend/backend.h"

extern const lmd_backend_ops lmd_cpu_backend_ops;

lmd_status lmd_cpu_backend_open(const lmd_backend_config *config, lmd_backend **out,
                                lmd_err *err);

#endif
