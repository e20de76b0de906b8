/* collapse.c: huge pages for what stays in memory. A chunk's length of small pages is read a quarter slower than a huge
 * page. New chunks are of small pages where huge ones prove dear (pool_make.c), and those that go round are exchanged
 * in time; what a program reads again and again does not go round. So while memory is not short, idle evictors have the
 * kernel collapse it where it lies (MADV_COLLAPSE, Linux 6.1), a chunk at a time, and rest ten times as long as that
 * took. While it is short they have no time: evictors that fall behind have fillers evict what should stay.
 *
 * Only of regions that are only read: nothing tracks their pages. Only runs that are a chunk, and have been there for
 * some time. It takes 2 MiB more for a moment, which come out of the budget.
 *
 * Race: collapse against whoever drops or moves a page of the run. The kernel collapses all or nothing, under its own
 * locks; evictors leave the run alone meanwhile, it is marked as picked. */
#include "collapse.h"

#include "policy.h"
#include "uffd.h"

#include <sys/mman.h>

#define COLLAPSE 25         /* MADV_COLLAPSE */
#define AGE_NS 300000000u   /* it has been there so long */
#define SHARE 10u           /* of the time one such part is spent so */
#define REST_NS 1000000000u /* after a failure, or when there is nothing to do */
#define LOOK 4096u          /* descriptors looked at for one */
#define KNOWN 64u           /* found to be huge already, a step */

void um_collapse_init(um_pager *p) {
  atomic_store(&p->collapse_age_ns, AGE_NS);
}

bool um_collapse_wanted(const um_region *r) {
  return r->chunks && r->moves && !r->writable;
}

/* frames_lock held. */
static bool may_collapse(um_pager *p, um_frame_id id, uint64_t now) {
  const um_frame *f = &p->frames[id];
  const um_region *r = f->region;
  if (f->queue == 0 || um_policy_in_standby(p->policy, id) || f->picked || atomic_load(&f->collapsed) || !r->collapses)
    return false;
  uint64_t born = atomic_load_explicit(&f->born_ns, memory_order_relaxed);
  return f->count == um_chunk_pages(r) && um_page_address(r, f->page) % UM_CHUNK == 0 &&
         atomic_load(&f->live) == f->count && now > born + atomic_load(&p->collapse_age_ns);
}

/* A run, marked as picked, whose region's gate this thread is inside; UM_NIL: none. */
static um_frame_id pick(um_pager *p) {
  uint64_t now = um_now_ns();
  um_frame_id id = UM_NIL;
  pthread_mutex_lock(&p->frames_lock);
  for (uint32_t looked = 0; looked < LOOK && looked < p->frames_made && id == UM_NIL; looked++) {
    p->collapse_cursor = p->collapse_cursor % p->frames_made + 1;
    um_frame *f = &p->frames[p->collapse_cursor];
    if (may_collapse(p, p->collapse_cursor, now) && um_gate_enter(f->region)) {
      id = p->collapse_cursor;
      f->picked = true;
      atomic_store(&f->collapsed, true);
    }
  }
  pthread_mutex_unlock(&p->frames_lock);
  return id;
}

/* The gate is left. A descriptor that was given back meanwhile, and taken anew, is not marked so. */
static void put(um_pager *p, um_region *r, um_frame_id id) {
  um_frame *f = &p->frames[id];
  pthread_mutex_lock(&p->frames_lock);
  if (f->region == r && atomic_load(&f->collapsed))
    f->picked = false;
  pthread_mutex_unlock(&p->frames_lock);
  um_gate_leave(r);
}

/* False: it cannot be now. */
static bool collapse(um_pager *p, um_region *r, uintptr_t address) {
  if (!um_budget_try(p, UM_CHUNK, 2 * atomic_load(&p->emergency)))
    return false;
  bool done = madvise((void *)address, UM_CHUNK, COLLAPSE) == 0;
  um_budget_release(p, UM_CHUNK);
  UM_COUNT(r, collapsed, done ? um_chunk_pages(r) : 0);
  return done;
}

/* Nanoseconds to rest. */
static uint64_t step(um_pager *p) {
  for (unsigned i = 0; i < KNOWN; i++) {
    um_frame_id id = pick(p);
    if (id == UM_NIL)
      return REST_NS;
    um_region *r = p->frames[id].region;
    uintptr_t address = um_page_address(r, p->frames[id].page);
    uint64_t began = um_now_ns();
    bool was = um_uffd_is_huge(p->pagemap, address), done = was || collapse(p, r, address);
    put(p, r, id);
    if (!was)
      return done ? SHARE * (um_now_ns() - began) : REST_NS;
  }
  return 0;
}

uint64_t um_collapse_step(um_worker *w) {
  um_pager *p = w->pager;
  uint64_t now = um_now_ns(), freed = atomic_load(&p->freed);
  if (p->collapsing)
    return REST_NS;
  if (now < p->collapse_rest_ns)
    return p->collapse_rest_ns - now;
  if (freed != p->collapse_freed) { /* memory is short, or was a moment ago */
    p->collapse_freed = freed;
    p->collapse_rest_ns = now + REST_NS;
    return REST_NS;
  }
  p->collapsing = true;
  pthread_mutex_unlock(&p->lock);
  uint64_t rest = step(p);
  pthread_mutex_lock(&p->lock);
  p->collapsing = false;
  p->collapse_rest_ns = um_now_ns() + rest;
  return 0;
}
