/* zstd_file.c: see zstd_file.h. The real file is a file store's: opening without races, the writer's lock and what
 * happens in a forked child are its. Records are no multiples of anything: they are written through the page cache, and
 * only read past it, with what lies around them. Before a direct read the kernel writes back what is dirty there, so
 * the two agree. */
#define _GNU_SOURCE
#include "zstd_file.h"

#include "store_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_TRIES 8
#define PIECE (1u << 20)        /* bytes copied at once where the kernel does not copy */
#define DIRECT_MIN (192u << 10) /* bytes */

typedef struct real_file {
  um_zstd_file file;
  um_file_store *store; /* owned; of one part */
  char *target;         /* a temporary file's: where publish puts it; NULL: it is no temporary one, or was published */
  char *path;           /* file.path, where it is ours */
} real_file;

/* The descriptor, or -errno. */
static int find_descriptor(um_zstd_file *file) {
  um_file_store *store = ((real_file *)file)->store;
  return atomic_load_explicit(&store->forked, memory_order_relaxed) ? -UM_EFORKED : store->files[0].buffered;
}

static int64_t real_read(um_zstd_file *file, void *buffer, uint64_t length, uint64_t offset) {
  int descriptor = find_descriptor(file);
  ssize_t count = descriptor < 0 ? 0 : pread(descriptor, buffer, length, (off_t)offset);
  return descriptor < 0 ? descriptor : count < 0 ? -errno : count;
}

static int64_t real_read_direct(um_zstd_file *file, void *buffer, uint64_t length, uint64_t offset) {
  um_file_store *store = ((real_file *)file)->store;
  um_file *part = &store->files[0];
  if (find_descriptor(file) < 0 || part->direct < 0 || part->granule > UM_ZSTD_UNIT ||
      part->memory_unit > UM_ZSTD_UNIT || atomic_load_explicit(&part->direct_refused, memory_order_relaxed) ||
      !um_file_is_cold(part, offset, length))
    return -EAGAIN;
  ssize_t count = pread(part->direct, buffer, length, (off_t)offset);
  if (count < 0 && errno == EINVAL)
    atomic_store_explicit(&part->direct_refused, true, memory_order_relaxed);
  return count < 0 ? -EAGAIN : count;
}

static int64_t real_write(um_zstd_file *file, const void *buffer, uint64_t length, uint64_t offset) {
  int descriptor = find_descriptor(file);
  ssize_t count = descriptor < 0 ? 0 : pwrite(descriptor, buffer, length, (off_t)offset);
  return descriptor < 0 ? descriptor : count < 0 ? -errno : count;
}

static int real_sync(um_zstd_file *file) {
  int descriptor = find_descriptor(file);
  while (descriptor >= 0 && fdatasync(descriptor) < 0)
    if (errno != EINTR)
      return -errno;
  return descriptor < 0 ? descriptor : 0;
}

static int real_truncate(um_zstd_file *file, uint64_t length) {
  int descriptor = find_descriptor(file);
  if (descriptor < 0)
    return descriptor;
  return ftruncate(descriptor, (off_t)length) < 0 ? -errno : 0;
}

static int real_punch(um_zstd_file *file, uint64_t offset, uint64_t length) {
  int descriptor = find_descriptor(file);
  if (descriptor < 0)
    return descriptor;
  return fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) < 0 ? -errno
                                                                                                             : 0;
}

static int real_measure(um_zstd_file *file, uint64_t *length, uint64_t *allocated) {
  struct stat status;
  int descriptor = find_descriptor(file);
  if (descriptor < 0)
    return descriptor;
  if (fstat(descriptor, &status) < 0)
    return -errno;
  *length = (uint64_t)status.st_size;
  *allocated = (uint64_t)status.st_blocks * 512;
  return 0;
}

static int64_t real_copy(um_zstd_file *file, uint64_t offset, um_zstd_file *from, uint64_t from_offset,
                         uint64_t length) {
  int to = find_descriptor(file), source = find_descriptor(from);
  if (to < 0 || source < 0)
    return to < 0 ? to : source;
  off_t in = (off_t)from_offset, out = (off_t)offset;
  ssize_t count = copy_file_range(source, &in, to, &out, length, 0);
  return count < 0 ? -errno : count;
}

