/* Prefetch of a list of pages: what it fills and by which reads, how many at once, and how it ends. */
#include "against_faults.h"

#define PAGE 4096u
#define SCATTERED 400u

static um_job *start(rig *r, const uint64_t *pages, uint64_t count) {
  return um_region_prefetch_pages_start(r->region, pages, count);
}

static void every(uint64_t *pages, uint64_t count, uint64_t step) {
  for (uint64_t i = 0; i < count; i++)
    pages[i] = i * step;
}

static void test_pages_of_a_list_are_filled_and_no_others(void) {
  rig r;
  const uint64_t pages[] = {0, 1, 2, 7, 9, 10, 63};
  rig_open(&r, &(rig_options){.size = 64 * PAGE, .memory = 4 << 20, .fillers = 3});
  um_job *job = start(&r, pages, 7);
  um_error error;
  CHECK_EQUAL(um_job_wait(job, 10000, &error), 0);
  CHECK_EQUAL(um_job_pages(job), 7);
  um_job_release(job);
  for (uint64_t page = 0, next = 0; page < 64; page++) {
    bool listed = next < 7 && pages[next] == page;
    CHECK_EQUAL(rig_state(&r, page), listed ? UM_PAGE_CLEAN : UM_PAGE_ABSENT);
    next += listed;
  }
  CHECK_EQUAL(rig_stats(&r).store_reads, 4); /* neighbours by one call */
  for (uint64_t i = 0; i < 7; i++)
    CHECK_EQUAL(rig_read(&r, pages[i] * PAGE), rig_word(pages[i] * PAGE));
  um_stats s = rig_stats(&r);
  CHECK_EQUAL(s.read_faults, 0);
  rig_write(&r, 9 * PAGE, 5);
  CHECK_EQUAL(rig_state(&r, 9), UM_PAGE_DIRTY);
  rig_close(&r);
  rig_end(&r);
}

static void test_long_run_is_read_by_calls_as_long_as_staging(void) {
  rig r;
  uint64_t pages[512];
  every(pages, 512, 1);
  rig_open(&r, &(rig_options){.size = 512 * PAGE, .memory = 32 << 20});
  CHECK_EQUAL(r.pager->fillers[0].staging_size, 1 << 20);
  CHECK_EQUAL(rig_run(start(&r, pages, 512), NULL), 0);
  CHECK_EQUAL(rig_stats(&r).store_reads, 2);
  CHECK_EQUAL(rig_stats(&r).prefetches, 512);
  rig_close(&r);
  rig_end(&r);
}

static void test_pages_that_are_there_already_are_not_read_again(void) {
  rig r;
  const uint64_t pages[] = {1, 2, 3, 4, 5};
  rig_open(&r, &(rig_options){.size = 8 * PAGE, .memory = 4 << 20});
  rig_write(&r, 3 * PAGE, 5);
  CHECK_EQUAL(rig_run(start(&r, pages, 5), NULL), 0);
  CHECK_EQUAL(rig_state(&r, 3), UM_PAGE_DIRTY);
  CHECK_EQUAL(rig_read(&r, 3 * PAGE), 5);
  CHECK_EQUAL(rig_stats(&r).prefetches, 4);
  rig_close(&r);
  rig_end(&r);
}

static void test_list_that_does_not_rise_or_leaves_the_region_is_refused(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 * PAGE - 100});
  CHECK(!start(&r, (const uint64_t[]){1, 1}, 2));
  CHECK(!start(&r, (const uint64_t[]){2, 1}, 2));
  CHECK(!start(&r, (const uint64_t[]){7, 8}, 2));
  CHECK(!start(&r, (const uint64_t[]){UINT64_MAX}, 1));
  CHECK_EQUAL(rig_run(start(&r, (const uint64_t[]){7}, 1), NULL), 0); /* the last, which is not whole */
  CHECK_EQUAL(rig_run(start(&r, NULL, 0), NULL), 0);
  CHECK_EQUAL(rig_stats(&r).prefetches, 1);
  rig_close(&r);
  rig_end(&r);
}

