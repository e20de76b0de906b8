/* The stream detector: hints of the user. */
#include "readahead_sim.h"

static void test_hint_random_reads_single_pages_and_nobody_reads_into_it(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(10000), 0);
  um_readahead_hint(s.ra, 5000, 7000, UM_HINT_RANDOM);
  sim_read_pages(&s, 1, 0, 5000, 1);
  CHECK_EQUAL(s.pages, 5000);
  sim_read_pages(&s, 1, 9999, 3000 - 1, -1);
  CHECK_EQUAL(s.pages, 8000);
  uint64_t misses = s.misses;
  sim_read_pages(&s, 1, 5000, 1000, 1);
  CHECK_EQUAL(s.misses, misses + 1000);
  um_readahead_hint(s.ra, 4000, 8000, UM_HINT_NORMAL);
  sim_read_pages(&s, 1, 6000, 1000, 1);
  CHECK(s.misses <= misses + 1006);
  sim_close(&s);
}

static void test_hint_sequential_asks_for_the_whole_window_at_once_and_not_beyond_its_end(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(10000), 0);
  um_readahead_hint(s.ra, 1000, 1200, UM_HINT_SEQUENTIAL);
  um_readahead_hint(s.ra, 2000, 6000, UM_HINT_SEQUENTIAL);
  sim_touch(&s, 1, 1000, false);
  CHECK_EQUAL(s.pages, 200);
  uint64_t before = s.pages;
  sim_touch(&s, 1, 2000, false);
  CHECK(s.pages - before >= 256 - 32);
  sim_read_pages(&s, 1, 2001, 3999, 1);
  CHECK_EQUAL(s.misses, 2);
  CHECK_EQUAL(s.pages - before, 4000);
  sim_close(&s);
}

static void test_newer_hint_wins_and_the_oldest_is_forgotten(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(10000), 0);
  um_readahead_hint(s.ra, 0, 100, UM_HINT_RANDOM);
  um_readahead_hint(s.ra, 50, 80, UM_HINT_SEQUENTIAL);
  sim_touch(&s, 1, 60, false);
  CHECK(s.pages > 1);
  for (uint64_t i = 0; i < 16; i++)
    um_readahead_hint(s.ra, 1000 + i, 1001 + i, UM_HINT_RANDOM);
  uint64_t before = s.pages;
  sim_touch(&s, 2, 0, false); /* normal again: the weak hint of page 0 */
  CHECK(s.pages > before + 1);
  sim_close(&s);
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  test_hint_random_reads_single_pages_and_nobody_reads_into_it();
  test_hint_sequential_asks_for_the_whole_window_at_once_and_not_beyond_its_end();
  test_newer_hint_wins_and_the_oldest_is_forgotten();
  return 0;
}
