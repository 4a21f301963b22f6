/* Files that are read by position: see file.h. */
#define _GNU_SOURCE
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

struct lmd_file {
    int fd;
    size_t len;
    char path[]; /* for messages */
};

static lmd_status check(int fd, const char *path, size_t *len, lmd_err *err) {
    struct stat info;
    if (fstat(fd, &info) != 0)
        return lmd_fail(err, LMD_IO, "\"%.300s\": %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return lmd_fail(err, LMD_IO, "\"%.300s\" is not a regular file", path);
    if (info.st_size <= 0) return lmd_fail(err, LMD_BAD_FILE, "\"%.300s\" is empty", path);
    *len = (size_t)info.st_size;
    return LMD_OK;
}

lmd_status lmd_file_open(const char *path, lmd_file **out, lmd_err *err) {
    lmd_status status = LMD_OK;
    lmd_file *self = NULL;
    size_t len = 0;
    /* O_NONBLOCK: opening a named pipe would wait for its other end. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return lmd_fail(err, errno == ENOENT ? LMD_NOT_FOUND : LMD_IO, "\"%.300s\": %s", path,
                        strerror(errno));
    LMD_TRY_OUT(check(fd, path, &len, err));
    self = lmd_calloc(1, sizeof *self + strlen(path) + 1);
    if (!self) LMD_TRY_OUT(lmd_no_memory(err, "a file"));
    self->fd = fd;
    self->len = len;
    strcpy(self->path, path);
    *out = self;
out:
    if (status != LMD_OK) close(fd);
    return status;
}

void lmd_file_close(lmd_file *self) {
    if (!self) return;
    close(self->fd);
    lmd_free(self);
}

size_t lmd_file_len(const lmd_file *self) { return self->len; }

lmd_status lmd_file_read(const lmd_file *self, uint64_t offset, size_t n, void *out,
                         lmd_err *err) {
    uint8_t *to = out;
    while (n) {
        const ssize_t got = pread(self->fd, to, n, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return lmd_fail(err, LMD_IO, "\"%.300s\" cannot be read at byte %llu: %s",
                            self->path, (unsigned long long)offset, strerror(errno));
        if (got == 0)
            return lmd_fail(err, LMD_BAD_FILE,
                            "\"%.300s\" has no byte %llu, but had %zu bytes when it was "
                            "opened: another program has changed it; load it again",
                            self->path, (unsigned long long)offset, self->len);
        to += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return LMD_OK;
}
