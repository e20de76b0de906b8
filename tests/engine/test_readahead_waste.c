/* The stream detector: what is no stream causes no read-ahead, and what is wasted is little. */
#include "readahead_sim.h"

#include <time.h>

/* Pages read beyond those touched, a touch that read. */
static double extra_pages(const sim *s) {
  return (double)(s->pages - s->misses) / (double)s->misses;
}

static void test_random_touches_cause_no_read_ahead(void) {
  static const uint64_t sizes[] = {1000, 10000, 1000000};
  for (int i = 0; i < 3; i++) {
    for (int small = 0; small < 2; small++) {
      sim s;
      sim_open(&s, small ? sim_pages_of_4_kib(sizes[i]) : sim_pages_of_64_kib(sizes[i]), sizes[i] / 10);
      for (int k = 0; k < 1000000; k++)
        sim_touch(&s, 1, sim_random_below(sizes[i]), false);
      char what[64];
      snprintf(what, sizeof what, "random in %" PRIu64 " pages, extra %.3f %%", sizes[i], 100 * extra_pages(&s));
      sim_report(what, &s);
      CHECK(extra_pages(&s) < 0.02);
      sim_close(&s);
    }
  }
}

static void test_random_touches_of_many_threads_cause_no_read_ahead(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(10000), 1000);
  for (int k = 0; k < 1000000; k++)
    sim_touch(&s, 1 + (uint32_t)sim_random_below(64), sim_random_below(10000), false);
  sim_report("random of 64 threads", &s);
  CHECK(extra_pages(&s) < 0.02);
  sim_close(&s);
}

static void test_short_lived_threads_bring_no_trust_of_their_own(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(1000000), 100000);
  for (uint32_t thread = 1; thread <= 20000; thread++)
    for (int i = 0; i < 5; i++)
      sim_read_pages(&s, thread, sim_random_below(1000000 - 1), 2, 1);
  sim_report("pairs, by 20000 threads", &s);
  CHECK((double)sim_unused(&s) < 0.05 * (double)s.misses);
  sim_close(&s);
}

static void test_random_touches_after_a_scan_cause_no_read_ahead(void) {
  static const uint64_t sizes[] = {1000, 100000};
  for (int i = 0; i < 2; i++) {
    sim s;
    sim_open(&s, sim_pages_of_64_kib(sizes[i]), sizes[i] / 4);
    sim_read_pages(&s, 1, 0, sizes[i] / 2, 1);
    s.pages = s.misses = s.triggers = s.unused = 0;
    s.report = i > 0; /* the small region must do without */
    for (int k = 0; k < 1000000; k++)
      sim_touch(&s, 1, sim_random_below(sizes[i]), false);
    sim_report("random after a scan", &s);
    CHECK(extra_pages(&s) < 0.02);
    sim_close(&s);
  }
}

