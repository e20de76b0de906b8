/* Runs shorter than a chunk on standby, in their slots: how they come to be there, come back, and are given up. Where
 * pages cannot be moved out there is no standby, and these tests have no subject. */
#include "pin.h"
#include "rig.h"

#include <stdio.h>

#define KIB 1024ull
#define MEMORY (8ull << 20)
#define PATIENCE_NS (10000000000ull * SLOWER)

static uint64_t page_count(const rig *r) {
  return r->region->page_count;
}

static void open_rig(rig *r, uint64_t page_size, bool read_only) {
  rig_policy = UM_POLICY_SECOND_CHANCE; /* every clean victim waits */
  rig_open(r, &(rig_options){.size = 4 * MEMORY,
                             .page_size = page_size,
                             .memory = MEMORY,
                             .fillers = 2,
                             .read_only = read_only,
                             .faults = true,
                             .latch = true});
}

/* Reads pages from `from` on until some of the first `below` wait on standby; which is the first of these. */
static uint64_t press(const rig *r, uint64_t from, uint64_t below) {
  uint64_t page_size = r->region->page_size, deadline = now_ns() + PATIENCE_NS;
  for (uint64_t page = from;; page = page + 1 < page_count(r) ? page + 1 : from) {
    CHECK_EQUAL(rig_read(r, page * page_size), rig_word(page * page_size));
    for (uint64_t i = 0; page % 64 == 0 && i < below; i++)
      if (rig_state(r, i) == UM_PAGE_STANDBY)
        return i;
    CHECK(now_ns() < deadline);
  }
}

static void take_back(uint64_t page_size, bool read_only) {
  rig r;
  open_rig(&r, page_size, read_only);
  for (int round = 0; round < 20; round++) {
    uint64_t page = press(&r, 0, page_count(&r)), at = page * page_size + page_size / 2;
    um_stats before = rig_stats(&r);
    uint64_t reads = latch_calls(r.latch, UM_OP_READ);
    CHECK_EQUAL(rig_read(&r, at), rig_word(at));
    /* An evictor that gives it up between the look and the touch is no failure, but is not what happens each time. */
    if (latch_calls(r.latch, UM_OP_READ) == reads) {
      CHECK_EQUAL(rig_stats(&r).standby_hits, before.standby_hits + 1);
      CHECK_EQUAL(rig_state(&r, page), UM_PAGE_CLEAN);
      break;
    }
    CHECK(round < 19);
  }
  rig_close(&r);
  rig_end(&r);
}

static void test_standby_short_touched_comes_back_without_the_store(void) {
  take_back(4 * KIB, true);
  take_back(4 * KIB, false);
  take_back(64 * KIB, true);
  take_back(64 * KIB, false);
}

static void write_to_waiting(uint64_t page_size) {
  rig r;
  open_rig(&r, page_size, false);
  for (uint64_t value = 1; value <= 50; value++) {
    uint64_t page = press(&r, 64, 64 + page_count(&r) / 2), at = page * page_size + 8;
    rig_write(&r, at, value);
    CHECK_EQUAL(rig_flush(&r), 0);
    CHECK_EQUAL(rig_file_word(&r, at), value);
    rig_write(&r, at, rig_word(at));
  }
  rig_close(&r);
  for (uint64_t at = 8; at < r.size; at += page_size)
    CHECK_EQUAL(rig_file_word(&r, at), rig_word(at));
  rig_end(&r);
}

static void test_standby_short_written_to_loses_no_write(void) {
  write_to_waiting(4 * KIB);
  write_to_waiting(64 * KIB);
}

static void test_standby_short_runs_of_several_pages_come_back_whole(void) {
  rig r;
  open_rig(&r, 4 * KIB, true);
  const uint64_t run = 24; /* read as one, no power of two */
  uint64_t deadline = now_ns() + PATIENCE_NS;
  for (uint64_t first = 0, back = 0; back == 0;) {
    CHECK(now_ns() < deadline);
    CHECK_EQUAL(rig_prefetch(&r, first * 4 * KIB, run * 4 * KIB), 0);
    first = first + 2 * run < page_count(&r) ? first + run : 0;
    for (uint64_t page = 0; page < page_count(&r) && back == 0; page += run)
      if (rig_state(&r, page) == UM_PAGE_STANDBY && rig_state(&r, page + run - 1) == UM_PAGE_STANDBY) {
        uint64_t reads = latch_calls(r.latch, UM_OP_READ), middle = (page + run / 2) * 4 * KIB;
        CHECK_EQUAL(rig_read(&r, middle), rig_word(middle));
        for (uint64_t at = page * 4 * KIB; at < (page + run) * 4 * KIB; at += 8)
          CHECK_EQUAL(rig_read(&r, at), rig_word(at));
        back += latch_calls(r.latch, UM_OP_READ) == reads;
      }
  }
  rig_close(&r);
  rig_end(&r);
}

