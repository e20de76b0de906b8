/* pager.c: a budget, its threads and what they share. */
#include "collapse.h"
#include "mechanism.h"
#include "page.h"
#include "policy.h"
#include "pool.h"
#include "shelf.h"
#include "readahead.h"
#include "trace.h"
#include "uffd.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREAD_STACK (256u << 10)
#define SPARE_FRAMES 65536u /* descriptors of faults that wait for memory, above what can be resident */

/* 16 pages and two a filler, each with a table and a page of words to itself, as scattered pages have; the smallest
 * staging buffers; what the policy and read-ahead remember; and a bit. */
uint64_t um_pager_memory_min(uint64_t page_size, uint32_t fillers, uint32_t evictors) {
  uint64_t tables = um_host_page << (page_size > (2u << 20) ? __builtin_ctzll(page_size) - 21 : 0);
  uint64_t pages = 16 + 2 * (uint64_t)fillers;
  um_policy_options policy;
  um_policy_defaults(UM_POLICY_AUTO, &policy);
  policy.memory = pages * page_size;
  return pages * (page_size + tables + um_host_page) + (fillers + evictors) * um_host_page +
         UM_FRAMES_PAID * sizeof(um_frame) + um_policy_memory(&policy) +
         um_round_up(um_readahead_bytes(), um_host_page) + UM_SLACK;
}

static void init_condition(pthread_cond_t *condition) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(condition, &attributes);
  pthread_condattr_destroy(&attributes);
}

static int start_workers(um_pager *p, um_worker *workers, uint32_t *count, uint64_t staging, void *(*main_)(void *)) {
  uint32_t wanted = *count;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, THREAD_STACK);
  for (*count = 0; *count < wanted; (*count)++) {
    um_worker *w = &workers[*count];
    w->pager = p;
    w->staging_size = staging;
    w->staging = um_memory_map(staging);
    if (!w->staging)
      break;
    memset(w->staging, 0, staging); /* warm: a fill must not wait for memory of our own */
    um_budget_charge(p, staging);
    if (pthread_create(&w->thread, &attributes, main_, w)) {
      um_budget_uncharge(p, staging);
      um_memory_unmap(w->staging, staging);
      w->staging = NULL;
      break;
    }
  }
  pthread_attr_destroy(&attributes);
  return *count ? 0 : -EAGAIN;
}

static void stop_workers(um_pager *p) {
  atomic_store(&p->stop, true);
  pthread_mutex_lock(&p->lock);
  pthread_cond_broadcast(&p->work);
  pthread_cond_broadcast(&p->evict_work);
  pthread_mutex_unlock(&p->lock);
  (void)!write(p->kick, &(uint64_t){1}, sizeof(uint64_t));
  for (uint32_t i = 0; i < p->filler_count; i++)
    pthread_join(p->fillers[i].thread, NULL);
  for (uint32_t i = 0; i < p->evictor_count; i++)
    pthread_join(p->evictors[i].thread, NULL);
}

static void destroy(um_pager *p) {
  um_keeper_stop(p);
  for (uint32_t i = 0; p->fillers && i < p->filler_count; i++)
    um_memory_unmap(p->fillers[i].staging, p->fillers[i].staging_size);
  for (uint32_t i = 0; p->evictors && i < p->evictor_count; i++)
    um_memory_unmap(p->evictors[i].staging, p->evictors[i].staging_size);
  um_shelves_destroy(p);
  um_pool_destroy(p);
  if (p->policy)
    um_policy_destroy(p->policy);
  if (p->trace)
    um_trace_close(p->trace);
  um_memory_unmap(p->frames, p->frames_mapped);
  for (int *fd = (int[]){p->uffd, p->kick, p->pagemap, p->self, -2}; *fd != -2; fd++)
    if (*fd >= 0)
      close(*fd);
  free(p->fillers);
  free(p->evictors);
  free(p->regions);
  free(p);
}

