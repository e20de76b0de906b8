/* Advice: what a page's is after any sequence of calls, how much of it there can be, and looking while it changes. */
#include "rig.h"

#define PAGE 4096u
#define PAGES 256u

static int advise(rig *r, uint64_t first, uint64_t count, int hint) {
  return um_region_advise(r->region, first * PAGE, count * PAGE, hint);
}

static void test_later_advice_overrides_earlier_for_its_range(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = PAGES * PAGE});
  CHECK_EQUAL(um_advise_at(r.region, 0), UM_ADVICE_NORMAL);
  CHECK_EQUAL(advise(&r, 0, PAGES, UM_ADVISE_RANDOM), 0);
  CHECK_EQUAL(advise(&r, 10, 20, UM_ADVISE_SEQUENTIAL), 0);
  CHECK_EQUAL(advise(&r, 15, 5, UM_ADVISE_NORMAL), 0);
  for (uint64_t page = 0; page < PAGES; page++) {
    bool inner = page >= 15 && page < 20, outer = page >= 10 && page < 30;
    CHECK_EQUAL(um_advise_at(r.region, page), inner   ? UM_ADVICE_NORMAL
                                              : outer ? UM_ADVICE_SEQUENTIAL
                                                      : UM_ADVICE_RANDOM);
  }
  rig_close(&r);
  rig_end(&r);
}

static void test_any_calls_leave_what_the_last_for_each_page_said(void) {
  rig r;
  uint8_t model[PAGES] = {0};
  uint64_t random = 1;
  rig_open(&r, &(rig_options){.size = PAGES * PAGE});
  for (int turn = 0; turn < 2000; turn++) {
    uint64_t first = rig_random(&random) % PAGES, count = 1 + rig_random(&random) % (turn % 2 ? 8 : PAGES - first);
    int hint = (int)(rig_random(&random) >> 20) & 3;
    count = um_min(count, PAGES - first);
    CHECK_EQUAL(advise(&r, first, count, hint), 0);
    memset(model + first, hint, count);
    uint32_t bounds = 0;
    for (uint64_t page = 0; page < PAGES; page++) {
      uint64_t from, to;
      CHECK_EQUAL(um_advise_at(r.region, page), model[page]);
      CHECK_EQUAL(um_advise_range(r.region, page, &from, &to), model[page]);
      CHECK(from <= page && page < to && model[from] == model[page] && model[to - 1] == model[page]);
      CHECK((from == 0 || model[from - 1] != model[page]) && (to == PAGES || model[to] != model[page]));
      bounds += model[page] != (page ? model[page - 1] : 0);
    }
    CHECK_EQUAL(atomic_load(&r.region->advice.count), bounds + (model[PAGES - 1] != 0)); /* merged */
  }
  rig_close(&r);
  rig_end(&r);
}

static void test_partial_pages_count_but_for_willwrite(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 * PAGE - 100});
  CHECK_EQUAL(um_region_advise(r.region, PAGE + 1, PAGE, UM_ADVISE_RANDOM), 0);
  CHECK_EQUAL(um_region_advise(r.region, 4 * PAGE + 1, 4 * PAGE - 101, UM_ADVISE_WILLWRITE), 0);
  const int wanted[] = {0, 2, 2, 0, 0, 3, 3, 3}; /* the last ends with the region */
  for (uint64_t page = 0; page < 8; page++)
    CHECK_EQUAL(um_advise_at(r.region, page), wanted[page]);
  CHECK_EQUAL(um_region_advise(r.region, 10, 100, UM_ADVISE_WILLWRITE), 0); /* no whole page */
  CHECK_EQUAL(um_region_advise(r.region, 5, 0, UM_ADVISE_RANDOM), 0);
  CHECK_EQUAL(um_advise_at(r.region, 0), UM_ADVICE_NORMAL);
  rig_close(&r);
  rig_end(&r);
}

