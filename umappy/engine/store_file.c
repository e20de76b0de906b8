/* store_file.c: flat bytes in one file, or in several that follow one another.
 *
 * A file has up to two descriptors. Whole granules go through the O_DIRECT one: no second copy in the page cache. What
 * is left goes through the buffered one: the last partial block of the part, ends of requests that are not aligned,
 * whole requests whose memory is not. Nothing is ever written past the part, so the file is never padded.
 *
 * Why the two agree. Before direct I/O the kernel writes back and drops the page cache of that range, after a direct
 * write it drops it again; the inode's lock keeps a buffered write out while a direct one runs. A direct read thus
 * sees a buffered write that returned, and the other way round. Where the kernel cannot drop a page (another process
 * has it mapped and dirties it) it marks the file, and the next flush fails with EIO. The granule is at least a page,
 * so the tail and the direct range share no page of the cache, and the common case needs none of this.
 *
 * A file that another process made shorter is never made longer again by a write: the bytes between would read as zeros
 * without a word. Writes past its end fail with UM_ETRUNCATED as reads do. (The end is looked up before each write; a
 * file that shrinks and grows again between two calls shows nothing.)
 *
 * The deadline of these calls is the kernel's: a disk that hangs cannot be interrupted. */
#include "store_file.h"

#include "io.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A stretch of one file and the memory it moves to or from. */
typedef struct transfer {
  um_file *file;
  uint64_t at; /* file offset */
  char *memory;
  uint64_t length;
  uint64_t done; /* bytes moved */
  bool writing;
} transfer;

static int move_with(transfer *t, int descriptor, uint64_t count, uint64_t unit) {
  uint64_t moved = 0;
  int result = t->writing ? um_io_write(descriptor, t->at + t->done, t->memory + t->done, count, unit, &moved)
                          : um_io_read(descriptor, t->at + t->done, t->memory + t->done, count, unit, &moved);
  t->done += moved;
  return result;
}

static int move_buffered(transfer *t, uint64_t count) {
  int result = move_with(t, t->file->buffered, count, 1);
  if (t->writing)
    atomic_store(&t->file->written_buffered, true);
  return result;
}

static int move_direct(transfer *t, uint64_t count) {
  int result = move_with(t, t->file->direct, count, t->file->granule);
  if (t->writing)
    atomic_store(&t->file->written_direct, true);
  return result;
}

static uint64_t align_down(uint64_t offset, uint64_t unit) {
  return offset & ~(unit - 1);
}

static int move(transfer *t, bool direct_only) {
  um_file *file = t->file;
  if (file->direct < 0 || atomic_load_explicit(&file->direct_refused, memory_order_relaxed))
    return move_buffered(t, t->length);
  uint64_t first = align_down(t->at + file->granule - 1, file->granule);
  uint64_t last = align_down(t->at + t->length, file->granule);
  if (first >= last || ((uintptr_t)t->memory + (first - t->at)) % file->memory_unit != 0)
    return move_buffered(t, t->length);
  int result = first > t->at ? move_buffered(t, first - t->at) : 0;
  if (result != 0)
    return result;
  result = move_direct(t, last - first);
  if (result == -EINVAL && !direct_only)
    atomic_store_explicit(&file->direct_refused, true, memory_order_relaxed);
  else if (result != 0 && result != UM_IO_SHORT)
    return result;
  return t->done < t->length ? move_buffered(t, t->length - t->done) : 0;
}

static int fail(const transfer *t, uint64_t offset, int result, um_error *error) {
  int op = t->writing ? UM_OP_WRITE : UM_OP_READ;
  uint64_t rest = t->length - t->done;
  if (result == UM_IO_END)
    return um_error_set(error, UM_ETRUNCATED, op, offset + t->done, rest,
                        "%s: ends before byte %" PRIu64 " of the file", t->file->path, t->at + t->length);
  return um_error_set(error, -result, op, offset + t->done, rest, "%s: at byte %" PRIu64 " of the file: %s",
                      t->file->path, t->at + t->done, strerror(-result));
}

/* Asked before each write: lseek takes 0.4 us less than fstat (m). */
int um_file_check_end(const um_file *file, uint64_t end) {
  if (file->fixed)
    return 0;
  off_t size = lseek(file->buffered, 0, SEEK_END);
  if (size < 0)
    return -errno;
  return end > (uint64_t)size ? UM_IO_END : 0;
}

um_file *um_file_find(um_file_store *self, uint64_t offset) {
  uint32_t low = 0, high = self->file_count; /* the last file that begins at or before offset lies in [low, high) */
  while (high - low > 1) {
    uint32_t middle = low + (high - low) / 2;
    if (self->files[middle].base <= offset)
      low = middle;
    else
      high = middle;
  }
  return &self->files[low];
}

static int check_forked(um_file_store *self, int op, uint64_t offset, uint64_t length, um_error *error) {
  if (!atomic_load_explicit(&self->forked, memory_order_relaxed))
    return 0;
  return um_error_set(error, UM_EFORKED, op, offset, length, "%s: opened before the fork; open it again in the child",
                      self->files[0].path);
}

