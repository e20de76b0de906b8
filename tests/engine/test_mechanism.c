/* Copy or move: what the options ask for, what the kernel has, what stats() calls it. */
#include "mechanism.h"
#include "rig.h"
#include "uffd.h"

#include <unistd.h>

static bool kernel_moves(void) {
  uint64_t features;
  CHECK(um_uffd_probe(UM_UFFD_AUTO, &features) >= 0);
  return features & UM_UFFD_FEATURE_MOVE;
}

static int create(uint32_t mechanism, um_pager **pager) {
  um_pager_options options = {
      .memory = 4u << 20, .fillers = 1, .evictors = 1, .timeout_ms = 1000, .mechanism = mechanism};
  return um_pager_create(&options, pager);
}

static void check_name(uint32_t mechanism, const char *name, const char *other) {
  um_pager *pager;
  um_stats stats;
  CHECK_EQUAL(create(mechanism, &pager), 0);
  um_pager_stats(pager, &stats);
  CHECK(!strcmp(stats.mechanism, name) || !strcmp(stats.mechanism, other));
  rig r;
  rig_open(&r, &(rig_options){.size = 64 << 12, .pager = pager});
  stats = rig_stats(&r);
  CHECK(!strcmp(stats.mechanism, name) || !strcmp(stats.mechanism, other));
  CHECK_EQUAL(r.region->moves, !strcmp(stats.mechanism, "move"));
  rig_write(&r, 0, 1);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 0), 1);
  rig_end(&r);
  CHECK_EQUAL(um_pager_destroy(pager), 0);
}

static void test_mechanism_copy_is_there_on_every_kernel(void) {
  check_name(UM_MECHANISM_COPY, "copy", "copy");
}

static void test_mechanism_move_is_what_was_asked_for_or_refused(void) {
  um_pager *pager;
  if (kernel_moves())
    check_name(UM_MECHANISM_MOVE, "move", "move");
  else
    CHECK_EQUAL(create(UM_MECHANISM_MOVE, &pager), -EOPNOTSUPP);
}

static void test_mechanism_auto_stays_with_its_choice(void) {
  um_pager *pager;
  um_stats first, second;
  CHECK_EQUAL(create(UM_MECHANISM_AUTO, &pager), 0);
  um_pager_stats(pager, &first);
  CHECK_EQUAL(um_pager_destroy(pager), 0);
  CHECK(!strcmp(first.mechanism, "copy") || (kernel_moves() && !strcmp(first.mechanism, "move")));
  for (int i = 0; i < 3; i++) { /* measured once a process */
    CHECK_EQUAL(create(UM_MECHANISM_AUTO, &pager), 0);
    um_pager_stats(pager, &second);
    CHECK(!strcmp(first.mechanism, second.mechanism));
    CHECK_EQUAL(um_pager_destroy(pager), 0);
  }
}

/* The kernels before 6.8, which have no UFFDIO_MOVE: only their word for it is needed. */
static void test_mechanism_of_a_kernel_without_the_feature_copies_or_is_refused(void) {
  uint32_t mode;
  uint64_t features;
  int uffd = um_uffd_open(UM_UFFD_AUTO, &mode, &features);
  CHECK(uffd >= 0);
  features &= ~UM_UFFD_FEATURE_MOVE;
  CHECK(um_mechanism_choose(UM_MECHANISM_MOVE, uffd, features) == NULL);
  CHECK(um_mechanism_choose(UM_MECHANISM_AUTO, uffd, features) == &um_mechanism_copy);
  CHECK(um_mechanism_choose(UM_MECHANISM_COPY, uffd, features) == &um_mechanism_copy);
  CHECK_EQUAL(close(uffd), 0);
}

/* One pager of each kind in a process, with regions side by side. */
static void test_mechanism_pagers_of_both_kinds_live_side_by_side(void) {
  if (!kernel_moves()) {
    printf("  %s skipped: this kernel does not move pages\n", __func__);
    return;
  }
  um_pager *pagers[2];
  rig r[2];
  CHECK_EQUAL(create(UM_MECHANISM_COPY, &pagers[0]) | create(UM_MECHANISM_MOVE, &pagers[1]), 0);
  for (int i = 0; i < 2; i++)
    rig_open(&r[i], &(rig_options){.size = 2048 << 12, .pager = pagers[i]});
  for (uint64_t page = 0; page < 2048; page++)
    for (int i = 0; i < 2; i++)
      rig_write(&r[i], page * 4096, page + 1);
  for (int i = 0; i < 2; i++) {
    CHECK(rig_stats(&r[i]).evictions > 0);
    rig_close(&r[i]);
    for (uint64_t page = 0; page < 2048; page++)
      CHECK_EQUAL(rig_file_word(&r[i], page * 4096), page + 1);
    rig_end(&r[i]);
    CHECK_EQUAL(um_pager_destroy(pagers[i]), 0);
  }
}

int main(void) {
  watchdog_start(20);
  RUN(test_mechanism_copy_is_there_on_every_kernel);
  RUN(test_mechanism_move_is_what_was_asked_for_or_refused);
  RUN(test_mechanism_auto_stays_with_its_choice);
  RUN(test_mechanism_of_a_kernel_without_the_feature_copies_or_is_refused);
  RUN(test_mechanism_pagers_of_both_kinds_live_side_by_side);
  watchdog_pet("the end");
  return 0;
}
