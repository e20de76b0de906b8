/* mechanism_copy.c: pages are copied into place from a warm buffer (UFFDIO_COPY) and dropped by madvise. Works on every
 * kernel from 5.7 on, and is the one that can place a page protected, so that no write goes unseen. */
#include "mechanism.h"
#include "uffd.h"

static int copy_place(um_region *r, uintptr_t to, const void *from, uint64_t length, bool protect) {
  return um_uffd_copy(r->pager->uffd, to, from, length, protect);
}

static int copy_drop(um_region *r, uintptr_t address, uint64_t length) {
  return um_memory_drop(r, address, length);
}

const um_mechanism um_mechanism_copy = {"copy", copy_place, copy_drop};
