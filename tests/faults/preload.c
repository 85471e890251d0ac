/*
 * Stands between the relay and libc, and lets the n-th call of one kind fail.
 *
 * Only calls on files below one folder count. All is told by the environment:
 *
 *   FAULT_FOLDER  the folder, absolute, without symbolic links
 *   FAULT_KIND    pwrite, write, fdatasync, fsync, open, rename, unlink, ftruncate, fallocate or mkdir; or change: all
 *                 of them that a file system mounted read-only refuses
 *   FAULT_AT      which call fails, from 1; 0: none, calls are only counted
 *   FAULT_ERRNO   the error number that it fails with
 *   FAULT_STAYS   1: each call from that one on fails; 0: only that one
 *   FAULT_STATE   a file of sizeof(struct state) zero bytes; it outlives the process, so several runs share one count
 *
 * The relay reaches the kernel through these names only: it is linked to libc dynamically, and its own definition of
 * sync_file_range ends in fdatasync.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Read by the test: keep both in step. */
struct state {
    _Atomic uint64_t calls;
    _Atomic uint64_t failed;
    char first[240]; /* what failed first, for the tester's eyes */
};

enum kind {
    OTHER, PWRITE, WRITE, FDATASYNC, FSYNC, OPEN, OPEN_TO_CHANGE, RENAME, UNLINK, FTRUNCATE, FALLOCATE, MKDIR, CHANGE
};

static const char *const names[] = {
    "other", "pwrite", "write", "fdatasync", "fsync", "open", "open to change", "rename", "unlink", "ftruncate",
    "fallocate", "mkdir", "change",
};

static struct state *state;
static enum kind chosen;
static const char *folder;
static size_t folder_length;
static uint64_t at;
static int error_number;
static int stays;

static const char *setting(const char *name) {
    const char *value = getenv(name);
    if (value == NULL) {
        dprintf(2, "the fault library needs %s\n", name);
        _exit(97);
    }
    return value;
}

__attribute__((constructor)) static void begin(void) {
    folder = setting("FAULT_FOLDER");
    folder_length = strlen(folder);
    at = strtoull(setting("FAULT_AT"), NULL, 10);
    error_number = atoi(setting("FAULT_ERRNO"));
    stays = atoi(setting("FAULT_STAYS"));
    const char *name = setting("FAULT_KIND");
    for (size_t kind = 1; kind < sizeof names / sizeof *names; kind++)
        if (strcmp(name, names[kind]) == 0) chosen = (enum kind)kind;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, setting("FAULT_STATE"), O_RDWR | O_CLOEXEC, 0);
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (chosen == OTHER || map == MAP_FAILED) {
        dprintf(2, "the fault library can't use FAULT_KIND or FAULT_STATE\n");
        _exit(97);
    }
    close(fd);
    state = map; /* from here on calls count */
}

static int below(const char *path) {
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || path[folder_length] == 0);
}

/* The path that a descriptor or a relative path stands for; 0 when that can't be found out. */
static int resolve(int fd, const char *path, char *whole) {
    if (path != NULL && path[0] == '/') return snprintf(whole, PATH_MAX, "%s", path) > 0;
    char link[64];
    if (fd == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, whole, PATH_MAX - 1);
    if (length <= 0) return 0;
    whole[length] = 0;
    if (path != NULL) snprintf(whole + length, PATH_MAX - (size_t)length, "/%s", path);
    return 1;
}

static int is_chosen(enum kind kind) {
    if (chosen == OPEN) return kind == OPEN || kind == OPEN_TO_CHANGE;
    if (chosen == CHANGE) return kind != OPEN && kind != FSYNC && kind != FDATASYNC;
    return kind == chosen;
}

static enum kind opening(int flags) {
    return (flags & (O_ACCMODE | O_CREAT | O_TRUNC)) == O_RDONLY ? OPEN : OPEN_TO_CHANGE;
}

/* Counts a call; 1 if it has to fail, with errno set. */
static int fails(enum kind kind, int fd, const char *path) {
    if (state == NULL || !is_chosen(kind)) return 0;
    int before = errno;
    char whole[PATH_MAX];
    int counts = resolve(fd, path, whole) && below(whole);
    errno = before;
    if (!counts) return 0;
    uint64_t number = atomic_fetch_add(&state->calls, 1) + 1;
    if (at == 0 || (stays ? number < at : number != at)) return 0;
    if (atomic_fetch_add(&state->failed, 1) == 0)
        snprintf(state->first, sizeof state->first, "%s of %s", names[kind], whole + folder_length);
    errno = error_number;
    return 1;
}

#define NEXT(name) \
    static __typeof__(&name) next; \
    if (next == NULL) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    NEXT(pwrite);
    return fails(PWRITE, fd, NULL) ? -1 : next(fd, bytes, count, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    NEXT(pwrite64);
    return fails(PWRITE, fd, NULL) ? -1 : next(fd, bytes, count, offset);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    NEXT(write);
    return fails(WRITE, fd, NULL) ? -1 : next(fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *pieces, int count) {
    NEXT(writev);
    return fails(WRITE, fd, NULL) ? -1 : next(fd, pieces, count);
}

int fdatasync(int fd) {
    NEXT(fdatasync);
    return fails(FDATASYNC, fd, NULL) ? -1 : next(fd);
}

int fsync(int fd) {
    NEXT(fsync);
    return fails(FSYNC, fd, NULL) ? -1 : next(fd);
}

/* The mode is only there, and only wanted, when a file may be made. */
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) {
    NEXT(open);
    MODE(flags)
    return fails(opening(flags), AT_FDCWD, path) ? -1 : next(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    NEXT(open64);
    MODE(flags)
    return fails(opening(flags), AT_FDCWD, path) ? -1 : next(path, flags, mode);
}

int openat(int fd, const char *path, int flags, ...) {
    NEXT(openat);
    MODE(flags)
    return fails(opening(flags), fd, path) ? -1 : next(fd, path, flags, mode);
}

int openat64(int fd, const char *path, int flags, ...) {
    NEXT(openat64);
    MODE(flags)
    return fails(opening(flags), fd, path) ? -1 : next(fd, path, flags, mode);
}

int rename(const char *from, const char *to) {
    NEXT(rename);
    return fails(RENAME, AT_FDCWD, from) ? -1 : next(from, to);
}

int renameat(int from_fd, const char *from, int to_fd, const char *to) {
    NEXT(renameat);
    return fails(RENAME, from_fd, from) ? -1 : next(from_fd, from, to_fd, to);
}

int unlink(const char *path) {
    NEXT(unlink);
    return fails(UNLINK, AT_FDCWD, path) ? -1 : next(path);
}

int unlinkat(int fd, const char *path, int flags) {
    NEXT(unlinkat);
    return fails(UNLINK, fd, path) ? -1 : next(fd, path, flags);
}

int ftruncate(int fd, off_t length) {
    NEXT(ftruncate);
    return fails(FTRUNCATE, fd, NULL) ? -1 : next(fd, length);
}

int ftruncate64(int fd, off64_t length) {
    NEXT(ftruncate64);
    return fails(FTRUNCATE, fd, NULL) ? -1 : next(fd, length);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    return fails(MKDIR, AT_FDCWD, path) ? -1 : next(path, mode);
}

/* The only one that returns its error. */
int posix_fallocate(int fd, off_t offset, off_t length) {
    NEXT(posix_fallocate);
    return fails(FALLOCATE, fd, NULL) ? errno : next(fd, offset, length);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length) {
    NEXT(posix_fallocate64);
    return fails(FALLOCATE, fd, NULL) ? errno : next(fd, offset, length);
}
