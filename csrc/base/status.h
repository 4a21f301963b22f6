/* Error codes and messages.
 * Owns: lmd_status, lmd_err and the macros that pass errors on. Every function that can fail
 * returns lmd_status and takes lmd_err *err last; err may be NULL when the caller wants the
 * code alone. Must not know: Python, engines, devices. Any thread. */
#ifndef LMD_BASE_STATUS_H
#define LMD_BASE_STATUS_H

/* Each code, and the Python exception that it becomes. */
typedef enum lmd_status {
    LMD_OK = 0,
    LMD_INVALID,     /* ValueError: an argument or a config value is wrong */
    LMD_NOT_FOUND,   /* FileNotFoundError: a file is missing */
    LMD_UNKNOWN_ID,  /* KeyError: nothing has this id, or what had it has ended */
    LMD_BAD_FILE,    /* CheckpointError: a file is truncated or hostile, or lacks a tensor */
    LMD_UNSUPPORTED, /* UnsupportedError: known, and not served */
    LMD_NO_MEMORY,   /* MemoryError: host memory or KV blocks ran out */
    LMD_BUSY,        /* RuntimeError: as much as is allowed is going on already; later */
    LMD_IO,          /* OSError: the operating system refused */
    LMD_CLOSED,      /* RuntimeError: the object was closed */
    LMD_INTERNAL     /* RuntimeError: our own bug */
} lmd_status;

enum { LMD_ERR_LEN = 512 };

typedef struct lmd_err {
    lmd_status code;
    char message[LMD_ERR_LEN]; /* what was wanted, what was there, what to change */
} lmd_err;

/* Fills err (may be NULL) and returns code, so that `return lmd_fail(...)` reads well. */
lmd_status lmd_fail(lmd_err *err, lmd_status code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same for host memory that ran out: the message is "out of host memory for " and what was
 * wanted, such as "a request". Returns LMD_NO_MEMORY. */
lmd_status lmd_no_memory(lmd_err *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Puts "context: " before the message already in err; returns err's code. */
lmd_status lmd_err_prefix(lmd_err *err, lmd_status code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

enum { LMD_NUMBER_LEN = 32 };

/* Writes a number for a message, in the fewest digits that no other number has; returns text.
 */
const char *lmd_number_text(char text[LMD_NUMBER_LEN], double value);

/* The code's name, e.g. "LMD_BAD_FILE". */
const char *lmd_status_name(lmd_status code);

#define LMD_TRY(expr)                                                                          \
    do {                                                                                       \
        lmd_status lmd_try_status_ = (expr);                                                   \
        if (lmd_try_status_ != LMD_OK) return lmd_try_status_;                                 \
    } while (0)

/* The same for functions with one cleanup label `out` and a local `status`. */
#define LMD_TRY_OUT(expr)                                                                      \
    do {                                                                                       \
        status = (expr);                                                                       \
        if (status != LMD_OK) goto out;                                                        \
    } while (0)

#endif
