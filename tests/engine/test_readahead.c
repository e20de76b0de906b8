/* The stream detector: every kind of stream is found, and read ahead in full runs. */
#include "readahead_sim.h"

/* One reader of the whole region, page after page. */
static void check_sequential(um_readahead_limits limits, int64_t step, const char *what) {
  sim s;
  sim_open(&s, limits, 0);
  uint64_t n = limits.page_count;
  sim_read_pages(&s, 1, step > 0 ? 0 : n - 1, n, step);
  sim_report(what, &s);
  CHECK(s.misses <= 6);
  CHECK_EQUAL(s.repeated, 0);
  CHECK_EQUAL(s.pages, n);
  CHECK(s.calls <= n / limits.run_pages + 16);
  CHECK(s.full_runs >= n / limits.run_pages * 9 / 10);
  sim_close(&s);
}

static void test_sequential_reader_misses_six_times_at_most_and_reads_in_full_runs(void) {
  check_sequential(sim_pages_of_64_kib(10000), 1, "sequential, 64 KiB");
  check_sequential(sim_pages_of_4_kib(200000), 1, "sequential, 4 KiB");
  um_readahead_limits large = sim_pages_of_64_kib(500);
  large.run_pages = 1;
  large.window_pages = 8;
  check_sequential(large, 1, "sequential, 2 MiB");
}

static void test_backward_reader_does_as_well_as_a_forward_one(void) {
  check_sequential(sim_pages_of_64_kib(10007), -1, "backward, 64 KiB");
  check_sequential(sim_pages_of_4_kib(200001), -1, "backward, 4 KiB");
}

static void test_reader_that_starts_anywhere_reaches_full_runs(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(100000), 0);
  sim_read_pages(&s, 1, 50003, 5000, 1);
  CHECK(s.misses <= 6);
  CHECK(s.full_runs >= 140);
  CHECK(sim_unused(&s) <= 256);
  sim_close(&s);
}

static void test_steady_stream_asks_for_one_full_run_a_trigger(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(100000), 0);
  sim_read_pages(&s, 1, 0, 2000, 1);
  for (uint64_t page = 2000; page < 90000; page++) {
    uint64_t before = s.misses + s.triggers;
    sim_touch(&s, 1, page, false);
    CHECK(s.pages <= page + 256);
    if (s.misses + s.triggers == before)
      continue;
    CHECK_EQUAL((page + s.limits.align_pages) % 32, 0);
    CHECK_EQUAL(s.last_count, 2);
    CHECK_EQUAL(s.last[0].count, 32);
    CHECK_EQUAL(s.last[1].count, 32);
    CHECK_EQUAL(s.last[1].repeat, 1);
    CHECK_EQUAL(s.last[1].first, page + 224); /* the window is full again */
  }
  sim_close(&s);
}

static void test_stream_whose_read_ahead_is_dropped_still_reads_in_full_runs(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(10000), 0);
  s.drop_ahead = true;
  sim_read_pages(&s, 1, 0, 10000, 1);
  sim_report("sequential, no memory to read ahead", &s);
  CHECK_EQUAL(s.pages, 10000);
  CHECK(s.misses <= 10000 / 32 + 16);
  sim_close(&s);
}

static void test_stream_whose_runs_are_read_in_parts_keeps_its_window(void) {
  for (int step = 1; step >= -1; step -= 2) {
    sim s;
    sim_open(&s, sim_pages_of_4_kib(100000), 0);
    s.drop_ahead = s.no_chunks = true;
    sim_read_pages(&s, 1, step > 0 ? 0 : 99999, 100000, step);
    sim_report("sequential, no memory for whole runs", &s);
    CHECK_EQUAL(s.pages, 100000);
    CHECK(s.misses <= 100000 / 256 + 16);
    sim_close(&s);
  }
}

static void check_late(um_readahead_limits limits, unsigned after) {
  sim s;
  sim_open(&s, limits, 0);
  uint64_t n = limits.page_count;
  s.late_after = after;
  sim_read_pages(&s, 1, 0, n, 1);
  char what[64];
  snprintf(what, sizeof what, "a run ahead every %u pages", after);
  sim_report(what, &s);
  CHECK_EQUAL(s.pages, n);
  CHECK(s.calls <= n / limits.run_pages * 1.1 + 16);
  sim_close(&s);
}

