/* pool_make.c: memory for chunks, huge pages where that pays.
 *
 * A huge page is read faster and moves in a fifth of the time, and usually costs 0.2 ms. Where the host of a virtual
 * machine takes free memory back (free page reporting) it costs 3 ms, as it is made of what is free longest, while
 * small pages come from memory that was in use a moment ago. So where huge pages prove dear, new chunks are of small
 * pages, and are exchanged one by one: each chunk that is taken saves a little time for it, so that no stream is much
 * slower for what the next ones gain.
 *
 * New memory is made at an address that is not registered (touching a registered one would fault), and moved into an
 * EMPTY chunk. Without UFFDIO_MOVE nothing ever leaves a chunk: they are not registered, and are made where they lie.
 */
#define _GNU_SOURCE
#include "pool_make.h"

#include "mechanism.h"
#include "uffd.h"

#include <sys/mman.h>

#define POPULATE_WRITE 23  /* MADV_POPULATE_WRITE */
#define DEAR_NS 800000u    /* of a huge page */
#define SAVING_NS 80000u   /* for each chunk taken: a third of what reading it takes at the very least */
#define SAVED_MAX 8000000u /* what was never asked for makes nobody pay later */

void um_pool_make_init(um_pool *pool) {
  atomic_store(&pool->dear_ns, DEAR_NS);
  atomic_store(&pool->saving_ns, SAVING_NS);
  pool->fresh_huge = true; /* um_pool_create asked for it */
}

static bool affords_huge(const um_pool *pool) {
  uint64_t cost = atomic_load(&pool->huge_ns);
  return cost < atomic_load(&pool->dear_ns) || atomic_load(&pool->saved_ns) >= um_min(cost, SAVED_MAX);
}

/* fresh_lock held. */
static int populate(um_pager *p, uintptr_t at, bool huge) {
  um_pool *pool = &p->pool;
  if (at == pool->fresh && huge != pool->fresh_huge) {
    madvise((void *)at, UM_CHUNK, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    um_memory_clear_table(at); /* of the small pages before */
    pool->fresh_huge = huge;
  }
  uint64_t began = um_now_ns();
  if (madvise((void *)at, UM_CHUNK, POPULATE_WRITE)) { /* Linux 5.14 */
    if (errno != EINVAL)
      return -errno;
    memset((void *)at, 0, UM_CHUNK);
  }
  if (huge) {
    uint64_t cost = um_now_ns() - began, saved = atomic_load(&pool->saved_ns);
    atomic_store(&pool->huge_ns, cost);
    atomic_store(&pool->saved_ns, saved - um_min(saved, cost));
  } else {
    atomic_fetch_add(&pool->smalls, 1);
  }
  return 0;
}

int um_pool_make(um_pager *p, uint32_t chunk) {
  um_pool *pool = &p->pool;
  bool moves = p->mechanism->moves;
  uintptr_t address = um_pool_address(p, chunk), at = moves ? pool->fresh : address;
  pthread_mutex_lock(&pool->fresh_lock);
  int code = populate(p, at, !moves || affords_huge(pool));
  if (code == 0 && moves) {
    um_memory_clear_table(address);
    code = um_uffd_move(p->uffd, p->pagemap, address, at, UM_CHUNK, NULL);
  }
  if (code) {
    um_pool_drop(p, at, UM_CHUNK);
    um_pool_drop(p, address, UM_CHUNK);
    um_pool_unlock(p); /* one of them may be locked, and the other not: the next try finds them alike */
  }
  pthread_mutex_unlock(&pool->fresh_lock);
  return code;
}

static void save(um_pool *pool) {
  if (atomic_load(&pool->saved_ns) < SAVED_MAX)
    atomic_fetch_add(&pool->saved_ns, atomic_load(&pool->saving_ns));
}

/* Which chunks are of small pages nobody remembers, as memory goes round: the kernel is asked. */
int um_pool_renew(um_pager *p, uint32_t chunk) {
  um_pool *pool = &p->pool;
  if (atomic_load(&pool->smalls) == 0)
    return 0;
  save(pool);
  uintptr_t address = um_pool_address(p, chunk);
  if (!affords_huge(pool) || um_uffd_is_huge(p->pagemap, address))
    return 0;
  atomic_fetch_sub(&pool->smalls, 1);
  um_pool_drop(p, address, UM_CHUNK);
  return um_pool_make(p, chunk);
}
