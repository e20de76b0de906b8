/* The stream detector: readers that write. */
#include "readahead_sim.h"

static void test_stream_that_writes_is_filled_writable(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(10000), 0);
  for (uint64_t page = 0; page < 10000; page++) /* a[:] = x */
    sim_touch(&s, 1, page, true);
  printf("  a[:] = x: protect faults %" PRIu64 "\n", s.protects);
  CHECK(s.protects <= 60);
  sim_close(&s);
  for (uint32_t together = 16; together <= 64; together *= 4) {
    um_readahead_limits limits = sim_pages_of_64_kib(10000);
    limits.protect_pages = together;
    sim_open(&s, limits, 0);
    for (uint64_t page = 0; page < 10000; page++) { /* a += 1 */
      sim_touch(&s, 1, page, false);
      sim_touch(&s, 1, page, true);
    }
    printf("  a += 1: protect faults %" PRIu64 "\n", s.protects);
    CHECK(s.protects <= 60);
    sim_close(&s);
  }
}

static void test_stream_that_stops_writing_is_filled_protected_again(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(20000), 0);
  for (uint64_t page = 0; page < 20000; page++) {
    sim_touch(&s, 1, page, false);
    if (page < 10000)
      sim_touch(&s, 1, page, true);
  }
  uint64_t writable = 0;
  for (uint64_t page = 10000; page < 20000; page++)
    writable += !s.protected[page];
  CHECK(writable <= 32 * 18);
  sim_close(&s);
}

static void test_write_to_one_page_in_ten_is_not_filled_writable(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(20000), 0);
  for (uint64_t page = 0; page < 20000; page++)
    sim_touch(&s, 1, page, page % 10 == 0);
  uint64_t writable = 0;
  for (uint64_t page = 0; page < 20000; page++)
    writable += !s.protected[page];
  CHECK(writable <= 2000 * 1.1);
  sim_close(&s);
}

static void test_write_to_the_first_page_of_each_run_is_not_filled_writable(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(40000), 0);
  for (uint64_t page = 0; page < 40000; page++)
    sim_touch(&s, 1, page, s.state[page] != MAPPED);
  uint64_t writable = 0;
  for (uint64_t page = 0; page < 40000; page++)
    writable += !s.protected[page];
  printf("  writes to first pages only: %" PRIu64 " of 40000 writable\n", writable);
  CHECK(writable <= 4000);
  sim_close(&s);
}

static void check_protect_growth(int64_t step) {
  um_readahead_limits limits = sim_pages_of_4_kib(100000);
  um_readahead *ra = sim_make(&limits);
  uint64_t page = 50000, faults = 0, pages = 0;
  for (; pages < 10000; faults++) {
    um_run_plan run = um_readahead_protect(ra, 1, page);
    CHECK_EQUAL(step > 0 ? run.first : run.first + run.count - 1, page);
    pages += run.count;
    page = step > 0 ? run.first + run.count : run.first - 1;
  }
  CHECK(faults <= 10000 / 64 + 6);
  free(ra);
}

static void test_sequential_writes_unprotect_ever_more_pages_up_and_down(void) {
  check_protect_growth(1);
  check_protect_growth(-1);
}

static void test_random_writes_unprotect_single_pages(void) {
  um_readahead_limits limits = sim_pages_of_4_kib(100000);
  um_readahead *ra = sim_make(&limits);
  uint64_t pages = 0;
  for (int i = 0; i < 1000000; i++)
    pages += um_readahead_protect(ra, 1, sim_random_below(100000)).count;
  CHECK(pages <= 1001000);
  free(ra);
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  test_stream_that_writes_is_filled_writable();
  test_stream_that_stops_writing_is_filled_protected_again();
  test_write_to_one_page_in_ten_is_not_filled_writable();
  test_write_to_the_first_page_of_each_run_is_not_filled_writable();
  test_sequential_writes_unprotect_ever_more_pages_up_and_down();
  test_random_writes_unprotect_single_pages();
  return 0;
}
