/* io.c: full reads and writes. The kernel may move fewer bytes than asked for: at a signal, at the end of the file,
 * when the disk is nearly full, and always above 2 GiB. */
#include "io.h"

#include <errno.h>
#include <unistd.h>

#define IO_CHUNK (UINT64_C(1) << 30) /* a multiple of every unit, below what one system call moves */

int um_io_read(int descriptor, uint64_t offset, void *buffer, uint64_t length, uint64_t unit, uint64_t *done) {
  uint64_t moved = 0;
  int result = 0;
  while (moved < length) {
    uint64_t chunk = length - moved < IO_CHUNK ? length - moved : IO_CHUNK;
    ssize_t count = pread(descriptor, (char *)buffer + moved, chunk, (off_t)(offset + moved));
    if (count < 0 && errno == EINTR)
      continue;
    if (count <= 0) {
      result = count < 0 ? -errno : UM_IO_END;
      break;
    }
    moved += (uint64_t)count;
    if (moved < length && moved % unit != 0) {
      result = UM_IO_SHORT;
      break;
    }
  }
  *done = moved;
  return result;
}

int um_io_write(int descriptor, uint64_t offset, const void *buffer, uint64_t length, uint64_t unit, uint64_t *done) {
  uint64_t moved = 0;
  int result = 0;
  while (moved < length) {
    uint64_t chunk = length - moved < IO_CHUNK ? length - moved : IO_CHUNK;
    ssize_t count = pwrite(descriptor, (const char *)buffer + moved, chunk, (off_t)(offset + moved));
    if (count < 0 && errno == EINTR)
      continue;
    if (count <= 0) {
      result = count < 0 ? -errno : -EIO; /* no progress and no reason given: never loop on it */
      break;
    }
    moved += (uint64_t)count;
    if (moved < length && moved % unit != 0) {
      result = UM_IO_SHORT;
      break;
    }
  }
  *done = moved;
  return result;
}
