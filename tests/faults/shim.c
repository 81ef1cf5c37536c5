/*
 * Faults of the disk and the process for the real program, put between it and libc by LD_PRELOAD.
 *
 * Lives apart from the Rust suites because they may not be unsafe, and because std, rustix and the bundled SQLite meet
 * nowhere above libc. It knows nothing of recordings: only operations on files below one directory, told apart by the
 * first part of their path. Which fault, where and how often is a plan in a file, read anew at each operation, so that a
 * running process can be armed and disarmed. Driven by tests/it/support/shim.rs, which describes the plan.
 *
 *   FAULTS_ROOT   the directory, absolute; operations elsewhere pass untouched and uncounted
 *   FAULTS_PLAN   "ID ACTION WHEN OPERATION CLASS FIRST TIMES", or absent: everything passes
 *   FAULTS_LOG    one line for each operation: "ID NUMBER OPERATION CLASS ACTION PATH"; NUMBER is 0 if the plan's filter
 *                 does not take it. An operation that failed by itself has a second line, whose ACTION is "failed"
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(ret, name, ...)                                                                                           \
    static ret (*real)(__VA_ARGS__);                                                                                   \
    if (!real) real = (ret(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

enum action { PASS, FAIL, SHORT, KILL_AFTER };

struct verdict {
    enum action action;
    int error;
};

struct plan {
    char id[24], action[16], when[16], operation[24], class[16];
    unsigned long first, times;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char current_id[24];
static unsigned long counted;

/* Our own calls go around our own wrappers. */
static long kernel(long number, long a, long b, long c, long d) {
    REAL(long, syscall, long, ...);
    return real(number, a, b, c, d, 0L, 0L);
}

static void die(void) {
    kernel(SYS_kill, getpid(), SIGKILL, 0, 0);
    for (;;) pause();
}

static void read_plan(struct plan *plan) {
    memset(plan, 0, sizeof *plan);
    const char *path = getenv("FAULTS_PLAN");
    char text[256];
    long fd = path ? kernel(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0) : -1;
    long length = fd < 0 ? 0 : kernel(SYS_read, fd, (long)text, sizeof text - 1, 0);
    if (fd >= 0) kernel(SYS_close, fd, 0, 0, 0);
    text[length > 0 ? length : 0] = 0;
    int found = sscanf(text, "%23s %15s %15s %23s %15s %lu %lu", plan->id, plan->action, plan->when, plan->operation,
                       plan->class, &plan->first, &plan->times);
    if (found != 7) {
        memset(plan, 0, sizeof *plan);
        strcpy(plan->id, "-");
        strcpy(plan->action, "off");
        strcpy(plan->operation, "any");
        strcpy(plan->class, "any");
    }
}

/* The part of an absolute path below the root, or NULL. */
static const char *below(const char *path) {
    const char *root = getenv("FAULTS_ROOT");
    size_t length = root ? strlen(root) : 0;
    if (!length || strncmp(path, root, length) || (path[length] && path[length] != '/')) return NULL;
    return path[length] ? path + length + 1 : path + length;
}

static const char *class_of(const char *relative) {
    if (!*relative) return "root";
    if (!strncmp(relative, ".spool", 6)) return "spool";
    if (!strncmp(relative, ".catalog", 8)) return "catalog";
    return "session";
}

static int is_write(const char *operation) {
    return !strncmp(operation, "write", 5) || !strncmp(operation, "pwrite", 6);
}

static void append_log(const char *id, unsigned long number, const char *operation, const char *relative,
                       const char *action) {
    const char *path = getenv("FAULTS_LOG");
    if (!path) return;
    char line[PATH_MAX + 128];
    int length = snprintf(line, sizeof line, "%s %lu %s %s %s %s\n", id, number, operation, class_of(relative), action,
                          *relative ? relative : ".");
    long fd = kernel(SYS_openat, AT_FDCWD, (long)path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) return;
    kernel(SYS_write, fd, (long)line, length, 0);
    kernel(SYS_close, fd, 0, 0, 0);
}

static struct verdict judge(const char *operation, const char *absolute) {
    struct verdict verdict = {PASS, 0};
    const char *relative = absolute ? below(absolute) : NULL;
    if (!relative) return verdict;
    int saved = errno;
    struct plan plan;
    pthread_mutex_lock(&mutex);
    read_plan(&plan);
    if (strcmp(plan.id, current_id)) {
        strcpy(current_id, plan.id);
        counted = 0;
    }
    int taken = (!strcmp(plan.operation, "any") || !strcmp(plan.operation, operation) ||
                 (!strcmp(plan.operation, "writes") && is_write(operation)) ||
                 (!strcmp(plan.operation, "flushes") && strstr(operation, "sync"))) &&
                (!strcmp(plan.class, "any") || !strcmp(plan.class, class_of(relative)));
    unsigned long number = taken ? ++counted : 0;
    int hit = taken && number >= plan.first && number - plan.first < plan.times && strcmp(plan.action, "off");
    append_log(plan.id, number, operation, relative, hit ? plan.action : "pass");
    if (hit && !strcmp(plan.action, "kill")) {
        if (!strcmp(plan.when, "before")) die();
        verdict.action = KILL_AFTER;
    } else if (hit && !strcmp(plan.action, "short")) {
        verdict.action = SHORT;
    } else if (hit && strcmp(plan.action, "hang")) {
        verdict.action = FAIL;
        verdict.error = !strcmp(plan.action, "enospc") ? ENOSPC : !strcmp(plan.action, "erofs") ? EROFS : EIO;
    }
    pthread_mutex_unlock(&mutex);
    for (struct plan now = plan; hit && !strcmp(plan.action, "hang") && !strcmp(now.id, plan.id); read_plan(&now))
        usleep(10000);
    errno = saved;
    return verdict;
}

