/* What stays in memory becomes huge pages, where it lies (collapse.c) or by exchange (exchange.c). */
#include "huge_pages.h"
#include "pin.h"
#include "rig.h"
#include "uffd.h"

#include <stdio.h>

#define MIB (1024ull << 10)
#define SIZE (64 * MIB)
#define HOT (16 * MIB) /* where a stream that begins at the start has come to read chunks */
#define HOT_END (24 * MIB)

/* New chunks are of small pages. */
static void open_rig(rig *r, bool read_only, uint64_t size, uint64_t memory) {
  rig_open(r, &(rig_options){.size = size,
                             .page_size = 64 << 10,
                             .memory = memory,
                             .fillers = UM_MANY_FILLERS,
                             .evictors = 2,
                             .readahead = true,
                             .skew = UM_CHUNK,
                             .read_only = read_only});
  atomic_store(&r->pager->pool.dear_ns, 0);
  atomic_store(&r->pager->pool.saving_ns, 0);
  atomic_store(&r->pager->collapse_age_ns, 1000000);
}

static void read_range(const rig *r, uint64_t at, uint64_t end) {
  for (; at < end; at += 4096)
    CHECK_EQUAL(rig_read(r, at), rig_word(at));
}

static void read_all(const rig *r) {
  read_range(r, 0, r->size);
}

static uint64_t huge_bytes_of(const rig *r) {
  return huge_bytes((uintptr_t)r->bytes, (uintptr_t)r->bytes + r->size);
}

static void test_collapse_what_stays_becomes_huge_pages(void) {
  rig r;
  open_rig(&r, true, SIZE, 2 * SIZE);
  if (r.region->moves && has_huge_pages(SIZE)) {
    read_all(&r);
    um_stats before = rig_stats(&r);
    AWAIT(huge_bytes_of(&r) >= SIZE / 2); /* all but the stream's start */
    read_all(&r);
    um_stats after = rig_stats(&r);
    CHECK(after.collapsed > 0);
    CHECK_EQUAL(after.fills, before.fills);
    AWAIT(rig_stats(&r).used <= before.used); /* one may be under way, now or before */
  }
  rig_close(&r);
  rig_end(&r);
}

static void test_collapse_leaves_regions_that_are_written_to_alone(void) {
  rig r;
  open_rig(&r, false, SIZE, 2 * SIZE);
  read_all(&r);
  sleep_ms(50);
  CHECK_EQUAL(rig_stats(&r).collapsed, 0);
  rig_close(&r);
  rig_end(&r);
}

/* The first pages again and again, and some of the others, which are more than fits. */
static void read_hot_beside_a_stream(const rig *r, uint64_t *at) {
  for (unsigned i = 0; i < 16; i++, *at = *at + MIB < r->size ? *at + MIB : HOT_END) {
    read_range(r, HOT, HOT_END);
    read_range(r, *at, *at + MIB);
  }
  sleep_ms(1);
}

static uint64_t huge_bytes_of_hot(const rig *r) {
  uint64_t bytes = 0;
  for (uintptr_t at = (uintptr_t)r->bytes + HOT; at < (uintptr_t)r->bytes + HOT_END; at += UM_CHUNK)
    if (um_uffd_present(r->pager->pagemap, at) && um_uffd_is_huge(r->pager->pagemap, at))
      bytes += UM_CHUNK;
  return bytes;
}

/* With pages of a chunk's length the last one is shorter, and what lies behind it is not the region's. */
static void read_to_a_short_last_page(uint64_t memory) {
  rig r;
  rig_open(&r, &(rig_options){.size = SIZE + 300 * 1024,
                              .page_size = UM_CHUNK,
                              .memory = memory,
                              .fillers = 4,
                              .evictors = 2,
                              .readahead = true,
                              .skew = UM_CHUNK,
                              .read_only = true});
  atomic_store(&r.pager->collapse_age_ns, 0);
  for (unsigned i = 0; i < 20; i++) {
    read_range(&r, SIZE, r.size);
    read_all(&r);
    sleep_ms(2);
  }
  CHECK_EQUAL(rig_evict(&r, SIZE, r.size - SIZE), 0);
  read_range(&r, SIZE, r.size);
  um_stats stats = rig_stats(&r);
  CHECK(stats.peak_used <= stats.memory);
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  rig_end(&r);
}

static void test_collapse_and_eviction_take_a_short_last_page_for_no_chunk(void) {
  read_to_a_short_last_page(2 * SIZE);
  read_to_a_short_last_page(SIZE);
  rig_policy = UM_POLICY_SECOND_CHANCE;
  read_to_a_short_last_page(SIZE);
  rig_policy = UM_POLICY_AUTO;
}

/* What is HOT is proven, and of small pages but for what the kernel collapsed by itself; unused chunks will be huge
 * pages. Returns where the stream is; 0: this kernel does not move, or has no huge pages. */
