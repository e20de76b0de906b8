/* uffd.c: the system calls of userfaultfd; each loops until all of its range is done or it truly failed. */
#include "uffd.h"

#include "internal.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FEATURE_PAGEFAULT_FLAG_WP (1ull << 0)
#define FEATURE_THREAD_ID (1ull << 8)
#define REGISTER_MISSING 1ull
#define REGISTER_WP 2ull
#define COPY_DONTWAKE 1ull
#define COPY_WP 2ull
#define WRITEPROTECT_WP 1ull
#define USER_MODE_ONLY 1
#define SCAN_IS_PRESENT (1ull << 3)
#define SCAN_IS_HUGE (1ull << 6)
#define AGAIN_DEADLINE_NS 10000000000ull
#define BUSY_NS 1000000u

struct range {
  uint64_t start, length;
};
struct api {
  uint64_t api, features, ioctls;
};
struct reg {
  struct range range;
  uint64_t mode, ioctls;
};
struct copy {
  uint64_t to, from, length, mode;
  int64_t copied;
};
struct protect {
  struct range range;
  uint64_t mode;
};
struct scan { /* of /proc/self/pagemap: pm_scan_arg, page_region */
  uint64_t size, flags, start, end, walk_end, vector, vector_length, pages_max, inverted, all_of, any_of, returned;
};
struct scanned {
  uint64_t start, end, categories;
};

#define IOC_NEW _IO(0xAA, 0x00)
#define IOC_API _IOWR(0xAA, 0x3F, struct api)
#define IOC_REGISTER _IOWR(0xAA, 0x00, struct reg)
#define IOC_WAKE _IOR(0xAA, 0x02, struct range)
#define IOC_COPY _IOWR(0xAA, 0x03, struct copy)
#define IOC_MOVE _IOWR(0xAA, 0x05, struct copy)
#define IOC_PROTECT _IOWR(0xAA, 0x06, struct protect)
#define IOC_SCAN _IOWR('f', 16, struct scan)

static int open_device(void) {
  int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0)
    return -errno;
  int fd = ioctl(device, IOC_NEW, O_CLOEXEC | O_NONBLOCK);
  int code = fd < 0 ? -errno : fd;
  close(device);
  return code;
}

static int open_syscall(int flags) {
  int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);
  return fd < 0 ? -errno : fd;
}

static int open_mode(uint32_t mode) {
  switch (mode) {
  case UM_UFFD_DEVICE:
    return open_device();
  case UM_UFFD_SYSCALL:
    return open_syscall(0);
  case UM_UFFD_USER_MODE_ONLY:
    return open_syscall(USER_MODE_ONLY);
  default:
    return -EINVAL;
  }
}

/* A refusal leaves the descriptor as it was. */
static int handshake(int fd, uint64_t wanted, uint64_t *features) {
  struct api api = {.api = 0xAA, .features = wanted};
  if (ioctl(fd, IOC_API, &api))
    return -errno;
  *features = api.features;
  return 0;
}

int um_uffd_open(uint32_t mode, uint32_t *used, uint64_t *features) {
  int fd = -EPERM;
  if (mode == UM_UFFD_AUTO) {
    for (mode = UM_UFFD_DEVICE; mode <= UM_UFFD_USER_MODE_ONLY; mode++)
      if ((fd = open_mode(mode)) >= 0)
        break;
  } else {
    fd = open_mode(mode);
  }
  if (fd < 0)
    return fd;
  const uint64_t needed = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_THREAD_ID;
  int code = handshake(fd, needed | UM_UFFD_FEATURE_MOVE, features);
  if (code == -EINVAL) /* before 6.8 */
    code = handshake(fd, needed, features);
  if (code) {
    close(fd);
    return code == -EINVAL ? -ENOSYS : code; /* EINVAL: a kernel before 5.7 */
  }
  *used = mode;
  return fd;
}

int um_uffd_probe(uint32_t mode, uint64_t *features) {
  uint32_t used;
  int fd = um_uffd_open(mode, &used, features);
  if (fd < 0)
    return fd;
  close(fd);
  return (int)used;
}

int um_uffd_register(int fd, uintptr_t address, uint64_t length) {
  struct reg reg = {{address, length}, REGISTER_MISSING | REGISTER_WP, 0};
  return ioctl(fd, IOC_REGISTER, &reg) ? -errno : 0;
}

