/* Dirty pages written back ahead of need (clean.c), of a store that says its writes compute. Where pages cannot be
 * moved out nothing is cleaned, and these tests have no subject. */
#include "page.h"
#include "pin.h"
#include "rig.h"

#include <stdio.h>

#define KIB 1024ull
#define MEMORY (8ull << 20)
#define PAGES 64ull /* dirty: more than the floor, a 128th of the memory */
static void open_rig(rig *r, uint64_t page_size) {
  rig_open(r, &(rig_options){.size = 4 * MEMORY,
                             .page_size = page_size,
                             .memory = MEMORY,
                             .fillers = 2,
                             .evictors = 2,
                             .faults = true,
                             .latch = true,
                             .computes = true});
}

static bool cleans(const rig *r, const char *test) {
  if (!r->region->cleans)
    printf("  %s skipped: pages are not moved\n", test);
  return r->region->cleans;
}

static uint64_t at(const rig *r, uint64_t page) {
  return page * r->region->page_size + 8;
}

static void write_pages(const rig *r, uint64_t value) {
  for (uint64_t page = 0; page < PAGES; page++)
    rig_write(r, at(r, page), value + page);
}

static void check_file(const rig *r, uint64_t page_size, uint64_t value) {
  for (uint64_t page = 0; page < PAGES; page++) {
    CHECK_EQUAL(rig_file_word(r, page * page_size + 8), value + page);
    CHECK_EQUAL(rig_file_word(r, page * page_size + 16), rig_word(page * page_size + 16));
  }
}

static void clean_in_peace(uint64_t page_size) {
  rig r;
  open_rig(&r, page_size);
  if (cleans(&r, __func__)) {
    write_pages(&r, 1);
    uint64_t floor = MEMORY / 128;
    AWAIT(rig_stats(&r).dirty < floor);
    um_stats stats = rig_stats(&r);
    CHECK_EQUAL(stats.store_flushes, 0);
    CHECK(stats.cleaned >= PAGES - floor / page_size);
    CHECK_EQUAL(stats.cleaned, stats.writes);
    uint64_t waiting = 0, reads = latch_calls(r.latch, UM_OP_READ);
    for (uint64_t page = 0; page < PAGES; page++)
      waiting += rig_state(&r, page) == UM_PAGE_STANDBY;
    CHECK_EQUAL(waiting, stats.cleaned);
    for (uint64_t page = 0; page < PAGES; page++)
      CHECK_EQUAL(rig_read(&r, at(&r, page)), 1 + page);
    CHECK_EQUAL(latch_calls(r.latch, UM_OP_READ), reads);
    CHECK_EQUAL(rig_stats(&r).cleaned_wasted, 0);
    CHECK_EQUAL(rig_flush(&r), 0);
    check_file(&r, page_size, 1);
  }
  rig_close(&r);
  rig_end(&r);
}

static void test_clean_dirty_pages_are_written_while_nobody_asks(void) {
  clean_in_peace(4 * KIB);
  clean_in_peace(64 * KIB);
}

static void test_clean_few_dirty_pages_are_left_alone(void) {
  rig r;
  open_rig(&r, 4 * KIB);
  for (uint64_t page = 0; page < 8; page++)
    rig_write(&r, at(&r, page), 1);
  sleep_ms(50);
  CHECK_EQUAL(rig_stats(&r).cleaned, 0);
  CHECK_EQUAL(rig_stats(&r).dirty, 8 * 4 * KIB);
  rig_close(&r);
  rig_end(&r);
}

/* Each round finds the pages of the last one cleaned, mostly, and makes that vain. */
static void test_clean_rests_where_pages_are_written_again_and_again(void) {
  rig r;
  open_rig(&r, 4 * KIB);
  const uint64_t rounds = 100;
  if (cleans(&r, __func__)) {
    for (uint64_t round = 1; round <= rounds; round++) {
      write_pages(&r, round);
      sleep_ms(12);
    }
    um_stats stats = rig_stats(&r);
    CHECK(stats.cleaned_wasted > 0);
    CHECK(stats.cleaned < rounds * PAGES / 3);
    CHECK(stats.cleaned_wasted <= stats.cleaned);
  }
  rig_close(&r);
  rig_end(&r);
}

/* Written to after a flush they were cleaned for a reason. */
static void test_clean_written_again_after_a_flush_is_not_wasted(void) {
  rig r;
  open_rig(&r, 4 * KIB);
  if (cleans(&r, __func__)) {
    for (uint64_t round = 1; round <= 5; round++) {
      write_pages(&r, 1000 * round);
      AWAIT(rig_stats(&r).dirty < MEMORY / 128);
      CHECK_EQUAL(rig_flush(&r), 0);
      check_file(&r, 4 * KIB, 1000 * round);
    }
    CHECK_EQUAL(rig_stats(&r).cleaned_wasted, 0);
  }
  rig_close(&r);
  rig_end(&r);
}

