/* stats.c: counters, summed when somebody asks. */
#include "mechanism.h"
#include "page.h"

/* clang-format off */
#define FIELDS(X)                                                                                                      \
  X(read_faults) X(write_faults) X(protect_faults) X(stale_faults)                                                     \
  X(fills) X(prefetches) X(evictions) X(writes)                                                                        \
  X(store_reads) X(store_writes) X(store_flushes) X(bytes_read) X(bytes_written)                                       \
  X(fill_errors) X(write_errors) X(retries)                                                                            \
  X(readahead) X(readahead_used) X(readahead_wasted) X(standby_hits) X(pinned)                   \
  X(cleaned) X(cleaned_wasted) X(collapsed)
/* clang-format on */

static uint64_t get(const _Atomic uint64_t *counter) {
  return atomic_load_explicit(counter, memory_order_relaxed);
}

void um_counters_add(um_stats *stats, const um_counters *c) {
#define ADD(field) stats->field += get(&c->field);
  FIELDS(ADD)
  for (int i = 0; i < UM_HISTOGRAM_BUCKETS; i++)
    stats->fault_ns[i] += get(&c->fault_ns[i]);
}

void um_counters_merge(um_counters *to, const um_counters *from) {
#define MERGE(field) to->field += get(&from->field);
  FIELDS(MERGE)
  for (int i = 0; i < UM_HISTOGRAM_BUCKETS; i++)
    to->fault_ns[i] += get(&from->fault_ns[i]);
}

static void add_pages(um_stats *stats, um_region *r) {
  stats->resident += atomic_load(&r->resident);
  stats->dirty += atomic_load(&r->dirty);
  stats->standby += atomic_load(&r->standby);
}

static void add_pager(um_stats *stats, um_pager *p) {
  stats->memory = p->memory;
  stats->used = atomic_load(&p->used);
  stats->peak_used = atomic_load(&p->peak_used);
  stats->overhead = atomic_load(&p->overhead);
  stats->idle = atomic_load(&p->pool.idle);
  stats->fillers = p->filler_count;
  stats->evictors = p->evictor_count;
  stats->uffd = p->uffd_mode;
  strncpy(stats->mechanism, p->mechanism->name, sizeof stats->mechanism - 1);
}

void um_pager_stats(um_pager *p, um_stats *stats) {
  memset(stats, 0, sizeof *stats);
  add_pager(stats, p);
  pthread_mutex_lock(&p->regions_lock);
  um_counters_add(stats, &p->retired);
  stats->regions = p->region_count;
  for (uint32_t i = 0; i < p->region_count; i++) {
    um_counters_add(stats, &p->regions[i]->counters);
    add_pages(stats, p->regions[i]);
  }
  pthread_mutex_unlock(&p->regions_lock);
}

void um_region_stats(um_region *r, um_stats *stats) {
  memset(stats, 0, sizeof *stats);
  add_pager(stats, r->pager);
  um_counters_add(stats, &r->counters);
  add_pages(stats, r);
  stats->regions = 1;
}