static int open_descriptors(um_pager *p, uint32_t mode, uint32_t mechanism) {
  uint64_t features;
  struct stat st;
  p->kick = p->pagemap = -1;
  p->self = (int)syscall(SYS_pidfd_open, getpid(), 0);
  p->uffd = um_uffd_open(mode, &p->uffd_mode, &features);
  if (p->uffd < 0)
    return p->uffd;
  p->mechanism = um_mechanism_choose(mechanism, p->uffd, features);
  if (!p->mechanism)
    return -EOPNOTSUPP;
  if (fstat(p->uffd, &st) || (p->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
    return -errno;
  p->uffd_inode = (uint64_t)st.st_ino;
  p->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  return p->pagemap < 0 ? -errno : 0;
}

/* Runs shrink with the budget: all staging together takes an eighth of it at most. Many fillers are for depth: they
 * have smaller buffers. */
static uint64_t staging_bytes(uint64_t memory, uint32_t workers, uint32_t alike) {
  uint64_t share = memory / 8 / workers, most = alike > 8 ? UM_STAGING_MAX / 4 : UM_STAGING_MAX, size = um_host_page;
  while (2 * size <= share && 2 * size <= most)
    size *= 2;
  return size;
}

static int make_policy(um_pager *p, const um_pager_options *options) {
  um_policy_options policy;
  if (options->policy > UM_POLICY_MRU)
    return -EINVAL;
  um_policy_defaults(options->policy, &policy);
  policy.memory = p->memory;
  if (options->policy_shares) {
    policy.small_share = options->small_share;
    policy.standby_share = options->standby_share;
    policy.ghost_share = options->ghost_share;
  }
  if (!p->mechanism->moves)
    policy.standby_share = 0;
  int code = um_policy_create(&policy, p->frames, &p->policy);
  if (code == 0)
    um_budget_charge(p, um_policy_memory(&policy));
  return code;
}

int um_pager_create(const um_pager_options *options, um_pager **pager) {
  uint32_t fillers = options->fillers, evictors = options->evictors;
  if (!fillers || !evictors || fillers > 4096 || evictors > 4096 || options->low_water > options->high_water)
    return -EINVAL;
  if (options->memory < um_pager_memory_min(UM_PAGE_SIZE_MIN, fillers, evictors) ||
      options->high_water > options->memory / 2)
    return -ENOBUFS;
  um_pager *p = calloc(1, sizeof *p);
  if (!p)
    return -ENOMEM;
  um_fork_init();
  p->generation = um_fork_generation();
  um_collapse_init(p);
  p->memory = options->memory;
  p->low_water = options->low_water ? options->low_water : p->memory / 32;
  p->high_water = options->high_water ? options->high_water : um_max(p->low_water, p->memory / 16);
  p->timeout_ns = options->timeout_ms * 1000000ull;
  pthread_mutex_init(&p->regions_lock, NULL);
  pthread_mutex_init(&p->frames_lock, NULL);
  pthread_mutex_init(&p->lock, NULL);
  init_condition(&p->work);
  init_condition(&p->evict_work);
  init_condition(&p->progress);
  int code = open_descriptors(p, options->uffd, options->mechanism);
  if (code == 0)
    code = um_pool_create(p);
  if (code) {
    destroy(p);
    return code;
  }
  p->frame_capacity = (uint32_t)um_min(UINT32_MAX, p->memory / UM_PAGE_SIZE_MIN + SPARE_FRAMES);
  p->frames_mapped = um_round_up(p->frame_capacity * sizeof(um_frame), um_host_page);
  p->frames = um_memory_map(p->frames_mapped);
  p->fillers = calloc(fillers, sizeof *p->fillers);
  p->evictors = calloc(evictors, sizeof *p->evictors);
  if (!p->frames || !p->fillers || !p->evictors)
    code = -ENOMEM;
  if (code == 0)
    code = make_policy(p, options);
  if (code == 0 && options->trace && (code = um_trace_open(options->trace, &p->trace)) == 0)
    um_budget_charge(p, um_trace_memory());
  if (code) {
    destroy(p);
    return code;
  }
  um_budget_charge(p, UM_FRAMES_PAID * sizeof(um_frame));
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited: no handler of the user's runs on our threads */
  uint64_t fill_staging = staging_bytes(p->memory, fillers + evictors, fillers);
  uint64_t evict_staging = staging_bytes(p->memory, fillers + evictors, evictors);
  p->filler_count = fillers;
  p->evictor_count = evictors;
  pthread_mutex_lock(&p->lock); /* nobody looks at the counts before they are true */
  code = um_keeper_start(p);
  if (code == 0)
    code = start_workers(p, p->fillers, &p->filler_count, fill_staging, um_filler_main);
  else
    p->filler_count = 0;
  if (code == 0)
    code = start_workers(p, p->evictors, &p->evictor_count, evict_staging, um_evictor_main);
  else
    p->evictor_count = 0;
  pthread_mutex_unlock(&p->lock);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (code) {
    stop_workers(p);
    destroy(p);
    return code;
  }
  um_registry_add(p);
  *pager = p;
  return 0;
}

int um_pager_destroy(um_pager *p) {
  if (um_pager_forked(p))
    return -UM_EFORKED;
  pthread_mutex_lock(&p->regions_lock);
  bool busy = p->region_count != 0;
  pthread_mutex_unlock(&p->regions_lock);
  if (busy)
    return -EBUSY;
  um_registry_remove(p);
  stop_workers(p);
  destroy(p);
  return 0;
}
