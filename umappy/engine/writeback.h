/* writeback.h: dirty pages of a region on their way to the store, many at once. */
#ifndef UM_WRITEBACK_H
#define UM_WRITEBACK_H

#include "internal.h"

#define UM_WRITEBACK_RUNS (UM_STAGING_MAX / UM_PAGE_SIZE_MIN)

/* Filled by um_writeback_add, sent, and then empty again. */
typedef struct um_writeback {
  um_worker *worker; /* whose buffer it is; constant, and so the three below */
  um_region *region;
  /* How a run's write ended, inside the gate; the error is to be looked at where code is not 0. Runs that were given up
   * are not told of. */
  void (*ended)(struct um_writeback *b, int code, um_error *error);
  void *context;  /* the caller's */
  bool stop;      /* set by the caller: what was not begun is given up, and stays DIRTY */
  uint64_t pages; /* written since it began */
  uint64_t freed; /* bytes given back, likewise */
  uint64_t used;  /* bytes of the buffer */
  uint32_t done;  /* runs that ended, of those sent */
  uint32_t count; /* of the runs; two arrays with an entry each: */
  um_write writes[UM_WRITEBACK_RUNS];
  struct um_writeback_run {
    uint64_t first, count; /* pages */
  } runs[UM_WRITEBACK_RUNS];
  bool evict[UM_WRITEBACK_RUNS]; /* by page in the buffer: it is to be dropped if it stays clean */
} um_writeback;

uint64_t um_writeback_claim(um_region *r, uint64_t page, uint64_t limit); /* DIRTY -> WRITING, from page on; how many */
void um_writeback_begin(um_writeback *b, um_worker *w, um_region *r, void (*ended)(um_writeback *, int, um_error *),
                        void *context);
uint64_t um_writeback_room(const um_writeback *b);                                  /* pages it can take yet */
void um_writeback_add(um_writeback *b, uint64_t first, uint64_t count, bool evict); /* claimed; at most its room */
void um_writeback_send(um_writeback *b); /* inside the gate at entry and return, left meanwhile */

/* writeback_send.c. Each as um_writeback_piece does, as many in flight as the store takes. `ended` is called once each
 * on this thread, as they end, outside every gate, and with an error where the code is not 0; where it returns false
 * those not begun are given up: -ECANCELED. The store must not be closed before this returns: the last call of `ended`
 * stays inside the gate. */
typedef bool um_writeback_ended(void *context, um_write *write, um_error *error);
void um_writeback_many(um_worker *w, um_region *r, um_write *writes, uint32_t count, um_writeback_ended *ended,
                       void *context);

#endif
