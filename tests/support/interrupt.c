/* Faults at the system calls by which a process changes files: preloaded (LD_PRELOAD), it counts
those below one folder, of all threads and all libraries together, and at one of them kills the
process or makes the call fail. See interrupt.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <regex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PARTS 64 /* of one writev */

enum { AFTER = -3, HALF, BEFORE, NONE }; /* what a fault does; above 0, the errno of a failure */

static const char *folder; /* NULL: leave every call alone */
static char *events;       /* shared memory: one line a call, "!" before the one with the fault */
static size_t room;
static const char *wanted; /* the kind of call that has the fault; "any" is each */
static regex_t place;      /* what its path in the folder matches */
static long turn;          /* which of them, from 1 */
static int fault;          /* what happens at that one */
static atomic_size_t used;
static atomic_long seen;
static atomic_int dying;
static atomic_int refused = -1; /* the file whose next write fails */

/* Arms the faults; the strings must outlive the process. Returns 0, or an error of regcomp. */
int interrupt(const char *below, char *log, size_t size, const char *kind, const char *where,
              long nth, int what) {
  events = log, room = size, wanted = kind, turn = nth, fault = what;
  int wrong = regcomp(&place, where, REG_EXTENDED | REG_NOSUB);
  if (!wrong) folder = below;
  return wrong;
}

/* The path of a file descriptor, or of the working directory; "" if it is none. */
static void path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, PATH_MAX - 1);
  path[size < 0 ? 0 : size] = 0;
}

static void path_at(int fd, const char *name, char *path) {
  path[0] = 0;
  if (name[0] != '/') {
    path_of(fd, path);
    strncat(path, "/", PATH_MAX - 1 - strlen(path));
  }
  strncat(path, name, PATH_MAX - 1 - strlen(path));
}

/* Notes a call; returns the fault that it is to have, or NONE. Once a process is about to die, no
other thread gets any further. */
static int strikes(const char *kind, const char *path) {
  size_t length = strlen(folder);
  if (strncmp(path, folder, length) || (path[length] && path[length] != '/')) return NONE;
  if (atomic_load(&dying)) pause();
  path = path[length] ? path + length + 1 : ".";
  int matches = (!strcmp(wanted, "any") || !strcmp(wanted, kind)) &&
                !regexec(&place, path, 0, NULL, 0);
  int now = matches && atomic_fetch_add(&seen, 1) + 1 == turn;
  if (now && fault < NONE) atomic_store(&dying, 1);
  char line[PATH_MAX + 32];
  size_t size = snprintf(line, sizeof line, "%s%s %s\n", now ? "!" : "", kind, path);
  size_t at = atomic_fetch_add(&used, size);
  if (at + size <= room) memcpy(events + at, line, size);
  return now ? fault : NONE;
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

/* What stands in for `call`, which returns -1 on failure, at its fault. */
#define STRIKE(what, call)              \
  do {                                  \
    if ((what) == AFTER) (void)!(call); \
    if ((what) < NONE) die();           \
    errno = (what);                     \
    return -1;                          \
  } while (0)

#define REAL(name)                                                          \
  static __typeof__(&name) real;                                            \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* A call on a path. */
#define ON_PATH(kind, fd, name, call)              \
  if (folder) {                                    \
    char path_[PATH_MAX];                          \
    path_at(fd, name, path_);                      \
    int what_ = strikes(kind, path_);              \
    if (what_) STRIKE(what_, call);                \
  }                                                \
  return call

/* A call on a file descriptor. */
#define ON_FILE(kind, fd, call)                    \
  if (folder) {                                    \
    char path_[PATH_MAX];                          \
    path_of(fd, path_);                            \
    int what_ = strikes(kind, path_);              \
    if (what_) STRIKE(what_, call);                \
  }                                                \
  return call

/* ---------------------------------------------------------------------------- opening for writing */

#define MODE                                                     \
  mode_t mode = 0;                                               \
  if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {     \
    va_list rest;                                                \
    va_start(rest, flags);                                       \
    mode = va_arg(rest, mode_t);                                 \
    va_end(rest);                                                \
  }
#define WRITES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & (O_CREAT | O_TRUNC)))

#define OPEN(name)                                                       \
  int name(const char *path, int flags, ...) {                           \
    REAL(name);                                                          \
    MODE;                                                                \
    if (!WRITES(flags)) return real(path, flags, mode);                  \
    ON_PATH("open", AT_FDCWD, path, real(path, flags, mode));            \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                     \
  int name(int at, const char *path, int flags, ...) {                   \
    REAL(name);                                                          \
    MODE;                                                                \
    if (!WRITES(flags)) return real(at, path, flags, mode);              \
    ON_PATH("open", at, path, real(at, path, flags, mode));              \
  }
OPENAT(openat)
OPENAT(openat64)

#define CREAT(name)                                                      \
  int name(const char *path, mode_t mode) {                              \
    REAL(name);                                                          \
    ON_PATH("open", AT_FDCWD, path, real(path, mode));                   \
  }
CREAT(creat)
CREAT(creat64)

/* What the compiler makes of an open whose flags it does not know (_FORTIFY_SOURCE). */
int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open64(path, flags); }
int __openat_2(int at, const char *path, int flags) { return openat(at, path, flags); }
int __openat64_2(int at, const char *path, int flags) { return openat64(at, path, flags); }

#define FOPEN(name)                                                             \
  FILE *name(const char *path, const char *mode) {                              \
    REAL(name);                                                                 \
    if (folder && strpbrk(mode, "wa+")) {                                       \
      char path_[PATH_MAX];                                                     \
      path_at(AT_FDCWD, path, path_);                                           \
      int what = strikes("fopen", path_); /* its writes are not seen */         \
      if (what < NONE) die();                                                   \
      if (what) return errno = what, NULL;                                      \
    }                                                                           \
    return real(path, mode);                                                    \
  }
FOPEN(fopen)
FOPEN(fopen64)

/* ---------------------------------------------------------------------------------------- writing */

/* "half" writes half of the bytes and dies. A full disk takes half of them, too, and refuses the
rest; an error of the disk takes none. */
static ssize_t written(int fd, const struct iovec *parts, int count, int what,
                       ssize_t (*put)(int, const struct iovec *, int, off_t), off_t at) {
  size_t total = 0, left;
  for (int i = 0; i < count; i++) total += parts[i].iov_len;
  int full = what == ENOSPC && total > 1;
  if (what != HALF && !full) STRIKE(what, put(fd, parts, count, at));
  struct iovec some[PARTS] = {{0}};
  int n = 0;
  for (left = total / 2; left && n < count && n < PARTS; n++) {
    some[n] = parts[n];
    if (some[n].iov_len > left) some[n].iov_len = left;
    left -= some[n].iov_len;
  }
  ssize_t done = put(fd, some, n, at);
  if (!full) die();
  atomic_store(&refused, fd);
  return done;
}

/* Whether a write to `fd` is what is left of one that found the disk full. */
static int left_over(int fd) {
  int expected = fd;
  return atomic_load(&refused) >= 0 && atomic_compare_exchange_strong(&refused, &expected, -1);
}

static ssize_t put(int fd, const struct iovec *parts, int count, off_t at) {
  static __typeof__(&writev) real;
  if (!real) real = (__typeof__(&writev))dlsym(RTLD_NEXT, "writev");
  return real(fd, parts, count);
}

static ssize_t put_at(int fd, const struct iovec *parts, int count, off_t at) {
  static __typeof__(&pwritev) real;
  if (!real) real = (__typeof__(&pwritev))dlsym(RTLD_NEXT, "pwritev");
  return real(fd, parts, count, at);
}

#define WRITE(fd, parts, count, put, at, call)                           \
  if (folder) {                                                          \
    if (left_over(fd)) return errno = ENOSPC, -1;                        \
    char path_[PATH_MAX];                                                \
    path_of(fd, path_);                                                  \
    int what_ = strikes("write", path_);                                 \
    if (what_) return written(fd, parts, count, what_, put, at);         \
  }                                                                      \
  return call

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  struct iovec part = {(void *)data, size};
  WRITE(fd, &part, 1, put, 0, real(fd, data, size));
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  WRITE(fd, parts, count, put, 0, real(fd, parts, count));
}

