/* Prefetch: what it fills, and how it stays out of the way of faults, eviction, failures and a small budget. */
#include "against_faults.h"

static void test_prefetched_pages_need_no_fault(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 64 << 12, .memory = 4 << 20});
  um_job *job = um_region_prefetch_start(r.region, 8 << 12, 16 << 12);
  um_error error;
  CHECK_EQUAL(um_job_wait(job, 10000, &error), 0);
  CHECK_EQUAL(um_job_pages(job), 16);
  um_job_release(job);
  for (uint64_t page = 8; page < 24; page++) {
    CHECK_EQUAL(rig_state(&r, page), UM_PAGE_CLEAN);
    CHECK_EQUAL(rig_read(&r, page << 12), rig_word(page << 12));
  }
  um_stats s = rig_stats(&r);
  CHECK_EQUAL(s.read_faults + s.write_faults, 0);
  CHECK_EQUAL(s.store_reads, 1); /* a run is one call */
  rig_write(&r, 8 << 12, 5);
  CHECK_EQUAL(rig_state(&r, 8), UM_PAGE_DIRTY);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 8 << 12), 5);
  rig_end(&r);
}

typedef struct toucher {
  rig *rig;
  uint64_t offset;
  _Atomic bool ended;
} toucher;

static void *read_one(void *argument) {
  toucher *u = argument;
  CHECK_EQUAL(rig_read(u->rig, u->offset), rig_word(u->offset));
  atomic_store(&u->ended, true);
  return NULL;
}

static void *write_one(void *argument) {
  toucher *u = argument;
  rig_write(u->rig, u->offset, 5);
  atomic_store(&u->ended, true);
  return NULL;
}

static void test_fault_on_a_page_being_prefetched_waits_for_it(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 64 << 12, .memory = 4 << 20, .fillers = 2, .latch = true});
  latch_arm(r.latch, UM_OP_READ);
  um_job *job = um_region_prefetch_start(r.region, 0, 8 << 12);
  latch_wait(r.latch);
  toucher reader = {.rig = &r, .offset = 4096}, writer = {.rig = &r, .offset = 2 * 4096};
  pthread_t reading = rig_thread(read_one, &reader), writing = rig_thread(write_one, &writer);
  sleep_ms(20);
  CHECK(!atomic_load(&reader.ended) && !atomic_load(&writer.ended));
  latch_release(r.latch);
  pthread_join(reading, NULL);
  pthread_join(writing, NULL);
  CHECK_EQUAL(rig_run(job, NULL), 0);
  CHECK_EQUAL(rig_stats(&r).store_reads, 1);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 2 * 4096), 5);
  rig_end(&r);
}

static void test_prefetch_leaves_a_filler_for_faults(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 64 << 12, .memory = 4 << 20, .fillers = 3, .latch = true});
  latch_arm(r.latch, UM_OP_READ);
  um_job *job = um_region_prefetch_start(r.region, 0, 8 << 12);
  latch_wait(r.latch);
  CHECK_EQUAL(rig_read(&r, 20 << 12), rig_word(20 << 12));
  latch_release(r.latch);
  CHECK_EQUAL(rig_run(job, NULL), 0);
  rig_close(&r);
  rig_end(&r);
}

static void test_prefetch_of_a_store_that_fails_says_nothing(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, ENOENT, UINT64_MAX, 0);
  CHECK_EQUAL(rig_prefetch(&r, 0, r.size), 0);
  for (uint64_t page = 0; page < 8; page++)
    CHECK_EQUAL(rig_state(&r, page), UM_PAGE_ABSENT);
  CHECK_EQUAL(rig_errors(&r), 0);
  CHECK_EQUAL(rig_stats(&r).used, rig_stats(&r).overhead);
  rig_heal(&r);
  CHECK_EQUAL(rig_read(&r, 0), rig_word(0));
  rig_close(&r);
  rig_end(&r);
}

static void test_prefetch_around_a_bad_page_fills_the_others(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .memory = 4 << 20, .faults = true});
  um_fault_options bad = {
      .ops = 1 << UM_OP_READ, .code = ENOENT, .count = UINT64_MAX, .offset = 3 << 12, .length = 4096};
  um_fault_store_set(r.faults, &bad);
  CHECK_EQUAL(rig_prefetch(&r, 0, r.size), 0);
  for (uint64_t page = 0; page < 8; page++)
    CHECK_EQUAL(rig_state(&r, page), page == 3 ? UM_PAGE_ABSENT : UM_PAGE_CLEAN);
  CHECK_EQUAL(rig_read(&r, 3 << 12), UINT64_MAX); /* who asks for it is told */
  CHECK_EQUAL(rig_errors(&r), 1);
  rig_close(&r);
  rig_end(&r);
}

static void prefetch_more_than_fits(uint32_t fillers, bool dirty) {
  rig r;
  rig_open(&r, &(rig_options){.size = 1024 << 12, .fillers = fillers, .faults = true});
  if (dirty) {
    rig_fail(&r, 1 << UM_OP_WRITE, ENOSPC, UINT64_MAX, 0);
    for (uint64_t page = 0; page < 16; page++)
      rig_write(&r, page << 12, 5);
  }
  CHECK_EQUAL(rig_prefetch(&r, 0, r.size), 0);
  CHECK(rig_stats(&r).peak_used <= rig_stats(&r).memory);
  rig_heal(&r);
  CHECK_EQUAL(rig_read(&r, 500 << 12), rig_word(500 << 12));
  rig_close(&r);
  rig_end(&r);
}

static void test_prefetch_of_more_than_the_budget_ends(void) {
  prefetch_more_than_fits(1, false);
  prefetch_more_than_fits(3, false);
}

static void test_prefetch_without_any_memory_ends(void) {
  prefetch_more_than_fits(1, true);
  prefetch_more_than_fits(3, true);
}

static void test_cancelled_prefetch_ends_soon(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 4096 << 12, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, 0, UINT64_MAX, 10);
  um_job *job = um_region_prefetch_start(r.region, 0, r.size);
  sleep_ms(30);
  um_region_prefetch_cancel(r.region);
  um_error error;
  CHECK_EQUAL(um_job_wait(job, 1000 * SLOWER, &error), 0);
  um_job_release(job);
  rig_close(&r);
  rig_end(&r);
}

static void *prefetch_on(void *argument) {
  user *u = argument;
  for (; !atomic_load(&u->stop); u->turns++) {
    uint64_t random = rig_random(&u->random);
    CHECK_EQUAL(rig_prefetch(u->rig, random % u->rig->size, (1 + (random >> 40) % 64) * 4096), 0);
  }
  return NULL;
}

static void test_prefetch_against_faults_shows_every_byte(void) {
  against_faults(1, 32, prefetch_on);
  against_faults(2, 32, prefetch_on);
  against_faults(4, 32, prefetch_on);
}

int main(void) {
  watchdog_start(20);
  RUN(test_prefetched_pages_need_no_fault);
  RUN(test_fault_on_a_page_being_prefetched_waits_for_it);
  RUN(test_prefetch_leaves_a_filler_for_faults);
  RUN(test_prefetch_of_a_store_that_fails_says_nothing);
  RUN(test_prefetch_around_a_bad_page_fills_the_others);
  RUN(test_prefetch_of_more_than_the_budget_ends);
  RUN(test_prefetch_without_any_memory_ends);
  RUN(test_cancelled_prefetch_ends_soon);
  RUN(test_prefetch_against_faults_shows_every_byte);
  watchdog_pet("the end");
  return 0;
}
