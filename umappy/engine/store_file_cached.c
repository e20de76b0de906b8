/* store_file_cached.c: reading what the page cache has already.
 *
 * A copy out of memory takes 1 us, a read of the device 10 to 100. But to ask for bytes that are not there by
 * preadv2(RWF_NOWAIT) makes the kernel read them in, beside our own direct read; so cachestat(2) is asked first
 * (Linux 6.5), which only looks. Each file counts its misses in a row: after the nth, 2^n questions are not put at all
 * (1024 at most), so that a cold file pays nothing and one that becomes warm is noticed soon. A hit sets the count
 * back. Without cachestat only files that are read through the page cache anyway are asked: reading them in is what
 * comes next. File systems in memory do not know RWF_NOWAIT, and have no need of it.
 *
 * Why these bytes are never stale. We write whole granules direct; the kernel writes back and drops the page cache of
 * the range before such a write and drops it again before the write returns, waiting for a read-in that is under way:
 * a page of the cache holds what was on the device after our write, or what somebody wrote through the cache later. (A
 * page that cannot be dropped is one that another process has mapped and made dirty meanwhile: a second writer, whose
 * bytes these are; our next flush fails.) While a direct write runs, a cached read of its range may see either bytes.
 * The engine never has both under way for one page, and a range has whole granules, none smaller than a page of the
 * cache, so neighbours that it may read then are in other pages of the cache. Network file systems, whose cache may be
 * older than the server, refuse reads that must not wait, and so are left alone. */
#define _GNU_SOURCE
#include "store_file.h"

#include <errno.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define CALL_CACHESTAT 451 /* headers may be older than the kernel */
#define NO_WAIT 8          /* RWF_NOWAIT */
#define MISSES_MAX 10      /* 1024 questions left out */

/* As the kernel lays them out. */
struct cache_range {
  uint64_t offset, length;
};
struct cache_counts {
  uint64_t cached, dirty, in_writeback, evicted, recently_evicted; /* pages */
};

static int count(const um_file *file, uint64_t at, uint64_t length, struct cache_counts *counts) {
  struct cache_range range = {at, length};
  return syscall(CALL_CACHESTAT, file->buffered, &range, counts, 0) == 0 ? 0 : -errno;
}

bool um_file_is_cold(const um_file *file, uint64_t at, uint64_t length) {
  struct cache_counts counts;
  return count(file, at, length, &counts) == 0 && counts.cached == 0;
}

/* 0: yes; -EAGAIN: not all; -EOPNOTSUPP: nobody can tell. */
static int ask(const um_file *file, uint64_t at, uint64_t length) {
  static atomic_uint page_size;
  uint64_t page = atomic_load_explicit(&page_size, memory_order_relaxed);
  if (page == 0)
    atomic_store_explicit(&page_size, (unsigned)(page = (uint64_t)sysconf(_SC_PAGESIZE)), memory_order_relaxed);
  struct cache_counts counts;
  int code = count(file, at, length, &counts);
  if (code == 0)
    return counts.cached >= (at + length - 1) / page - at / page + 1 ? 0 : -EAGAIN;
  if (code == -EBADF) /* a forked child has let go of it */
    return -EAGAIN;
  return file->direct < 0 ? 0 : -EOPNOTSUPP; /* old kernel; or a file that is neither ours nor writable */
}

static int read_now(const um_file *file, uint64_t at, void *buffer, uint64_t length) {
  struct iovec vector = {buffer, length};
  ssize_t count = preadv2(file->buffered, &vector, 1, (off_t)at, file->in_memory ? 0 : NO_WAIT);
  if (count < 0 && (errno == EOPNOTSUPP || errno == ENOSYS))
    return -EOPNOTSUPP;
  return count >= 0 && (uint64_t)count == length ? 0 : -EAGAIN;
}

static void count_miss(um_file *file) {
  int misses = atomic_load_explicit(&file->cached_misses, memory_order_relaxed);
  if (misses < MISSES_MAX)
    atomic_store_explicit(&file->cached_misses, ++misses, memory_order_relaxed);
  atomic_store_explicit(&file->cached_skip, 1 << misses, memory_order_relaxed);
}

/* Threads that meet here may leave out a question more or less; nothing hangs on it. */
int um_file_store_read_cached(um_store *store, uint64_t offset, void *buffer, uint64_t length) {
  um_file_store *self = (um_file_store *)store;
  if (self->direct_only)
    return -EOPNOTSUPP;
  if (length == 0 || offset > store->size || length > store->size - offset)
    return -EAGAIN;
  um_file *file = um_file_find(self, offset);
  uint64_t inside = offset - file->base;
  if (length > file->size - inside)
    return -EAGAIN;
  if (atomic_load_explicit(&file->cached_refused, memory_order_relaxed))
    return -EOPNOTSUPP;
  if (atomic_load_explicit(&file->cached_skip, memory_order_relaxed) > 0) {
    atomic_fetch_sub_explicit(&file->cached_skip, 1, memory_order_relaxed);
    return -EAGAIN;
  }
  int result = ask(file, file->start + inside, length);
  if (result == 0)
    result = read_now(file, file->start + inside, buffer, length);
  if (result == -EOPNOTSUPP)
    atomic_store_explicit(&file->cached_refused, true, memory_order_relaxed);
  else if (result < 0)
    count_miss(file);
  else if (atomic_load_explicit(&file->cached_misses, memory_order_relaxed) > 0)
    atomic_store_explicit(&file->cached_misses, 0, memory_order_relaxed);
  return result;
}
