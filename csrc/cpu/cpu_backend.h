/* The CPU backend: opens it, and asks about the machine. See backend.h for what it does. */
#ifndef LMD_CPU_CPU_BACKEND_H
#define LMD_CPU_CPU_BACKEND_H

#include "backend/backend.h"

extern const lmd_backend_ops lmd_cpu_backend_ops;

lmd_status lmd_cpu_backend_open(const lmd_backend_config *config, lmd_backend **out,
                                lmd_err *err);

#endif