/* Ranks 0 to n - 1, the kth with weight 1 / (k + 1). */
static uint64_t zipf(const double *sums, uint64_t n) {
  double at = sim_random_real() * sums[n - 1];
  uint64_t low = 0, high = n - 1;
  while (low < high) {
    uint64_t middle = (low + high) / 2;
    if (sums[middle] < at)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

static void test_zipf_touches_waste_next_to_nothing(void) {
  uint64_t n = 1000000;
  double *sums = calloc(n, sizeof *sums), sum = 0;
  CHECK(sums);
  for (uint64_t k = 0; k < n; k++)
    sums[k] = sum += 1 / (double)(k + 1);
  for (int shuffled = 0; shuffled < 2; shuffled++) {
    sim s;
    sim_open(&s, sim_pages_of_4_kib(n), n / 20);
    for (int k = 0; k < 1000000; k++) {
      uint64_t rank = zipf(sums, n);
      sim_touch(&s, 1, shuffled ? rank * 7368787 % n : rank, false);
    }
    sim_report(shuffled ? "zipf, shuffled" : "zipf, in order", &s);
    if (shuffled)
      CHECK(extra_pages(&s) < 0.02);
    CHECK((double)sim_unused(&s) < 0.02 * (double)s.misses); /* in order, neighbours of hot pages are hot */
    sim_close(&s);
  }
  free(sums);
}

static void test_short_pieces_waste_little_and_save_touches(void) {
  static const uint64_t lengths[][2] = {{4, 4}, {4, 16}, {16, 16}, {100, 100}};
  for (int i = 0; i < 4; i++) {
    sim s;
    sim_open(&s, sim_pages_of_4_kib(1000000), 10000);
    uint64_t wanted = 0;
    for (int k = 0; k < 20000; k++) {
      uint64_t count = lengths[i][0] + sim_random_below(lengths[i][1] - lengths[i][0] + 1);
      sim_read_pages(&s, 1, sim_random_below(999000), count, 1);
      wanted += count;
    }
    double unused = (double)sim_unused(&s) / (double)wanted, calls = (double)s.calls / (double)wanted;
    char what[64];
    snprintf(what, sizeof what, "pieces of %" PRIu64 " to %" PRIu64 ": unused %.2f calls %.2f", lengths[i][0],
             lengths[i][1], unused, calls);
    sim_report(what, &s);
    CHECK(unused <= 0.5);
    CHECK(calls <= (lengths[i][0] < 16 ? 0.9 : 0.5));
    sim_close(&s);
  }
}

static void test_long_stream_after_short_pieces_reaches_full_runs(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(1000000), 10000);
  for (int k = 0; k < 10000; k++)
    sim_read_pages(&s, 1, 100000 + sim_random_below(800000), 8, 1);
  uint64_t misses = s.misses, full = s.full_runs;
  sim_read_pages(&s, 1, 0, 20000, 1);
  CHECK(s.misses - misses <= 24);
  CHECK(s.full_runs - full >= 560);
  sim_read_pages(&s, 1, 950000, 300, 1); /* and has the thread trusted again */
  uint64_t ahead = 0;
  for (uint64_t page = 950300; page < 951000; page++)
    ahead += s.state[page] != ABSENT;
  CHECK(ahead >= 200);
  sim_close(&s);
}

static void test_wasted_runs_shrink_the_window_and_use_restores_it(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(200000), 0);
  sim_read_pages(&s, 1, 0, 3000, 1);
  um_readahead_wasted(s.ra, 3100, 32);
  um_readahead_wasted(s.ra, 3132, 32); /* one step back until the reader moves */
  sim_read_pages(&s, 1, 3000, 300, 1);
  uint64_t ahead = 0;
  for (uint64_t page = 3300; page < 5000; page++)
    ahead += s.state[page] != ABSENT;
  CHECK(ahead <= 192 && ahead >= 64);
  sim_read_pages(&s, 1, 3300, 3000, 1);
  ahead = 0;
  for (uint64_t page = 6300; page < 8000; page++)
    ahead += s.state[page] != ABSENT;
  CHECK(ahead >= 200);
  sim_close(&s);
}

static void test_window_adapts_to_memory_it_does_not_fit_in(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(300000), 300); /* eight streams with windows of 256 pages in 300 pages */
  for (uint64_t i = 0; i < 20000; i++)
    for (uint64_t k = 0; k < 8; k++)
      sim_touch(&s, 1, k * 30000 + i, false);
  sim_report("eight streams in too little memory", &s);
  CHECK((double)s.pages <= 1.5 * 160000);
  CHECK(s.calls <= 160000 / 4);
  sim_close(&s);
}

static double cpu_seconds(void) {
  struct timespec ts;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
  return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Printed, not checked: the machine is shared. */
static void print_cost(bool after_merge) {
  um_readahead_limits limits = sim_pages_of_4_kib(1 << 24);
  um_readahead *ra = sim_make(&limits);
  um_run_plan plan[UM_READAHEAD_PLANS];
  for (uint64_t i = 0; after_merge && i < 200; i++) /* 128 proven streams, left alone */
    for (uint64_t k = 0; k < 128; k++)
      um_readahead_miss(ra, 1, k * 100000 + i, false, UM_CONTEXT_NONE, plan, UM_READAHEAD_PLANS);
  enum { CALLS = 1000000 };
  static uint64_t pages[CALLS];
  for (int i = 0; i < CALLS; i++)
    pages[i] = sim_random_below(1 << 24);
  double from = cpu_seconds();
  for (int i = 0; i < CALLS; i++)
    um_readahead_miss(ra, 1, pages[i], false, UM_CONTEXT_NONE, plan, UM_READAHEAD_PLANS);
  printf("  %.0f ns a random miss%s\n", (cpu_seconds() - from) * 1e9 / CALLS,
         after_merge ? ", with 128 streams in the table" : "");
  free(ra);
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  test_random_touches_cause_no_read_ahead();
  test_random_touches_of_many_threads_cause_no_read_ahead();
  test_short_lived_threads_bring_no_trust_of_their_own();
  test_random_touches_after_a_scan_cause_no_read_ahead();
  test_zipf_touches_waste_next_to_nothing();
  test_short_pieces_waste_little_and_save_touches();
  test_long_stream_after_short_pieces_reaches_full_runs();
  test_wasted_runs_shrink_the_window_and_use_restores_it();
  test_window_adapts_to_memory_it_does_not_fit_in();
  print_cost(false);
  print_cost(true);
  return 0;
}
