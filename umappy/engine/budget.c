/* budget.c: one number, `used`, holds everything of ours that is resident: pages (reserved before they are filled),
 * staging buffers, descriptors, page words, page tables, and what callers reserve for their own buffers. Pages are
 * refused when they do not fit, with the bookkeeping they need. Chunks that nobody uses and runs on standby are in
 * `used` and yet free: um_memory_make gives them back at once, without I/O. */
#include "internal.h"

static void raise_peak(um_pager *p, uint64_t used) {
  uint64_t peak = atomic_load_explicit(&p->peak_used, memory_order_relaxed);
  while (used > peak && !atomic_compare_exchange_weak(&p->peak_used, &peak, used))
    ;
}

static uint64_t spare(um_pager *p, uint64_t idle) {
  uint64_t used = atomic_load(&p->used);
  return (used < p->memory ? p->memory - used : 0) + um_min(idle, used);
}

uint64_t um_budget_free(um_pager *p) {
  return spare(p, atomic_load(&p->pool.idle) + atomic_load(&p->standby_bytes));
}

/* Runs on standby do not count here: they were read for somebody, and evictors make room for what comes after them. */
static uint64_t unused(um_pager *p) {
  return spare(p, atomic_load(&p->pool.idle));
}

/* The low water is never below what one fill needs, or evictors would rest while a fill starves. */
bool um_budget_low(um_pager *p) {
  uint64_t low = um_max(p->low_water, 2 * atomic_load(&p->emergency));
  return unused(p) < low + atomic_load(&p->wanted);
}

uint64_t um_budget_short(um_pager *p) {
  uint64_t high = um_max(p->high_water, 3 * atomic_load(&p->emergency)) + atomic_load(&p->wanted);
  uint64_t free_ = unused(p);
  return high > free_ ? high - free_ : 0;
}

bool um_budget_try(um_pager *p, uint64_t bytes, uint64_t keep) {
  uint64_t used = atomic_load(&p->used);
  do {
    if (used + bytes + keep > p->memory) {
      um_evict_ask(p);
      return false;
    }
  } while (!atomic_compare_exchange_weak(&p->used, &used, used + bytes));
  raise_peak(p, used + bytes);
  if (um_budget_low(p))
    um_evict_ask(p);
  return true;
}

void um_budget_charge(um_pager *p, uint64_t bytes) {
  atomic_fetch_add(&p->overhead, bytes);
  raise_peak(p, atomic_fetch_add(&p->used, bytes) + bytes);
}

void um_budget_uncharge(um_pager *p, uint64_t bytes) {
  atomic_fetch_sub(&p->overhead, bytes);
  um_budget_release(p, bytes);
}

void um_budget_release(um_pager *p, uint64_t bytes) {
  UM_ASSERT(atomic_load(&p->used) >= bytes);
  atomic_fetch_sub(&p->used, bytes);
  um_memory_freed(p);
}
