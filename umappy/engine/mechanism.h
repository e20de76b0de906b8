/* mechanism.h: how bytes get into a region's pages. One table a mechanism; the pager picks one when it starts. */
#ifndef UM_MECHANISM_H
#define UM_MECHANISM_H

#include "internal.h"

typedef struct um_mechanism {
  const char *name;
  /* Puts `length` bytes at `from` into absent memory of the region; protected: the first write faults. Wakes nobody. */
  int (*place)(um_region *r, uintptr_t to, const void *from, uint64_t length, bool protect);
  /* Takes the memory away; its bytes are gone. */
  int (*drop)(um_region *r, uintptr_t address, uint64_t length);
} um_mechanism;

extern const um_mechanism um_mechanism_copy;

#endif