static uint64_t open_hot_rig(rig *r) {
  rig_policy = UM_POLICY_S3FIFO;
  open_rig(r, true, 4 * SIZE, SIZE + SIZE / 4); /* the stream comes round after its pages are forgotten */
  rig_policy = UM_POLICY_AUTO;
  atomic_store(&r->pager->collapse_age_ns, 1ull << 62);
  if (!r->region->moves || !r->region->chunks || !has_huge_pages(SIZE))
    return 0;
  uint64_t at = HOT_END;
  read_range(r, 0, HOT_END);
  for (uint64_t ends_ns = now_ns() + 300000000; now_ns() < ends_ns;)
    read_hot_beside_a_stream(r, &at);
  atomic_store(&r->pager->pool.dear_ns, UINT64_MAX);
  atomic_store(&r->pager->collapse_age_ns, 1000000);
  return at;
}

static void close_hot_rig(rig *r) {
  um_stats stats = rig_stats(r);
  CHECK(stats.peak_used <= stats.memory);
  CHECK_EQUAL(rig_errors(r), 0);
  rig_close(r);
  rig_end(r);
}

static void test_exchange_what_proved_to_stay_gets_huge_pages_while_memory_is_short(void) {
  rig r;
  uint64_t at = open_hot_rig(&r);
  if (at) {
    uint64_t ends_ns = now_ns() + 10000000000ull * SLOWER;
    while (rig_stats(&r).collapsed == 0 || huge_bytes_of_hot(&r) < (HOT_END - HOT) / 2) {
      CHECK(now_ns() < ends_ns);
      read_hot_beside_a_stream(&r, &at);
    }
    read_all(&r);
  }
  close_hot_rig(&r);
}

/* The move stops before the first page, or after some. */
static void test_exchange_of_what_a_device_pins_keeps_the_bytes(void) {
  rig r;
  uint64_t at = pin_allowed() ? open_hot_rig(&r) : 0;
  if (at) {
    pin *first = pin_open(r.bytes + HOT + UM_CHUNK, 4096), *middle = pin_open(r.bytes + HOT + 5 * UM_CHUNK / 2, 4096);
    for (uint64_t ends_ns = now_ns() + 300000000; now_ns() < ends_ns;)
      read_hot_beside_a_stream(&r, &at);
    pin_close(first);
    pin_close(middle);
    read_all(&r);
  }
  if (pin_allowed())
    close_hot_rig(&r);
}

typedef struct reader {
  rig *rig;
  uint64_t random, ends_ns;
} reader;

static void *read_for_long(void *argument) {
  reader *d = argument;
  while (now_ns() < d->ends_ns) {
    uint64_t at = rig_random(&d->random) % (d->rig->size / 4096) * 4096;
    read_range(d->rig, at, um_min(at + 8 * MIB, d->rig->size));
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

/* Race: collapse and, where memory is `really` short, exchange against faults, evictions by name and evictors. */
static void collapse_against_all(uint64_t memory, bool really) {
  rig r;
  pthread_t threads[4];
  reader readers[4];
  open_rig(&r, true, SIZE, memory);
  atomic_store(&r.pager->collapse_age_ns, 0);
  atomic_store(&r.pager->pool.saving_ns, really ? 300000 : 0); /* some chunks are huge pages then */
  for (int i = 0; i < 4; i++) {
    readers[i] = (reader){.rig = &r, .random = 11 + (uint64_t)i, .ends_ns = now_ns() + 1500000000};
    threads[i] = rig_thread(i < 3 ? read_for_long : drop_for_long, &readers[i]);
  }
  while (now_ns() < readers[0].ends_ns) {
    pthread_mutex_lock(&r.pager->lock);
    if (!really)
      r.pager->collapse_short_ns = 0;
    r.pager->collapse_freed = atomic_load(&r.pager->freed);
    r.pager->collapse_rest_ns = 0;
    pthread_mutex_unlock(&r.pager->lock);
    um_evict_ask(r.pager);
    sleep_ms(1);
  }
  for (int i = 0; i < 4; i++)
    CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
  um_stats stats = rig_stats(&r);
  if (r.region->moves && memory > SIZE && !really && has_huge_pages(SIZE))
    CHECK(stats.collapsed > 0);
  CHECK(stats.peak_used <= stats.memory);
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  rig_end(&r);
}

static void test_collapse_against_readers_and_evictions_keeps_the_bytes(void) {
  collapse_against_all(2 * SIZE, false);
  collapse_against_all(SIZE, false);
}

static void test_exchange_against_readers_and_evictions_keeps_the_bytes(void) {
  rig_policy = UM_POLICY_S3FIFO;
  collapse_against_all(SIZE + MIB, true);
  rig_policy = UM_POLICY_AUTO;
}

int main(void) {
  watchdog_start(30);
  RUN(test_collapse_what_stays_becomes_huge_pages);
  RUN(test_collapse_leaves_regions_that_are_written_to_alone);
  RUN(test_collapse_and_eviction_take_a_short_last_page_for_no_chunk);
  RUN(test_exchange_what_proved_to_stay_gets_huge_pages_while_memory_is_short);
  RUN(test_exchange_of_what_a_device_pins_keeps_the_bytes);
  RUN(test_collapse_against_readers_and_evictions_keeps_the_bytes);
  RUN(test_exchange_against_readers_and_evictions_keeps_the_bytes);
  watchdog_pet("the end");
  return 0;
}
