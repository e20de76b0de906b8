/* exchange.h: huge pages for what stays in memory while memory is short. */
#ifndef UM_EXCHANGE_H
#define UM_EXCHANGE_H

#include "internal.h"

/* A run that stays: a chunk, only read, marked as picked. */
typedef struct um_stay {
  um_region *region;
  uint64_t first, count; /* pages */
  um_frame_id frame;
} um_stay;

/* Inside the region's gate. 0; -EAGAIN: no huge page is unused; -EBUSY: not all of the run is CLEAN; else it cannot be
 * moved. */
int um_exchange(um_pager *p, const um_stay *stay);

#endif
