/* pool.c: the chunks' lists, and the slots; see pool.h. Where their memory comes from: pool_make.c. */
#define _GNU_SOURCE
#include "pool.h"

#include "mechanism.h"
#include "pool_make.h"
#include "shelf.h"
#include "uffd.h"

#include <sys/mman.h>

#define CHUNKS_MIN 16 /* addresses: pages leave through chunks under every budget */
#define SLOT_KINDS 9  /* 4 KiB to 1 MiB */

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

/* Of runs of some length there are fewer than fit the budget, and the lowest numbers are used: where there are many
 * runs of other lengths, some find no slot, and leave directly. */
static int make_slots(um_pager *p) {
  um_pool *pool = &p->pool;
  pool->slots_each = um_round_up(p->memory + p->memory / 8, UM_CHUNK);
  pool->slots_mapped = SLOT_KINDS * pool->slots_each;
  void *slots = um_memory_map(pool->slots_mapped);
  if (!slots)
    return -ENOMEM;
  pool->slots = (uintptr_t)slots;
  um_budget_charge(p, um_round_up(p->memory / 512, um_host_page)); /* tables */
  return um_uffd_register(p->uffd, pool->slots, pool->slots_mapped);
}

uintptr_t um_pool_slot(const um_pager *p, um_frame_id id, uint64_t bytes) {
  const um_pool *pool = &p->pool;
  uint32_t kind = 0;
  while ((uint64_t)UM_PAGE_SIZE_MIN << kind < bytes)
    kind++;
  uint64_t size = (uint64_t)UM_PAGE_SIZE_MIN << kind, end = (id + 1ull) * size;
  bool fits = pool->slots && id != UM_NIL && kind < SLOT_KINDS && end <= pool->slots_each;
  return fits ? pool->slots + kind * pool->slots_each + end - size : 0;
}

int um_pool_create(um_pager *p) {
  um_pool *pool = &p->pool;
  pthread_mutex_init(&pool->lock, NULL);
  uint64_t most = um_max(CHUNKS_MIN, p->memory / UM_CHUNK);
  pool->mapped = most * UM_CHUNK;
  pool->next = calloc(most + 1, sizeof *pool->next);
  pool->address = map(pool->mapped, &pool->mapping);
  uintptr_t fresh = map(UM_FRESH * UM_CHUNK, &pool->fresh_mapping);
  if (!pool->next || !pool->mapping || !pool->fresh_mapping)
    return -ENOMEM;
  um_pool_make_init(pool, fresh);
  if (p->mechanism->moves) {
    int code = um_uffd_register(p->uffd, pool->address, pool->mapped);
    if (code == 0)
      code = make_slots(p);
    if (code)
      return code;
  }
  pool->count = (uint32_t)most;
  for (uint32_t i = pool->count; i > 0; i--) {
    pool->next[i] = pool->empty;
    pool->empty = i;
  }
  um_budget_charge(p, (most + 1) * sizeof *pool->next);
  return 0;
}

void um_pool_destroy(um_pager *p) {
  um_memory_unmap(p->pool.mapping, p->pool.mapped + UM_CHUNK);
  um_memory_unmap(p->pool.fresh_mapping, (UM_FRESH + 1ull) * UM_CHUNK);
  um_memory_unmap((void *)p->pool.slots, p->pool.slots_mapped);
  free(p->pool.next);
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

/* Which chunks are of small pages nobody remembers, as memory goes round: the kernel is asked. */
void um_pool_list(um_pager *p, uint32_t chunk) {
  um_pool *pool = &p->pool;
  bool huge = !p->mechanism->moves || um_uffd_is_huge(p->pagemap, um_pool_address(p, chunk));
  push(pool, huge ? &pool->huge : &pool->small, chunk);
}

void um_pool_put_full(um_pager *p, uint32_t chunk) {
  atomic_fetch_add(&p->pool.idle, UM_CHUNK);
  um_pool_list(p, chunk);
}

static uint32_t take_unused(um_pool *pool, _Atomic uint32_t *list) {
  uint32_t chunk = pop(pool, list);
  if (chunk)
    atomic_fetch_sub(&pool->idle, UM_CHUNK);
  return chunk;
}

uint32_t um_pool_take_huge(um_pager *p) {
  return take_unused(&p->pool, &p->pool.huge);
}

static uint32_t take_small(um_pager *p) {
  return take_unused(&p->pool, &p->pool.small);
}

uint32_t um_pool_take_idle(um_pager *p) {
  uint32_t chunk = um_pool_take_huge(p);
  return chunk ? chunk : take_small(p);
}

uint32_t um_pool_take_new(um_pager *p) {
  if (!um_budget_try(p, UM_CHUNK, atomic_load(&p->emergency)))
    return 0;
  uint32_t chunk = um_pool_take_empty(p);
  if (chunk && um_pool_make(p, chunk) == 0)
    return chunk;
  if (chunk)
    um_pool_put_empty(p, chunk);
  um_budget_release(p, UM_CHUNK);
  return 0;
}

uint32_t um_pool_take_full(um_pager *p) {
  uint32_t chunk = um_pool_take_huge(p);
  if (!chunk && (chunk = take_small(p)))
    chunk = um_pool_renew(p, chunk);
  if (!chunk)
    chunk = um_pool_take_new(p);
  if (!chunk)
    chunk = um_shelf_take_oldest(p);
  if (chunk)
    um_pool_save(&p->pool);
  return chunk;
}

void um_pool_unlock(um_pager *p) {
  munlock((void *)p->pool.address, p->pool.mapped);
  munlock((void *)p->pool.fresh[0].address, UM_FRESH * UM_CHUNK);
  munlock((void *)p->pool.slots, p->pool.slots_mapped);
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
  bool slot = address - pool->slots < pool->slots_mapped;
  if (!slot && address - pool->address >= pool->mapped)
    return false;
  static const uint8_t zeros[1 << 16] __attribute__((aligned(4096)));
  uintptr_t start = slot ? pool->slots : pool->address;
  uint64_t length = slot ? pool->slots_mapped : pool->mapped;
  if (mlock2((void *)start, length, MLOCK_ONFAULT)) /* a debugger, say, that has no right to lock */
    um_uffd_copy(p->uffd, address / um_host_page * um_host_page, zeros, um_host_page, false);
  um_uffd_wake(p->uffd, start, length);
  return true;
}

void um_pool_clear(um_pager *p, uint32_t chunk) {
  um_pool_drop(p, um_pool_address(p, chunk), UM_CHUNK);
  um_pool_put_empty(p, chunk);
}

bool um_pool_trim(um_pager *p) {
  uint32_t chunk = take_small(p);
  if (!chunk && !(chunk = um_pool_take_huge(p)) && !(chunk = um_shelf_take_oldest(p)))
    return false;
  um_pool_clear(p, chunk);
  um_budget_release(p, UM_CHUNK);
  return true;
}
