/* store_file_direct.c: may this file have O_DIRECT, and with which alignment?
 *
 * statx tells since Linux 6.1 on the file systems that care to; elsewhere we try, and take 4096, which every disk
 * accepts. The granule is never below a page: then no page of the page cache holds both bytes that go direct and bytes
 * of the tail that go buffered. A file system without direct I/O must be asked for by name where it takes the flag and
 * ignores it (tmpfs). */
#define _GNU_SOURCE
#include "store_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define UNKNOWN_UNIT 4096u
#define GRANULE_MAX (1u << 20)

/* From linux/stat.h and linux/magic.h, which may be older than the kernel. */
#define STATX_DIOALIGN_BIT 0x2000u
#define TMPFS_TYPE 0x01021994
#define RAMFS_TYPE 0x858458f6

struct statx_words {
  uint32_t mask; /* what the kernel filled */
  uint32_t fields[37];
  uint32_t direct_memory_unit; /* 0 with the bit in mask: no direct I/O */
  uint32_t direct_offset_unit;
  uint32_t rest[24];
};
_Static_assert(sizeof(struct statx_words) == 256, "struct statx has 256 bytes");
_Static_assert(offsetof(struct statx_words, direct_memory_unit) == 152, "stx_dio_mem_align");

static bool is_power_of_two(uint32_t number) {
  return number != 0 && (number & (number - 1)) == 0;
}

static uint32_t larger(uint32_t a, uint32_t b) {
  return a > b ? a : b;
}

static bool is_in_page_cache_only(int descriptor) {
  struct statfs system;
  if (fstatfs(descriptor, &system) < 0)
    return false;
  return (uint32_t)system.f_type == TMPFS_TYPE || (uint32_t)system.f_type == RAMFS_TYPE;
}

/* False: the file system says that there is no direct I/O for this file. */
static bool find_units(um_file *file) {
  file->memory_unit = UNKNOWN_UNIT;
  uint32_t offset_unit = UNKNOWN_UNIT;
  struct statx_words words;
  memset(&words, 0, sizeof(words));
  if (syscall(SYS_statx, file->buffered, "", AT_EMPTY_PATH, STATX_DIOALIGN_BIT, &words) == 0 &&
      (words.mask & STATX_DIOALIGN_BIT)) {
    file->memory_unit = words.direct_memory_unit;
    offset_unit = words.direct_offset_unit;
  } else if (is_in_page_cache_only(file->buffered)) {
    return false;
  }
  file->granule = larger(offset_unit, (uint32_t)sysconf(_SC_PAGESIZE));
  return is_power_of_two(file->memory_unit) && is_power_of_two(offset_unit) && file->granule <= GRANULE_MAX;
}

/* Opens the inode that we have, not whatever its path names by now. */
static int open_again(const um_file *file, bool writable) {
  char link[64];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", file->buffered);
  int flags = (writable ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC | O_NOCTTY;
  int descriptor = open(link, flags);
  if (descriptor >= 0 || errno != ENOENT)
    return descriptor < 0 ? -errno : descriptor;
  descriptor = open(file->path, flags); /* no /proc here */
  if (descriptor < 0)
    return -errno;
  struct stat ours, theirs;
  if (fstat(file->buffered, &ours) < 0 || fstat(descriptor, &theirs) < 0 || ours.st_dev != theirs.st_dev ||
      ours.st_ino != theirs.st_ino) {
    close(descriptor);
    return -ESTALE;
  }
  return descriptor;
}

int um_file_direct_open(um_file *file, bool writable, char *reason, size_t reason_size) {
  if (!find_units(file)) {
    snprintf(reason, reason_size, "its file system has no direct I/O for it");
    return -EOPNOTSUPP;
  }
  if ((file->start - file->base) % file->granule != 0) {
    if (file->base == 0)
      snprintf(reason, reason_size, "offset %" PRIu64 " is not a multiple of %" PRIu32, file->start, file->granule);
    else
      snprintf(reason, reason_size, "it begins at byte %" PRIu64 " of the store, not a multiple of %" PRIu32,
               file->base, file->granule);
    return -EOPNOTSUPP;
  }
  int descriptor = open_again(file, writable);
  if (descriptor == -EINVAL || descriptor == -EOPNOTSUPP || descriptor == -EACCES || descriptor == -EPERM) {
    snprintf(reason, reason_size, "opening it with O_DIRECT: %s", strerror(-descriptor));
    return -EOPNOTSUPP;
  }
  if (descriptor < 0)
    return descriptor;
  file->direct = descriptor;
  return 0;
}