static void test_reader_faster_than_its_read_ahead_reads_nothing_twice(void) {
  for (unsigned after = 20; after <= 50; after += 10)
    check_late(sim_pages_of_64_kib(20000), after);
  for (unsigned after = 100; after <= 800; after += 100)
    check_late(sim_pages_of_4_kib(300000), after);
}

/* The engine may not tell of faults on pages that are being read. */
static void test_triggers_that_nobody_told_of_do_not_end_a_stream(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(20000), 0);
  uint64_t untold = 0;
  for (uint64_t page = 0; page < 20000; page++) {
    if (page > 2000 && s.state[page] == STANDBY && page / 32 % 4) {
      uint64_t end = (page + s.limits.align_pages) / 32 * 32 + 32 - s.limits.align_pages;
      for (uint64_t p = page; p < end && p < 20000; p++)
        if (s.state[p] == STANDBY)
          s.state[p] = MAPPED;
      untold++;
    }
    sim_touch(&s, 1, page, false);
  }
  CHECK(untold > 200);
  CHECK(s.misses <= 6);
  CHECK(s.misses + s.triggers + untold <= 20000 / 32 + 16);
  CHECK_EQUAL(s.pages, 20000);
  sim_close(&s);
}

static void test_window_of_zero_reads_single_pages(void) {
  um_readahead_limits limits = sim_pages_of_64_kib(1000);
  limits.window_pages = 0;
  sim s;
  sim_open(&s, limits, 0);
  sim_read_pages(&s, 1, 0, 1000, 1);
  CHECK_EQUAL(s.misses, 1000);
  sim_close(&s);
}

static void test_smaller_window_is_kept_from_the_next_call_on(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(100000), 0);
  sim_read_pages(&s, 1, 0, 3000, 1);
  s.limits.window_pages = 48; /* check_answer compares with it */
  um_readahead_window(s.ra, 48);
  sim_read_pages(&s, 1, 3000, 1000, 1);
  uint64_t misses = s.misses;
  uint64_t ahead = 0;
  for (uint64_t page = 4000; page < 5000; page++)
    ahead += s.state[page] != ABSENT;
  CHECK(ahead <= 48);
  sim_read_pages(&s, 1, 4000, 10000, 1);
  CHECK_EQUAL(s.misses, misses);
  sim_close(&s);
}

static void test_interleaved_streams_of_one_thread_are_all_read_ahead(void) {
  for (uint64_t streams = 2; streams <= 64; streams *= 2) {
    uint64_t each = 4096, bursts = 0;
    sim s;
    sim_open(&s, sim_pages_of_64_kib(streams * each), 0);
    uint64_t at[64] = {0};
    for (uint64_t left = streams * each; left;) { /* a merge: the next page of any of them */
      uint64_t i = sim_random_below(streams);
      if (at[i] == each)
        continue;
      sim_touch(&s, 1, i * each + at[i]++, false);
      left--;
      bursts++;
    }
    char what[64];
    snprintf(what, sizeof what, "merge of %" PRIu64 " runs", streams);
    sim_report(what, &s);
    CHECK(s.misses <= streams * 16);
    CHECK(s.calls <= streams * (each / 32 + 32));
    sim_close(&s);
  }
}

static void test_opposite_streams_that_meet_read_nothing_twice_for_nothing(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(20000), 0);
  for (uint64_t i = 0; i < 10000; i++) { /* partition of a quicksort */
    sim_touch(&s, 1, i, false);
    sim_touch(&s, 1, 19999 - i, false);
  }
  sim_report("up and down at once", &s);
  CHECK(s.misses <= 12);
  CHECK_EQUAL(s.pages, 20000);
  sim_close(&s);
}

static void test_threads_have_streams_of_their_own(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(80000), 0);
  for (uint64_t i = 0; i < 10000; i++)
    for (uint32_t thread = 0; thread < 8; thread++)
      sim_touch(&s, 100 + thread, thread * 10000 + i, false);
  sim_report("eight threads", &s);
  CHECK(s.misses <= 8 * 6);
  sim_close(&s);
}

static void test_threads_that_take_turns_at_one_sequence_share_its_window(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(40000), 0);
  for (uint64_t i = 0; i < 40000; i++)
    sim_touch(&s, 7 + (uint32_t)(i / 100 % 4), i, false);
  sim_report("four threads by turns", &s);
  CHECK(s.misses <= 60);
  CHECK(s.calls <= 40000 / 32 * 2);
  sim_close(&s);
}

