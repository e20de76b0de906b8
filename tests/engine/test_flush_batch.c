/* Scattered dirty pages that are written many at once, for a flush and for eviction: what goes into a batch, what
 * becomes of a write that fails, and of pages that are touched, dropped or closed meanwhile. The file store's own
 * write_batch is replaced by one that the test sees into. */
#include "rig.h"
#include "store_file.h"

#define PAGE 4096u
#define SCATTERED 300u

static um_store_ops ops;
static _Atomic uint32_t calls, writes, longest, changed;
static _Atomic uint64_t bad_offset; /* the write that begins there fails with bad_code; UINT64_MAX: none */
static _Atomic int bad_code, refusal;
static atomic_bool hold, held; /* the next batch stops before it writes; it has */
static atomic_bool lingers;    /* that one returns a while after its last write ended */

static uint64_t hash(const um_batch *batch) {
  uint64_t h = 1469598103934665603u;
  for (uint32_t i = 0; i < batch->count; i++)
    for (uint64_t at = 0; at < batch->reads[i].length; at += 8)
      h = (h ^ *(const uint64_t *)((const char *)batch->reads[i].buffer + at)) * 1099511628211u;
  return h;
}

static bool hold_here(const um_batch *batch) {
  bool wanted = true;
  if (!atomic_compare_exchange_strong(&hold, &wanted, false))
    return false;
  uint64_t before = hash(batch);
  atomic_store(&held, true);
  while (atomic_load(&held))
    sleep_ms(1);
  atomic_fetch_add(&changed, hash(batch) != before);
  return true;
}

static int write_batch(um_store *store, um_batch *batch) {
  if (refusal)
    return refusal;
  atomic_fetch_add(&calls, 1);
  atomic_fetch_add(&writes, batch->count);
  if (batch->count > atomic_load(&longest))
    atomic_store(&longest, batch->count);
  bool was_held = hold_here(batch);
  for (uint32_t i = batch->count; i-- > 0;) { /* they land in any order */
    um_write *write = &batch->reads[i];
    CHECK_EQUAL((uintptr_t)write->buffer % 4096, 0);
    if (write->offset == atomic_load(&bad_offset))
      write->code = bad_code;
    else
      write->code = um_store_write(store, write->offset, write->buffer, write->length, write->error);
    batch->ended(batch, write);
  }
  if (was_held && lingers)
    sleep_ms(50);
  CHECK(store->ops == &ops); /* it is still there */
  return 0;
}

static atomic_bool fails_alone_too; /* a write of bad_offset by itself, as well */

static int write_alone(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error) {
  if (fails_alone_too && offset == atomic_load(&bad_offset))
    return um_error_set(error, -bad_code, UM_OP_WRITE, offset, length, "the test's device says no");
  return um_file_store_ops.write(store, offset, buffer, length, error);
}

static void open_region(rig *r, const rig_options *options) {
  rig_options o = *options;
  ops = um_file_store_ops;
  ops.write_batch = write_batch;
  ops.write = write_alone;
  o.ops = &ops;
  calls = writes = longest = changed = 0;
  bad_offset = UINT64_MAX;
  bad_code = refusal = 0;
  hold = held = lingers = false;
  fails_alone_too = true;
  rig_open(r, &o);
}

static void open_roomy(rig *r) { /* the last page is not whole */
  open_region(r, &(rig_options){.size = (3 * SCATTERED + 1) * PAGE - 96, .memory = 64 << 20, .evictors = 2});
}

static uint64_t page_of(uint32_t i) {
  return 3 * i + i % 2;
}

static void write_scattered(rig *r, uint64_t value) {
  for (uint32_t i = 0; i < SCATTERED; i++)
    rig_write(r, page_of(i) * PAGE + 8 * i % PAGE, value + i);
}

static void check_scattered(rig *r, uint64_t value, uint64_t but) {
  for (uint32_t i = 0; i < SCATTERED; i++)
    if (page_of(i) != but) {
      CHECK_EQUAL(rig_file_word(r, page_of(i) * PAGE + 8 * i % PAGE), value + i);
      CHECK_EQUAL(rig_state(r, page_of(i)), UM_PAGE_CLEAN);
    }
}

static void close_region(rig *r) {
  rig_close(r);
  rig_end(r);
}

