/* Fills from a store that is late, fails once, or fails for ever. */
#define _GNU_SOURCE
#include "rig.h"

#include <unistd.h>

static void test_read_that_fails_once_is_tried_again(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, EIO, 1, 0);
  CHECK_EQUAL(rig_read(&r, 4096), rig_word(4096));
  um_stats s = rig_stats(&r);
  CHECK_EQUAL(s.retries, 1);
  CHECK_EQUAL(s.store_reads, 2);
  CHECK_EQUAL(rig_errors(&r), 0);
  CHECK_EQUAL(um_region_tainted(r.region), 0);
  rig_close(&r);
  rig_end(&r);
}

static void test_read_that_fails_for_ever_gives_a_record_and_no_zeros(void) {
  rig r;
  um_error error;
  rig_open(&r, &(rig_options){.size = 8 << 16, .page_size = 1 << 16, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, EIO, UINT64_MAX, 0);
  for (uint64_t offset = 3 << 16; offset < 4 << 16; offset += 1000 * 8)
    CHECK_EQUAL(rig_read(&r, offset), UINT64_MAX);
  CHECK_EQUAL(um_region_error_fault(r.region, &error), 1);
  CHECK_EQUAL(error.code, EIO);
  CHECK_EQUAL(error.op, UM_OP_READ);
  CHECK_EQUAL(error.offset, 3 << 16);
  CHECK_EQUAL(error.length, 1 << 16);
  CHECK_EQUAL(error.thread_id, gettid());
  CHECK_EQUAL(um_region_error_fault(r.region, &error), 0);
  CHECK(um_region_tainted(r.region));
  CHECK_EQUAL(rig_state(&r, 3), UM_PAGE_FAILED);
  CHECK_EQUAL(rig_stats(&r).fill_errors, 1);

  rig_heal(&r);
  CHECK_EQUAL(rig_read(&r, 3 << 16), UINT64_MAX);
  CHECK_EQUAL(rig_read(&r, 4 << 16), rig_word(4 << 16));
  CHECK_EQUAL(um_region_retry(r.region), 1);
  CHECK_EQUAL(rig_read(&r, 3 << 16), rig_word(3 << 16));
  rig_close(&r);
  rig_end(&r);
}

static void test_failure_that_will_not_pass_is_not_tried_again(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, UM_ECORRUPT, UINT64_MAX, 0);
  CHECK_EQUAL(rig_read(&r, 0), UINT64_MAX);
  CHECK_EQUAL(rig_stats(&r).store_reads, 1);
  rig_close(&r);
  rig_end(&r);
}

static void test_write_to_a_page_that_cannot_be_read_never_reaches_the_store(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, EIO, UINT64_MAX, 0);
  rig_write(&r, 4096, 5);
  CHECK_EQUAL(rig_errors(&r), 1);
  CHECK_EQUAL(rig_read(&r, 4096 + 8), UINT64_MAX);
  CHECK_EQUAL(rig_flush(&r), 0);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 4096), rig_word(4096));
  CHECK_EQUAL(rig_file_word(&r, 4096 + 8), rig_word(4096 + 8));
  rig_end(&r);
}

static void test_write_to_a_failed_page_fetches_it_once_more(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, EIO, 3, 0);
  CHECK_EQUAL(rig_read(&r, 0), UINT64_MAX);
  rig_write(&r, 0, 5);
  CHECK_EQUAL(rig_read(&r, 8), rig_word(8));
  CHECK_EQUAL(rig_state(&r, 0), UM_PAGE_DIRTY);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 0), 5);
  rig_end(&r);
}

static void test_file_that_shrank_is_truncated_not_zero(void) {
  rig r;
  um_error error;
  rig_open(&r, &(rig_options){.size = 8 << 12});
  CHECK_EQUAL(ftruncate(r.fd, 4 << 12), 0);
  CHECK_EQUAL(rig_read(&r, 3 << 12), rig_word(3 << 12));
  CHECK_EQUAL(rig_read(&r, 5 << 12), UINT64_MAX);
  CHECK_EQUAL(um_region_error_next(r.region, &error), 1);
  CHECK_EQUAL(error.code, UM_ETRUNCATED);
  CHECK_EQUAL(error.offset, 5 << 12);
  rig_close(&r);
  rig_end(&r);
}

