/* mechanism.h: how bytes get into a region's pages. One table a mechanism; the pager picks one when it starts. */
#ifndef UM_MECHANISM_H
#define UM_MECHANISM_H

#include "internal.h"

typedef struct um_mechanism {
  const char *name;
  bool moves; /* whole chunks change places with a region's pages, both ways (UFFDIO_MOVE) */
} um_mechanism;

extern const um_mechanism um_mechanism_copy, um_mechanism_move;

/* `wanted` is UM_MECHANISM_...; the features are the kernel's. NULL: it has not what is wanted. */
const um_mechanism *um_mechanism_choose(uint32_t wanted, int uffd, uint64_t features);

/* Puts `length` bytes at `from` into absent memory of the region; protected: the first write faults. Wakes nobody. */
int um_mechanism_place(um_region *r, uintptr_t to, const void *from, uint64_t length, bool protect);

#endif
