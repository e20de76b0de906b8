/* Flush: what it promises while pages are written, evicted and flushed by others, and when the store fails. */
#include "rig.h"

typedef struct call {
  rig *rig;
  int code;
  _Atomic bool ended;
} call;

static void *flush(void *argument) {
  call *c = argument;
  c->code = rig_flush(c->rig);
  atomic_store(&c->ended, true);
  return NULL;
}

static void *evict(void *argument) {
  call *c = argument;
  c->code = rig_evict(c->rig, 0, c->rig->size);
  atomic_store(&c->ended, true);
  return NULL;
}

static void test_flush_waits_for_a_page_that_is_written_back_for_eviction(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .evictors = 2, .latch = true});
  rig_write(&r, 0, 5);
  call evicting = {.rig = &r}, flushing = {.rig = &r};
  latch_arm(r.latch, UM_OP_WRITE);
  pthread_t evictor = rig_thread(evict, &evicting);
  latch_wait(r.latch);
  pthread_t flusher = rig_thread(flush, &flushing);
  sleep_ms(30);
  CHECK(!atomic_load(&flushing.ended));
  latch_release(r.latch);
  pthread_join(flusher, NULL);
  CHECK_EQUAL(flushing.code, 0);
  CHECK_EQUAL(rig_file_word(&r, 0), 5);
  pthread_join(evictor, NULL);
  CHECK_EQUAL(rig_state(&r, 0), UM_PAGE_ABSENT);
  CHECK_EQUAL(latch_calls(r.latch, UM_OP_WRITE), 1);
  rig_close(&r);
  rig_end(&r);
}

static void test_flush_waits_for_a_flush_of_the_store_under_way(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .evictors = 2, .latch = true});
  rig_write(&r, 0, 5);
  call first = {.rig = &r}, second = {.rig = &r};
  latch_arm(r.latch, UM_OP_FLUSH);
  pthread_t one = rig_thread(flush, &first);
  latch_wait(r.latch);
  /* The page is clean and in the store's hands, but would not survive a power cut yet. */
  CHECK_EQUAL(rig_state(&r, 0), UM_PAGE_CLEAN);
  pthread_t two = rig_thread(flush, &second);
  pthread_join(two, NULL);
  CHECK_EQUAL(latch_calls(r.latch, UM_OP_FLUSH), 2); /* it asked the store itself rather than return early */
  latch_release(r.latch);
  pthread_join(one, NULL);
  CHECK_EQUAL(first.code | second.code, 0);
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK_EQUAL(latch_calls(r.latch, UM_OP_FLUSH), 2); /* nothing new */
  rig_close(&r);
  rig_end(&r);
}

static void test_write_during_a_flush_leaves_the_page_dirty_for_the_next(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .latch = true});
  rig_write(&r, 0, 1);
  call flushing = {.rig = &r};
  latch_arm(r.latch, UM_OP_WRITE);
  pthread_t thread = rig_thread(flush, &flushing);
  latch_wait(r.latch);
  rig_write(&r, 0, 2);
  latch_release(r.latch);
  pthread_join(thread, NULL);
  CHECK_EQUAL(flushing.code, 0);
  CHECK_EQUAL(latch_changed(r.latch), 0);
  CHECK_EQUAL(rig_file_word(&r, 0), 1);
  CHECK_EQUAL(rig_state(&r, 0), UM_PAGE_DIRTY);
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK_EQUAL(rig_file_word(&r, 0), 2);
  CHECK_EQUAL(rig_state(&r, 0), UM_PAGE_CLEAN);
  rig_close(&r);
  rig_end(&r);
}

static void test_write_after_a_flush_is_seen(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 16, .page_size = 1 << 16});
  for (uint64_t i = 1; i <= 2000; i++) {
    rig_write(&r, i % 8192 * 8, i);
    if (i % 10 == 0)
      CHECK_EQUAL(rig_flush(&r), 0);
    if (i % 10 == 0)
      CHECK_EQUAL(rig_file_word(&r, i % 8192 * 8), i);
  }
  rig_close(&r);
  rig_end(&r);
}

typedef struct promise {
  rig *rig;
  _Atomic uint64_t written;
  _Atomic bool stop;
} promise;

static void *write_on(void *argument) {
  promise *p = argument;
  for (uint64_t i = 1; !atomic_load(&p->stop); i++) {
    for (uint64_t page = 0; page < 8; page++)
      rig_write(p->rig, page * 4096, i);
    atomic_store(&p->written, i);
  }
  return NULL;
}

