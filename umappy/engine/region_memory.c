/* region_memory.c: taking memory away from a region, and moving it, also where the user locked it. */
#include "pool.h"
#include "uffd.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The user locked it (mlock, mlockall(MCL_CURRENT)); the budget is the stronger promise. All of it at once: page by
 * page would cut the mapping into more pieces than the kernel allows. And the pool with it: pages move only between
 * mappings that are both locked or both not. */
static bool unlock(um_region *r) {
  um_pool_unlock(r->pager);
  return munlock((void *)r->address, r->mapped) == 0;
}

int um_memory_drop(um_region *r, uintptr_t address, uint64_t length) {
  if (madvise((void *)address, length, MADV_DONTNEED) == 0)
    return 0;
  if (errno != EINVAL || !unlock(r))
    return -errno;
  return madvise((void *)address, length, MADV_DONTNEED) ? -errno : 0;
}

/* A huge page stays one only where its target has no table of small pages, and the fault that waits for it made one.
 * Linux 6.14 and later give an empty table back; before, the move cuts the page up. */
void um_memory_clear_table(uintptr_t chunk) {
  madvise((void *)chunk, UM_CHUNK, MADV_DONTNEED);
}

int um_memory_move(um_region *r, uintptr_t to, uintptr_t from, uint64_t length, uint64_t *moved) {
  uint64_t done = 0, more = 0;
  if (length == UM_CHUNK)
    um_memory_clear_table(to);
  int code = um_uffd_move(r->pager->uffd, r->pager->pagemap, to, from, length, &done);
  if (code == -EINVAL && unlock(r))
    code = um_uffd_move(r->pager->uffd, r->pager->pagemap, to + done, from + done, length - done, &more);
  if (moved)
    *moved = done + more;
  return code;
}

/* One call, and one flush of the other processors' translations, for many ranges (scattered pages of 4 KiB: 0.4 us each
 * against 5 to 10); Linux 6.13 and later. The first so many were dropped; not those behind one that is locked. */
uint32_t um_memory_drop_many(um_pager *p, const struct iovec *ranges, uint32_t count) {
  uint32_t done = 0;
  if (p->self < 0)
    return 0;
  ssize_t bytes = syscall(SYS_process_madvise, p->self, ranges, count, MADV_DONTNEED, 0);
  while (bytes > 0 && done < count && (size_t)bytes >= ranges[done].iov_len)
    bytes -= (ssize_t)ranges[done++].iov_len;
  return done;
}
