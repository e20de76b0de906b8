/* evict.c: giving memory back.
 *
 * The eviction list is a FIFO over resident pages; a page that gets its first write goes on as it stands, one that was
 * written to while it was being written back starts anew. Phases of a batch:
 *   1  pick: from the old end, pages past their grace; clean ones become EVICTING, dirty ones WRITING
 *   2  sort by address
 *   3  drop the clean ones, a run of neighbours by one call: memory comes free at once
 *   4  write the dirty ones, taking dirty neighbours along, then drop those that stayed clean */
#include "mechanism.h"
#include "page.h"

#define BATCH 64
#define LOOK 256     /* list entries looked at for a batch */
#define CLAIM_RUNS 4 /* runs claimed at once: what is WRITING can neither leave nor be written by a flush */
#define RUN_PAGES (UM_STAGING_MAX / UM_PAGE_SIZE_MIN)

typedef struct victim {
  um_region *region;
  uint64_t page;
} victim;

void um_evict_ask(um_pager *p) {
  if (atomic_load(&p->evict_asked) || atomic_exchange(&p->evict_asked, true))
    return;
  pthread_mutex_lock(&p->lock);
  pthread_cond_broadcast(&p->evict_work);
  pthread_mutex_unlock(&p->lock);
}

/* The pages are EVICTING and the caller's. */
uint64_t um_evict_drop(um_region *r, uint64_t first, uint64_t count) {
  um_pager *p = r->pager;
  uint64_t memory = um_run_memory(r, first, count);
  p->mechanism->drop(r, um_page_address(r, first), memory);
  for (uint64_t page = first; page < first + count; page++)
    um_page_absent(r, page);
  UM_COUNT(r, evictions, count);
  atomic_fetch_add(&p->freed, memory);
  um_budget_release(p, memory);
  return memory;
}

/* frames_lock held. Takes a clean or failed page off the list, inside its region's gate; false: not this one. */
static bool take_clean(um_pager *p, um_frame_id id) {
  um_frame *f = &p->frames[id];
  um_region *r = f->region;
  if (!um_gate_enter(r))
    return false;
  um_word w = um_page_load(r, f->page);
  enum um_state state = um_word_state(w);
  if ((state == UM_CLEAN || state == UM_FAILED) && !(w & UM_BUSY) && um_word_frame(w) == id &&
      um_page_change(r, f->page, &w, um_word_make(UM_EVICTING, 0, id))) {
    um_frame_unlink(p, id);
    return true;
  }
  um_gate_leave(r);
  return false;
}

/* For a filler that found no memory: it does not wait behind write-back. */
bool um_evict_one_clean(um_pager *p) {
  uint64_t now = um_now_ns();
  pthread_mutex_lock(&p->frames_lock);
  um_frame_id id = p->list_head;
  for (int looked = 0; id != UM_NIL && looked < BATCH; looked++, id = p->frames[id].next) {
    um_region *r = p->frames[id].region;
    uint64_t page = p->frames[id].page;
    if (!um_frame_aged(p, &p->frames[id], now) || !take_clean(p, id))
      continue;
    pthread_mutex_unlock(&p->frames_lock);
    um_evict_drop(r, page, 1);
    um_gate_leave(r);
    return true;
  }
  pthread_mutex_unlock(&p->frames_lock);
  return false;
}

/* frames_lock held. WRITING keeps the gate from closing, so the gate can be left until the write. A dirty page whose
 * store is failing goes to the young end, or clean pages behind it would never be looked at. */
static bool take_dirty(um_pager *p, um_frame_id id, uint64_t now) {
  um_frame *f = &p->frames[id];
  um_region *r = f->region;
  if (!um_gate_enter(r))
    return false;
  um_word w = um_page_load(r, f->page);
  bool dirty = um_word_state(w) == UM_DIRTY && !(w & UM_BUSY) && um_word_frame(w) == id, took = false;
  if (dirty && now < atomic_load(&r->write_backoff_ns))
    um_frame_relist(p, id);
  else if (dirty)
    took = um_page_change(r, f->page, &w, um_word_make(UM_WRITING, UM_COPYING, id));
  if (took)
    um_frame_unlink(p, id);
  um_gate_leave(r);
  return took;
}

static int by_address(const void *a, const void *b) {
  const victim *x = a, *y = b;
  uintptr_t left = um_page_address(x->region, x->page), right = um_page_address(y->region, y->page);
  return left < right ? -1 : left > right;
}

/* How many of the victims from `v` on are neighbours that fit one run. */
static uint64_t neighbours(const victim *v, uint64_t left, uint64_t limit) {
  uint64_t n = 1;
  while (n < left && n < limit && v[n].region == v->region && v[n].page == v->page + n)
    n++;
  return n;
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
static void put_back(const victim *v, uint64_t count) {
  bool evict[BATCH];
  memset(evict, 1, count);
  um_gate_enter_wait(v->region);
  um_writeback_finish(v->region, v->page, count, -ECANCELED, evict);
  um_gate_leave(v->region);
}

static uint64_t write_and_drop(um_worker *w, const victim *v, uint64_t count) {
  um_region *r = v->region;
  bool evict[RUN_PAGES];
  uint64_t limit = um_max(1, w->staging_size >> r->page_shift), first = v->page, total = count;
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
  victim clean[BATCH], dirty[BATCH];
  uint64_t cleans = 0, dirties = 0, picked = 0, claimed = 0, freed = 0, now = um_now_ns(), target = um_budget_short(p);

  pthread_mutex_lock(&p->frames_lock);
  um_frame_id id = p->list_head, next;
  for (int looked = 0; id != UM_NIL && looked < LOOK && picked < target; looked++, id = next) {
    um_frame *f = &p->frames[id];
    next = f->next;
    if (!um_frame_aged(p, f, now))
      continue;
    victim v = {f->region, f->page};
    if (cleans < BATCH && take_clean(p, id)) {
      clean[cleans++] = v;
    } else if (dirties < BATCH && claimed < CLAIM_RUNS * w->staging_size && take_dirty(p, id, now)) {
      dirty[dirties++] = v;
      claimed += v.region->page_size;
    } else {
      continue;
    }
    picked += v.region->page_size;
  }
  pthread_mutex_unlock(&p->frames_lock);

  qsort(clean, cleans, sizeof *clean, by_address);
  qsort(dirty, dirties, sizeof *dirty, by_address);

  for (uint64_t i = 0, n; i < cleans; i += n) {
    n = neighbours(clean + i, cleans - i, cleans - i);
    um_region *r = clean[i].region;
    freed += um_evict_drop(r, clean[i].page, n);
    for (uint64_t k = 0; k < n; k++)
      um_gate_leave(r);
  }
  for (uint64_t i = 0, n; i < dirties; i += n) {
    um_region *r = dirty[i].region;
    n = neighbours(dirty + i, dirties - i, um_max(1, w->staging_size >> r->page_shift));
    if (um_now_ns() < atomic_load(&r->write_backoff_ns)) /* a run before this one failed */
      put_back(dirty + i, n);
    else
      freed += write_and_drop(w, dirty + i, n);
  }
  return freed;
}