/* Race: clean against fault. */
static void test_clean_reader_and_writer_of_a_page_being_cleaned_lose_nothing(void) {
  rig r;
  open_rig(&r, 4 * KIB);
  if (cleans(&r, __func__)) {
    latch_arm(r.latch, UM_OP_WRITE);
    write_pages(&r, 1);
    latch_wait(r.latch);
    uint64_t page = 0;
    while (page < PAGES && um_word_state(um_page_load(r.region, page)) != UM_LEAVING)
      page++;
    CHECK(page < PAGES);
    rig_touch write = {.rig = &r, .offset = at(&r, page) + 16, .value = 77}, read = {.rig = &r, .offset = at(&r, page)};
    pthread_t threads[] = {rig_thread(rig_touch_once, &write), rig_thread(rig_touch_once, &read)};
    sleep_ms(20);
    CHECK(!atomic_load(&write.ended) && !atomic_load(&read.ended));
    latch_release(r.latch);
    for (int i = 0; i < 2; i++)
      CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
    CHECK_EQUAL(latch_changed(r.latch), 0);
    CHECK_EQUAL(rig_read(&r, at(&r, page)), 1 + page);
    CHECK_EQUAL(rig_flush(&r), 0);
    CHECK_EQUAL(rig_file_word(&r, at(&r, page) + 16), 77);
    CHECK_EQUAL(rig_file_word(&r, at(&r, page)), 1 + page);
  }
  rig_close(&r);
  rig_end(&r);
}

typedef struct flushing {
  rig *rig;
  _Atomic bool ended;
} flushing;

static void *flush_once(void *argument) {
  flushing *f = argument;
  CHECK_EQUAL(rig_flush(f->rig), 0);
  atomic_store(&f->ended, true);
  return NULL;
}

/* Race: clean against flush. */
static void test_clean_flush_waits_for_pages_being_cleaned(void) {
  rig r;
  open_rig(&r, 4 * KIB);
  if (cleans(&r, __func__)) {
    latch_arm(r.latch, UM_OP_WRITE);
    write_pages(&r, 1);
    latch_wait(r.latch);
    flushing f = {.rig = &r};
    pthread_t thread = rig_thread(flush_once, &f);
    sleep_ms(20);
    CHECK(!atomic_load(&f.ended));
    latch_release(r.latch);
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
    check_file(&r, 4 * KIB, 1);
    CHECK(rig_stats(&r).store_flushes > 0);
  }
  rig_close(&r);
  rig_end(&r);
}

/* Race: a flush begins while the only evictor is in the store, to clean; that fails, and it would rest. */
static void test_clean_that_fails_does_not_keep_a_flush_waiting(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = MEMORY, .memory = MEMORY, .faults = true, .latch = true, .computes = true});
  if (cleans(&r, __func__)) {
    latch_arm(r.latch, UM_OP_WRITE);
    rig_fail(&r, 1u << UM_OP_WRITE, ENOSPC, 1, 0);
    write_pages(&r, 1);
    latch_wait(r.latch);
    flushing f = {.rig = &r};
    pthread_t thread = rig_thread(flush_once, &f);
    sleep_ms(20);
    uint64_t began = now_ns();
    latch_release(r.latch);
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
    CHECK(now_ns() - began < 150000000ull * SLOWER);
    check_file(&r, 4 * KIB, 1);
  }
  rig_close(&r);
  rig_end(&r);
}

/* Race: clean against close, with what is dirty written or given up. */
static void test_clean_close_while_pages_are_cleaned_ends(void) {
  for (unsigned round = 0; round < 40; round++) {
    rig r;
    open_rig(&r, round & 1 ? 64 * KIB : 4 * KIB);
    write_pages(&r, 1);
    sleep_ms(round % 10);
    if (round % 4 < 2) {
      rig_close(&r);
      check_file(&r, round & 1 ? 64 * KIB : 4 * KIB, 1);
    } else {
      rig_discard(&r);
    }
    rig_end(&r);
  }
}

static void test_clean_store_that_fails_is_not_told_and_loses_nothing(void) {
  rig r;
  open_rig(&r, 4 * KIB);
  if (cleans(&r, __func__)) {
    rig_fail(&r, 1u << UM_OP_WRITE, ENOSPC, UINT64_MAX, 0);
    write_pages(&r, 1);
    AWAIT(rig_stats(&r).write_errors > 0);
    AWAIT(atomic_load(&r.region->writing) == 0);
    CHECK_EQUAL(rig_errors(&r), 0);
    CHECK_EQUAL(rig_stats(&r).cleaned, 0);
    CHECK_EQUAL(rig_stats(&r).dirty, PAGES * 4 * KIB);
    uint64_t errors = rig_stats(&r).write_errors;
    sleep_ms(100);
    CHECK(rig_stats(&r).write_errors <= errors + 4); /* it is let alone for a while */
    rig_heal(&r);
    for (uint64_t page = 0; page < PAGES; page++)
      CHECK_EQUAL(rig_read(&r, at(&r, page)), 1 + page);
    CHECK_EQUAL(rig_flush(&r), 0);
    check_file(&r, 4 * KIB, 1);
  }
  rig_close(&r);
  rig_end(&r);
}