/* EAGAIN: the mapping is changing, or only a part was done. EEXIST: that page is there already, whoever put it. */
int um_uffd_copy(int fd, uintptr_t to, const void *from, uint64_t length, bool protect) {
  uint64_t done = 0, deadline = 0;
  while (done < length) {
    struct copy copy = {to + done, (uintptr_t)from + done, length - done, COPY_DONTWAKE | (protect ? COPY_WP : 0), 0};
    if (ioctl(fd, IOC_COPY, &copy) == 0)
      return 0;
    int code = errno;
    if (copy.copied > 0) {
      done += (uint64_t)copy.copied;
      deadline = 0;
    } else if (code == EEXIST) {
      done += um_host_page;
    } else if (code == EAGAIN) {
      uint64_t now = um_now_ns();
      if (deadline == 0)
        deadline = now + AGAIN_DEADLINE_NS;
      else if (now > deadline)
        return -EAGAIN;
      sched_yield();
    } else if (code != EINTR) {
      return -code;
    }
  }
  return 0;
}

/* Race: a fault makes a table for the target while a huge page moves there. Linux 6.18 begins again, moves the first so
 * many pages, forgets to count them, tries them once more, and says EEXIST. A page gone from one side and there on the
 * other is moved, for nobody else may touch either. */
static uint64_t moved_uncounted(int pagemap, uintptr_t to, uintptr_t from, uint64_t length) {
  uint64_t done = 0;
  while (done < length && !um_uffd_present(pagemap, from + done) && um_uffd_present(pagemap, to + done))
    done += um_host_page;
  return done;
}

/* EBUSY: a page is pinned by a device, or was a moment ago (O_DIRECT lets go late): tried for a millisecond. What was
 * moved before the failure stays moved: `moved` tells how much, and may be NULL. */
int um_uffd_move(int fd, int pagemap, uintptr_t to, uintptr_t from, uint64_t length, uint64_t *moved) {
  uint64_t done = 0, since = 0;
  int code = 0;
  while (done < length) {
    struct copy move = {to + done, from + done, length - done, COPY_DONTWAKE, 0};
    if (ioctl(fd, IOC_MOVE, &move) == 0) {
      done = length;
      break;
    }
    code = errno;
    uint64_t more = move.copied > 0  ? (uint64_t)move.copied
                    : code == EEXIST ? moved_uncounted(pagemap, to + done, from + done, length - done)
                                     : 0;
    if (more) {
      done += more;
      since = 0;
      continue;
    }
    uint64_t now = um_now_ns();
    since = since ? since : now;
    uint64_t patience = code == EAGAIN || code == EINTR ? AGAIN_DEADLINE_NS : code == EBUSY ? BUSY_NS : 0;
    if (now - since >= patience)
      break;
    sched_yield();
  }
  if (moved)
    *moved = done;
  return done == length ? 0 : -code;
}

/* Kernels before 6.3 want the range in one mapping; mlock, mprotect and the like on a part of it make several. */
static int protect(int fd, uintptr_t address, uint64_t length, uint64_t mode) {
  uint64_t deadline = um_now_ns() + AGAIN_DEADLINE_NS;
  for (;;) {
    struct protect arg = {{address, length}, mode};
    if (ioctl(fd, IOC_PROTECT, &arg) == 0)
      return 0;
    if (errno == ENOENT && length > um_host_page) {
      uint64_t half = length / um_host_page / 2 * um_host_page;
      int code = protect(fd, address, half, mode);
      return code ? code : protect(fd, address + half, length - half, mode);
    }
    if ((errno != EAGAIN && errno != EINTR) || um_now_ns() > deadline)
      return -errno;
    sched_yield();
  }
}

int um_uffd_protect(int fd, uintptr_t address, uint64_t length) {
  return protect(fd, address, length, WRITEPROTECT_WP);
}

int um_uffd_unprotect(int fd, uintptr_t address, uint64_t length) {
  return protect(fd, address, length, 0);
}

int um_uffd_wake(int fd, uintptr_t address, uint64_t length) {
  struct range range = {address, length};
  return ioctl(fd, IOC_WAKE, &range) ? -errno : 0;
}

int um_uffd_read(int fd, struct uffd_msg *messages, int capacity) {
  ssize_t n = read(fd, messages, (size_t)capacity * sizeof *messages);
  if (n < 0)
    return -errno;
  return (int)((size_t)n / sizeof *messages);
}

bool um_uffd_present(int pagemap, uintptr_t address) {
  uint64_t entry = 0;
  off_t at = (off_t)(address / um_host_page * sizeof entry);
  return pread(pagemap, &entry, sizeof entry, at) == sizeof entry && (entry >> 62) != 0; /* in memory or in swap */
}

bool um_uffd_is_huge(int pagemap, uintptr_t address) {
  struct scanned found = {0};
  struct scan scan = {.size = sizeof scan,
                      .start = address,
                      .end = address + um_host_page,
                      .vector = (uintptr_t)&found,
                      .vector_length = 1,
                      .returned = SCAN_IS_PRESENT | SCAN_IS_HUGE};
  return ioctl(pagemap, IOC_SCAN, &scan) != 1 || found.categories & SCAN_IS_HUGE;
}
