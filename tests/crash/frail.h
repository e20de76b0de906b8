/* frail.h: every file the engine opens for a zstd store fails on demand. Link with --wrap, as the Makefile does. */
#ifndef UM_FRAIL_H
#define UM_FRAIL_H

#include "zstd_file.h"

#include <stdatomic.h>

typedef struct frail_plan {
  _Atomic uint64_t calls;  /* so far, on all files; reading and measuring too, closing not */
  uint64_t first, count;   /* calls that fail: so many from this one on */
  int code;                /* with this errno; 0: they move half of what they were asked for */
  _Atomic uint64_t struck; /* calls that failed so far */
  atomic_bool sync_failed;
} frail_plan;

extern frail_plan frail;

void frail_set(uint64_t first, uint64_t count, int code); /* counting begins anew */

#endif
