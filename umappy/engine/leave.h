/* leave.h: pages on their way out of a region through a chunk. */
#ifndef UM_LEAVE_H
#define UM_LEAVE_H

#include "internal.h"

#define UM_LEAVING_MAX 64 /* a group */

typedef struct um_leaving {
  um_region *region;
  uint64_t page, count;
  um_frame_id frame; /* not UM_NIL: all of its run, to be kept on standby when it is out */
  bool dirty;        /* LEAVING, to be written; else EVICTING */
  bool unmoved;      /* it could not be moved out */
  int failed;        /* -errno: it went back to where it was */
  um_error *error;   /* where a failed write is told; NULL: it is recorded with the region */
  uintptr_t at;      /* where its bytes are while it is out */
} um_leaving;

/* At most UM_LEAVING_MAX, and all of them together fit a chunk, and all or none are to be kept; they are the caller's;
 * inside the gates of the clean ones. Each ends ABSENT or STANDBY, or back as it was with `failed` set. The worker may
 * be NULL when none is dirty. Returns bytes given back. */
uint64_t um_leave_group(um_pager *p, um_worker *w, um_leaving *v, uint32_t count);

/* evict_write.c. A dirty one that could not be moved: it has a hole, or is locked. Returns bytes given back. */
uint64_t um_evict_in_place(um_worker *w, const um_leaving *v);
/* WRITING ones of the first's region, as many as follow each other: written and dropped; dirty neighbours are taken
 * along. How many these are; adds bytes given back. */
uint32_t um_evict_written(um_worker *w, const um_leaving *v, uint32_t count, uint64_t *freed);

/* A chunk's length of clean pages, EVICTING, that never were writable; inside the gate. Returns bytes given back. */
uint64_t um_leave_chunk(um_region *r, uint64_t first, um_frame_id keep);

#endif