static void test_flush_of_scattered_pages_goes_by_few_batches(void) {
  rig r;
  open_roomy(&r);
  write_scattered(&r, 1000);
  CHECK_EQUAL(rig_flush(&r), 0);
  check_scattered(&r, 1000, UINT64_MAX);
  CHECK_EQUAL(writes, SCATTERED);
  CHECK(longest > 100 && calls <= 4);
  um_stats s = rig_stats(&r);
  CHECK_EQUAL(s.store_writes, SCATTERED);
  CHECK_EQUAL(s.writes, SCATTERED);
  CHECK_EQUAL(s.bytes_written, SCATTERED * PAGE);
  CHECK_EQUAL(s.store_flushes, 1);
  close_region(&r);
}

static void test_neighbours_in_a_batch_are_one_write_and_the_last_page_is_cut(void) {
  rig r;
  open_roomy(&r);
  uint64_t last = 3 * SCATTERED;
  for (uint64_t page = 10; page < 14; page++)
    rig_write(&r, page * PAGE, page);
  rig_write(&r, 20 * PAGE, 20);
  rig_write(&r, last * PAGE, 30);
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK(writes >= 3 && writes <= 4); /* a span of 2 MiB may end among them */
  CHECK_EQUAL(rig_stats(&r).bytes_written, 6 * PAGE - 96);
  for (uint64_t page = 10; page < 14; page++)
    CHECK_EQUAL(rig_file_word(&r, page * PAGE), page);
  CHECK_EQUAL(rig_file_word(&r, last * PAGE), 30);
  close_region(&r);
}

static void test_store_that_takes_no_batch_gets_the_writes_one_by_one(void) {
  rig r;
  open_roomy(&r);
  refusal = -EOPNOTSUPP;
  write_scattered(&r, 7);
  CHECK_EQUAL(rig_flush(&r), 0);
  check_scattered(&r, 7, UINT64_MAX);
  CHECK_EQUAL(rig_stats(&r).store_writes, SCATTERED);
  close_region(&r);
}

static void test_write_that_fails_leaves_its_page_dirty_and_the_others_written(void) {
  rig r;
  um_error error;
  open_roomy(&r);
  write_scattered(&r, 1);
  bad_offset = page_of(77) * PAGE;
  bad_code = -ENOSPC;
  CHECK_EQUAL(rig_run(um_region_flush_start(r.region, 0, r.size, 1), &error), -ENOSPC);
  CHECK_EQUAL(error.offset, bad_offset);
  CHECK(strstr(error.text, "says no"));
  check_scattered(&r, 1, page_of(77));
  CHECK_EQUAL(rig_state(&r, page_of(77)), UM_PAGE_DIRTY);
  rig_write(&r, page_of(77) * PAGE + 2048, 5); /* it is protected: the write must be seen all the same */
  bad_offset = UINT64_MAX;
  CHECK_EQUAL(rig_flush(&r), 0);
  check_scattered(&r, 1, UINT64_MAX);
  CHECK_EQUAL(rig_file_word(&r, page_of(77) * PAGE + 2048), 5);
  close_region(&r);
}

static void test_write_that_fails_in_passing_is_tried_again(void) {
  rig r;
  open_roomy(&r);
  write_scattered(&r, 1);
  bad_offset = page_of(3) * PAGE;
  fails_alone_too = false;
  bad_code = -EIO;
  CHECK_EQUAL(rig_flush(&r), 0);
  check_scattered(&r, 1, UINT64_MAX);
  close_region(&r);
}

static void test_page_dropped_before_it_is_copied_fails_alone(void) {
  rig r;
  um_error error;
  open_roomy(&r);
  write_scattered(&r, 1);
  rig_drop(&r, page_of(40) * PAGE, PAGE);
  CHECK_EQUAL(rig_run(um_region_flush_start(r.region, 0, r.size, 1), &error), -UM_EDROPPED);
  CHECK_EQUAL(error.offset, page_of(40) * PAGE);
  check_scattered(&r, 1, page_of(40));
  CHECK_EQUAL(rig_state(&r, page_of(40)), UM_PAGE_FAILED);
  CHECK_EQUAL(rig_file_word(&r, page_of(40) * PAGE), rig_word(page_of(40) * PAGE));
  close_region(&r);
}

static void *flush(void *argument) {
  CHECK_EQUAL(rig_flush(argument), 0);
  return NULL;
}

static void test_writes_while_a_batch_is_written_go_through_at_once_and_come_with_the_next(void) {
  rig r;
  open_roomy(&r);
  write_scattered(&r, 1);
  hold = true;
  pthread_t flusher = rig_thread(flush, &r);
  while (!atomic_load(&held))
    sleep_ms(1);
  uint32_t before = writes;
  write_scattered(&r, 5000);
  atomic_store(&held, false);
  pthread_join(flusher, NULL);
  CHECK(before > 0);
  CHECK_EQUAL(changed, 0);
  CHECK_EQUAL(rig_file_word(&r, page_of(0) * PAGE), 1);
  CHECK_EQUAL(rig_state(&r, page_of(0)), UM_PAGE_DIRTY);
  CHECK_EQUAL(rig_flush(&r), 0);
  check_scattered(&r, 5000, UINT64_MAX);
  close_region(&r);
}

