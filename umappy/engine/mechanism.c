/* mechanism.c: copy or move.
 *
 * Copy (UFFDIO_COPY from a warm buffer, MADV_DONTNEED) works on every kernel from 5.7 on, and is the one that can place
 * a page protected, so that no write to it goes unseen. It serves all that is smaller than a chunk, and fills for
 * reading of regions that track what is clean, in either mechanism: a page of 4 KiB is copied in 2 us and dropped, with
 * others, in less, while moving it costs a flush of the other processors' translations each way (10 us (m)).
 *
 * Move (UFFDIO_MOVE, 6.8) leaves its target writable and unprotected. It serves whole chunks: into regions that are
 * only read and for streams that write, and out of all regions. A huge page moves in 10 us where copying and dropping
 * it costs 490; 2 MiB of small pages in 50 (m, with a busy thread on the other core). How much a small page costs has
 * changed much from kernel to kernel, so "auto" measures it, once a process. */
#include "mechanism.h"

#include "uffd.h"

#include <sys/mman.h>

const um_mechanism um_mechanism_copy = {"copy", false};
const um_mechanism um_mechanism_move = {"move", true};

int um_mechanism_place(um_region *r, uintptr_t to, const void *from, uint64_t length, bool protect) {
  return um_uffd_copy(r->pager->uffd, to, from, length, protect && r->writable);
}

static uint64_t elapsed(uint64_t *since) {
  uint64_t now = um_now_ns(), ns = now - *since;
  *since = now;
  return ns;
}

/* 512 KiB of small pages, the worst case, in and out both ways. */
static bool moving_is_faster(int uffd) {
  const uint64_t length = UM_CHUNK / 4;
  bool faster = false;
  char *a = um_memory_map(length), *b = um_memory_map(length);
  if (a && b && um_uffd_register(uffd, (uintptr_t)b, length) == 0) {
    memset(a, 1, length);
    uint64_t at = um_now_ns();
    int code = um_uffd_copy(uffd, (uintptr_t)b, a, length, false);
    madvise(b, length, MADV_DONTNEED);
    uint64_t copying = elapsed(&at);
    if (code == 0 && um_uffd_register(uffd, (uintptr_t)a, length) == 0) {
      code = um_uffd_move(uffd, -1, (uintptr_t)b, (uintptr_t)a, length, NULL);
      if (code == 0)
        code = um_uffd_move(uffd, -1, (uintptr_t)a, (uintptr_t)b, length, NULL);
      faster = code == 0 && elapsed(&at) < copying;
    }
  }
  um_memory_unmap(a, length);
  um_memory_unmap(b, length);
  return faster;
}

const um_mechanism *um_mechanism_choose(uint32_t wanted, int uffd, uint64_t features) {
  static _Atomic int measured; /* 0: not yet, 1: move, 2: copy */
  bool has = features & UM_UFFD_FEATURE_MOVE;
  if (wanted == UM_MECHANISM_COPY || (wanted == UM_MECHANISM_AUTO && !has))
    return &um_mechanism_copy;
  if (wanted == UM_MECHANISM_MOVE)
    return has ? &um_mechanism_move : NULL;
  if (atomic_load(&measured) == 0) {
    bool faster = false; /* once is enough: what disturbs the measurement disturbs the shorter time more */
    for (int attempt = 0; attempt < 3 && !faster; attempt++)
      faster = moving_is_faster(uffd);
    atomic_store(&measured, faster ? 1 : 2);
  }
  return atomic_load(&measured) == 1 ? &um_mechanism_move : &um_mechanism_copy;
}
