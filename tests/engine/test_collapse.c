/* What stays in memory becomes huge pages where it lies (collapse.c). */
#include "huge_pages.h"
#include "rig.h"

#include <stdio.h>

#define MIB (1024ull << 10)
#define SIZE (64 * MIB)
#define AWAIT(condition)                                                                                               \
  for (uint64_t patience_ = now_ns() + 10000000000ull * SLOWER; !(condition); sleep_ms(1))                             \
  CHECK(now_ns() < patience_ && #condition)

/* New chunks are of small pages. */
static void open_rig(rig *r, bool read_only, uint64_t memory) {
  rig_open(r, &(rig_options){.size = SIZE,
                             .page_size = 64 << 10,
                             .memory = memory,
                             .fillers = 4,
                             .evictors = 2,
                             .readahead = true,
                             .skew = UM_CHUNK,
                             .read_only = read_only});
  atomic_store(&r->pager->pool.dear_ns, 0);
  atomic_store(&r->pager->pool.saving_ns, 0);
  atomic_store(&r->pager->collapse_age_ns, 1000000);
}

static void read_all(const rig *r) {
  for (uint64_t at = 0; at < r->size; at += 4096)
    CHECK_EQUAL(rig_read(r, at), rig_word(at));
}

static uint64_t huge_bytes_of(const rig *r) {
  return huge_bytes((uintptr_t)r->bytes, (uintptr_t)r->bytes + r->size);
}

static void test_collapse_what_stays_becomes_huge_pages(void) {
  rig r;
  open_rig(&r, true, 2 * SIZE);
  if (r.region->moves && has_huge_pages(SIZE)) {
    read_all(&r);
    um_stats before = rig_stats(&r);
    AWAIT(huge_bytes_of(&r) >= SIZE / 2); /* all but the stream's start */
    read_all(&r);
    um_stats after = rig_stats(&r);
    CHECK(after.collapsed > 0);
    CHECK_EQUAL(after.fills, before.fills);
    CHECK_EQUAL(after.used, before.used);
  }
  rig_close(&r);
  rig_end(&r);
}

static void test_collapse_leaves_regions_that_are_written_to_alone(void) {
  rig r;
  open_rig(&r, false, 2 * SIZE);
  read_all(&r);
  sleep_ms(50);
  CHECK_EQUAL(rig_stats(&r).collapsed, 0);
  rig_close(&r);
  rig_end(&r);
}

typedef struct reader {
  rig *rig;
  uint64_t random, ends_ns;
} reader;

static void *read_for_long(void *argument) {
  reader *d = argument;
  while (now_ns() < d->ends_ns) {
    uint64_t at = rig_random(&d->random) % (d->rig->size / 4096) * 4096;
    for (uint64_t end = um_min(at + MIB, d->rig->size); at < end; at += 4096)
      CHECK_EQUAL(rig_read(d->rig, at), rig_word(at));
  }
  return NULL;
}

static void *drop_for_long(void *argument) {
  reader *d = argument;
  while (now_ns() < d->ends_ns) {
    uint64_t at = rig_random(&d->random) % (d->rig->size / MIB) * MIB;
    rig_evict(d->rig, at, um_min(3 * MIB, d->rig->size - at));
    sleep_ms(3);
  }
  return NULL;
}

/* Race: collapse against faults, evictions by name and, where memory is short, evictors. */
static void collapse_against_all(uint64_t memory) {
  rig r;
  pthread_t threads[4];
  reader readers[4];
  open_rig(&r, true, memory);
  atomic_store(&r.pager->collapse_age_ns, 0);
  for (int i = 0; i < 4; i++) {
    readers[i] = (reader){.rig = &r, .random = 11 + (uint64_t)i, .ends_ns = now_ns() + 1500000000};
    threads[i] = rig_thread(i < 3 ? read_for_long : drop_for_long, &readers[i]);
  }
  while (now_ns() < readers[0].ends_ns) { /* every evictor's look finds that memory is not short */
    pthread_mutex_lock(&r.pager->lock);
    r.pager->collapse_freed = atomic_load(&r.pager->freed);
    r.pager->collapse_rest_ns = 0;
    pthread_mutex_unlock(&r.pager->lock);
    um_evict_ask(r.pager);
    sleep_ms(1);
  }
  for (int i = 0; i < 4; i++)
    CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
  um_stats stats = rig_stats(&r);
  if (r.region->moves && memory > SIZE && has_huge_pages(SIZE))
    CHECK(stats.collapsed > 0);
  CHECK(stats.peak_used <= stats.memory);
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  rig_end(&r);
}

static void test_collapse_against_readers_and_evictions_keeps_the_bytes(void) {
  collapse_against_all(2 * SIZE);
  collapse_against_all(SIZE);
}

int main(void) {
  watchdog_start(30);
  RUN(test_collapse_what_stays_becomes_huge_pages);
  RUN(test_collapse_leaves_regions_that_are_written_to_alone);
  RUN(test_collapse_against_readers_and_evictions_keeps_the_bytes);
  watchdog_pet("the end");
  return 0;
}
