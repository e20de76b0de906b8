/* advise.c: see advise.h. The table holds *bounds*: `page << 2 | advice` says that from that page on the advice holds,
 * up to the next bound; before the first it is NORMAL. Neighbours with the same advice are one range, so the same
 * advice over and over needs no more room.
 *
 * The leading filler looks a page up at every fault and must not wait for a thread that may be asleep in the middle of
 * a change. So readers check a version before and after, and take NORMAL where it moved: that is never wrong. Writers
 * wait for one another. */
#include "advise.h"

#include "internal.h"

#define ADVICE_BITS 2
#define WAIT_NS 1000000000u /* for the memory of the table */

static uint64_t page_of(uint64_t bound) {
  return bound >> ADVICE_BITS;
}

static enum um_advice advice_of(uint64_t bound) {
  return (enum um_advice)(bound & ((1u << ADVICE_BITS) - 1));
}

void um_advise_init(um_region *r) {
  pthread_mutex_init(&r->advice.lock, NULL);
}

void um_advise_destroy(um_region *r) {
  um_advice_table *t = &r->advice;
  um_memory_unmap((void *)atomic_load(&t->bounds), UM_ADVICE_BOUNDS_MAX * sizeof(uint64_t));
  if (t->charged)
    um_budget_uncharge(r->pager, t->charged);
  pthread_mutex_destroy(&t->lock);
}

/* Every load of a bound acquires, every store of one releases: who sees a new bound sees the odd version too. */
enum um_advice um_advise_range(um_region *r, uint64_t page, uint64_t *first, uint64_t *end) {
  um_advice_table *t = &r->advice;
  uint32_t version = atomic_load_explicit(&t->version, memory_order_acquire);
  uint32_t low = 0, high = atomic_load_explicit(&t->count, memory_order_acquire);
  uint64_t start = 0, next = r->page_count << ADVICE_BITS;
  const _Atomic uint64_t *bounds = atomic_load_explicit(&t->bounds, memory_order_acquire);
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    uint64_t bound = atomic_load_explicit(&bounds[middle], memory_order_acquire);
    if (page_of(bound) <= page) {
      start = bound;
      low = middle + 1;
    } else {
      next = bound;
      high = middle;
    }
  }
  if (version % 2 || atomic_load_explicit(&t->version, memory_order_relaxed) != version) {
    start = UM_ADVICE_NORMAL;
    next = r->page_count << ADVICE_BITS;
  }
  *first = page_of(start);
  *end = page_of(next);
  return advice_of(start);
}

enum um_advice um_advise_at(um_region *r, uint64_t page) {
  uint64_t first, end;
  return um_advise_range(r, page, &first, &end);
}

static uint32_t count_below(const uint64_t *bounds, uint32_t count, uint64_t page) { /* bounds before that page */
  uint32_t low = 0, high = count;
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    if (page_of(bounds[middle]) < page)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* The bounds with [first, end) under `advice`, into `next`, which has room for two more; how many. */
static uint32_t splice(const uint64_t *bounds, uint32_t count, uint64_t first, uint64_t end, enum um_advice advice,
                       uint64_t *next) {
  uint32_t head = count_below(bounds, count, first), tail = count_below(bounds, count, end + 1), n = head;
  enum um_advice before = head ? advice_of(bounds[head - 1]) : UM_ADVICE_NORMAL;
  enum um_advice after = tail ? advice_of(bounds[tail - 1]) : UM_ADVICE_NORMAL; /* what held at `end` */
  memcpy(next, bounds, head * sizeof *next);
  if (advice != before)
    next[n++] = first << ADVICE_BITS | advice;
  if (after != advice)
    next[n++] = end << ADVICE_BITS | after;
  memcpy(next + n, bounds + tail, (count - tail) * sizeof *next);
  return n + count - tail;
}

/* lock held. The mapping is address space; what of it is touched counts. */
static int make_room(um_region *r, uint32_t count) {
  um_advice_table *t = &r->advice;
  if (count > UM_ADVICE_BOUNDS_MAX)
    return -ENOSPC;
  uint64_t needed = um_round_up(count * sizeof(uint64_t), um_host_page);
  if (needed > t->charged) {
    um_pager *p = r->pager;
    uint64_t more = needed - t->charged;
    if (um_memory_wait(p, more, atomic_load(&p->emergency), um_now_ns() + WAIT_NS))
      return -ENOMEM;
    atomic_fetch_add(&p->overhead, more);
    t->charged = needed;
  }
  if (atomic_load(&t->bounds))
    return 0;
  _Atomic uint64_t *bounds = um_memory_map(UM_ADVICE_BOUNDS_MAX * sizeof(uint64_t));
  if (!bounds)
    return -ENOMEM;
  atomic_store_explicit(&t->bounds, bounds, memory_order_release);
  return 0;
}

static int change(um_region *r, uint64_t first, uint64_t end, enum um_advice advice) { /* lock held */
  um_advice_table *t = &r->advice;
  uint32_t count = atomic_load(&t->count);
  const _Atomic uint64_t *now = atomic_load(&t->bounds);
  uint64_t *old = malloc((2 * (uint64_t)count + 2) * sizeof *old), *next = old + count;
  if (!old)
    return -ENOMEM;
  for (uint32_t i = 0; i < count; i++)
    old[i] = atomic_load_explicit(&now[i], memory_order_relaxed);
  uint32_t total = splice(old, count, first, end, advice, next);
  int code = total == count && memcmp(old, next, count * sizeof *old) == 0 ? 0 : make_room(r, total);
  if (code == 0) {
    _Atomic uint64_t *bounds = atomic_load(&t->bounds);
    atomic_fetch_add_explicit(&t->version, 1, memory_order_relaxed);
    for (uint32_t i = 0; i < total; i++)
      if (i >= count || next[i] != old[i])
        atomic_store_explicit(&bounds[i], next[i], memory_order_release);
    atomic_store_explicit(&t->count, total, memory_order_release);
    atomic_fetch_add_explicit(&t->version, 1, memory_order_release);
  }
  free(old);
  return code;
}

/* Pages that lie partly inside count, but for WILLWRITE, which speaks of whole ones. */
int um_region_advise(um_region *r, uint64_t offset, uint64_t length, int hint) {
  if (um_pager_forked(r->pager))
    return -UM_EFORKED;
  if (hint < UM_ADVISE_NORMAL || hint > UM_ADVISE_WILLWRITE || offset > r->size || length > r->size - offset)
    return -EINVAL;
  if (hint == UM_ADVISE_WILLWRITE && !r->writable)
    return -EACCES;
  uint64_t stop = offset + length, first = offset >> r->page_shift;
  uint64_t end = stop == 0 ? 0 : ((stop - 1) >> r->page_shift) + 1;
  if (hint == UM_ADVISE_WILLWRITE) {
    first = (offset + r->page_size - 1) >> r->page_shift;
    end = stop == r->size ? r->page_count : stop >> r->page_shift;
  }
  if (length == 0 || first >= end)
    return 0;
  pthread_mutex_lock(&r->advice.lock);
  int code = change(r, first, end, (enum um_advice)hint);
  pthread_mutex_unlock(&r->advice.lock);
  return code;
}