typedef struct user {
  rig *rig;
  uint64_t offset;
  bool writes;
} user;

static void *touch(void *argument) {
  user *u = argument;
  if (u->writes)
    rig_write(u->rig, u->offset, 5);
  else
    CHECK_EQUAL(rig_read(u->rig, u->offset), rig_word(u->offset));
  return NULL;
}

static void test_threads_that_wait_for_the_same_page_share_one_read(void) {
  rig r;
  pthread_t threads[6];
  rig_open(&r, &(rig_options){.size = 8 << 12, .fillers = 3, .latch = true});
  latch_arm(r.latch, UM_OP_READ);
  user users[6];
  for (int i = 0; i < 6; i++) {
    users[i] = (user){&r, 64 * (uint64_t)i, i == 5};
    threads[i] = rig_thread(touch, &users[i]);
    if (i == 0)
      latch_wait(r.latch);
  }
  sleep_ms(20);
  latch_release(r.latch);
  for (int i = 0; i < 6; i++)
    pthread_join(threads[i], NULL);
  um_stats s = rig_stats(&r);
  CHECK_EQUAL(s.store_reads, 1);
  CHECK_EQUAL(s.fills, 1);
  CHECK_EQUAL(rig_state(&r, 0), UM_PAGE_DIRTY);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 320), 5);
  rig_end(&r);
}

static void test_slow_store_is_read_by_all_fillers_at_once(void) {
  rig r;
  pthread_t threads[8];
  user users[8];
  rig_open(&r, &(rig_options){.size = 64 << 12, .fillers = 8, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, 0, UINT64_MAX, 100);
  uint64_t began = now_ns();
  for (int i = 0; i < 8; i++) {
    users[i] = (user){&r, 4096 * (uint64_t)i, false};
    threads[i] = rig_thread(touch, &users[i]);
  }
  for (int i = 0; i < 8; i++)
    pthread_join(threads[i], NULL);
  uint64_t took = now_ns() - began;
  CHECK(took >= 100000000 && took < 400000000ull * SLOWER); /* one after another it would be 800 ms */
  um_stats s = rig_stats(&r);
  uint64_t slow = 0;
  for (int i = 26; i < UM_HISTOGRAM_BUCKETS; i++) /* 67 ms and more */
    slow += s.fault_ns[i];
  CHECK_EQUAL(slow, 8);
  rig_close(&r);
  rig_end(&r);
}

static void test_write_protect_faults_do_not_wait_for_a_slow_store(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .fillers = 2, .latch = true});
  rig_read(&r, 4096);
  latch_arm(r.latch, UM_OP_READ);
  user slow = {&r, 0, false};
  pthread_t thread = rig_thread(touch, &slow);
  latch_wait(r.latch);
  rig_write(&r, 4096, 5);
  latch_release(r.latch);
  pthread_join(thread, NULL);
  rig_close(&r);
  rig_end(&r);
}

int main(void) {
  watchdog_start(20);
  RUN(test_read_that_fails_once_is_tried_again);
  RUN(test_read_that_fails_for_ever_gives_a_record_and_no_zeros);
  RUN(test_failure_that_will_not_pass_is_not_tried_again);
  RUN(test_write_to_a_page_that_cannot_be_read_never_reaches_the_store);
  RUN(test_write_to_a_failed_page_fetches_it_once_more);
  RUN(test_file_that_shrank_is_truncated_not_zero);
  RUN(test_threads_that_wait_for_the_same_page_share_one_read);
  RUN(test_slow_store_is_read_by_all_fillers_at_once);
  RUN(test_write_protect_faults_do_not_wait_for_a_slow_store);
  watchdog_pet("the end");
  return 0;
}
