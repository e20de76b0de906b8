/* pool.c: the chunks' lists, and where their memory comes from; see pool.h.
 *
 * New memory is made at an address that is not registered (touching a registered one would fault), as a huge page, and
 * moved into an EMPTY chunk. Without UFFDIO_MOVE nothing ever leaves a chunk: they are not registered, and are made
 * where they lie. */
#define _GNU_SOURCE
#include "pool.h"

#include "mechanism.h"
#include "shelf.h"
#include "uffd.h"

#include <sys/mman.h>

#define CHUNKS_MIN 16     /* addresses: pages leave through chunks under every budget */
#define POPULATE_WRITE 23 /* MADV_POPULATE_WRITE */

uintptr_t um_pool_address(const um_pager *p, uint32_t chunk) {
  return p->pool.address + (uint64_t)(chunk - 1) * UM_CHUNK;
}

static uintptr_t map(uint64_t bytes, void **mapping) {
  *mapping = um_memory_map(bytes + UM_CHUNK);
  if (!*mapping)
    return 0;
  uintptr_t address = um_round_up((uintptr_t)*mapping, UM_CHUNK);
  madvise((void *)address, bytes, MADV_HUGEPAGE);
  return address;
}

int um_pool_create(um_pager *p) {
  um_pool *pool = &p->pool;
  pthread_mutex_init(&pool->lock, NULL);
  pthread_mutex_init(&pool->fresh_lock, NULL);
  uint64_t most = um_max(CHUNKS_MIN, p->memory / UM_CHUNK);
  pool->mapped = most * UM_CHUNK;
  pool->next = calloc(most + 1, sizeof *pool->next);
  pool->address = map(pool->mapped, &pool->mapping);
  pool->fresh = map(UM_CHUNK, &pool->fresh_mapping);
  pool->users = calloc(most + 1, sizeof *pool->users);
  if (!pool->next || !pool->users || !pool->mapping || !pool->fresh_mapping)
    return -ENOMEM;
  if (p->mechanism->moves) {
    int code = um_uffd_register(p->uffd, pool->address, pool->mapped);
    if (code)
      return code;
  }
  pool->count = (uint32_t)most;
  for (uint32_t i = pool->count; i > 0; i--) {
    pool->next[i] = pool->empty;
    pool->empty = i;
  }
  um_budget_charge(p, (most + 1) * (sizeof *pool->next + sizeof *pool->users));
  return 0;
}

void um_pool_destroy(um_pager *p) {
  um_memory_unmap(p->pool.mapping, p->pool.mapped + UM_CHUNK);
  um_memory_unmap(p->pool.fresh_mapping, 2ull * UM_CHUNK);
  free(p->pool.next);
  free(p->pool.users);
}

static uint32_t pop(um_pool *pool, _Atomic uint32_t *list) {
  if (atomic_load_explicit(list, memory_order_relaxed) == 0)
    return 0; /* a hint */
  pthread_mutex_lock(&pool->lock);
  uint32_t chunk = atomic_load(list);
  if (chunk)
    atomic_store(list, pool->next[chunk]);
  pthread_mutex_unlock(&pool->lock);
  return chunk;
}

static void push(um_pool *pool, _Atomic uint32_t *list, uint32_t chunk) {
  pthread_mutex_lock(&pool->lock);
  pool->next[chunk] = atomic_load(list);
  atomic_store(list, chunk);
  pthread_mutex_unlock(&pool->lock);
}

uint32_t um_pool_take_empty(um_pager *p) {
  return pop(&p->pool, &p->pool.empty);
}

void um_pool_put_empty(um_pager *p, uint32_t chunk) {
  push(&p->pool, &p->pool.empty, chunk);
}

void um_pool_put_full(um_pager *p, uint32_t chunk) {
  atomic_fetch_add(&p->pool.idle, UM_CHUNK);
  push(&p->pool, &p->pool.full, chunk);
}

uint32_t um_pool_take_idle(um_pager *p) {
  uint32_t chunk = pop(&p->pool, &p->pool.full);
  if (chunk)
    atomic_fetch_sub(&p->pool.idle, UM_CHUNK);
  return chunk;
}

/* Makes memory behind an EMPTY chunk; it is reserved already. */
static int make(um_pager *p, uint32_t chunk) {
  um_pool *pool = &p->pool;
  uintptr_t address = um_pool_address(p, chunk), at = p->mechanism->moves ? pool->fresh : address;
  int code = 0;
  pthread_mutex_lock(&pool->fresh_lock);
  if (madvise((void *)at, UM_CHUNK, POPULATE_WRITE)) { /* Linux 5.14 */
    if (errno == EINVAL)
      memset((void *)at, 0, UM_CHUNK);
    else
      code = -errno;
  }
  if (code == 0 && at != address)
    code = um_uffd_move(p->uffd, address, at, UM_CHUNK, NULL);
  if (code) {
    um_pool_drop(p, at, UM_CHUNK);
    um_pool_drop(p, address, UM_CHUNK);
    um_pool_unlock(p); /* one of them may be locked, and the other not: the next try finds them alike */
  }
  pthread_mutex_unlock(&pool->fresh_lock);
  return code;
}

uint32_t um_pool_take_new(um_pager *p) {
  if (!um_budget_try(p, UM_CHUNK, atomic_load(&p->emergency)))
    return 0;
  uint32_t chunk = um_pool_take_empty(p);
  if (chunk && make(p, chunk) == 0)
    return chunk;
  if (chunk)
    um_pool_put_empty(p, chunk);
  um_budget_release(p, UM_CHUNK);
  return 0;
}

uint32_t um_pool_take_full(um_pager *p) {
  uint32_t chunk = um_pool_take_idle(p);
  if (!chunk)
    chunk = um_pool_take_new(p);
  return chunk ? chunk : um_shelf_take_oldest(p);
}

void um_pool_unlock(um_pager *p) {
  munlock((void *)p->pool.address, p->pool.mapped);
  munlock((void *)p->pool.fresh, UM_CHUNK);
}

/* EINVAL: the user locked it. */
void um_pool_drop(um_pager *p, uintptr_t address, uint64_t length) {
  if (madvise((void *)address, length, MADV_DONTNEED) == 0 || errno != EINVAL)
    return;
  um_pool_unlock(p);
  madvise((void *)address, length, MADV_DONTNEED);
}

/* mlockall(MCL_CURRENT) touches every page there is and would wait here for ever. What is locked on fault it passes by:
 * it lets go of the address space while it waits, and looks again at the mapping when it is woken. */
bool um_pool_fault(um_pager *p, uintptr_t address) {
  um_pool *pool = &p->pool;
  if (address - pool->address >= pool->mapped)
    return false;
  static const uint8_t zeros[1 << 16] __attribute__((aligned(4096)));
  if (mlock2((void *)pool->address, pool->mapped, MLOCK_ONFAULT)) /* a debugger, say, that has no right to lock */
    um_uffd_copy(p->uffd, address / um_host_page * um_host_page, zeros, um_host_page, false);
  um_uffd_wake(p->uffd, pool->address, pool->mapped);
  return true;
}

void um_pool_clear(um_pager *p, uint32_t chunk) {
  um_pool_drop(p, um_pool_address(p, chunk), UM_CHUNK);
  um_pool_put_empty(p, chunk);
}

bool um_pool_trim(um_pager *p) {
  uint32_t chunk = um_pool_take_idle(p);
  if (!chunk && !(chunk = um_shelf_take_oldest(p)))
    return false;
  um_pool_clear(p, chunk);
  um_budget_release(p, UM_CHUNK);
  return true;
}
