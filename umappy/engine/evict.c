/* evict.c: giving memory back.
 *
 * The eviction list is a FIFO over resident runs; one that gets its first write goes on as it stands, one of which
 * pages stay (busy, written to while they were being written back) starts anew. Phases of a batch:
 *   1  pick: from the old end, runs past their grace; clean pages become EVICTING, dirty ones WRITING
 *   2  sort by address
 *   3  drop the clean ones, all by one call where the kernel can: memory comes free at once
 *   4  write the dirty ones, taking dirty neighbours along, then drop those that stayed clean
 *   5  settle: runs that kept pages go to the young end
 *
 * A run stays on the list, marked as picked, while an evictor works on it; it leaves with its last page. */
#include "blocks.h"
#include "mechanism.h"
#include "page.h"

#include <sys/uio.h>

#define BATCH 64 /* stretches of pages, clean and dirty each */
#define LOOK 256 /* list entries looked at for a batch */
#define CLAIM_RUNS                                                                                                     \
  4 /* staging buffers claimed at once: what is WRITING can neither leave nor be written by a flush                    \
     */
#define RUN_PAGES (UM_STAGING_MAX / UM_PAGE_SIZE_MIN)

typedef struct victim {
  um_region *region;
  uint64_t page, count;
} victim;

typedef struct batch {
  victim clean[BATCH], dirty[BATCH];
  um_frame_id frames[LOOK];
  uint32_t cleans, dirties, picked;
  uint64_t bytes, claimed; /* in all, and of dirty pages */
  uint64_t now;
} batch;

void um_evict_ask(um_pager *p) {
  if (atomic_load(&p->evict_asked) || atomic_exchange(&p->evict_asked, true))
    return;
  pthread_mutex_lock(&p->lock);
  pthread_cond_broadcast(&p->evict_work);
  pthread_mutex_unlock(&p->lock);
}

/* The memory is gone, the pages are EVICTING and the caller's. */
static uint64_t let_go(um_region *r, uint64_t first, uint64_t count) {
  um_pager *p = r->pager;
  uint64_t memory = um_run_memory(r, first, count);
  um_run_absent(r, first, count);
  UM_COUNT(r, evictions, count);
  atomic_fetch_add(&p->freed, memory);
  um_budget_release(p, memory);
  return memory;
}

uint64_t um_evict_drop(um_region *r, uint64_t first, uint64_t count) {
  r->pager->mechanism->drop(r, um_page_address(r, first), um_run_memory(r, first, count));
  return let_go(r, first, count);
}

/* frames_lock held. Takes stretches of a run's clean or failed pages, each inside its region's gate; how many. */
static uint32_t take_clean(um_pager *p, um_frame_id id, victim *out, uint32_t most) {
  um_frame *f = &p->frames[id];
  um_region *r = f->region;
  uint32_t taken = 0;
  for (uint64_t page = f->page, end = page + f->count; page < end && taken < most;) {
    if (!um_gate_enter(r))
      break;
    uint64_t n = um_run_take(r, page, end - page, UM_IN(UM_CLEAN) | UM_IN(UM_FAILED), id, UM_EVICTING);
    if (n)
      out[taken++] = (victim){r, page, n};
    else
      um_gate_leave(r);
    page += um_max(n, 1);
  }
  return taken;
}

/* For a filler that found no memory: it does not wait behind write-back. */
bool um_evict_one_clean(um_pager *p) {
  uint64_t now = um_now_ns();
  victim v;
  uint32_t taken = 0;
  pthread_mutex_lock(&p->frames_lock);
  um_frame_id id = p->resident.head;
  for (int looked = 0; id != UM_NIL && looked < BATCH && !taken; looked++, id = p->frames[id].next)
    if (!p->frames[id].picked && um_frame_aged(p, &p->frames[id], now))
      taken = take_clean(p, id, &v, 1);
  pthread_mutex_unlock(&p->frames_lock);
  if (!taken)
    return false;
  um_evict_drop(v.region, v.page, v.count);
  um_gate_leave(v.region);
  return true;
}