static int move_all(um_file_store *self, bool writing, uint64_t offset, char *memory, uint64_t length,
                    um_error *error) {
  int result = check_forked(self, writing ? UM_OP_WRITE : UM_OP_READ, offset, length, error);
  if (result < 0)
    return result;
  for (um_file *file = um_file_find(self, offset); length > 0; file++) {
    uint64_t inside = offset - file->base;
    uint64_t count = file->size - inside < length ? file->size - inside : length;
    if (count == 0)
      continue; /* an empty part */
    transfer t = {.file = file, .at = file->start + inside, .memory = memory, .length = count, .writing = writing};
    result = writing ? um_file_check_end(file, t.at + count) : 0;
    if (result == 0)
      result = move(&t, self->direct_only);
    if (result != 0)
      return fail(&t, offset, result, error);
    offset += count;
    memory += count;
    length -= count;
  }
  return 0;
}

static int file_store_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  return move_all((um_file_store *)store, false, offset, buffer, length, error);
}

static int file_store_write(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error) {
  return move_all((um_file_store *)store, true, offset, (char *)buffer, length, error);
}

static int sync_descriptor(int descriptor) {
  while (fdatasync(descriptor) < 0)
    if (errno != EINTR)
      return errno;
  return 0;
}

/* The kernel reports a failed write-back once, drops the bytes and calls the file clean. A second fdatasync would
 * succeed over the loss, so a flush that failed goes on failing: only writing the bytes again through a fresh store
 * makes them safe. */
static int flush_file(um_file *file) {
  if (file->flush_code != 0)
    return file->flush_code;
  /* Both: a file system may keep errors, or bytes, by descriptor. */
  if (atomic_exchange(&file->written_direct, false))
    file->flush_code = sync_descriptor(file->direct);
  if (atomic_exchange(&file->written_buffered, false)) {
    int code = sync_descriptor(file->buffered);
    if (file->flush_code == 0)
      file->flush_code = code;
  }
  return file->flush_code;
}

static int file_store_flush(um_store *store, um_error *error) {
  um_file_store *self = (um_file_store *)store;
  int result = check_forked(self, UM_OP_FLUSH, 0, 0, error);
  if (result < 0)
    return result;
  pthread_mutex_lock(&self->flush_lock);
  for (uint32_t i = 0; i < self->file_count; i++) {
    um_file *file = &self->files[i];
    int code = flush_file(file);
    if (code != 0 && result == 0)
      result = um_error_set(error, code, UM_OP_FLUSH, file->base, file->size,
                            "%s: flush failed and what was written since the last good one may be lost; write it "
                            "again through a store opened anew: %s",
                            file->path, strerror(code));
  }
  pthread_mutex_unlock(&self->flush_lock);
  return result;
}

int um_file_close(um_file *file) {
  int result = 0;
  um_file_unlock(file);
  if (file->direct >= 0 && close(file->direct) < 0)
    result = -errno;
  if (file->buffered >= 0 && close(file->buffered) < 0 && result == 0)
    result = -errno;
  file->direct = file->buffered = -1;
  return result == -EINTR ? 0 : result; /* the descriptor is gone then, too */
}

static int file_store_close(um_store *store, um_error *error) {
  um_file_store *self = (um_file_store *)store;
  um_fork_entry_remove(&self->fork);
  int result = 0;
  for (uint32_t i = 0; i < self->file_count; i++) {
    um_file *file = &self->files[i];
    int code = um_file_close(file);
    if (code < 0 && result == 0)
      result = um_error_set(error, -code, UM_OP_FLUSH, file->base, file->size, "%s: closing it: %s", file->path,
                            strerror(-code));
    free(file->path);
  }
  pthread_mutex_destroy(&self->flush_lock);
  free(self->files);
  free(self);
  return result;
}

/* Nothing is freed and no lock is given back: it is the parent's. */
static void file_store_forked(um_store *store) {
  um_file_store *self = (um_file_store *)store;
  atomic_store_explicit(&self->forked, true, memory_order_relaxed);
  for (uint32_t i = 0; i < self->file_count; i++) {
    um_file *file = &self->files[i];
    if (file->direct >= 0)
      close(file->direct);
    if (file->buffered >= 0)
      close(file->buffered);
    file->direct = file->buffered = -1;
    file->locked = false;
  }
}

const um_store_ops um_file_store_ops = {
    .name = "file",
    .read = file_store_read,
    .write = file_store_write,
    .flush = file_store_flush,
    .close = file_store_close,
    .forked = file_store_forked,
    .read_batch = um_file_store_read_batch,
    .write_batch = um_file_store_write_batch,
    .read_cached = um_file_store_read_cached,
};

int um_file_store_is_direct(um_store *store) {
  um_file_store *self = (um_file_store *)store;
  if (store->ops != &um_file_store_ops)
    return 0;
  for (uint32_t i = 0; i < self->file_count; i++) {
    um_file *file = &self->files[i];
    if (file->size > 0 && (file->direct < 0 || atomic_load_explicit(&file->direct_refused, memory_order_relaxed)))
      return 0;
  }
  return 1;
}

uint64_t um_file_store_part_size(um_store *store, uint32_t index) {
  um_file_store *self = (um_file_store *)store;
  return store->ops == &um_file_store_ops && index < self->file_count ? self->files[index].size : 0;
}
