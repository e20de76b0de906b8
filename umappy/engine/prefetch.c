/* prefetch.c: filling before anyone asks. A run of absent neighbours is claimed, read by one store call and placed by
 * one ioctl. Prefetch is a hint: a page that cannot be had goes back to ABSENT and is counted, nothing is raised;
 * whoever faulted on it meanwhile faults again and gets the error of its own fill. */
#include "mechanism.h"
#include "page.h"

#define PATIENCE_MS 100

static void give_back(um_region *r, uint64_t first, uint64_t count) {
  um_pager *p = r->pager;
  um_memory_drop(r, um_page_address(r, first), um_run_memory(r, first, count));
  for (uint64_t page = first; page < first + count; page++) {
    um_page_absent(r, page);
    um_budget_release(p, um_page_memory(r, page));
  }
}

static uint64_t fill_run(um_worker *w, um_region *r, uint64_t first, uint64_t count) {
  um_pager *p = w->pager;
  um_error error = {0};
  if (um_fill_pages(w, r, first, count, true, &error) == 0) {
    um_gate_enter_wait(r);
    uint64_t now = um_now_ns();
    for (uint64_t page = first; page < first + count; page++) {
      um_frame_id id = um_word_frame(um_page_load(r, page));
      p->frames[id].born_ns = now;
      um_frame_list(p, id);
      um_page_release(r, page, UM_CLEAN);
    }
    um_page_wake(r, first, count);
    um_gate_leave(r);
    UM_COUNT(r, prefetches, count);
    return count;
  }
  if (count == 1) {
    um_gate_enter_wait(r);
    UM_COUNT(r, fill_errors, 1);
    give_back(r, first, 1);
    um_gate_leave(r);
    return 0;
  }
  uint64_t filled = 0; /* part of it may be good */
  for (uint64_t page = first; page < first + count; page++)
    filled += fill_run(w, r, page, 1);
  return filled;
}

/* With one filler there is nobody to serve faults while this waits, so it does not. */
static bool reserve(um_pager *p, uint64_t bytes, bool patient) {
  uint64_t keep = atomic_load(&p->emergency), deadline = um_now_ns() + PATIENCE_MS * 1000000ull;
  bool got;
  while (!(got = um_budget_try(p, bytes, keep)) && !atomic_load(&p->stop)) {
    if (um_evict_one_clean(p))
      continue;
    if (!patient || p->filler_count == 1 || um_now_ns() >= deadline)
      break;
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->memory_waiters, 1);
    um_wait_until(&p->progress, &p->lock, um_now_ns() + 2000000);
    atomic_fetch_sub(&p->memory_waiters, 1);
    pthread_mutex_unlock(&p->lock);
  }
  return got;
}

bool um_prefetch_run(um_worker *w, um_region *r, uint64_t page, uint64_t run, uint64_t *filled) {
  um_pager *p = w->pager;
  uint64_t end = page + run;
  bool memory = true;
  while (page < end && memory) {
    uint64_t count = 0;
    um_gate_enter_wait(r);
    while (page < end && um_page_load(r, page) != 0)
      page++;
    while (page + count < end && um_page_load(r, page + count) == 0) {
      um_gate_leave(r); /* the reservation may wait, but not while claimed pages do */
      bool got = reserve(p, um_page_cost(r, page + count), count == 0);
      um_gate_enter_wait(r);
      memory = got || count;
      if (!got || !um_page_take(r, page + count))
        break;
      count++;
    }
    um_gate_leave(r);
    if (count)
      *filled += fill_run(w, r, page, count);
    page += um_max(count, 1);
  }
  return memory;
}