/* Race: clean against a device. Were a pinned page written and held for clean, what the device puts there later would
 * be lost. */
static void test_clean_pinned_page_stays_dirty(void) {
  rig r;
  open_rig(&r, 4 * KIB);
  if (cleans(&r, __func__) && pin_allowed()) {
    pin *p = pin_open(r.bytes, 4 * KIB);
    write_pages(&r, 1);
    AWAIT(rig_stats(&r).pinned > 0);
    AWAIT(rig_stats(&r).dirty < MEMORY / 128);
    CHECK_EQUAL(rig_state(&r, 0), UM_PAGE_DIRTY);
    CHECK_EQUAL(rig_file_word(&r, 8), rig_word(8));
    pin_close(p);
    CHECK_EQUAL(rig_flush(&r), 0);
    check_file(&r, 4 * KIB, 1);
  }
  rig_close(&r);
  rig_end(&r);
}

typedef struct writer {
  rig *rig;
  uint64_t number, random, ends_ns;
  uint64_t *last; /* of its word in each page */
} writer;

#define WRITERS 3

static void *write_for_long(void *argument) {
  writer *w = argument;
  uint64_t pages = w->rig->region->page_count;
  for (uint64_t value = 1; now_ns() < w->ends_ns; value++) {
    uint64_t page = rig_random(&w->random) % pages, offset = at(w->rig, page) + 8 * w->number;
    uint64_t wanted = w->last[page] ? w->last[page] : rig_word(offset);
    CHECK_EQUAL(rig_read(w->rig, offset), wanted);
    rig_write(w->rig, offset, value);
    w->last[page] = value;
    if (value % 256 == 0)
      sleep_ms(6); /* and it is not young any more */
    if (w->number == 0 && value % 3000 == 0)
      CHECK_EQUAL(rig_flush(w->rig), 0);
    if (w->number == 1 && value % 2000 == 0)
      rig_evict(w->rig, 0, w->rig->size / 4);
  }
  return NULL;
}

/* Clean against everything: faults, flushes, evictions by name and for memory. */
static void write_everywhere(uint64_t page_size) {
  rig r;
  writer writers[WRITERS];
  pthread_t threads[WRITERS];
  open_rig(&r, page_size);
  uint64_t pages = r.region->page_count;
  for (uint64_t i = 0; i < WRITERS; i++) {
    writers[i] =
        (writer){.rig = &r, .number = i, .random = 7 + i, .ends_ns = now_ns() + 1500000000, .last = calloc(pages, 8)};
    CHECK(writers[i].last);
  }
  for (int i = 0; i < WRITERS; i++)
    threads[i] = rig_thread(write_for_long, &writers[i]);
  for (int i = 0; i < WRITERS; i++)
    CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
  if (r.region->cleans)
    CHECK(rig_stats(&r).cleaned > 0);
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  for (uint64_t i = 0; i < WRITERS; i++) {
    for (uint64_t page = 0; page < pages; page++)
      if (writers[i].last[page])
        CHECK_EQUAL(rig_file_word(&r, page * page_size + 8 + 8 * i), writers[i].last[page]);
    free(writers[i].last);
  }
  rig_end(&r);
}

static void test_clean_against_writers_flushes_and_evictions_loses_nothing(void) {
  write_everywhere(4 * KIB);
  write_everywhere(64 * KIB);
}

int main(void) {
  watchdog_start(30);
  RUN(test_clean_dirty_pages_are_written_while_nobody_asks);
  RUN(test_clean_few_dirty_pages_are_left_alone);
  RUN(test_clean_rests_where_pages_are_written_again_and_again);
  RUN(test_clean_written_again_after_a_flush_is_not_wasted);
  RUN(test_clean_reader_and_writer_of_a_page_being_cleaned_lose_nothing);
  RUN(test_clean_flush_waits_for_pages_being_cleaned);
  RUN(test_clean_that_fails_does_not_keep_a_flush_waiting);
  RUN(test_clean_close_while_pages_are_cleaned_ends);
  RUN(test_clean_store_that_fails_is_not_told_and_loses_nothing);
  RUN(test_clean_pinned_page_stays_dirty);
  RUN(test_clean_against_writers_flushes_and_evictions_loses_nothing);
  watchdog_pet("the end");
  return 0;
}
