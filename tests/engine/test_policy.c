/* Eviction policies: the order of victims, proofs in standby, ghosts. With arguments it is the program that
 * tests/test_eviction.py holds the simulator against: KIND prints its shares; FILE KIND MEMORY PAGE_SHIFT SMALL STANDBY
 * GHOST STANDBY_RUN replays a file (replay.c) and prints the counts. */
#include "check.h"
#include "replay.h"

#define PAGE 4096u
#define RUNS 64u

typedef struct rig {
  um_region region;
  um_frame frames[RUNS + 1];
  um_policy *policy;
} rig;

static void rig_open(rig *r, uint32_t kind, uint64_t pages) {
  um_policy_options options = {.memory = pages * PAGE};
  um_policy_defaults(kind, &options);
  memset(r, 0, sizeof *r);
  r->region.address = (uintptr_t)1 << 42;
  r->region.page_shift = 12;
  r->region.size = r->region.mapped = 1u << 30;
  CHECK_EQUAL(um_policy_create(&options, r->frames, &r->policy), 0);
}

static void insert(rig *r, um_frame_id id, uint64_t page, uint32_t count, bool prefetched) {
  r->frames[id] = (um_frame){.region = &r->region, .page = page, .count = count};
  um_policy_insert(r->policy, id, prefetched);
}

static void test_fifo_offers_oldest_first(void) {
  rig r;
  rig_open(&r, UM_POLICY_FIFO, 16);
  for (um_frame_id id = 1; id <= 4; id++)
    insert(&r, id, id, 1, false);
  CHECK(!um_policy_keeps(r.policy, 1) && !um_policy_standby_full(r.policy, true));
  um_frame_id id = 0;
  for (um_frame_id wanted = 1; wanted <= 4; wanted++)
    CHECK_EQUAL(id = um_policy_next(r.policy, id), wanted);
  um_policy_remove(r.policy, 1);
  um_policy_evicted(r.policy, 2);
  CHECK_EQUAL(um_policy_next(r.policy, 0), 3);
  um_policy_destroy(r.policy);
}

static void test_mru_offers_youngest_first(void) {
  rig r;
  rig_open(&r, UM_POLICY_MRU, 16);
  for (um_frame_id id = 1; id <= 4; id++)
    insert(&r, id, id, 1, false);
  um_frame_id id = 0;
  for (um_frame_id wanted = 4; wanted >= 1; wanted--)
    CHECK_EQUAL(id = um_policy_next(r.policy, id), wanted);
  um_policy_destroy(r.policy);
}

static void test_second_chance_refault_makes_young(void) {
  rig r;
  rig_open(&r, UM_POLICY_SECOND_CHANCE, 16);
  for (um_frame_id id = 1; id <= 4; id++)
    insert(&r, id, id, 1, false);
  um_policy_standby(r.policy, 1);
  um_policy_standby(r.policy, 2);
  CHECK_EQUAL(um_policy_next(r.policy, 0), 3);
  CHECK_EQUAL(um_policy_standby_next(r.policy, 0), 1);
  CHECK_EQUAL(um_policy_standby_next(r.policy, 1), 2);
  CHECK(!um_policy_is_proven(r.policy, 1));
  um_policy_refault(r.policy, 1);
  CHECK(um_policy_is_proven(r.policy, 1) && !um_policy_is_proven(r.policy, 3));
  CHECK_EQUAL(um_policy_standby_next(r.policy, 0), 2);
  CHECK_EQUAL(um_policy_next(r.policy, 4), 1);
  um_policy_destroy(r.policy);
}

static void test_s3fifo_ghost_enters_main(void) {
  rig r;
  rig_open(&r, UM_POLICY_S3FIFO, 64);
  insert(&r, 1, 1, 1, false);
  um_policy_evicted(r.policy, 1);
  insert(&r, 1, 1, 1, false);
  insert(&r, 2, 2, 1, false);
  um_policy_bytes bytes;
  um_policy_measure(r.policy, &bytes);
  CHECK_EQUAL(bytes.main, PAGE);
  CHECK_EQUAL(bytes.small, PAGE);
  CHECK(um_policy_is_proven(r.policy, 1) && !um_policy_is_proven(r.policy, 2));
  um_policy_remove(r.policy, 1);
  insert(&r, 1, 1, 1, false);
  um_policy_measure(r.policy, &bytes);
  CHECK_EQUAL(bytes.main, 0);
  um_policy_destroy(r.policy);
}

static void test_read_ahead_waits_in_standby_and_first_touch_is_no_proof(void) {
  rig r;
  rig_open(&r, UM_POLICY_S3FIFO, 64);
  insert(&r, 1, 1, 4, true);
  CHECK(um_policy_in_standby(r.policy, 1));
  CHECK_EQUAL(um_policy_next(r.policy, 0), 0);
  CHECK_EQUAL(um_policy_standby_next(r.policy, 0), 1);
  um_policy_refault(r.policy, 1);
  um_policy_bytes bytes;
  um_policy_measure(r.policy, &bytes);
  CHECK_EQUAL(bytes.small, 4 * PAGE);
  CHECK(!um_policy_is_proven(r.policy, 1));
  um_policy_standby(r.policy, 1);
  um_policy_refault(r.policy, 1);
  CHECK(um_policy_is_proven(r.policy, 1));
  um_policy_measure(r.policy, &bytes);
  CHECK_EQUAL(bytes.main, 4 * PAGE);
  um_policy_destroy(r.policy);
}

