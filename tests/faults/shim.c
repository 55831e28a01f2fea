/* System calls that fail on purpose, for files below one folder. LD_PRELOAD.
 *
 * FAULTS_FOLDER  only descriptors that were opened below it
 * FAULTS         call:first:errno:times:short_bytes     call: open read stat mmap close
 *                from the first-th call on, so many times: fail with errno, or, when errno is 0,
 *                read short_bytes at most
 * FAULTS_LOG     gets a byte for each call that was met
 *
 * Worker processes take it from the environment; in a running process faults_arm() reads it anew.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_FDS 65536

static char folder[4096], wanted[16], log_path[4096];
static long first, error, times, short_bytes;
static atomic_long met;
static atomic_char below[MOST_FDS];

#define REAL(name) static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int real_open(const char *path, int flags, int mode) {
    static int (*real)(const char *, int, ...);
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    return real(path, flags, mode);
}

void faults_arm(void) {
    const char *text = getenv("FAULTS"), *where = getenv("FAULTS_FOLDER"), *log = getenv("FAULTS_LOG");
    wanted[0] = 0;
    atomic_store(&met, 0);
    snprintf(folder, sizeof folder, "%s", where ? where : "");
    snprintf(log_path, sizeof log_path, "%s", log ? log : "");
    if (text && *text && *folder)
        if (sscanf(text, "%15[a-z]:%ld:%ld:%ld:%ld", wanted, &first, &error, &times, &short_bytes) != 5)
            wanted[0] = 0;
}

__attribute__((constructor)) static void at_start(void) { faults_arm(); }

static int is_below(const char *path) {
    return path && *folder && strncmp(path, folder, strlen(folder)) == 0
        && path[strlen(folder)] == '/';
}

static int is_ours(int fd) { return fd >= 0 && fd < MOST_FDS && below[fd]; }

/* Whether it is this call's turn. */
static int turn(const char *call) {
    if (!wanted[0] || strcmp(call, wanted) != 0) return 0;
    long number = atomic_fetch_add(&met, 1) + 1;
    if (number < first || number - first >= times) return 0;
    if (*log_path) {
        int saved = errno, fd = real_open(log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (fd >= 0) { if (write(fd, "x", 1)) {} REAL(close); real(fd); }
        errno = saved;
    }
    return 1;
}

static int fails(const char *call) {
    if (!turn(call) || !error) return 0;
    errno = (int)error;
    return 1;
}

/* How much may be read: -1 for a failure. */
static ssize_t allowed(int fd, size_t count) {
    if (!is_ours(fd) || !turn("read")) return (ssize_t)count;
    if (error) { errno = (int)error; return -1; }
    return count < (size_t)short_bytes ? (ssize_t)count : short_bytes;
}

#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    if (is_below(path) && fails("open")) return -1; \
    int fd = real_open(path, flags, mode); \
    if (fd >= 0 && fd < MOST_FDS) below[fd] = (char)is_below(path); \
    return fd; }
OPEN(open)
OPEN(open64)

#define OPENAT(name) int name(int at, const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    if (is_below(path) && fails("open")) return -1; \
    REAL(name); \
    int fd = real(at, path, flags, mode); \
    if (fd >= 0 && fd < MOST_FDS) below[fd] = (char)is_below(path); \
    return fd; }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    REAL(close);
    int ours = is_ours(fd);
    if (ours) below[fd] = 0;
    int answer = real(fd);
    return ours && fails("close") ? -1 : answer; /* it is closed all the same, as Linux does */
}

ssize_t read(int fd, void *data, size_t count) {
    REAL(read);
    ssize_t most = allowed(fd, count);
    return most < 0 ? -1 : real(fd, data, (size_t)most);
}

#define PREAD(name, offset_t) ssize_t name(int fd, void *data, size_t count, offset_t at) { \
    REAL(name); \
    ssize_t most = allowed(fd, count); \
    return most < 0 ? -1 : real(fd, data, (size_t)most, at); }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

static size_t total(const struct iovec *parts, int count) {
    size_t sum = 0;
    for (int n = 0; n < count; n++) sum += parts[n].iov_len;
    return sum;
}

static ssize_t scattered(int fd, const struct iovec *parts, int count, off64_t at) {
    static ssize_t (*real)(int, const struct iovec *, int, off64_t);
    if (!real) real = (ssize_t (*)(int, const struct iovec *, int, off64_t))dlsym(RTLD_NEXT, "preadv64");
    size_t wanted_bytes = total(parts, count);
    ssize_t most = allowed(fd, wanted_bytes);
    if (most < 0) return -1;
    if ((size_t)most == wanted_bytes) return real(fd, parts, count, at);
    while (count && !parts->iov_len) parts++, count--;
    size_t length = (size_t)most < parts->iov_len ? (size_t)most : parts->iov_len;
    struct iovec one = {parts->iov_base, length};
    return real(fd, &one, 1, at);
}

ssize_t preadv(int fd, const struct iovec *parts, int count, off_t at) { return scattered(fd, parts, count, at); }
ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t at) { return scattered(fd, parts, count, at); }
ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t at, int flags) { (void)flags; return scattered(fd, parts, count, at); }
ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags) { (void)flags; return scattered(fd, parts, count, at); }

#define FSTAT(name, kind) int name(int fd, struct kind *status) { \
    if (is_ours(fd) && fails("stat")) return -1; \
    REAL(name); return real(fd, status); }
FSTAT(fstat, stat)
FSTAT(fstat64, stat64)

#define STAT(name, kind) int name(const char *path, struct kind *status) { \
    if (is_below(path) && fails("stat")) return -1; \
    REAL(name); return real(path, status); }
STAT(stat, stat)
STAT(stat64, stat64)

#define MMAP(name, offset_t) void *name(void *to, size_t length, int access, int flags, int fd, offset_t at) { \
    if (is_ours(fd) && fails("mmap")) return MAP_FAILED; \
    REAL(name); return real(to, length, access, flags, fd, at); }
MMAP(mmap, off_t)
MMAP(mmap64, off64_t)