/* frames_lock held. WRITING keeps the gate from closing, so the gate can be left until the write. */
static void take_dirty(um_pager *p, um_frame_id id, batch *b, uint64_t most) {
  um_frame *f = &p->frames[id];
  um_region *r = f->region;
  if (!um_gate_enter(r))
    return;
  uint64_t limit = um_run_limit(r, most);
  for (uint64_t page = f->page, end = page + f->count;
       page < end && b->dirties < BATCH && b->claimed < CLAIM_RUNS * most;) {
    uint64_t n = um_run_take(r, page, um_min(limit, end - page), UM_IN(UM_DIRTY), id, UM_WRITING);
    if (n) {
      b->dirty[b->dirties++] = (victim){r, page, n};
      b->claimed += n << r->page_shift;
      b->bytes += n << r->page_shift;
    }
    page += um_max(n, 1);
  }
  um_gate_leave(r);
}

static bool has_dirty(um_pager *p, um_frame_id id) { /* frames_lock held */
  um_frame *f = &p->frames[id];
  for (uint64_t page = f->page; page < f->page + f->count; page++) {
    um_word w = um_page_load(f->region, page);
    if (um_word_state(w) == UM_DIRTY && um_word_frame(w) == id)
      return true;
  }
  return false;
}

/* Phase 1. A dirty run whose store is failing goes to the young end, or clean ones behind it would never be looked at.
 */
static void pick(um_worker *w, batch *b) {
  um_pager *p = w->pager;
  uint64_t target = um_budget_short(p);
  pthread_mutex_lock(&p->frames_lock);
  um_frame_id id = p->resident.head, next;
  for (int looked = 0; id != UM_NIL && looked < LOOK && b->bytes < target; looked++, id = next) {
    um_frame *f = &p->frames[id];
    um_region *r = f->region;
    next = f->next;
    if (f->picked || !um_frame_aged(p, f, b->now))
      continue;
    uint32_t cleans = take_clean(p, id, b->clean + b->cleans, BATCH - b->cleans), dirties = b->dirties;
    for (uint32_t i = 0; i < cleans; i++)
      b->bytes += b->clean[b->cleans + i].count << r->page_shift;
    b->cleans += cleans;
    if (b->now >= atomic_load(&r->write_backoff_ns))
      take_dirty(p, id, b, w->staging_size);
    else if (has_dirty(p, id))
      um_frame_relist(p, id, UM_LIST_RESIDENT);
    if (cleans || b->dirties > dirties) {
      f->picked = true;
      b->frames[b->picked++] = id;
    }
  }
  pthread_mutex_unlock(&p->frames_lock);
}

/* Phase 5. A descriptor may have been given back, and taken anew, since: then it is not marked any more. */
static void settle(um_pager *p, const batch *b) {
  pthread_mutex_lock(&p->frames_lock);
  for (uint32_t i = 0; i < b->picked; i++) {
    um_frame *f = &p->frames[b->frames[i]];
    if (!f->picked || f->list != UM_LIST_RESIDENT)
      continue;
    f->picked = false;
    um_frame_relist(p, b->frames[i], UM_LIST_RESIDENT);
  }
  pthread_mutex_unlock(&p->frames_lock);
}

static int by_address(const void *a, const void *b) {
  const victim *x = a, *y = b;
  uintptr_t left = um_page_address(x->region, x->page), right = um_page_address(y->region, y->page);
  return left < right ? -1 : left > right;
}

/* Makes one of neighbours, up to so many bytes each. */
static uint32_t merge(victim *v, uint32_t count, uint64_t bytes) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < count; i++) {
    victim *last = kept ? &v[kept - 1] : NULL;
    if (last && last->region == v[i].region && last->page + last->count == v[i].page &&
        last->count + v[i].count <= um_run_limit(v[i].region, bytes))
      last->count += v[i].count;
    else
      v[kept++] = v[i];
  }
  return kept;
}