static void check_stride(um_readahead_limits limits, double stride, uint64_t stops, uint64_t misses, double extra) {
  sim s;
  sim_open(&s, limits, 0);
  double from = stride > 0 ? 1000.3 : (double)limits.page_count - 1000.7;
  for (uint64_t i = 0; i < stops; i++)
    sim_touch(&s, 1, (uint64_t)(from + (double)i * stride), false);
  char what[64];
  snprintf(what, sizeof what, "stride %.4g", stride);
  sim_report(what, &s);
  CHECK(s.misses <= misses);
  CHECK(sim_unused(&s) <= (uint64_t)((double)stops * extra) + 64);
  sim_close(&s);
}

static void test_constant_stride_is_read_ahead_stop_by_stop(void) {
  static const double strides[] = {2, 7, 100, 4099, -2, -33};
  for (int i = 0; i < 6; i++)
    check_stride(sim_pages_of_64_kib(1 << 24), strides[i], 3000, 8, 0.0);
}

static void test_stride_of_a_fraction_of_a_page_is_followed(void) {
  check_stride(sim_pages_of_64_kib(1 << 24), 19.53125, 3000, 40, 1.1); /* two pages a stop */
  check_stride(sim_pages_of_64_kib(1 << 24), -7.3, 3000, 40, 1.1);
  check_stride(sim_pages_of_64_kib(1 << 24), 1000.001, 3000, 200,
               0.5); /* taken for 1000 until it is not, ever more rarely */
  check_stride(sim_pages_of_64_kib(1 << 24), 1000.04, 3000, 300, 1.1);
  check_stride(sim_pages_of_64_kib(1 << 24), 2.5, 3000, 12, 1.6); /* whole */
}

static void test_short_stride_of_small_pages_is_read_whole(void) {
  sim s;
  sim_open(&s, sim_pages_of_4_kib(100000), 0);
  sim_read_pages(&s, 1, 0, 30000, 3);
  sim_report("stride 3, gaps read too", &s);
  CHECK(s.misses <= 12);
  CHECK(s.calls <= 90000 / 512 + 24);
  sim_close(&s);
}

static void test_columns_of_a_matrix_keep_the_window_from_one_to_the_next(void) {
  sim s;
  um_readahead_limits limits = sim_pages_of_64_kib(1 << 20);
  sim_open(&s, limits, 600);
  uint64_t rows = 1000, columns = 20;
  for (uint64_t column = 0; column < columns; column++)
    for (uint64_t row = 0; row < rows; row++)
      sim_touch(&s, 1, row * 700 + column / 4, false);
  sim_report("20 columns of 1000 rows", &s);
  CHECK(s.misses <= 4 * columns + 8);
  CHECK(sim_unused(&s) <= 64 * columns);
  sim_close(&s);
}

static void test_interleaved_strides_are_told_apart(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(1 << 22), 0);
  for (uint64_t i = 0; i < 2000; i++) { /* segments of three pages in every row, and another column far off */
    for (uint64_t k = 0; k < 3; k++)
      sim_touch(&s, 1, 5000 + i * 301 + k, false);
    sim_touch(&s, 1, 2000000 + i * 450, false);
  }
  sim_report("four interleaved strides", &s);
  CHECK(s.misses <= 800);
  CHECK(sim_unused(&s) <= 500);
  sim_close(&s);
}

static void test_loop_keeps_its_window(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(4000), 2000);
  sim_read_pages(&s, 1, 0, 4000, 1);
  uint64_t misses = s.misses;
  for (int round = 0; round < 5; round++) {
    sim_touch(&s, 1, 0, false);
    uint64_t asked = 0;
    for (unsigned i = 0; i < s.last_count; i++)
      asked += (uint64_t)s.last[i].count * s.last[i].repeat;
    CHECK(asked >= 200);
    for (uint64_t page = 1; page < 4000; page++) {
      sim_touch(&s, 1, page, false);
      CHECK(page % 100 || page > 3700 || s.state[page + 190] != ABSENT);
    }
    CHECK_EQUAL(s.misses, misses + 1 + (uint64_t)round);
  }
  sim_report("loop over twice the memory", &s);
  CHECK_EQUAL(s.unused, 0);
  sim_close(&s);
}

