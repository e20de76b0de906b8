/* memory.c: the engine's own mappings: lazy, not inherited by a fork, and never populated or locked by a user's
 * mlockall(MCL_FUTURE): they are made inaccessible, unlocked, and only then opened. */
#include "internal.h"

#include <sys/mman.h>
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
