/* Read-only memory maps of model files: see mapped_file.h. */
#define _GNU_SOURCE
#include "base/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

struct lmd_mapped_file {
    uint8_t *data;
    size_t len;
    size_t page; /* bytes */
};

static lmd_status map(int fd, const char *path, lmd_mapped_file *self, lmd_err *err) {
    struct stat info;
    if (fstat(fd, &info) != 0)
        return lmd_fail(err, LMD_IO, "\"%.300s\": %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return lmd_fail(err, LMD_IO, "\"%.300s\" is not a regular file", path);
    if (info.st_size <= 0) return lmd_fail(err, LMD_BAD_FILE, "\"%.300s\" is empty", path);
    void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return lmd_fail(err, LMD_IO, "\"%.300s\" cannot be mapped: %s", path, strerror(errno));
    self->data = data;
    self->len = (size_t)info.st_size;
    self->page = (size_t)sysconf(_SC_PAGESIZE);
    return LMD_OK;
}

lmd_status lmd_mapped_file_open(const char *path, lmd_mapped_file **out, lmd_err *err) {
    /* O_NONBLOCK: opening a named pipe would wait for its other end. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return lmd_fail(err, errno == ENOENT ? LMD_NOT_FOUND : LMD_IO, "\"%.300s\": %s", path,
                        strerror(errno));
    lmd_mapped_file *self = lmd_calloc(1, sizeof *self);
    lmd_status status = self ? map(fd, path, self, err) : lmd_no_memory(err, "a mapped file");
    close(fd);
    if (status != LMD_OK) {
        lmd_free(self);
        return status;
    }
    *out = self;
    return LMD_OK;
}

const uint8_t *lmd_mapped_file_data(const lmd_mapped_file *self) { return self->data; }

size_t lmd_mapped_file_len(const lmd_mapped_file *self) { return self->len; }

void lmd_mapped_file_drop(const lmd_mapped_file *self, const void *ptr, size_t n_bytes) {
    size_t begin = (size_t)((const uint8_t *)ptr - self->data), end = begin + n_bytes;
    begin = (begin + self->page - 1) / self->page * self->page;
    end = end / self->page * self->page;
    if (begin < end) madvise(self->data + begin, end - begin, MADV_DONTNEED);
}

void lmd_mapped_file_close(lmd_mapped_file *self) {
    if (!self) return;
    munmap(self->data, self->len);
    lmd_free(self);
}