/* Phase 3. */
static uint64_t drop_clean(um_pager *p, const victim *v, uint32_t count) {
  struct iovec ranges[BATCH];
  uint64_t freed = 0;
  for (uint32_t i = 0; i < count; i++) {
    ranges[i].iov_base = (void *)um_page_address(v[i].region, v[i].page);
    ranges[i].iov_len = um_run_memory(v[i].region, v[i].page, v[i].count);
  }
  uint32_t done = count > 1 ? um_memory_drop_many(p, ranges, count) : 0;
  for (uint32_t i = 0; i < count; i++) {
    um_region *r = v[i].region;
    freed += i < done ? let_go(r, v[i].page, v[i].count) : um_evict_drop(r, v[i].page, v[i].count);
    um_gate_leave(r);
  }
  return freed;
}

/* A store that fails is asked again after a pause, and reported once until it takes a write. */
static void note_write(um_region *r, int code, um_error *error) {
  um_pager *p = r->pager;
  if (code == -UM_EDROPPED) {
    um_error_record(r, error, 0);
    return;
  }
  bool first = code && atomic_exchange(&r->write_backoff_ns, um_now_ns() + UM_TICK_MS * 1000000ull) == 0;
  if (code == 0)
    atomic_store(&r->write_backoff_ns, 0);
  pthread_mutex_lock(&p->lock);
  p->writes_failed = code ? p->writes_failed + 1 : 0;
  if (code)
    p->write_error = *error;
  else
    p->write_error.code = 0;
  pthread_mutex_unlock(&p->lock);
  if (first)
    um_error_record(r, error, 0);
}

/* Claimed, but not to be written after all. */
static void put_back(const victim *v) {
  um_gate_enter_wait(v->region);
  um_writeback_finish(v->region, v->page, v->count, -ECANCELED, NULL);
  um_gate_leave(v->region);
}

static uint64_t write_and_drop(um_worker *w, const victim *v) {
  um_region *r = v->region;
  bool evict[RUN_PAGES];
  uint64_t limit = um_run_limit(r, w->staging_size), first = v->page, count = v->count, total = count;
  um_error error = {0};
  memset(evict, 1, count);
  um_gate_enter_wait(r);
  while (total < limit && first > 0 && um_writeback_claim(r, first - 1, 1)) {
    memmove(evict + 1, evict, total);
    evict[0] = false;
    first--;
    total++;
  }
  if (total < limit && first + total < r->page_count) {
    uint64_t more = um_writeback_claim(r, first + total, um_min(limit - total, r->page_count - first - total));
    memset(evict + total, 0, more);
    total += more;
  }
  int code = um_writeback_run(w, r, first, total, &error);
  uint64_t freed = um_writeback_finish(r, first, total, code, evict);
  note_write(r, code, &error);
  um_gate_leave(r);
  return freed;
}

uint64_t um_evict_batch(um_worker *w) {
  um_pager *p = w->pager;
  batch b;
  uint64_t freed;
  b.cleans = b.dirties = b.picked = 0;
  b.bytes = b.claimed = 0;
  b.now = um_now_ns();
  pick(w, &b);
  qsort(b.clean, b.cleans, sizeof *b.clean, by_address);
  qsort(b.dirty, b.dirties, sizeof *b.dirty, by_address);
  b.dirties = merge(b.dirty, b.dirties, w->staging_size);
  freed = drop_clean(p, b.clean, b.cleans);
  for (uint32_t i = 0; i < b.dirties; i++)
    if (um_now_ns() < atomic_load(&b.dirty[i].region->write_backoff_ns)) /* a run before this one failed */
      put_back(&b.dirty[i]);
    else
      freed += write_and_drop(w, &b.dirty[i]);
  settle(p, &b);
  return freed;
}
