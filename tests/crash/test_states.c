/* The zstd store over a file that crashes: every state a crash may leave of small runs, any of long ones. Each is
 * opened for reading and holds exactly the image of the last flush that returned, or of the one under way; then for
 * writing, when every byte is in a frame; then it is written and flushed, and that may crash, too.
 *
 * test_states [SEED [ROUNDS]]: the long runs, so often, each with a seed of its own, which is printed. */
#include "oracle.h"

#define SMALL 6u   /* pages */
#define LARGE 600u /* of three leaves, two levels */

static void test_small_runs_leave_a_flush_whatever_survives(void) {
  oracle o = {.seed = 1, .exhaustive = 8, .samples = 60, .deep = 9, .tool = 400};
  oracle_create(&o, SMALL * ORACLE_PAGE - 100);
  oracle_write(&o, 0, 1, 10);
  oracle_flush(&o);
  oracle_write(&o, 0, 2, 20);
  oracle_write(&o, SMALL - 1, 1, 21);
  oracle_flush(&o);
  oracle_write(&o, 0, 1, 0);
  oracle_write(&o, 1, 1, 30);
  oracle_write(&o, 1, 1, 31); /* what nobody flushed is superseded */
  oracle_flush(&o);
  oracle_reopen(&o, UINT64_MAX);
  oracle_write(&o, 2, 1, 40);
  oracle_flush(&o);
  oracle_write(&o, 0, SMALL, 0); /* nothing is left */
  oracle_flush(&o);
  oracle_reopen(&o, 300 * ORACLE_PAGE); /* another level */
  oracle_write(&o, 299, 1, 50);
  oracle_flush(&o);
  oracle_check(&o);
  fprintf(stderr, "small runs: %" PRIu64 " states\n", o.count);
  CHECK(o.count > 4000);
  oracle_end(&o);
}

/* Each write of a flush fails once: what is done again does not risk the superblock that is whole. */
static void test_flushes_done_again_leave_a_flush(void) {
  oracle o = {.seed = 1, .exhaustive = 6, .samples = 20};
  oracle_create(&o, SMALL * ORACLE_PAGE);
  for (uint64_t turn = 0; turn < 12; turn++) {
    oracle_write(&o, turn % SMALL, 1, turn + 1);
    o.fail_at = 1 + turn % 6;
    oracle_flush(&o);
  }
  fprintf(stderr, "flushes done again: %" PRIu64 " states, %" PRIu64 " failures\n", o.count, o.failed);
  CHECK(o.failed >= 8);
  oracle_end(&o);
}

static void write_some(oracle *o, uint64_t *seed) {
  for (uint64_t i = zrig_random(seed) % 40; i > 0; i--) {
    uint64_t pages = 1 + zrig_random(seed) % 8, page = zrig_random(seed) % (LARGE - pages);
    oracle_write(o, page, pages, zrig_random(seed) % 8 ? zrig_random(seed) | 1 : 0);
  }
}

/* Quiet turns fill the log, so that segments are used again, emptied and punched in those that crash. */
static void test_long_runs_leave_a_flush(uint64_t seed) {
  oracle o = {.seed = seed, .samples = 8, .deep = 6, .tool = 500};
  fprintf(stderr, "long run: seed %" PRIu64 "\n", seed);
  oracle_create(&o, LARGE * ORACLE_PAGE);
  for (uint64_t turn = 0; turn < 60; turn++) {
    o.quiet = turn % 10 < 6;
    o.fail_at = turn % 4 == 0 ? 1 + zrig_random(&seed) % 20 : 0;
    write_some(&o, &seed);
    if (turn % 4 == 3)
      o.fail_at = 1 + zrig_random(&seed) % 6; /* leaves, root, table, superblocks */
    oracle_flush(&o);
    if (zrig_random(&seed) % 16 == 0)
      oracle_reopen(&o, UINT64_MAX);
  }
  o.fail_at = 0;
  oracle_pack(&o);
  um_zstd_info info;
  um_zstd_store_info(o.store, &info);
  fprintf(stderr, "long run: %" PRIu64 " states, %" PRIu64 " failures, %" PRIu32 " segments\n", o.count, o.failed,
          info.segments);
  CHECK(o.failed > 5);
  CHECK(o.count > 500);
  oracle_end(&o);
}

int main(int argc, char **argv) {
  uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1, rounds = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
  test_small_runs_leave_a_flush_whatever_survives();
  test_flushes_done_again_leave_a_flush();
  for (uint64_t i = 0; i < rounds; i++)
    test_long_runs_leave_a_flush(seed + i);
  return 0;
}