static void test_loop_whose_beginning_stayed_in_memory_is_at_full_speed_after_two_misses(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(4000), 0);
  sim_read_pages(&s, 1, 0, 4000, 1);
  uint64_t misses = s.misses;
  memset(s.state + 1500, ABSENT, 2500); /* as mru evicts */
  s.resident = 0, s.head = 0;
  sim_read_pages(&s, 1, 0, 1502, 1);
  CHECK(s.misses <= misses + 2);
  uint64_t asked = 0;
  for (unsigned i = 0; i < s.last_count; i++)
    asked += (uint64_t)s.last[i].count * s.last[i].repeat;
  CHECK(asked >= 200);
  sim_close(&s);
}

static void test_stream_goes_on_over_pages_that_were_there_before(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(20000), 0);
  for (uint64_t page = 0; page < 20000; page += 100) /* islands */
    sim_read(&s, page, (uint32_t)(page % 7), MAPPED, false);
  uint64_t there = s.pages;
  sim_read_pages(&s, 1, 0, 20000, 1);
  sim_report("sequential over islands", &s);
  CHECK(s.misses <= 20);
  CHECK_EQUAL(s.pages, 20000);
  CHECK(there > 400);
  sim_close(&s);
}

static void test_reader_that_comes_through_resident_pages_reads_gaps_in_few_misses(void) {
  sim s;
  sim_open(&s, sim_pages_of_4_kib(200000), 0);
  sim_read(&s, 0, 512 - 77, MAPPED, false);
  for (uint64_t page = 512 - 77; page < 200000 - 512; page += 512)
    sim_read(&s, page, 512, MAPPED, false);
  for (uint64_t gap = 10 * 512 - 77; gap < 180000; gap += 20 * 512) /* farther apart than a stream looks */
    memset(s.state + gap, ABSENT, 512);
  s.resident = 0, s.head = 0;
  sim_read_pages(&s, 1, 0, 190000, 1);
  sim_report("gaps between resident pages", &s);
  CHECK(s.misses <= 18 * 2);
  sim_close(&s);
}

static void test_random_faults_do_not_end_a_live_stream(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(1000000), 0);
  sim_read_pages(&s, 1, 0, 2000, 1);
  uint64_t misses = s.misses, random = 0, before;
  for (uint64_t page = 2000; page < 20000; page++) {
    for (int k = 0; k < 3; k++) {
      before = s.misses;
      sim_touch(&s, 1, 100000 + sim_random_below(900000), false);
      random += s.misses - before;
    }
    sim_touch(&s, 1, page, false);
  }
  sim_report("three random touches a page of a stream", &s);
  CHECK(s.misses - random - misses <= 2);
  sim_close(&s);
}

/* Reads on to the next fault; whether it maps a full run. */
static bool goes_on(sim *s, uint32_t thread_id, uint64_t page) {
  while (s->state[page] == MAPPED)
    page++;
  sim_touch(s, thread_id, page, false);
  return s->last[0].count == 32;
}

static void test_new_stream_takes_the_place_of_a_proven_one_only_on_evidence(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(2000000), 0);
  um_readahead_hint(s.ra, 1800000, 1900000, UM_HINT_SEQUENTIAL);
  uint64_t from[128];
  for (uint64_t k = 0; k < 128; k++)
    from[k] = k * 6000 + sim_random_below(2000); /* or they are stops of a walk */
  for (uint64_t i = 0; i < 2000; i++)
    for (uint64_t k = 0; k < 128; k++)
      sim_touch(&s, 1, from[k] + i, false);
  uint64_t first = 0, second = 1; /* of them, those whose last touches are oldest */
  for (uint64_t k = 0, best[2] = {UINT64_MAX, UINT64_MAX}; k < 128; k++) {
    uint64_t run = (from[k] + 1999 + s.limits.align_pages) / 32 * 32 - s.limits.align_pages - from[k],
             at = run * 128 + k;
    if (at < best[0]) {
      best[1] = best[0], second = first;
      best[0] = at, first = k;
    } else if (at < best[1]) {
      best[1] = at, second = k;
    }
  }
  sim_read_pages(&s, 2, 1500000, 3, 1);
  CHECK_EQUAL(s.last[0].count, 1); /* no place yet */
  sim_touch(&s, 2, 1500003, false);
  CHECK(s.last[0].count > 1);                 /* four in a row: it has the first one's */
  CHECK(!goes_on(&s, 1, from[first] + 1999)); /* which must begin again, */
  sim_touch(&s, 3, 1800000, false);           /* and a hinted one */
  CHECK(s.last[0].count > 1);                 /* takes a place */
  CHECK(goes_on(&s, 1, from[second] + 1999)); /* from one not proven */
  sim_close(&s);
}

