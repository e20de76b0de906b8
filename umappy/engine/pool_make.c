/* pool_make.c: memory for chunks, huge pages where that pays.
 *
 * A huge page is read faster and moves in a fifth of the time, and usually costs 0.2 ms. Where the host of a virtual
 * machine takes free memory back (free page reporting) it costs 3 ms, as it is made of what is free longest, while
 * small pages come from memory that was in use a moment ago. So where huge pages prove dear, new chunks are of small
 * pages, and are exchanged one by one when they are to be used again, by a filler that has nothing else to do: each
 * chunk that is taken saves a little time for it, so that no stream is much slower for what the next ones gain. Huge
 * pages are taken first, so what goes round soon is huge.
 *
 * New memory is made at addresses that are not registered (touching a registered one would fault), and moved into an
 * EMPTY chunk. Without UFFDIO_MOVE nothing ever leaves a chunk: they are not registered, and are made where they lie.
 */
#define _GNU_SOURCE
#include "pool_make.h"

#include "mechanism.h"
#include "uffd.h"

#include <sys/mman.h>

#define POPULATE_WRITE 23   /* MADV_POPULATE_WRITE */
#define DEAR_NS 800000u     /* of a huge page */
#define SAVING_NS 160000u   /* for each chunk taken: two thirds of what reading it takes at the very least */
#define NONE_NS 3000000000u /* when the kernel has no huge page */
#define SAVED_MAX 8000000u  /* what was never asked for makes nobody pay later */

void um_pool_make_init(um_pool *pool, uintptr_t fresh) {
  atomic_store(&pool->dear_ns, DEAR_NS);
  atomic_store(&pool->saving_ns, SAVING_NS);
  for (um_fresh *f = pool->fresh; f < pool->fresh + UM_FRESH; f++, fresh += UM_CHUNK) {
    pthread_mutex_init(&f->lock, NULL);
    f->address = fresh;
    f->huge = true;
  }
}

static int populate(um_pool *pool, uintptr_t at, bool huge) {
  uint64_t began = um_now_ns();
  if (madvise((void *)at, UM_CHUNK, POPULATE_WRITE)) { /* Linux 5.14 */
    if (errno != EINVAL)
      return -errno;
    memset((void *)at, 0, UM_CHUNK);
  }
  if (huge)
    atomic_store(&pool->huge_ns, um_now_ns() - began);
  return 0;
}

/* One that nobody is at, or each in its turn. */
static um_fresh *take_fresh(um_pool *pool) {
  um_fresh *next = &pool->fresh[atomic_fetch_add(&pool->fresh_next, 1) % UM_FRESH];
  for (um_fresh *f = pool->fresh; f < pool->fresh + UM_FRESH; f++)
    if (pthread_mutex_trylock(&f->lock) == 0)
      return f;
  pthread_mutex_lock(&next->lock);
  return next;
}

static int make_and_move(um_pager *p, uintptr_t address, bool huge) {
  um_fresh *f = take_fresh(&p->pool);
  if (huge != f->huge) {
    madvise((void *)f->address, UM_CHUNK, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    um_memory_clear_table(f->address); /* of the small pages before */
    f->huge = huge;
  }
  int code = populate(&p->pool, f->address, huge);
  if (code == 0) {
    um_memory_clear_table(address);
    code = um_uffd_move(p->uffd, p->pagemap, address, f->address, UM_CHUNK, NULL);
  }
  if (code)
    um_pool_drop(p, f->address, UM_CHUNK);
  pthread_mutex_unlock(&f->lock);
  return code;
}

static int make(um_pager *p, uint32_t chunk, bool huge) {
  uintptr_t address = um_pool_address(p, chunk);
  int code = p->mechanism->moves ? make_and_move(p, address, huge) : populate(&p->pool, address, huge);
  if (code) {
    um_pool_drop(p, address, UM_CHUNK);
    um_pool_unlock(p); /* one of them may be locked, and the other not: the next try finds them alike */
  }
  return code;
}

static bool is_cheap(const um_pool *pool) {
  return atomic_load(&pool->huge_ns) < atomic_load(&pool->dear_ns);
}

void um_pool_save(um_pool *pool) {
  if (atomic_load(&pool->saved_ns) < SAVED_MAX)
    atomic_fetch_add(&pool->saved_ns, atomic_load(&pool->saving_ns));
}

static bool spend(um_pool *pool) {
  uint64_t cost = um_min(atomic_load(&pool->huge_ns), SAVED_MAX), saved = atomic_load(&pool->saved_ns);
  do {
    if (saved < cost)
      return false;
  } while (!atomic_compare_exchange_weak(&pool->saved_ns, &saved, saved - cost));
  return true;
}

int um_pool_make(um_pager *p, uint32_t chunk) {
  return make(p, chunk, !p->mechanism->moves || is_cheap(&p->pool) || spend(&p->pool));
}

/* 0: it failed, and the chunk is EMPTY. */
static uint32_t make_huge(um_pager *p, uint32_t chunk) {
  uintptr_t address = um_pool_address(p, chunk);
  um_pool_drop(p, address, UM_CHUNK);
  if (make(p, chunk, true)) {
    um_pool_put_empty(p, chunk);
    um_budget_release(p, UM_CHUNK);
    return 0;
  }
  if (!um_uffd_is_huge(p->pagemap, address))
    atomic_store(&p->pool.none_ns, um_now_ns() + NONE_NS);
  return chunk;
}

/* Where fillers are many one soon has nothing to do; it counts as idle meanwhile. Race: two leave one each. The second
 * keeps its own. */
static bool leave_to_filler(um_pager *p, uint32_t chunk) {
  um_pool *pool = &p->pool;
  if (p->filler_count < UM_MANY_FILLERS || !atomic_compare_exchange_strong(&pool->left, &(uint32_t){0}, chunk))
    return false;
  atomic_fetch_add(&pool->idle, UM_CHUNK);
  pthread_mutex_lock(&p->lock);
  um_work_post(p);
  pthread_mutex_unlock(&p->lock);
  return true;
}

uint32_t um_pool_renew(um_pager *p, uint32_t chunk) {
  um_pool *pool = &p->pool;
  if (um_now_ns() < atomic_load(&pool->none_ns))
    return chunk;
  if (is_cheap(pool))
    return make_huge(p, chunk);
  if (atomic_load(&pool->left) || !spend(pool))
    return chunk;
  return leave_to_filler(p, chunk) ? 0 : make_huge(p, chunk);
}

bool um_pool_renew_step(um_pager *p) {
  um_pool *pool = &p->pool;
  uint32_t chunk = atomic_exchange(&pool->left, 0);
  if (!chunk)
    return false;
  pthread_mutex_unlock(&p->lock);
  if (make_huge(p, chunk))
    um_pool_list(p, chunk);
  else
    atomic_fetch_sub(&pool->idle, UM_CHUNK);
  um_memory_freed(p);
  pthread_mutex_lock(&p->lock);
  return true;
}
