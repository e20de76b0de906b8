/* collapse.c: huge pages for what stays in memory. A chunk's length of small pages is read a quarter slower than a huge
 * page. New chunks are of small pages where huge ones prove dear (pool_make.c), and those that go round are exchanged
 * in time; what a program reads again and again does not go round. So idle evictors look for such runs, one at a time,
 * and rest ten times as long as each took. While memory is not short the kernel collapses a run where it lies
 * (MADV_COLLAPSE, Linux 6.1); that takes 2 MiB more for a moment, out of the budget, and some milliseconds, in which
 * evictors that are needed would fall behind. While it is short a run gets an unused huge page instead (exchange.c), if
 * it proved to be used again: what just passes through is not worth a copy.
 *
 * Only of regions that are only read: nothing tracks their pages. Only runs that are a chunk, and have been there for
 * some time.
 *
 * Race: collapse against whoever drops or moves a page of the run. The kernel collapses all or nothing, under its own
 * locks; evictors leave the run alone meanwhile, it is marked as picked. */
#include "collapse.h"

#include "exchange.h"
#include "policy.h"
#include "uffd.h"

#include <sys/mman.h>

#define COLLAPSE 25              /* MADV_COLLAPSE */
#define AGE_NS 300000000u        /* it has been there so long, and a quarter of it where it is proven */
#define SHORT_NS 1000000000u     /* memory is short so long after some was given back */
#define SHARE 10u                /* of the time one such part is spent so */
#define REST_NS 300000000u       /* after a failure, or when there is nothing to do */
#define SHORT_REST_NS 100000000u /* when nothing is proven */
#define AGAIN_NS 1000000u        /* when no huge page is unused, and twice as long each time */
#define AGAIN_MAX_NS 16000000u
#define LOOK 4096u /* descriptors looked at for one */
#define KNOWN 64u  /* found to be huge already, a step */

void um_collapse_init(um_pager *p) {
  atomic_store(&p->collapse_age_ns, AGE_NS);
  p->collapse_again_ns = AGAIN_NS;
}

bool um_collapse_wanted(const um_region *r) {
  return r->chunks && r->moves && !r->writable;
}

/* frames_lock held. */
static bool may_collapse(um_pager *p, um_frame_id id, bool is_short, uint64_t now) {
  const um_frame *f = &p->frames[id];
  const um_region *r = f->region;
  if (f->queue == 0 || um_policy_in_standby(p->policy, id) || f->picked || atomic_load(&f->collapsed) ||
      !r->collapses || (is_short && !um_policy_is_proven(p->policy, id)))
    return false;
  uint64_t born = atomic_load_explicit(&f->born_ns, memory_order_relaxed);
  return um_run_is_chunk(r, f->page, f->count) && um_page_address(r, f->page) % UM_CHUNK == 0 &&
         atomic_load(&f->live) == f->count && now > born + atomic_load(&p->collapse_age_ns) / (is_short ? 4 : 1);
}

/* A run, marked as picked, whose region's gate this thread is inside; false: none.
 *
 * Race: collapse against eviction by name, which takes picked runs, too. The descriptor may be somebody else's then. */
static bool pick(um_pager *p, bool is_short, um_stay *stay) {
  uint64_t now = um_now_ns();
  bool found = false;
  pthread_mutex_lock(&p->frames_lock);
  for (uint32_t looked = 0; looked < LOOK && looked < p->frames_made && !found; looked++) {
    p->collapse_cursor = p->collapse_cursor % p->frames_made + 1;
    um_frame *f = &p->frames[p->collapse_cursor];
    if (may_collapse(p, p->collapse_cursor, is_short, now) && um_gate_enter(f->region)) {
      *stay = (um_stay){.region = f->region, .first = f->page, .count = f->count, .frame = p->collapse_cursor};
      f->picked = true;
      atomic_store(&f->collapsed, true);
      found = true;
    }
  }
  pthread_mutex_unlock(&p->frames_lock);
  return found;
}

enum outcome { DONE, LATER, NEXT }; /* to be looked at again: not, some time, by the next look */

/* The gate is left. A descriptor that was given back meanwhile, and taken anew, is not marked so. */
static void put(um_pager *p, const um_stay *stay, enum outcome outcome) {
  um_frame *f = &p->frames[stay->frame];
  pthread_mutex_lock(&p->frames_lock);
  if (f->region == stay->region && atomic_load(&f->collapsed)) {
    f->picked = false;
    atomic_store(&f->collapsed, outcome == DONE);
  }
  if (outcome == NEXT)
    p->collapse_cursor = stay->frame - 1;
  pthread_mutex_unlock(&p->frames_lock);
  um_gate_leave(stay->region);
}

static int collapse(um_pager *p, um_region *r, uintptr_t address) {
  if (!um_budget_try(p, UM_CHUNK, 2 * atomic_load(&p->emergency)))
    return -ENOMEM;
  int code = madvise((void *)address, UM_CHUNK, COLLAPSE) ? -errno : 0;
  um_budget_release(p, UM_CHUNK);
  UM_COUNT(r, collapsed, code ? 0 : um_chunk_pages(r));
  return code;
}

/* Nanoseconds to rest. */
static uint64_t step(um_pager *p, bool is_short) {
  for (unsigned i = 0; i < KNOWN; i++) {
    um_stay stay;
    if (!pick(p, is_short, &stay))
      return is_short ? SHORT_REST_NS : REST_NS;
    uintptr_t address = um_page_address(stay.region, stay.first);
    bool was = um_uffd_is_huge(p->pagemap, address);
    uint64_t began = um_now_ns();
    int code = was ? 0 : is_short ? um_exchange(p, &stay) : collapse(p, stay.region, address);
    bool none = is_short && code == -EAGAIN, passing = code == -ENOMEM || code == -EAGAIN || code == -EBUSY;
    put(p, &stay, none ? NEXT : passing ? LATER : DONE);
    if (none)
      return p->collapse_again_ns = um_min(2 * p->collapse_again_ns, AGAIN_MAX_NS);
    p->collapse_again_ns = AGAIN_NS;
    if (!was)
      return code == 0 ? SHARE * (um_now_ns() - began) : REST_NS;
  }
  return 0;
}

uint64_t um_collapse_step(um_worker *w) {
  um_pager *p = w->pager;
  uint64_t now = um_now_ns(), freed = atomic_load(&p->freed);
  if (freed != p->collapse_freed) {
    p->collapse_freed = freed;
    p->collapse_short_ns = now + SHORT_NS;
  }
  if (p->collapsing)
    return REST_NS;
  if (now < p->collapse_rest_ns)
    return p->collapse_rest_ns - now;
  bool is_short = now < p->collapse_short_ns;
  p->collapsing = true;
  pthread_mutex_unlock(&p->lock);
  uint64_t rest = step(p, is_short);
  pthread_mutex_lock(&p->lock);
  p->collapsing = false;
  p->collapse_rest_ns = um_now_ns() + rest;
  return 0;
}