static int real_beside(um_zstd_file *file, um_zstd_file **made) {
  int descriptor = find_descriptor(file);
  if (descriptor < 0)
    return descriptor;
  struct stat status;
  int result = fstat(descriptor, &status) < 0 ? -errno : um_zstd_file_temporary(file->path, made, NULL);
  if (result == 0 && fchmod(find_descriptor(*made), status.st_mode & 07777) < 0) {
    result = -errno;
    (*made)->ops->close(*made);
  }
  return result;
}

static int real_publish(um_zstd_file *file) {
  real_file *self = (real_file *)file;
  int descriptor = find_descriptor(file);
  if (descriptor < 0)
    return descriptor;
  if (rename(self->file.path, self->target) < 0)
    return -errno;
  int result = um_file_sync_folder(self->target);
  free(self->path);
  self->file.path = self->path = self->target;
  self->target = NULL;
  return result;
}

static void real_forked(um_zstd_file *file) {
  um_store *store = &((real_file *)file)->store->store;
  store->ops->forked(store);
}

static int real_close(um_zstd_file *file) {
  real_file *self = (real_file *)file;
  if (self->target && find_descriptor(file) >= 0)
    unlink(self->file.path);
  um_error error = {0};
  int result = um_store_close(&self->store->store, &error);
  free(self->target);
  free(self->path);
  free(self);
  return result;
}

static const um_zstd_file_ops real_ops = {
    .read = real_read,
    .read_direct = real_read_direct,
    .write = real_write,
    .sync = real_sync,
    .truncate = real_truncate,
    .punch = real_punch,
    .measure = real_measure,
    .copy = real_copy,
    .beside = real_beside,
    .publish = real_publish,
    .forked = real_forked,
    .close = real_close,
};

static int wrap(const um_file_options *options, char *target, um_zstd_file **file, um_error *error) {
  um_store *store;
  int result = um_file_store_open(options, &store, error);
  real_file *self = result == 0 ? calloc(1, sizeof(*self)) : NULL;
  char *path = self ? strdup(((um_file_store *)store)->files[0].path) : NULL;
  if (result == 0 && !path) {
    um_store_close(store, NULL);
    free(self);
    return um_error_set(error, ENOMEM, UM_OP_OPEN, 0, 0, "%s: %s", options->parts[0].path, strerror(ENOMEM));
  }
  if (result < 0)
    return result;
  self->file.ops = &real_ops;
  self->file.path = self->path = path;
  self->store = (um_file_store *)store;
  self->target = target;
  /* Records are read whole; what the kernel would read around them is somebody else's. */
  posix_fadvise(find_descriptor(&self->file), 0, 0, POSIX_FADV_RANDOM);
  *file = &self->file;
  return 0;
}

int um_zstd_file_open(const um_zstd_options *options, um_zstd_file **file, bool *made, um_error *error) {
  um_file_part part = {options->path, UM_TO_END};
  bool empty = options->truncate || options->exclusive;
  struct stat status;
  *made = options->exclusive || (options->truncate && stat(options->path, &status) < 0);
  um_file_options o = {.parts = &part,
                       .part_count = 1,
                       .writable = options->writable,
                       .create = options->create,
                       .truncate = options->truncate,
                       .exclusive = options->exclusive,
                       .lock = options->lock,
                       .direct = -1,
                       .size = empty ? 0 : UM_TO_END};
  return wrap(&o, NULL, file, error);
}

void um_zstd_file_discard(um_zstd_file *file) {
  struct stat ours, theirs;
  int descriptor = find_descriptor(file);
  if (descriptor >= 0 && fstat(descriptor, &ours) == 0 && lstat(file->path, &theirs) == 0 &&
      ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino)
    unlink(file->path);
  file->ops->close(file);
}

/* What a rename must replace: the file a link leads to, not the link. */
static char *resolve(const char *path) {
  char *real = realpath(path, NULL);
  return real || errno != ENOENT ? real : strdup(path);
}

