/* exchange.c: a run of small pages gets an unused chunk that is a huge page, and its own becomes unused. Nothing is
 * allocated, so it can be done while memory is short, which MADV_COLLAPSE cannot (collapse.c); the small pages go round
 * from now on, and are made huge in time (pool_make.c).
 *
 * Phases: own the run (CLEAN to EVICTING), move it out into an empty chunk, copy it to the huge one, move that in. Who
 * touches the run meanwhile waits for the copy. Where the kernel moves it out and not in again it is given up: it is
 * clean, and never was writable.
 *
 * Race: exchange against eviction. Evictors leave a picked run alone, and who evicts by name, or found no memory, takes
 * what is CLEAN: it is EVICTING. Race: exchange against fault. The page is EVICTING, the fault leaves WAITER; at the
 * end it is CLEAN, and woken. */
#include "exchange.h"

#include "mechanism.h"
#include "page.h"
#include "pool.h"

static void put_back(um_region *r, uint64_t first, uint64_t count) {
  if (um_run_release(r, first, count, UM_CLEAN) & UM_WAITER)
    um_page_wake(r, first, count);
}

/* The run is EVICTING and the caller's; it changes places with `huge`. Where it cannot, `huge` is unused again. */
static int change_places(um_pager *p, const um_stay *s, uint32_t huge, uint32_t empty) {
  um_region *r = s->region;
  uintptr_t at = um_page_address(r, s->first), out = um_pool_address(p, empty), in = um_pool_address(p, huge);
  uint64_t moved;
  int code = um_memory_move(r, out, at, UM_CHUNK, &moved);
  if (code) {
    um_pool_put_full(p, huge);
    if (moved) {
      um_pool_clear(p, empty);
      um_evict_drop(r, s->first, s->count);
    } else {
      um_pool_put_empty(p, empty);
      put_back(r, s->first, s->count);
    }
    return code == -EAGAIN ? -EIO : code;
  }
  memcpy((void *)in, (const void *)out, UM_CHUNK);
  code = um_memory_move(r, at, in, UM_CHUNK, NULL);
  if (code) {
    um_pool_clear(p, huge);
    um_pool_put_full(p, empty);
    um_evict_drop(r, s->first, s->count);
    return -EIO;
  }
  um_pool_put_empty(p, huge);
  um_pool_put_full(p, empty);
  put_back(r, s->first, s->count);
  UM_COUNT(r, collapsed, s->count);
  return 0;
}

int um_exchange(um_pager *p, const um_stay *s) {
  uint32_t huge = um_pool_take_huge(p), empty = huge ? um_pool_take_empty(p) : 0;
  if (!huge)
    return -EAGAIN;
  uint64_t taken = empty ? um_run_take(s->region, s->first, s->count, UM_IN(UM_CLEAN), s->frame, UM_EVICTING) : 0;
  int code = taken < s->count ? -EBUSY : change_places(p, s, huge, empty);
  if (taken < s->count) {
    if (taken)
      put_back(s->region, s->first, taken);
    if (empty)
      um_pool_put_empty(p, empty);
    um_pool_put_full(p, huge);
  }
  um_memory_freed(p);
  return code;
}
