/* prefetch.c: filling before anyone asks. A run of absent neighbours is claimed, read by one store call and placed by
 * one ioctl. Prefetch is a hint: a page that cannot be had goes back to ABSENT and is counted, nothing is raised;
 * whoever faulted on it meanwhile faults again and gets the error of its own fill. */
#include "blocks.h"
#include "mechanism.h"
#include "page.h"
#include "pool.h"

#define PATIENCE_MS 100

static void give_back(um_region *r, uint64_t first, uint64_t count) {
  um_memory_drop(r, um_page_address(r, first), um_run_memory(r, first, count));
  um_run_absent(r, first, count);
  um_budget_release(r->pager, um_run_memory(r, first, count));
}

/* The pages are FILLING and this thread's; how many became resident. Part of a run that fails may be good. */
static uint64_t fill_run(um_worker *w, um_region *r, um_frame_id id, bool guess) {
  um_pager *p = w->pager;
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count, filled = 0;
  um_error error = {0};
  if (um_fill_pages(w, r, first, count, true, guess ? 1 : UM_TRIES, &error) == 0) {
    um_gate_enter_wait(r);
    atomic_store(&f->born_ns, um_now_ns());
    um_frame_list(p, id);
    if (um_run_release(r, first, count, UM_CLEAN) & UM_WAITER)
      um_page_wake(r, first, count);
    um_gate_leave(r);
    UM_COUNT(r, prefetches, count);
    return count;
  }
  for (uint64_t page = first; page < first + count; page++) {
    bool good = count > 1 && !guess && um_fill_pages(w, r, page, 1, true, 1, &error) == 0;
    um_gate_enter_wait(r);
    if (good) {
      atomic_store(&f->born_ns, um_now_ns());
      um_frame_list(p, id);
      um_run_release(r, page, 1, UM_CLEAN);
      um_page_wake(r, page, 1);
      UM_COUNT(r, prefetches, 1);
      filled++;
    } else {
      UM_COUNT(r, fill_errors, !guess);
      give_back(r, page, 1);
    }
    um_gate_leave(r);
  }
  return filled;
}

/* With one filler there is nobody to serve faults while this waits, so it does not. */
static bool reserve(um_pager *p, uint64_t bytes, bool patient) {
  uint64_t keep = atomic_load(&p->emergency), deadline = um_now_ns() + PATIENCE_MS * 1000000ull;
  bool got;
  while (!(got = um_budget_try(p, bytes, keep)) && !atomic_load(&p->stop)) {
    if (um_memory_make(p))
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

/* Claims the absent pages at the start of [page, end), memory reserved, as one run; UM_NIL: none. */
static um_frame_id claim_run(um_worker *w, um_region *r, uint64_t page, uint64_t end, bool patient, bool *memory) {
  um_pager *p = w->pager;
  uint64_t limit = um_min(end - page, um_run_limit(r, w->staging_size)), count = 0;
  while (count < limit && um_page_look(r, page + count) == 0)
    count++;
  if (count == 0) /* somebody was first */
    return UM_NIL;
  while (count > 0 && !reserve(p, um_run_cost(r, page, count), patient && count == 1))
    count /= 2;
  *memory = count > 0;
  if (count == 0)
    return UM_NIL;
  um_frame_id id = um_frame_take(p, r, page, count);
  if (id == UM_NIL) {
    um_budget_release(p, um_run_cost(r, page, count));
    return UM_NIL;
  }
  um_gate_enter_wait(r);
  uint64_t claimed = um_run_claim(r, page, count, id);
  um_gate_leave(r);
  um_budget_release(p, um_run_memory(r, page, count) - (claimed ? um_run_memory(r, page, claimed) : 0));
  p->frames[id].count = (uint32_t)claimed;
  if (claimed)
    return id;
  um_frame_give(p, id);
  return UM_NIL;
}

bool um_prefetch_run(um_worker *w, um_region *r, uint64_t page, uint64_t run, bool patient, uint64_t *filled) {
  uint64_t end = page + run;
  bool memory = true;
  while (page < end && memory) {
    if (um_page_look(r, page) != 0) {
      page++;
      continue;
    }
    um_frame_id id = claim_run(w, r, page, end, patient, &memory);
    uint64_t n = id == UM_NIL ? 1 : w->pager->frames[id].count;
    if (id != UM_NIL)
      *filled += fill_run(w, r, id, !patient);
    page += n;
  }
  return memory;
}
