/* memory.c: the engine's own mappings: lazy, not inherited by a fork, and never populated or locked by a user's
 * mlockall(MCL_FUTURE): they are made inaccessible, unlocked, and only then opened. */
#include "pool.h"
#include "uffd.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

uint64_t um_host_page;

__attribute__((constructor)) static void host_page_init(void) {
  um_host_page = (uint64_t)sysconf(_SC_PAGESIZE);
}

void *um_memory_map(uint64_t length) {
  void *p = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    return NULL;
  munlock(p, length);
  if (madvise(p, length, MADV_DONTFORK) || mprotect(p, length, PROT_READ | PROT_WRITE)) {
    munmap(p, length);
    return NULL;
  }
  madvise(p, length, MADV_NOHUGEPAGE);
  return p;
}

void um_memory_unmap(void *address, uint64_t length) {
  if (address)
    munmap(address, length);
}

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

int um_memory_move(um_region *r, uintptr_t to, uintptr_t from, uint64_t length, uint64_t *moved) {
  uint64_t done = 0, more = 0;
  int code = um_uffd_move(r->pager->uffd, to, from, length, &done);
  if (code == -EINVAL && unlock(r))
    code = um_uffd_move(r->pager->uffd, to + done, from + done, length - done, &more);
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

/* Python makes the region's mapping itself, so it cannot use the order above: it asks whether MCL_FUTURE is on and
 * switches it to lock on fault meanwhile. */
int um_memory_locked(void) {
  unsigned char resident = 0;
  void *p = mmap(NULL, um_host_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED)
    return errno == EAGAIN; /* RLIMIT_MEMLOCK refused it: it would have been locked */
  if (mincore(p, um_host_page, &resident))
    resident = 0;
  munmap(p, um_host_page);
  return resident & 1;
}

int um_memory_lock_on_fault(int on) {
  const int lock_on_fault = 4; /* MCL_ONFAULT */
  return mlockall(MCL_FUTURE | (on ? lock_on_fault : 0)) ? -errno : 0;
}
