/* fork.c: what a forked child and the end of the process see.
 *
 * A child does not inherit regions (MADV_DONTFORK): its first act, from a C atfork handler, is to put inaccessible
 * mappings in their place, since an unprotected hole could be reused and a private copy would read as zeros. The
 * handler takes no lock of the parent: regions are published in slots that are written once and read without one.
 *
 * Race: fork against a region being made. Its slot is published before it is registered, so a child either finds the
 * slot or a region nobody has touched yet. */
#include "internal.h"

#include "uffd.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define SLOTS 256
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

typedef struct fork_slot {
  _Atomic uintptr_t address; /* 0: free; written last, cleared first */
  uint64_t mapped;
  int uffd;
  um_store *store;
  _Atomic bool taken;
} fork_slot;

typedef struct slot_block {
  fork_slot slots[SLOTS];
  struct slot_block *_Atomic next; /* blocks are never freed */
} slot_block;

static slot_block first_block;
static _Atomic uint64_t generation = 1;
static pthread_mutex_t um_region_registry = PTHREAD_MUTEX_INITIALIZER;
static um_pager *pagers; /* um_region_registry */

uint64_t um_fork_generation(void) {
  return atomic_load_explicit(&generation, memory_order_relaxed);
}

int um_process_forked(void) {
  return um_fork_generation() > 1;
}

static fork_slot *take_slot(void) {
  for (slot_block *block = &first_block;;) {
    for (int i = 0; i < SLOTS; i++)
      if (!atomic_exchange(&block->slots[i].taken, true))
        return &block->slots[i];
    slot_block *next = atomic_load(&block->next);
    if (!next) {
      slot_block *made = calloc(1, sizeof *made);
      if (!made)
        return NULL;
      if (atomic_compare_exchange_strong(&block->next, &next, made))
        next = made;
      else
        free(made);
    }
    block = next;
  }
}

int um_fork_publish(um_region *r) {
  fork_slot *slot = take_slot();
  if (!slot)
    return -ENOMEM;
  slot->mapped = r->mapped;
  slot->uffd = r->pager->uffd;
  slot->store = r->store;
  atomic_store(&slot->address, r->address);
  r->fork_slot = slot;
  return 0;
}

void um_fork_withdraw(um_region *r) {
  fork_slot *slot = r->fork_slot;
  if (!slot)
    return;
  atomic_store(&slot->address, 0);
  atomic_store(&slot->taken, false);
  r->fork_slot = NULL;
}

static void for_each_slot(void (*visit)(fork_slot *)) {
  for (slot_block *block = &first_block; block; block = atomic_load(&block->next))
    for (int i = 0; i < SLOTS; i++)
      if (atomic_load(&block->slots[i].address))
        visit(&block->slots[i]);
}

bool um_fork_overlaps(uintptr_t address, uint64_t length) {
  for (slot_block *block = &first_block; block; block = atomic_load(&block->next))
    for (int i = 0; i < SLOTS; i++) {
      uintptr_t start = atomic_load(&block->slots[i].address);
      if (start && start < address + length && address < start + block->slots[i].mapped)
        return true;
    }
  return false;
}

static void replace_in_child(fork_slot *slot) {
  mmap((void *)atomic_load(&slot->address), slot->mapped, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  close(slot->uffd);
  slot->store->ops->forked(slot->store);
  atomic_store(&slot->address, 0);
}

static void after_fork_in_child(void) {
  atomic_fetch_add(&generation, 1);
  for_each_slot(replace_in_child);
  pthread_mutex_init(&um_region_registry, NULL);
  pagers = NULL;
  um_error_wait_init();
}

static void make_inaccessible(fork_slot *slot) {
  mmap((void *)atomic_load(&slot->address), slot->mapped, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

void um_fork_poison(void) {
  for_each_slot(make_inaccessible);
}

_Noreturn void um_fatal(const char *what) {
  fprintf(stderr, "umappy: fatal: %s\n", what);
  abort();
}

static void init(void) {
  pthread_atfork(NULL, NULL, after_fork_in_child);
}

void um_fork_init(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, init);
}

void um_registry_add(um_pager *p) {
  pthread_mutex_lock(&um_region_registry);
  p->registry_next = pagers;
  pagers = p;
  pthread_mutex_unlock(&um_region_registry);
}

void um_registry_remove(um_pager *p) {
  pthread_mutex_lock(&um_region_registry);
  for (um_pager **link = &pagers; *link; link = &(*link)->registry_next)
    if (*link == p) {
      *link = p->registry_next;
      break;
    }
  pthread_mutex_unlock(&um_region_registry);
}

/* The last flush, when the interpreter is gone: its daemon threads may be stopped in the middle of anything, but the
 * engine's threads still run. Regions that arrays keep alive to the very end are written here. It is tried once: from
 * C's atexit, or earlier from where the binding knows the end. */
static _Atomic uint32_t exit_timeout_ms; /* 0: nothing to flush, or it was tried */

static um_job *exit_job(um_region *r) {
  return r->writable && (atomic_load(&r->dirty) || atomic_load(&r->unflushed)) ? um_region_flush_start(r, 0, r->size, 1)
                                                                               : NULL;
}

void um_exit_flush(void) {
  uint32_t timeout_ms = atomic_exchange(&exit_timeout_ms, 0);
  if (timeout_ms == 0)
    return;
  uint64_t deadline = um_now_ns() + timeout_ms * 1000000ull;
  pthread_mutex_lock(&um_region_registry);
  for (um_pager *p = pagers; p; p = p->registry_next) {
    pthread_mutex_lock(&p->regions_lock);
    uint32_t count = p->region_count;
    um_job **jobs = calloc(count + 1, sizeof *jobs);
    for (uint32_t i = 0; jobs && i < count; i++)
      jobs[i] = exit_job(p->regions[i]);
    pthread_mutex_unlock(&p->regions_lock);
    for (uint32_t i = 0; jobs && i < count; i++) {
      if (!jobs[i])
        continue;
      um_error error = {0};
      uint64_t now = um_now_ns();
      int code = um_job_wait(jobs[i], now < deadline ? (uint32_t)((deadline - now) / 1000000u) : 0, &error);
      if (code == -ETIMEDOUT && error.code == 0)
        fprintf(stderr, "umappy: at exit: dirty pages are lost: the store did not take them in time\n");
      else if (code)
        fprintf(stderr, "umappy: at exit: dirty pages are lost: %s (offset %llu, %s)\n", error.text,
                (unsigned long long)error.offset, strerror(error.code));
      um_job_release(jobs[i]);
    }
    free(jobs);
  }
  pthread_mutex_unlock(&um_region_registry);
}

static void register_exit(void) {
  atexit(um_exit_flush);
}

void um_exit_arm(uint32_t timeout_ms) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  atomic_store(&exit_timeout_ms, timeout_ms);
  pthread_once(&once, register_exit);
}
