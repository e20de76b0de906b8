/* clean.c: writing dirty pages back ahead of need, where a store's writes compute (store->computes): evictors that
 * would be idle compress while the program writes, and a flush, or an eviction, finds less to do.
 *
 * A run is cleaned by moving it out, as for eviction, and waits on standby: so a page that a device has pinned stays
 * dirty, which an in-place copy could not promise. Phases:
 *
 *   1. find: runs that have been dirty for UM_CLEAN_AGE_NS, all of their pages; DIRTY -> LEAVING
 *   2. move out and write (leave.c), LEAVING -> STANDBY; a store that fails leaves them DIRTY, tells nobody (a flush
 *      will), and is let alone for a while
 *   3. settle: what could not be moved is listed anew (evict.c)
 *
 * Who writes to a page again before its next flush made the work vain. Where that is often, cleaning rests.
 *
 * Race: clean against fault. LEAVING: the fault waits for the end of the write, which is why a step takes few runs;
 * then the page is taken back from standby. Race: clean against flush. The flush waits for what is LEAVING, and finds
 * the store unflushed. Race: clean against close. Pages LEAVING keep the gate from closing. */
#include "clean.h"

#include "blocks.h"
#include "leave.h"
#include "page.h"
#include "policy.h"
#include "pool.h"

#define STEP 4u                 /* runs, ... */
#define STEP_BYTES (256u << 10) /* ... until they have so many: who touches one waits for it */
#define AGE_BYTES (64u << 10)   /* UM_CLEAN_AGE_NS is for so many */
#define SPANS_LOOKED_AT 65536   /* of a region, a step */
#define FLOOR 128u              /* 1 / so much of the memory may be dirty */
#define TRIAL 64u               /* runs cleaned before it is asked whether that is of use */
#define REST_NS 200000000u      /* where there is nothing to be had */
#define YOUNG_NS 2000000u       /* until those that are too young are looked at again */
#define WORTH 4u                /* one in so many may be vain */

bool um_clean_wanted(const um_region *r) {
  return r->store->computes && r->writable && r->moves && !um_blocks_tracked(r);
}

static uint64_t floor_of(const um_pager *p) {
  return p->memory / FLOOR;
}

void um_clean_ask(um_region *r) {
  um_pager *p = r->pager;
  if (!r->cleans || atomic_load(&p->clean_asked) || atomic_load(&r->dirty) < floor_of(p) ||
      atomic_exchange(&p->clean_asked, true))
    return;
  pthread_mutex_lock(&p->lock);
  pthread_cond_signal(&p->evict_work);
  pthread_mutex_unlock(&p->lock);
}

static uint32_t epoch(const um_region *r) { /* changes with each flush; never 0 */
  return (uint32_t)atomic_load_explicit(&r->counters.store_flushes, memory_order_relaxed) | 0x80000000u;
}

void um_clean_written_again(um_region *r, um_frame *f) {
  uint32_t cleaned = atomic_load_explicit(&f->cleaned, memory_order_relaxed);
  if (cleaned == 0)
    return;
  atomic_store_explicit(&f->cleaned, 0, memory_order_relaxed);
  if (cleaned != epoch(r))
    return;
  atomic_fetch_add(&r->pager->clean_vain, 1);
  UM_COUNT(r, cleaned_wasted, f->count);
}

/* Runs of a region that are to be cleaned. */
typedef struct finding {
  um_region *region;
  uint64_t now;
  um_leaving runs[STEP];
  uint32_t count;
  uint64_t bytes;
  bool young; /* some were, that are to be cleaned soon */
  bool all;   /* all of the region was looked at */
} finding;

/* frames_lock held. */
static bool is_worth(um_pager *p) {
  uint32_t vain = atomic_load(&p->clean_vain);
  bool worth = p->clean_tried < TRIAL || (uint64_t)vain * WORTH < p->clean_tried;
  if (!worth || p->clean_tried >= 16 * TRIAL) { /* what is long ago counts less */
    p->clean_tried /= 2;
    atomic_fetch_sub(&p->clean_vain, vain - vain / 2);
  }
  return worth;
}

static bool is_chunk(const um_region *r, const um_frame *f) {
  return r->chunks && um_run_is_chunk(r, f->page, f->count);
}

/* frames_lock held. */
static bool may_clean(um_region *r, um_frame_id id) {
  um_pager *p = r->pager;
  const um_frame *f = &p->frames[id];
  return !f->picked && f->queue != 0 && !um_policy_in_standby(p->policy, id) && um_policy_keeps(p->policy, id) &&
         atomic_load(&f->live) == f->count &&
         (is_chunk(r, f) || um_pool_slot(p, id, um_run_memory(r, f->page, f->count)));
}

/* frames_lock held, inside the gate. All of a run or nothing. */
static bool take_run(um_region *r, um_frame_id id, um_leaving *v) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id];
  for (uint64_t page = f->page; page < f->page + f->count; page++)
    if (um_word_state(um_page_load(r, page)) != UM_DIRTY)
      return false;
  uint64_t n = um_run_take(r, f->page, f->count, UM_IN(UM_DIRTY), id, UM_LEAVING);
  if (n < f->count) { /* an ioctl of the leader's, or a flush was first */
    if (n && (um_run_release(r, f->page, n, UM_DIRTY) & UM_WAITER))
      um_page_wake(r, f->page, n);
    return false;
  }
  um_policy_standby(p->policy, id);
  f->picked = true;
  p->clean_tried++;
  atomic_store_explicit(&f->cleaned, epoch(r), memory_order_relaxed);
  *v = (um_leaving){.region = r, .page = f->page, .count = n, .frame = id, .dirty = true};
  return true;
}