static void test_first_touch_of_page_0_reads_a_few_pages(void) {
  sim s;
  sim_open(&s, sim_pages_of_64_kib(1000), 0);
  sim_touch(&s, 1, 0, false);
  CHECK(s.last[0].count >= 2 && s.last[0].count <= 8);
  CHECK_EQUAL(s.last_count, 1);
  sim_touch(&s, 2, 500, false);
  CHECK_EQUAL(s.last[0].count, 1);
  sim_close(&s);
}

/* Readers of every kind at once, over memory that comes and goes; check_answer holds all the time. */
static void test_any_mixture_of_readers_gets_valid_answers(void) {
  for (int round = 0; round < 300; round++) {
    uint64_t n = 1 + sim_random_below(round % 3 ? 3000 : 70);
    um_readahead_limits limits = {
        .page_count = n,
        .run_pages = 1u << sim_random_below(9),
        .part_pages = 1u << sim_random_below(9),
        .align_pages = (uint32_t)sim_random_below(600),
        .window_pages = (uint32_t)sim_random_below(600),
        .protect_pages = 1 + (uint32_t)sim_random_below(64),
        .gap_pages = (uint32_t)sim_random_below(5),
        .context_pages = (uint32_t)sim_random_below(20),
    };
    sim s;
    sim_open(&s, limits, 1 + sim_random_below(n));
    uint64_t at[12] = {0};
    int64_t step[12] = {0};
    for (int k = 0; k < 5000; k++) {
      uint64_t i = sim_random_below(12);
      if (sim_random_below(100) == 0)
        step[i] = (int64_t)sim_random_below(9) - 4;
      if (sim_random_below(100) == 0)
        at[i] = sim_random_below(n);
      if (sim_random_below(500) == 0) {
        s.limits.window_pages = (uint32_t)sim_random_below(600);
        um_readahead_window(s.ra, s.limits.window_pages);
      }
      if (sim_random_below(500) == 0) {
        uint64_t first = sim_random_below(n);
        um_readahead_hint(s.ra, first, first + sim_random_below(300), (um_hint)sim_random_below(3));
      }
      s.drop_ahead = k / 100 % 5 == 0;
      at[i] = (at[i] + n + (uint64_t)(step[i] % (int64_t)n)) % n;
      sim_touch(&s, (uint32_t)i % 5, at[i], step[i] == 1 && sim_random_below(2));
    }
    sim_close(&s);
  }
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  test_sequential_reader_misses_six_times_at_most_and_reads_in_full_runs();
  test_backward_reader_does_as_well_as_a_forward_one();
  test_reader_that_starts_anywhere_reaches_full_runs();
  test_steady_stream_asks_for_one_full_run_a_trigger();
  test_stream_whose_read_ahead_is_dropped_still_reads_in_full_runs();
  test_stream_whose_runs_are_read_in_parts_keeps_its_window();
  test_reader_faster_than_its_read_ahead_reads_nothing_twice();
  test_triggers_that_nobody_told_of_do_not_end_a_stream();
  test_window_of_zero_reads_single_pages();
  test_smaller_window_is_kept_from_the_next_call_on();
  test_interleaved_streams_of_one_thread_are_all_read_ahead();
  test_opposite_streams_that_meet_read_nothing_twice_for_nothing();
  test_threads_have_streams_of_their_own();
  test_threads_that_take_turns_at_one_sequence_share_its_window();
  test_constant_stride_is_read_ahead_stop_by_stop();
  test_stride_of_a_fraction_of_a_page_is_followed();
  test_short_stride_of_small_pages_is_read_whole();
  test_columns_of_a_matrix_keep_the_window_from_one_to_the_next();
  test_interleaved_strides_are_told_apart();
  test_loop_keeps_its_window();
  test_loop_whose_beginning_stayed_in_memory_is_at_full_speed_after_two_misses();
  test_stream_goes_on_over_pages_that_were_there_before();
  test_reader_that_comes_through_resident_pages_reads_gaps_in_few_misses();
  test_random_faults_do_not_end_a_live_stream();
  test_new_stream_takes_the_place_of_a_proven_one_only_on_evidence();
  test_first_touch_of_page_0_reads_a_few_pages();
  test_any_mixture_of_readers_gets_valid_answers();
  return 0;
}