/* All fillers but the leader, and the one kept for faults, wait for the store at once. */
static void test_scattered_pages_are_read_by_all_fillers(void) {
  const uint32_t fillers = 10;
  const unsigned delay_ms = 5 * SLOWER;
  rig r;
  uint64_t pages[SCATTERED];
  every(pages, SCATTERED, 3);
  rig_open(&r, &(rig_options){.size = SCATTERED * 3 * PAGE, .memory = 64 << 20, .fillers = fillers, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, 0, UINT64_MAX, delay_ms);
  uint64_t before = now_ns();
  CHECK_EQUAL(rig_run(start(&r, pages, SCATTERED), NULL), 0);
  uint64_t took_ms = (now_ns() - before) / 1000000, ideal_ms = SCATTERED * delay_ms / (fillers - 1);
  CHECK_EQUAL(rig_stats(&r).prefetches, SCATTERED);
  CHECK_EQUAL(rig_stats(&r).store_reads, SCATTERED);
  if (took_ms > 2 * ideal_ms)
    fprintf(stderr, "%u pages took %lu ms, ideally %lu\n", SCATTERED, (unsigned long)took_ms, (unsigned long)ideal_ms);
  CHECK(took_ms <= 2 * ideal_ms);
  rig_close(&r);
  rig_end(&r);
}

static void test_fault_in_the_middle_of_a_list_is_served_soon(void) {
  const unsigned delay_ms = 20 * SLOWER;
  rig r;
  uint64_t pages[SCATTERED];
  every(pages, SCATTERED, 3);
  rig_open(&r, &(rig_options){.size = SCATTERED * 3 * PAGE, .memory = 64 << 20, .fillers = 4, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, 0, UINT64_MAX, delay_ms);
  um_job *job = start(&r, pages, SCATTERED);
  sleep_ms(2 * delay_ms);
  uint64_t before = now_ns();
  CHECK_EQUAL(rig_read(&r, 1000 * PAGE), rig_word(1000 * PAGE));
  CHECK((now_ns() - before) / 1000000 < 4 * delay_ms); /* of one read, its own, and not of those in the list */
  um_region_prefetch_cancel(r.region);
  CHECK_EQUAL(rig_run(job, NULL), 0);
  rig_close(&r);
  rig_end(&r);
}

static void list_longer_than_the_budget(uint32_t fillers) {
  rig r;
  uint64_t pages[1024];
  every(pages, 1024, 2);
  rig_open(&r, &(rig_options){.size = 2048 * PAGE, .fillers = fillers});
  CHECK_EQUAL(rig_run(start(&r, pages, 1024), NULL), 0);
  um_stats s = rig_stats(&r);
  CHECK(s.peak_used <= s.memory);
  CHECK(s.prefetches > 0);
  CHECK_EQUAL(s.used, s.overhead + s.resident + s.standby + s.idle);
  CHECK_EQUAL(rig_read(&r, 500 * PAGE), rig_word(500 * PAGE));
  rig_close(&r);
  rig_end(&r);
}

static void test_list_longer_than_the_budget_ends(void) {
  list_longer_than_the_budget(1);
  list_longer_than_the_budget(4);
}

static void test_list_without_any_memory_ends(void) {
  rig r;
  uint64_t pages[512];
  every(pages, 512, 2);
  rig_open(&r, &(rig_options){.size = 1024 * PAGE, .fillers = 3, .faults = true});
  rig_fail(&r, 1 << UM_OP_WRITE, ENOSPC, UINT64_MAX, 0);
  for (uint64_t page = 0; page < 16; page++)
    rig_write(&r, (2 * page + 1) * PAGE, 5);
  CHECK_EQUAL(rig_run(start(&r, pages, 512), NULL), 0);
  CHECK(rig_stats(&r).peak_used <= rig_stats(&r).memory);
  rig_heal(&r);
  rig_close(&r);
  rig_end(&r);
}

static void test_pages_that_cannot_be_read_stay_absent(void) {
  rig r;
  const uint64_t pages[] = {1, 3, 5};
  rig_open(&r, &(rig_options){.size = 8 * PAGE, .faults = true, .fillers = 3});
  um_fault_options bad = {
      .ops = 1 << UM_OP_READ, .code = ENOENT, .count = UINT64_MAX, .offset = 3 * PAGE, .length = PAGE};
  um_fault_store_set(r.faults, &bad);
  CHECK_EQUAL(rig_run(start(&r, pages, 3), NULL), 0);
  CHECK_EQUAL(rig_state(&r, 1), UM_PAGE_CLEAN);
  CHECK_EQUAL(rig_state(&r, 3), UM_PAGE_ABSENT);
  CHECK_EQUAL(rig_state(&r, 5), UM_PAGE_CLEAN);
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  rig_end(&r);
}

static void open_slow(rig *r, uint64_t *pages, uint32_t fillers) {
  every(pages, SCATTERED, 3);
  rig_open(r, &(rig_options){.size = SCATTERED * 3 * PAGE, .memory = 64 << 20, .fillers = fillers, .faults = true});
  rig_fail(r, 1 << UM_OP_READ, 0, UINT64_MAX, 10);
}

static void test_cancelled_list_ends_soon(void) {
  rig r;
  uint64_t pages[SCATTERED];
  open_slow(&r, pages, 3);
  um_job *job = start(&r, pages, SCATTERED);
  sleep_ms(30);
  um_region_prefetch_cancel(r.region);
  um_error error;
  CHECK_EQUAL(um_job_wait(job, 500 * SLOWER, &error), 0);
  CHECK(um_job_pages(job) < SCATTERED / 2);
  um_job_release(job);
  rig_close(&r);
  rig_end(&r);
}

static void test_close_during_a_list_nobody_waits_for_loses_no_memory(void) {
  for (uint32_t fillers = 1; fillers <= 4; fillers++) {
    rig r;
    uint64_t pages[SCATTERED];
    open_slow(&r, pages, fillers);
    for (int i = 0; i < 3; i++)
      um_job_release(start(&r, pages, SCATTERED));
    rig_write(&r, PAGE, 5);
    sleep_ms(15);
    rig_close(&r); /* checks the counts */
    CHECK_EQUAL(rig_file_word(&r, PAGE), 5);
    rig_end(&r);
  }
}

static void *prefetch_on(void *argument) {
  user *u = argument;
  uint64_t pages[64];
  for (; !atomic_load(&u->stop); u->turns++) {
    uint64_t page = rig_random(&u->random) % 64, count = 0;
    for (; count < 64 && page < u->rig->size / PAGE; page += 1 + rig_random(&u->random) % 5)
      pages[count++] = page;
    CHECK_EQUAL(rig_run(start(u->rig, pages, count), NULL), 0);
  }
  return NULL;
}

static void test_lists_against_faults_show_every_byte(void) {
  against_faults(1, 64, prefetch_on);
  against_faults(2, 64, prefetch_on);
  against_faults(6, 64, prefetch_on);
}

int main(void) {
  watchdog_start(20);
  RUN(test_pages_of_a_list_are_filled_and_no_others);
  RUN(test_long_run_is_read_by_calls_as_long_as_staging);
  RUN(test_pages_that_are_there_already_are_not_read_again);
  RUN(test_list_that_does_not_rise_or_leaves_the_region_is_refused);
  RUN(test_scattered_pages_are_read_by_all_fillers);
  RUN(test_fault_in_the_middle_of_a_list_is_served_soon);
  RUN(test_list_longer_than_the_budget_ends);
  RUN(test_list_without_any_memory_ends);
  RUN(test_pages_that_cannot_be_read_stay_absent);
  RUN(test_cancelled_list_ends_soon);
  RUN(test_close_during_a_list_nobody_waits_for_loses_no_memory);
  RUN(test_lists_against_faults_show_every_byte);
  watchdog_pet("the end");
  return 0;
}