/* They are protected together with the dirty ones around them. */
static void test_pages_between_dirty_ones_still_tell_of_writes(void) {
  rig r;
  open_roomy(&r);
  for (uint64_t page = 0; page < 64; page += 4) {
    rig_write(&r, page * PAGE, page + 1);
    CHECK_EQUAL(rig_read(&r, (page + 2) * PAGE), rig_word((page + 2) * PAGE));
  }
  CHECK_EQUAL(rig_flush(&r), 0);
  for (uint64_t page = 0; page < 64; page++)
    rig_write(&r, page * PAGE, 100 + page); /* clean, never dirty, absent */
  CHECK_EQUAL(rig_flush(&r), 0);
  for (uint64_t page = 0; page < 64; page++)
    CHECK_EQUAL(rig_file_word(&r, page * PAGE), 100 + page);
  close_region(&r);
}

/* Of a page that somebody else writes, and holds long. */
static void test_flush_sends_what_it_claimed_before_it_waits(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 64 * PAGE, .memory = 8 << 20, .evictors = 2, .latch = true});
  rig_write(&r, 8 * PAGE, 8);
  latch_arm(r.latch, UM_OP_WRITE);
  um_job *evicting = um_region_evict_start(r.region, 8 * PAGE, PAGE);
  latch_wait(r.latch);
  rig_write(&r, 2 * PAGE, 2);
  rig_write(&r, 20 * PAGE, 20);
  pthread_t flusher = rig_thread(flush, &r);
  for (uint64_t patience = now_ns() + 10000000000u; rig_state(&r, 2) != UM_PAGE_CLEAN; sleep_ms(1))
    CHECK(now_ns() < patience);
  CHECK_EQUAL(rig_file_word(&r, 2 * PAGE), 2);
  latch_release(r.latch);
  pthread_join(flusher, NULL);
  um_error error;
  CHECK_EQUAL(rig_run(evicting, &error), 0);
  CHECK_EQUAL(rig_file_word(&r, 8 * PAGE), 8);
  CHECK_EQUAL(rig_file_word(&r, 20 * PAGE), 20);
  close_region(&r);
}

#define SMALL_PAGES 2048u

static void open_small(rig *r) { /* most of it does not fit */
  open_region(r, &(rig_options){.size = SMALL_PAGES * PAGE, .spare = 256, .fillers = 3, .evictors = 2});
}

static uint64_t scattered_page(uint64_t i) { /* all of them, neighbours far apart in time */
  return i * 677 % SMALL_PAGES;
}

static void test_eviction_of_scattered_pages_goes_by_batches_and_loses_nothing(void) {
  rig r;
  open_small(&r);
  for (uint64_t i = 0; i < SMALL_PAGES; i++)
    rig_write(&r, scattered_page(i) * PAGE, i + 1);
  CHECK(rig_stats(&r).evictions > SMALL_PAGES / 2);
  CHECK(longest > 4 && calls > 0);
  for (uint64_t i = 0; i < SMALL_PAGES; i++) {
    CHECK_EQUAL(rig_read(&r, scattered_page(i) * PAGE), i + 1);
    CHECK_EQUAL(rig_read(&r, scattered_page(i) * PAGE + 8), rig_word(scattered_page(i) * PAGE + 8));
  }
  rig_close(&r);
  for (uint64_t i = 0; i < SMALL_PAGES; i++)
    CHECK_EQUAL(rig_file_word(&r, scattered_page(i) * PAGE), i + 1);
  rig_end(&r);
}

static void test_eviction_keeps_the_page_whose_write_fails_and_tells_of_it(void) {
  rig r;
  rig_policy = UM_POLICY_FIFO; /* the page is sure to be asked to leave */
  open_small(&r);
  rig_policy = UM_POLICY_AUTO;
  bad_offset = scattered_page(9) * PAGE;
  bad_code = -ENOSPC;
  for (uint64_t i = 0; i < SMALL_PAGES; i++)
    rig_write(&r, scattered_page(i) * PAGE, i + 1);
  CHECK_EQUAL(rig_read(&r, bad_offset), 10);
  CHECK_EQUAL(rig_read(&r, bad_offset + 8), rig_word(bad_offset + 8));
  CHECK(rig_errors(&r) > 0);
  um_error error;
  while (um_region_error_next(r.region, &error)) {
    CHECK_EQUAL(error.code, ENOSPC);
    CHECK_EQUAL(error.offset, bad_offset);
  }
  uint64_t offset = bad_offset;
  bad_offset = UINT64_MAX;
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, offset), 10);
  for (uint64_t i = 0; i < SMALL_PAGES; i++)
    CHECK_EQUAL(rig_file_word(&r, scattered_page(i) * PAGE), i + 1);
  rig_end(&r);
}