#define PWRITE(name)                                                     \
  ssize_t name(int fd, const void *data, size_t size, off_t at) {        \
    REAL(name);                                                          \
    struct iovec part = {(void *)data, size};                            \
    WRITE(fd, &part, 1, put_at, at, real(fd, data, size, at));           \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

#define PWRITEV(name)                                                           \
  ssize_t name(int fd, const struct iovec *parts, int count, off_t at) {        \
    REAL(name);                                                                 \
    WRITE(fd, parts, count, put_at, at, real(fd, parts, count, at));            \
  }
PWRITEV(pwritev)
PWRITEV(pwritev64)

/* -------------------------------------------------------------------------------------- the others */

int fsync(int fd) {
  REAL(fsync);
  ON_FILE("fsync", fd, real(fd));
}

int fdatasync(int fd) {
  REAL(fdatasync);
  ON_FILE("fsync", fd, real(fd));
}

#define FTRUNCATE(name)                                                  \
  int name(int fd, off_t size) {                                         \
    REAL(name);                                                          \
    ON_FILE("truncate", fd, real(fd, size));                             \
  }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

#define TRUNCATE(name)                                                   \
  int name(const char *path, off_t size) {                               \
    REAL(name);                                                          \
    ON_PATH("truncate", AT_FDCWD, path, real(path, size));               \
  }
TRUNCATE(truncate)
TRUNCATE(truncate64)

int rename(const char *from, const char *to) {
  REAL(rename);
  ON_PATH("rename", AT_FDCWD, from, real(from, to));
}

int renameat(int from_at, const char *from, int at, const char *to) {
  REAL(renameat);
  ON_PATH("rename", from_at, from, real(from_at, from, at, to));
}

int renameat2(int from_at, const char *from, int at, const char *to, unsigned flags) {
  REAL(renameat2);
  ON_PATH("rename", from_at, from, real(from_at, from, at, to, flags));
}

int link(const char *from, const char *to) {
  REAL(link);
  ON_PATH("link", AT_FDCWD, to, real(from, to));
}

int linkat(int from_at, const char *from, int at, const char *to, int flags) {
  REAL(linkat);
  ON_PATH("link", at, to, real(from_at, from, at, to, flags));
}

int symlink(const char *from, const char *to) {
  REAL(symlink);
  ON_PATH("link", AT_FDCWD, to, real(from, to));
}

int unlink(const char *path) {
  REAL(unlink);
  ON_PATH("unlink", AT_FDCWD, path, real(path));
}

int unlinkat(int at, const char *path, int flags) {
  REAL(unlinkat);
  ON_PATH(flags & AT_REMOVEDIR ? "rmdir" : "unlink", at, path, real(at, path, flags));
}

int remove(const char *path) {
  struct stat is;
  return !lstat(path, &is) && S_ISDIR(is.st_mode) ? rmdir(path) : unlink(path);
}

int rmdir(const char *path) {
  REAL(rmdir);
  ON_PATH("rmdir", AT_FDCWD, path, real(path));
}

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  ON_PATH("mkdir", AT_FDCWD, path, real(path, mode));
}

int mkdirat(int at, const char *path, mode_t mode) {
  REAL(mkdirat);
  ON_PATH("mkdir", at, path, real(at, path, mode));
}