static void test_writes_completed_before_a_flush_are_in_the_store_after_it(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 64 << 12, .evictors = 2});
  promise p = {.rig = &r};
  pthread_t thread = rig_thread(write_on, &p);
  uint64_t end = now_ns() + 500000000, checked = 0;
  while (now_ns() < end) {
    uint64_t completed = atomic_load(&p.written);
    if (completed == 0)
      continue;
    CHECK_EQUAL(rig_flush(&r), 0);
    for (uint64_t page = 0; page < 8; page++)
      CHECK(rig_file_word(&r, page * 4096) >= completed);
    if (checked++ % 3 == 0)
      CHECK_EQUAL(rig_evict(&r, 0, 3 * 4096), 0);
  }
  CHECK(checked > 10);
  atomic_store(&p.stop, true);
  pthread_join(thread, NULL);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 0), atomic_load(&p.written));
  rig_end(&r);
}

static void flush_after_the_first_write(uint64_t page_size) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 * page_size, .page_size = page_size});
  for (uint64_t i = 1; i <= 64; i++) { /* each finds its page absent */
    uint64_t offset = i % 8 * page_size + page_size / 2;
    rig_write(&r, offset, i);
    CHECK_EQUAL(rig_flush(&r), 0);
    CHECK_EQUAL(rig_file_word(&r, offset), i);
    CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  }
  rig_close(&r);
  rig_end(&r);
}

/* The thread that writes may run on, and flush, before the filler that let it has said that the page is dirty. */
static void test_write_that_brought_its_page_in_is_seen_by_the_next_flush(void) {
  flush_after_the_first_write(4096);
  flush_after_the_first_write(2 << 20);
}

static void test_neighbours_are_written_by_one_call(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 64 << 12, .memory = 4 << 20});
  for (uint64_t page = 8; page < 24; page++)
    rig_write(&r, page * 4096, page);
  CHECK_EQUAL(rig_flush(&r), 0);
  um_stats s = rig_stats(&r);
  CHECK(s.store_writes <= 2); /* two where a span of 2 MiB ends among them */
  CHECK_EQUAL(s.bytes_written, 16 * 4096);
  CHECK_EQUAL(s.store_flushes, 1);
  rig_close(&r);
  rig_end(&r);
}

static void test_store_that_refuses_leaves_pages_dirty_until_it_takes_them(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .faults = true});
  rig_write(&r, 3 * 4096, 9);
  rig_fail(&r, 1 << UM_OP_WRITE, ENOSPC, UINT64_MAX, 0);
  um_error error;
  CHECK_EQUAL(rig_run(um_region_flush_start(r.region, 0, r.size, 1), &error), -ENOSPC);
  CHECK_EQUAL(error.code, ENOSPC);
  CHECK_EQUAL(error.op, UM_OP_WRITE);
  CHECK_EQUAL(error.offset, 3 * 4096);
  CHECK_EQUAL(rig_state(&r, 3), UM_PAGE_DIRTY);
  CHECK_EQUAL(rig_evict(&r, 0, r.size), -ENOSPC);
  CHECK_EQUAL(rig_read(&r, 3 * 4096), 9);
  rig_write(&r, 3 * 4096 + 8, 10); /* the page is protected: the write must be seen all the same */
  rig_heal(&r);
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK_EQUAL(rig_file_word(&r, 3 * 4096), 9);
  CHECK_EQUAL(rig_file_word(&r, 3 * 4096 + 8), 10);
  rig_close(&r);
  rig_end(&r);
}

static void test_store_that_fails_to_flush_is_flushed_again(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .faults = true});
  rig_write(&r, 0, 9);
  rig_fail(&r, 1 << UM_OP_FLUSH, EIO, 1, 0);
  CHECK_EQUAL(rig_flush(&r), -EIO);
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK_EQUAL(rig_stats(&r).store_flushes, 2);
  rig_close(&r);
  rig_end(&r);
}

int main(void) {
  watchdog_start(20);
  RUN(test_flush_waits_for_a_page_that_is_written_back_for_eviction);
  RUN(test_flush_waits_for_a_flush_of_the_store_under_way);
  RUN(test_write_during_a_flush_leaves_the_page_dirty_for_the_next);
  RUN(test_write_after_a_flush_is_seen);
  RUN(test_writes_completed_before_a_flush_are_in_the_store_after_it);
  RUN(test_write_that_brought_its_page_in_is_seen_by_the_next_flush);
  RUN(test_neighbours_are_written_by_one_call);
  RUN(test_store_that_refuses_leaves_pages_dirty_until_it_takes_them);
  RUN(test_store_that_fails_to_flush_is_flushed_again);
  watchdog_pet("the end");
  return 0;
}