static void test_arguments_that_mean_nothing_are_refused(void) {
  rig r, read_only;
  rig_open(&r, &(rig_options){.size = 8 * PAGE});
  rig_open(&read_only, &(rig_options){.size = 8 * PAGE, .read_only = true});
  CHECK_EQUAL(advise(&r, 0, 9, UM_ADVISE_RANDOM), -EINVAL);
  CHECK_EQUAL(advise(&r, 9, 0, UM_ADVISE_RANDOM), -EINVAL);
  CHECK_EQUAL(advise(&r, 0, 1, 4), -EINVAL);
  CHECK_EQUAL(advise(&r, 0, 1, -1), -EINVAL);
  CHECK_EQUAL(advise(&read_only, 0, 1, UM_ADVISE_WILLWRITE), -EACCES);
  CHECK_EQUAL(advise(&read_only, 0, 1, UM_ADVISE_SEQUENTIAL), 0);
  rig_close(&read_only);
  rig_end(&read_only);
  rig_close(&r);
  rig_end(&r);
}

static void test_more_ranges_than_there_is_room_for_are_refused_and_change_nothing(void) {
  rig r;
  uint64_t ranges = UM_ADVICE_BOUNDS_MAX / 2;
  rig_open(&r, &(rig_options){.size = (2 * ranges + 2) * PAGE, .memory = 4 << 20, .sparse = true});
  uint64_t used = rig_stats(&r).used;
  for (uint64_t i = 0; i < ranges; i++)
    CHECK_EQUAL(advise(&r, 2 * i, 1, UM_ADVISE_RANDOM), 0);
  CHECK_EQUAL(rig_stats(&r).used - used, UM_ADVICE_BOUNDS_MAX * sizeof(uint64_t)); /* counted */
  CHECK_EQUAL(advise(&r, 2 * ranges, 1, UM_ADVISE_RANDOM), -ENOSPC);
  CHECK_EQUAL(um_advise_at(r.region, 2 * ranges), UM_ADVICE_NORMAL);
  CHECK_EQUAL(um_advise_at(r.region, 2 * ranges - 2), UM_ADVICE_RANDOM);
  CHECK_EQUAL(advise(&r, 2 * ranges - 2, 1, UM_ADVISE_RANDOM), 0); /* said already */
  CHECK_EQUAL(advise(&r, 0, 2 * ranges, UM_ADVISE_NORMAL), 0);
  CHECK_EQUAL(advise(&r, 2 * ranges, 1, UM_ADVISE_RANDOM), 0);
  rig_close(&r);
  rig_end(&r);
}

typedef struct looker {
  rig *rig;
  _Atomic bool stop;
} looker;

static void *look(void *argument) {
  looker *l = argument;
  while (!atomic_load(&l->stop)) {
    enum um_advice kept = um_advise_at(l->rig->region, 100), changing = um_advise_at(l->rig->region, 50);
    CHECK(kept == UM_ADVICE_SEQUENTIAL || kept == UM_ADVICE_NORMAL);
    CHECK(changing == UM_ADVICE_RANDOM || changing == UM_ADVICE_NORMAL);
  }
  return NULL;
}

static void test_looking_while_it_changes_sees_what_was_said_or_normal(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = PAGES * PAGE});
  looker l = {.rig = &r};
  CHECK_EQUAL(advise(&r, 100, 1, UM_ADVISE_SEQUENTIAL), 0);
  pthread_t thread = rig_thread(look, &l);
  for (uint64_t i = 0; i < 20000; i++)
    CHECK_EQUAL(advise(&r, i % 40 * 2, 51 - i % 40, i % 3 ? UM_ADVISE_RANDOM : UM_ADVISE_NORMAL), 0);
  atomic_store(&l.stop, true);
  pthread_join(thread, NULL);
  CHECK_EQUAL(um_advise_at(r.region, 100), UM_ADVICE_SEQUENTIAL);
  rig_close(&r);
  rig_end(&r);
}

int main(void) {
  watchdog_start(20);
  RUN(test_later_advice_overrides_earlier_for_its_range);
  RUN(test_any_calls_leave_what_the_last_for_each_page_said);
  RUN(test_partial_pages_count_but_for_willwrite);
  RUN(test_arguments_that_mean_nothing_are_refused);
  RUN(test_more_ranges_than_there_is_room_for_are_refused_and_change_nothing);
  RUN(test_looking_while_it_changes_sees_what_was_said_or_normal);
  watchdog_pet("the end");
  return 0;
}