/* Who writes it in order, and not fast, is to be done with all of it. */
static uint64_t age_of(const um_region *r, const um_frame *f) {
  return UM_CLEAN_AGE_NS * um_max(1, ((uint64_t)f->count << r->page_shift) / AGE_BYTES);
}

/* Inside the gate. Takes the run of a page that was dirty a moment ago, if it is to be cleaned; the page to go on from.
 */
static uint64_t look_at(finding *f, uint64_t page) {
  um_region *r = f->region;
  um_pager *p = r->pager;
  pthread_mutex_lock(&p->frames_lock);
  um_frame_id id = um_word_frame(um_page_load(r, page));
  const um_frame *run = &p->frames[id];
  uint64_t next = page + 1;
  if (id != UM_NIL && run->region == r && page - run->page < run->count) {
    next = run->page + run->count;
    uint64_t born = atomic_load_explicit(&run->born_ns, memory_order_relaxed);
    bool young = f->now < born + age_of(r, run);
    bool may = may_clean(r, id);
    f->young |= may && young;
    if (may && !young && f->count > 0 && is_chunk(r, run)) { /* it leaves by itself */
      f->bytes = STEP_BYTES;
      next = page;
    } else if (may && !young && take_run(r, id, &f->runs[f->count])) {
      f->count++;
      f->bytes += (uint64_t)run->count << r->page_shift;
    }
  }
  pthread_mutex_unlock(&p->frames_lock);
  return next;
}

static bool is_full(const finding *f) {
  return f->count == STEP || f->bytes >= STEP_BYTES;
}

/* Phase 1, inside the gate. */
static void find(finding *f) {
  um_region *r = f->region;
  uint64_t page = atomic_load(&r->clean_cursor), seen = 0;
  for (uint32_t looked = 0; seen < r->page_count && looked < SPANS_LOOKED_AT && !is_full(f); looked++) {
    uint64_t span = um_words_span(r, page), from = page;
    uint64_t end = um_min(r->page_count, um_max(um_words_span_page(r, span + 1), page + 1));
    if (atomic_load(&r->spans[span].dirty) == 0)
      page = end;
    while (page < end && !is_full(f))
      page = um_word_state(um_page_load(r, page)) == UM_DIRTY ? look_at(f, page) : page + 1;
    seen += page - from;
    page = page < r->page_count ? page : 0;
  }
  f->all = seen >= r->page_count;
  atomic_store(&r->clean_cursor, page);
}

/* Inside its gate, the next region that has enough to clean; NULL: none has. */
static um_region *enter_next(um_pager *p) {
  uint64_t now = um_now_ns();
  um_region *found = NULL;
  pthread_mutex_lock(&p->regions_lock);
  for (uint32_t i = 0; i < p->region_count && !found; i++) {
    um_region *r = p->regions[p->clean_turn++ % p->region_count];
    if (r->cleans && atomic_load(&r->dirty) >= floor_of(p) && now >= atomic_load(&r->write_backoff_ns) &&
        um_gate_enter(r))
      found = r;
  }
  pthread_mutex_unlock(&p->regions_lock);
  return found;
}

/* Nanoseconds to rest; 0: there may be more. */
static uint64_t clean(um_worker *w) {
  um_pager *p = w->pager;
  um_error errors[STEP];
  um_frame_id ids[STEP];
  finding f = {.now = um_now_ns()};
  bool failed = false;
  pthread_mutex_lock(&p->frames_lock);
  bool worth = is_worth(p);
  pthread_mutex_unlock(&p->frames_lock);
  if (!worth)
    return REST_NS;
  f.region = enter_next(p);
  if (!f.region) {
    atomic_store(&p->clean_asked, false);
    return 0;
  }
  find(&f);
  um_gate_leave(f.region); /* from here on LEAVING pages keep it from being closed */
  if (f.count == 0)
    return f.all && !f.young ? REST_NS : YOUNG_NS; /* all that is dirty cannot be moved, or is somebody else's */
  for (uint32_t i = 0; i < f.count; i++) {
    f.runs[i].error = &errors[i];
    ids[i] = f.runs[i].frame;
  }
  um_leave_group(p, w, f.runs, f.count);
  um_evict_settle(p, ids, f.count);
  for (uint32_t i = 0; i < f.count; i++)
    failed |= f.runs[i].failed != 0;
  return failed ? REST_NS : 0;
}

uint64_t um_clean_step(um_worker *w) {
  um_pager *p = w->pager;
  uint64_t now = um_now_ns();
  if (!atomic_load(&p->clean_asked) || p->cleaners >= um_max(1, p->evictor_count / 2))
    return UINT64_MAX;
  if (now < p->clean_rest_ns)
    return p->clean_rest_ns - now;
  p->cleaners++;
  pthread_mutex_unlock(&p->lock);
  uint64_t rest = clean(w);
  pthread_mutex_lock(&p->lock);
  p->cleaners--;
  p->clean_rest_ns = rest ? um_now_ns() + rest : 0;
  return 0;
}