static void test_next_reaches_every_run_once_and_ends(void) {
  for (uint32_t kind = 0; kind <= UM_POLICY_MRU; kind++) {
    rig r;
    rig_open(&r, kind, 64);
    for (um_frame_id id = 1; id <= RUNS; id++)
      insert(&r, id, 7 * id, 1, false);
    bool seen[RUNS + 1] = {false};
    uint32_t steps = 0, count = 0;
    for (um_frame_id id = um_policy_next(r.policy, 0); id; id = um_policy_next(r.policy, id)) {
      count += !seen[id];
      seen[id] = true;
      CHECK(++steps <= 2 * RUNS);
    }
    CHECK_EQUAL(count, RUNS);
    um_policy_destroy(r.policy);
  }
}

/* Every run is where its events put it, whatever the policy does in between, and both walks reach all and end. */
static void check_walks(rig *r, const uint8_t *place) {
  uint32_t wanted[3] = {0}, found[3] = {0}, steps = 0;
  bool seen[RUNS + 1] = {false};
  for (um_frame_id id = 1; id <= RUNS; id++)
    wanted[place[id]]++;
  for (um_frame_id id = um_policy_next(r->policy, 0); id; id = um_policy_next(r->policy, id)) {
    CHECK_EQUAL(place[id], 1);
    found[1] += !seen[id];
    seen[id] = true;
    CHECK(++steps <= 2 * RUNS);
  }
  for (um_frame_id id = um_policy_standby_next(r->policy, 0); id; id = um_policy_standby_next(r->policy, id)) {
    CHECK_EQUAL(place[id], 2);
    CHECK(um_policy_in_standby(r->policy, id));
    found[2] += !seen[id];
    seen[id] = true;
    CHECK(++steps <= 4 * RUNS);
  }
  CHECK_EQUAL(found[1], wanted[1]);
  CHECK_EQUAL(found[2], wanted[2]);
  um_policy_bytes bytes;
  uint64_t sum = 0;
  for (um_frame_id id = 1; id <= RUNS; id++)
    sum += place[id] ? r->frames[id].count * PAGE : 0;
  um_policy_measure(r->policy, &bytes);
  CHECK_EQUAL(bytes.small + bytes.main + bytes.standby, sum);
}

static void test_any_events_leave_queues_whole(void) {
  uint64_t random = 1;
  for (uint32_t kind = 0; kind <= UM_POLICY_MRU; kind++) {
    rig r;
    uint8_t place[RUNS + 1] = {0}; /* 0 nowhere, 1 resident, 2 standby */
    rig_open(&r, kind, 256);
    for (uint32_t i = 0; i < 20000; i++) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      um_frame_id id = 1 + (random >> 33) % RUNS;
      uint32_t event = (random >> 50) % 8;
      if (place[id] == 0 && event < 5) {
        bool ahead = event == 4;
        insert(&r, id, (random >> 20) % 4096, 1 + (random >> 52) % 64, ahead);
        place[id] = ahead ? 2 : 1;
      } else if (place[id] == 2 && event < 3) {
        um_policy_refault(r.policy, id);
        place[id] = 1;
      } else if (place[id] == 1 && event < 3) {
        um_policy_standby(r.policy, id);
        place[id] = 2;
      } else if (place[id] && event == 3) {
        um_policy_evicted(r.policy, id);
        place[id] = 0;
      } else if (event == 4) {
        um_policy_remove(r.policy, id);
        place[id] = 0;
      }
      if (i % 16 == 0)
        check_walks(&r, place);
    }
    um_policy_destroy(r.policy);
  }
}

static void test_create_refuses_what_is_wrong(void) {
  um_policy_options options = {.memory = 1u << 20};
  um_policy *policy;
  um_policy_defaults(UM_POLICY_AUTO, &options);
  options.kind = 99;
  CHECK_EQUAL(um_policy_create(&options, NULL, &policy), -EINVAL);
  options.kind = UM_POLICY_AUTO;
  options.standby_share = UM_POLICY_WHOLE;
  CHECK_EQUAL(um_policy_create(&options, NULL, &policy), -EINVAL);
}

static void test_tables_take_eight_bytes_a_page_at_most(void) {
  um_policy_options options = {.memory = 1u << 30};
  um_policy_defaults(UM_POLICY_AUTO, &options);
  CHECK(um_policy_memory(&options) <= options.memory / PAGE * 8 + 2 * PAGE);
}

static int replay_main(int argc, char **argv) {
  um_policy_options options;
  um_replay_counts counts;
  if (argc == 2) {
    um_policy_defaults((uint32_t)strtoul(argv[1], NULL, 0), &options);
    printf("%u %u %u\n", options.small_share, options.standby_share, options.ghost_share);
    return 0;
  }
  CHECK_EQUAL(argc, 9);
  options.kind = (uint32_t)strtoul(argv[2], NULL, 0);
  options.memory = strtoull(argv[3], NULL, 0);
  options.small_share = (uint32_t)strtoul(argv[5], NULL, 0);
  options.standby_share = (uint32_t)strtoul(argv[6], NULL, 0);
  options.ghost_share = (uint32_t)strtoul(argv[7], NULL, 0);
  options.standby_run = strtoull(argv[8], NULL, 0);
  um_replay(argv[1], &options, (uint32_t)strtoul(argv[4], NULL, 0), &counts);
  printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", counts.references, counts.misses,
         counts.late_misses, counts.refaults, counts.prefetched, counts.digest);
  return 0;
}

int main(int argc, char **argv) {
  if (argc > 1)
    return replay_main(argc, argv);
  test_fifo_offers_oldest_first();
  test_mru_offers_youngest_first();
  test_second_chance_refault_makes_young();
  test_s3fifo_ghost_enters_main();
  test_read_ahead_waits_in_standby_and_first_touch_is_no_proof();
  test_next_reaches_every_run_once_and_ends();
  test_any_events_leave_queues_whole();
  test_create_refuses_what_is_wrong();
  test_tables_take_eight_bytes_a_page_at_most();
  return 0;
}
