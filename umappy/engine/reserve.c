/* reserve.c: budget for buffers that the engine does not own, and waiting for memory on a caller's thread. */
#include "internal.h"

int um_memory_wait(um_pager *p, uint64_t bytes, uint64_t keep, uint64_t deadline_ns) {
  if (um_budget_try(p, bytes, keep))
    return 0;
  int code = 0;
  atomic_fetch_add(&p->memory_waiters, 1);
  atomic_fetch_add(&p->wanted, bytes);
  while (!um_budget_try(p, bytes, keep)) {
    if (um_memory_make(p))
      continue;
    if (um_now_ns() >= deadline_ns) {
      code = -ETIMEDOUT;
      break;
    }
    pthread_mutex_lock(&p->lock);
    um_wait_until(&p->progress, &p->lock, um_min(deadline_ns, um_now_ns() + 2000000));
    pthread_mutex_unlock(&p->lock);
  }
  atomic_fetch_sub(&p->wanted, bytes);
  atomic_fetch_sub(&p->memory_waiters, 1);
  return code;
}

int um_pager_reserve(um_pager *p, uint64_t bytes, uint32_t timeout_ms) {
  if (um_pager_forked(p))
    return -UM_EFORKED;
  pthread_mutex_lock(&p->regions_lock); /* no region that needs more may come between the look and the taking */
  uint64_t taken = atomic_load(&p->reserved), least = atomic_load(&p->memory_min);
  bool fits = taken + least <= p->memory && bytes <= p->memory - taken - least;
  if (fits)
    atomic_fetch_add(&p->reserved, bytes);
  pthread_mutex_unlock(&p->regions_lock);
  if (!fits)
    return -ENOBUFS;
  int code = um_memory_wait(p, bytes, atomic_load(&p->emergency), um_now_ns() + timeout_ms * 1000000ull);
  if (code)
    atomic_fetch_sub(&p->reserved, bytes);
  else
    atomic_fetch_add(&p->overhead, bytes);
  return code;
}

void um_pager_release(um_pager *p, uint64_t bytes) {
  if (um_pager_forked(p))
    return;
  atomic_fetch_sub(&p->reserved, bytes);
  um_budget_uncharge(p, bytes);
}