/* Race: a device's pin against moving out. The policy was told that the page waits; it stays, and must be a victim
 * again when the pin is gone. */
static void test_standby_short_that_is_pinned_stays_and_leaves_later(void) {
  rig r;
  open_rig(&r, 4 * KIB, false);
  if (!pin_allowed()) {
    printf("  %s skipped: io_uring is switched off\n", __func__);
  } else {
    for (uint64_t page = 0; page < 8; page++)
      rig_write(&r, page * 4 * KIB, rig_word(page * 4 * KIB));
    pin *p = pin_open(r.bytes, 8 * 4 * KIB);
    CHECK_EQUAL(rig_flush(&r), 0);
    for (uint64_t deadline = now_ns() + PATIENCE_NS; rig_stats(&r).pinned == 0;) {
      CHECK(now_ns() < deadline);
      for (uint64_t page = 8; page < page_count(&r); page++)
        CHECK_EQUAL(rig_read(&r, page * 4 * KIB), rig_word(page * 4 * KIB));
    }
    pin_close(p);
    CHECK_EQUAL(rig_flush(&r), 0);
    for (uint64_t left = 0, deadline = now_ns() + PATIENCE_NS; left < 8;) {
      CHECK(now_ns() < deadline);
      for (uint64_t page = 8; page < page_count(&r); page++)
        CHECK_EQUAL(rig_read(&r, page * 4 * KIB), rig_word(page * 4 * KIB));
      left = 0;
      for (uint64_t page = 0; page < 8; page++)
        left += rig_state(&r, page) != UM_PAGE_CLEAN;
    }
  }
  rig_close(&r);
  rig_end(&r);
}

/* Race: fault against giving up, eviction and closing, many threads over far more than fits. */
typedef struct readers {
  rig *rig;
  uint64_t seed;
  _Atomic bool *stop;
} readers;

static void *read_at_random(void *argument) {
  readers *a = argument;
  while (!atomic_load(a->stop)) {
    uint64_t draw = rig_random(&a->seed), hot = (draw >> 40) % 16;
    uint64_t page = (draw >> 8) % (page_count(a->rig) / (hot ? 8 : 1)), at = page * a->rig->region->page_size + 8;
    CHECK_EQUAL(rig_read(a->rig, at), rig_word(at));
  }
  return NULL;
}

static void hammer(uint32_t policy, bool read_only) {
  rig r;
  _Atomic bool stop = false;
  pthread_t threads[4];
  readers a[4];
  rig_policy = policy;
  rig_open(&r,
           &(rig_options){.size = 4 * MEMORY, .memory = MEMORY, .fillers = 3, .evictors = 2, .read_only = read_only});
  for (unsigned i = 0; i < 4; i++) {
    a[i] = (readers){.rig = &r, .seed = i + 1, .stop = &stop};
    threads[i] = rig_thread(read_at_random, &a[i]);
  }
  for (unsigned i = 0; i < 40; i++) {
    sleep_ms(10);
    CHECK_EQUAL(rig_evict(&r, (i * 37 % 64) * 64 * KIB, 256 * KIB), 0);
    watchdog_pet("hammering");
  }
  atomic_store(&stop, true);
  for (unsigned i = 0; i < 4; i++)
    CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
  CHECK(rig_stats(&r).standby_hits > 0);
  CHECK(rig_stats(&r).used <= MEMORY);
  rig_close(&r);
  rig_end(&r);
}

static void test_standby_short_under_many_threads_shows_the_stores_bytes(void) {
  static const uint32_t policies[] = {UM_POLICY_AUTO, UM_POLICY_SECOND_CHANCE, UM_POLICY_S3FIFO};
  for (unsigned i = 0; i < sizeof policies / sizeof *policies; i++) {
    hammer(policies[i], true);
    hammer(policies[i], false);
  }
}

int main(void) {
  if (rig_mechanism() == UM_MECHANISM_COPY) {
    printf("  skipped: copied pages do not wait\n");
    return 0;
  }
  watchdog_start(30);
  RUN(test_standby_short_touched_comes_back_without_the_store);
  RUN(test_standby_short_written_to_loses_no_write);
  RUN(test_standby_short_runs_of_several_pages_come_back_whole);
  RUN(test_standby_short_that_is_pinned_stays_and_leaves_later);
  RUN(test_standby_short_under_many_threads_shows_the_stores_bytes);
  watchdog_pet("the end");
  return 0;
}