int um_zstd_file_temporary(const char *path, um_zstd_file **file, um_error *error) {
  char *target = resolve(path);
  char *name = target ? malloc(strlen(target) + 32) : NULL;
  int result = -ENOMEM;
  for (int i = 0; name && i < NAME_TRIES; i++) {
    uint32_t random = 0;
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) < 0)
      random = (uint32_t)getpid() + (uint32_t)i;
    sprintf(name, "%s.umappy-%08" PRIx32, target, random);
    um_file_part part = {name, UM_TO_END};
    um_file_options o = {.parts = &part, .part_count = 1, .writable = 1, .create = 1, .exclusive = 1, .lock = 1};
    result = wrap(&o, target, file, error);
    if (result != -EEXIST)
      break;
  }
  if (result == -ENOMEM)
    um_error_set(error, ENOMEM, UM_OP_OPEN, 0, 0, "%s: making a file beside it: %s", path, strerror(ENOMEM));
  if (result < 0)
    free(target);
  free(name);
  return result;
}

int um_zstd_file_read(um_zstd_file *file, uint64_t offset, void *buffer, uint64_t length) {
  while (length > 0) {
    int64_t count = file->ops->read(file, buffer, length, offset);
    if (count == -EINTR)
      continue;
    if (count <= 0)
      return count < 0 ? (int)count : -UM_ETRUNCATED;
    buffer = (char *)buffer + count;
    offset += (uint64_t)count;
    length -= (uint64_t)count;
  }
  return 0;
}

int um_zstd_file_fetch(um_zstd_file *file, uint64_t offset, uint8_t *buffer, uint64_t length, uint8_t **bytes) {
  uint64_t skip = offset % UM_ZSTD_UNIT, end = offset + length, done = 0;
  if (length >= DIRECT_MIN && file->ops->read_direct) {
    uint64_t whole = (end + UM_ZSTD_UNIT - 1) / UM_ZSTD_UNIT * UM_ZSTD_UNIT - (offset - skip);
    int64_t count = file->ops->read_direct(file, buffer, whole, offset - skip);
    done = count > (int64_t)skip ? (uint64_t)count - skip : 0;
    done = done < length ? done : length;
  }
  *bytes = buffer + skip;
  return um_zstd_file_read(file, offset + done, *bytes + done, length - done); /* the file may end in the last unit */
}

int um_zstd_file_write(um_zstd_file *file, uint64_t offset, const void *buffer, uint64_t length) {
  while (length > 0) {
    int64_t count = file->ops->write(file, buffer, length, offset);
    if (count == -EINTR)
      continue;
    if (count <= 0)
      return count < 0 ? (int)count : -EIO; /* no progress and no reason given: never loop on it */
    buffer = (const char *)buffer + count;
    offset += (uint64_t)count;
    length -= (uint64_t)count;
  }
  return 0;
}

static int copy_by_hand(um_zstd_file *file, uint64_t offset, um_zstd_file *from, uint64_t from_offset,
                        uint64_t length) {
  char *piece = malloc(PIECE);
  int result = piece ? 0 : -ENOMEM;
  while (result == 0 && length > 0) {
    uint64_t count = length < PIECE ? length : PIECE;
    result = um_zstd_file_read(from, from_offset, piece, count);
    if (result == 0)
      result = um_zstd_file_write(file, offset, piece, count);
    offset += count;
    from_offset += count;
    length -= count;
  }
  free(piece);
  return result;
}

int um_zstd_file_copy(um_zstd_file *file, uint64_t offset, um_zstd_file *from, uint64_t from_offset, uint64_t length) {
  while (length > 0) {
    int64_t count = file->ops->copy(file, offset, from, from_offset, length);
    if (count == -EINTR)
      continue;
    if (count == -EXDEV || count == -ENOSYS || count == -EOPNOTSUPP || count == -EINVAL)
      return copy_by_hand(file, offset, from, from_offset, length);
    if (count <= 0)
      return count < 0 ? (int)count : -UM_ETRUNCATED;
    offset += (uint64_t)count;
    from_offset += (uint64_t)count;
    length -= (uint64_t)count;
  }
  return 0;
}