static const char *path_of(int fd, char *buffer) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int saved = errno;
    long length = kernel(SYS_readlinkat, AT_FDCWD, (long)link, (long)buffer, PATH_MAX - 1);
    errno = saved;
    if (length < 0) return NULL;
    buffer[length] = 0;
    /* Of a file that was removed while it is open. */
    static const char gone[] = " (deleted)";
    size_t mark = sizeof gone - 1;
    if ((size_t)length > mark && !strcmp(buffer + length - mark, gone)) buffer[length - mark] = 0;
    return buffer;
}

static const char *path_at(int dir, const char *path, char *buffer) {
    if (!path) return NULL;
    if (*path == '/') return path;
    char base[PATH_MAX];
    if (dir == AT_FDCWD) {
        if (kernel(SYS_getcwd, (long)base, sizeof base, 0, 0) < 0) return NULL;
    } else if (!path_of(dir, base)) {
        return NULL;
    }
    snprintf(buffer, PATH_MAX, "%.2000s/%.2000s", base, path);
    return buffer;
}

static void note_failure(const char *operation, const char *absolute) {
    const char *relative = absolute ? below(absolute) : NULL;
    if (!relative) return;
    int saved = errno;
    pthread_mutex_lock(&mutex);
    append_log(current_id, 0, operation, relative, "failed");
    pthread_mutex_unlock(&mutex);
    errno = saved;
}

/* Carries a verdict out around a call that answers -1 on failure. */
#define RUN(ret, operation, where, call)                                                                               \
    do {                                                                                                               \
        char buffer[PATH_MAX];                                                                                         \
        (void)buffer;                                                                                                  \
        struct verdict verdict = judge(operation, where);                                                              \
        if (verdict.action == FAIL) {                                                                                  \
            errno = verdict.error;                                                                                     \
            return -1;                                                                                                 \
        }                                                                                                              \
        ret result = call;                                                                                             \
        if (verdict.action == KILL_AFTER) die();                                                                       \
        if (result < 0) note_failure(operation, where);                                                                \
        return result;                                                                                                 \
    } while (0)

#define MODE                                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }

/* Opening changes something only where it may make or empty a file. */
#define OPENS(name)                                                                                                    \
    int name(const char *path, int flags, ...) {                                                                       \
        MODE REAL(int, name, const char *, int, ...);                                                                  \
        if (!(flags & (O_CREAT | O_TRUNC))) return real(path, flags, mode);                                            \
        RUN(int, "create", path_at(AT_FDCWD, path, buffer), real(path, flags, mode));                                  \
    }
#define OPENS_AT(name)                                                                                                 \
    int name(int dir, const char *path, int flags, ...) {                                                              \
        MODE REAL(int, name, int, const char *, int, ...);                                                             \
        if (!(flags & (O_CREAT | O_TRUNC))) return real(dir, path, flags, mode);                                       \
        RUN(int, "create", path_at(dir, path, buffer), real(dir, path, flags, mode));                                  \
    }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

/* A short write does half of it, and all of what is a single byte. */
#define HALF(verdict, size) ((verdict).action == SHORT && (size) > 1 ? (size) / 2 : (size))
#define WRITES(name, operation, parameters, arguments, ...)                                                            \
    ssize_t name parameters {                                                                                          \
        REAL(ssize_t, name, __VA_ARGS__);                                                                              \
        char buffer[PATH_MAX];                                                                                         \
        struct verdict verdict = judge(operation, path_of(fd, buffer));                                                \
        if (verdict.action == FAIL) {                                                                                  \
            errno = verdict.error;                                                                                     \
            return -1;                                                                                                 \
        }                                                                                                              \
        ssize_t result = real arguments;                                                                               \
        if (verdict.action == KILL_AFTER) die();                                                                       \
        return result;                                                                                                 \
    }
WRITES(write, "write", (int fd, const void *data, size_t size), (fd, data, HALF(verdict, size)), int, const void *,
       size_t)
WRITES(pwrite, "pwrite", (int fd, const void *data, size_t size, off_t at), (fd, data, HALF(verdict, size), at), int,
       const void *, size_t, off_t)
WRITES(pwrite64, "pwrite", (int fd, const void *data, size_t size, off64_t at), (fd, data, HALF(verdict, size), at),
       int, const void *, size_t, off64_t)
