/* Error codes and messages: see status.h. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

lmd_status lmd_fail(lmd_err *err, lmd_status code, const char *format, ...) {
    if (!err) return code;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    err->code = code;
    return code;
}

lmd_status lmd_no_memory(lmd_err *err, const char *format, ...) {
    char what[LMD_ERR_LEN / 2];
    if (!err) return LMD_NO_MEMORY;
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return lmd_fail(err, LMD_NO_MEMORY, "out of host memory for %s", what);
}

lmd_status lmd_err_prefix(lmd_err *err, lmd_status code, const char *format, ...) {
    if (!err) return code;
    char old[LMD_ERR_LEN];
    memcpy(old, err->message, sizeof old);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    int room = (int)sizeof err->message - n - 3; /* ": " and the end */
    if (n >= 0 && room > 0)
        snprintf(err->message + n, sizeof err->message - (size_t)n, ": %.*s", room, old);
    err->code = code;
    return code;
}

const char *lmd_number_text(char text[LMD_NUMBER_LEN], double value) {
    const int enough = 17; /* digits that tell any two doubles apart */
    for (int n_digits = 6; n_digits <= enough; n_digits++) {
        snprintf(text, LMD_NUMBER_LEN, "%.*g", n_digits, value);
        if (strtod(text, NULL) == value) break;
    }
    return text;
}

const char *lmd_status_name(lmd_status code) {
    switch (code) {
    case LMD_OK: return "LMD_OK";
    case LMD_INVALID: return "LMD_INVALID";
    case LMD_NOT_FOUND: return "LMD_NOT_FOUND";
    case LMD_UNKNOWN_ID: return "LMD_UNKNOWN_ID";
    case LMD_BAD_FILE: return "LMD_BAD_FILE";
    case LMD_UNSUPPORTED: return "LMD_UNSUPPORTED";
    case LMD_NO_MEMORY: return "LMD_NO_MEMORY";
    case LMD_BUSY: return "LMD_BUSY";
    case LMD_IO: return "LMD_IO";
    case LMD_CLOSED: return "LMD_CLOSED";
    case LMD_INTERNAL: return "LMD_INTERNAL";
    }
    return "LMD_?";
}