static void *release_later(void *unused) {
  (void)unused;
  sleep_ms(20);
  atomic_store(&held, false);
  return NULL;
}

/* Race: the last write of a batch ends, and the region and its store go, while the batch's thread returns from it. */
static void test_region_closes_while_its_last_batch_ends(void) {
  for (int round = 0; round < 5; round++) {
    rig r;
    open_small(&r);
    hold = lingers = true;
    uint64_t written = 0;
    for (; !atomic_load(&held) && written < SMALL_PAGES; written++)
      rig_write(&r, scattered_page(written) * PAGE, written + 1);
    CHECK(atomic_load(&held));
    pthread_t releaser = rig_thread(release_later, NULL);
    rig_close(&r); /* its flush waits for these pages */
    pthread_join(releaser, NULL);
    for (uint64_t i = 0; i < written; i++)
      CHECK_EQUAL(rig_file_word(&r, scattered_page(i) * PAGE), i + 1);
    rig_end(&r);
  }
}

typedef struct counter {
  rig *rig;
  uint64_t seed;
  _Atomic uint64_t *counts; /* a page; raised after its write */
  _Atomic bool *stop;
} counter;

static void *count_pages(void *argument) {
  counter *c = argument;
  while (!atomic_load(c->stop)) {
    uint64_t page = rig_random(&c->seed) % SMALL_PAGES, value = atomic_load(&c->counts[page]) + 1;
    rig_write(c->rig, page * PAGE + 8, value);
    atomic_store(&c->counts[page], value);
  }
  return NULL;
}

/* Races of flush and eviction against writes, fills for writing between protected runs, and each other. */
static void test_writes_before_a_flush_are_in_the_store_whatever_leaves_and_comes_meanwhile(void) {
  static _Atomic uint64_t counts[SMALL_PAGES], before[SMALL_PAGES];
  _Atomic bool stop = false;
  rig r;
  open_small(&r);
  memset((void *)counts, 0, sizeof counts);
  counter c = {.rig = &r, .seed = 88172645463325252u, .counts = counts, .stop = &stop};
  pthread_t thread = rig_thread(count_pages, &c);
  uint64_t end = now_ns() + 1500000000u * SLOWER, flushes = 0;
  for (; now_ns() < end; flushes++) {
    for (uint64_t i = 0; i < SMALL_PAGES; i++)
      before[i] = atomic_load(&counts[i]);
    CHECK_EQUAL(rig_flush(&r), 0);
    for (uint64_t i = 0; i < SMALL_PAGES; i++)
      CHECK(before[i] == 0 || rig_file_word(&r, i * PAGE + 8) >= before[i]);
  }
  atomic_store(&stop, true);
  pthread_join(thread, NULL);
  CHECK(flushes > 3);
  rig_close(&r);
  for (uint64_t i = 0; i < SMALL_PAGES; i++)
    CHECK(counts[i] == 0 || rig_file_word(&r, i * PAGE + 8) == counts[i]);
  rig_end(&r);
}

int main(void) {
  watchdog_start(20);
  RUN(test_flush_of_scattered_pages_goes_by_few_batches);
  RUN(test_neighbours_in_a_batch_are_one_write_and_the_last_page_is_cut);
  RUN(test_store_that_takes_no_batch_gets_the_writes_one_by_one);
  RUN(test_write_that_fails_leaves_its_page_dirty_and_the_others_written);
  RUN(test_write_that_fails_in_passing_is_tried_again);
  RUN(test_page_dropped_before_it_is_copied_fails_alone);
  RUN(test_writes_while_a_batch_is_written_go_through_at_once_and_come_with_the_next);
  RUN(test_pages_between_dirty_ones_still_tell_of_writes);
  RUN(test_flush_sends_what_it_claimed_before_it_waits);
  RUN(test_eviction_of_scattered_pages_goes_by_batches_and_loses_nothing);
  RUN(test_eviction_keeps_the_page_whose_write_fails_and_tells_of_it);
  RUN(test_region_closes_while_its_last_batch_ends);
  RUN(test_writes_before_a_flush_are_in_the_store_whatever_leaves_and_comes_meanwhile);
  watchdog_pet("the end");
  return 0;
}