WRITES(writev, "writev", (int fd, const struct iovec *data, int count), (fd, data, HALF(verdict, count)), int,
       const struct iovec *, int)
WRITES(pwritev, "pwritev", (int fd, const struct iovec *data, int count, off_t at),
       (fd, data, HALF(verdict, count), at), int, const struct iovec *, int, off_t)
WRITES(pwritev64, "pwritev", (int fd, const struct iovec *data, int count, off64_t at),
       (fd, data, HALF(verdict, count), at), int, const struct iovec *, int, off64_t)

#define ON_FD(name, operation, parameters, arguments, ...)                                                             \
    int name parameters {                                                                                              \
        REAL(int, name, __VA_ARGS__);                                                                                  \
        RUN(int, operation, path_of(fd, buffer), real arguments);                                                      \
    }
ON_FD(fsync, "fsync", (int fd), (fd), int)
ON_FD(fdatasync, "fdatasync", (int fd), (fd), int)
ON_FD(ftruncate, "ftruncate", (int fd, off_t size), (fd, size), int, off_t)
ON_FD(ftruncate64, "ftruncate", (int fd, off64_t size), (fd, size), int, off64_t)
ON_FD(fallocate, "fallocate", (int fd, int mode, off_t at, off_t size), (fd, mode, at, size), int, int, off_t, off_t)
ON_FD(fallocate64, "fallocate", (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size), int, int, off64_t,
      off64_t)

/* These answer the error itself. */
#define ALLOCATES(name, off)                                                                                           \
    int name(int fd, off at, off size) {                                                                               \
        REAL(int, name, int, off, off);                                                                                \
        char buffer[PATH_MAX];                                                                                         \
        struct verdict verdict = judge("fallocate", path_of(fd, buffer));                                              \
        if (verdict.action == FAIL) return verdict.error;                                                              \
        int result = real(fd, at, size);                                                                               \
        if (verdict.action == KILL_AFTER) die();                                                                       \
        return result;                                                                                                 \
    }
ALLOCATES(posix_fallocate, off_t)
ALLOCATES(posix_fallocate64, off64_t)

/* The descriptor is gone even when closing failed, as Linux does it. */
int close(int fd) {
    REAL(int, close, int);
    char buffer[PATH_MAX];
    struct verdict verdict = judge("close", path_of(fd, buffer));
    int result = real(fd);
    if (verdict.action == KILL_AFTER) die();
    if (verdict.action == FAIL) {
        errno = verdict.error;
        return -1;
    }
    return result;
}

#define ON_PATH(name, operation, parameters, arguments, ...)                                                           \
    int name parameters {                                                                                              \
        REAL(int, name, __VA_ARGS__);                                                                                  \
        RUN(int, operation, path_at(AT_FDCWD, path, buffer), real arguments);                                          \
    }
#define ON_PATH_AT(name, operation, parameters, arguments, ...)                                                        \
    int name parameters {                                                                                              \
        REAL(int, name, __VA_ARGS__);                                                                                  \
        RUN(int, operation, path_at(dir, path, buffer), real arguments);                                               \
    }
ON_PATH(unlink, "unlink", (const char *path), (path), const char *)
ON_PATH(rmdir, "rmdir", (const char *path), (path), const char *)
ON_PATH(mkdir, "mkdir", (const char *path, mode_t mode), (path, mode), const char *, mode_t)
ON_PATH(truncate, "ftruncate", (const char *path, off_t size), (path, size), const char *, off_t)
ON_PATH_AT(mkdirat, "mkdir", (int dir, const char *path, mode_t mode), (dir, path, mode), int, const char *, mode_t)

int unlinkat(int dir, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    RUN(int, flags & AT_REMOVEDIR ? "rmdir" : "unlink", path_at(dir, path, buffer), real(dir, path, flags));
}

/* What has two names is told by the new one. */
ON_PATH(rename, "rename", (const char *from, const char *path), (from, path), const char *, const char *)
ON_PATH(link, "link", (const char *from, const char *path), (from, path), const char *, const char *)
ON_PATH_AT(renameat, "rename", (int from_dir, const char *from, int dir, const char *path),
           (from_dir, from, dir, path), int, const char *, int, const char *)
ON_PATH_AT(renameat2, "rename", (int from_dir, const char *from, int dir, const char *path, unsigned int flags),
           (from_dir, from, dir, path, flags), int, const char *, int, const char *, unsigned int)
ON_PATH_AT(linkat, "link", (int from_dir, const char *from, int dir, const char *path, int flags),
           (from_dir, from, dir, path, flags), int, const char *, int, const char *, int)

/* For a libc without a renameat2 of its own. */
long syscall(long number, ...) {
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
    va_end(rest);
    REAL(long, syscall, long, ...);
    if (number != SYS_renameat2) return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    RUN(long, "rename", path_at((int)a[2], (const char *)a[3], buffer), real(number, a[0], a[1], a[2], a[3], a[4]));
}
