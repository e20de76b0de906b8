/* Memory that does not come free: a store that is full, or slow, while pages must be filled. */
#define _GNU_SOURCE
#include "rig.h"

#include <unistd.h>

#define TIMEOUT_MS 200

/* Takes all records. Others may say that the store is full, or be of a page that went again before its thread saw it.
 */
static bool told_of_a_fault(const rig *r, uint64_t offset) {
  um_error error;
  bool told = false;
  while (um_region_error_next(r->region, &error)) {
    CHECK_EQUAL(error.code, ENOSPC); /* why no memory came free */
    told |= error.thread_id == gettid() && error.offset == offset;
  }
  return told;
}

/* Writes page after page until a write is given up; returns how many were kept. */
static uint64_t write_until_given_up(const rig *r) {
  for (uint64_t page = 0; page < 200; page++) {
    uint64_t began = now_ns();
    rig_write(r, page << 12, 1000 + page);
    uint64_t took = now_ns() - began;
    if (!told_of_a_fault(r, page << 12))
      continue;
    CHECK(took >= TIMEOUT_MS * 900000ull && took < 10 * TIMEOUT_MS * 1000000ull * SLOWER);
    return page;
  }
  CHECK(!"the store is full, and 200 pages are dirty in a budget of about 60");
  return 0;
}

static void check_full_store(uint32_t fillers) {
  rig r;
  rig_open(&r, &(rig_options){.size = 256 << 12, .timeout_ms = TIMEOUT_MS, .fillers = fillers, .faults = true});
  rig_fail(&r, 1 << UM_OP_WRITE, ENOSPC, UINT64_MAX, 0);
  uint64_t kept = write_until_given_up(&r);
  CHECK(kept >= 10);
  for (uint64_t page = 0; page < kept; page++)
    CHECK_EQUAL(rig_read(&r, page << 12), 1000 + page);
  for (uint64_t page = 240; page < 243; page++) { /* reads get no zeros and no hang either */
    CHECK_EQUAL(rig_read(&r, page << 12), UINT64_MAX);
    CHECK(told_of_a_fault(&r, page << 12));
  }
  CHECK(um_region_tainted(r.region));

  rig_heal(&r);
  CHECK_EQUAL(rig_flush(&r), 0);
  um_region_retry(r.region);
  CHECK_EQUAL(rig_read(&r, 240 << 12), rig_word(240 << 12));
  rig_close(&r);
  for (uint64_t page = 0; page < kept; page++)
    CHECK_EQUAL(rig_file_word(&r, page << 12), 1000 + page);
  CHECK_EQUAL(rig_file_word(&r, kept << 12), rig_word(kept << 12)); /* the one given up was never written back */
  rig_end(&r);
}

static void test_fault_with_a_full_store_is_given_up_and_no_dirty_byte_is_lost(void) {
  check_full_store(1);
  check_full_store(4);
}

typedef struct user {
  rig *rig;
  uint64_t random, lost;
  _Atomic uint64_t turns;
  _Atomic bool *stop;
} user;

static void *touch(void *argument) {
  user *u = argument;
  while (!atomic_load(u->stop)) {
    uint64_t offset = rig_random(&u->random) % u->rig->size / 8 * 8, word = rig_read(u->rig, offset);
    CHECK(word == rig_word(offset) || word == offset || word == UINT64_MAX);
    u->lost += word == UINT64_MAX;
    if (offset)
      rig_write(u->rig, offset, offset);
    atomic_fetch_add(&u->turns, 1);
  }
  return NULL;
}

/* The store fails for a while again and again: everybody goes on each time, and nothing in the file is made up. */
static void test_store_that_fails_on_and_off_stops_nobody_for_ever(void) {
  rig r;
  pthread_t threads[4];
  user users[4];
  _Atomic bool stop = false;
  rig_open(&r, &(rig_options){
                   .size = 256 << 12, .timeout_ms = 100, .fillers = 2, .evictors = 2, .spare = 10, .faults = true});
  for (int i = 0; i < 4; i++) {
    users[i] = (user){.rig = &r, .random = 3 + (uint64_t)i, .stop = &stop};
    threads[i] = rig_thread(touch, &users[i]);
  }
  for (int i = 0; i < 3; i++) {
    rig_fail(&r, 1 << UM_OP_WRITE, ENOSPC, UINT64_MAX, 0);
    sleep_ms(250);
    rig_heal(&r);
    for (int t = 0; t < 4; t++) {
      uint64_t turns = atomic_load(&users[t].turns), patience = now_ns() + 5000000000ull * SLOWER;
      while (atomic_load(&users[t].turns) < turns + 3)
        CHECK(now_ns() < patience);
    }
  }
  atomic_store(&stop, true);
  for (int i = 0; i < 4; i++)
    pthread_join(threads[i], NULL);
  rig_close(&r);
  for (uint64_t offset = 8; offset < r.size; offset += 8) {
    uint64_t word = rig_file_word(&r, offset);
    CHECK(word == rig_word(offset) || word == offset);
  }
  rig_end(&r);
}

static void test_slow_store_is_waited_for_as_long_as_it_goes_on(void) {
  rig r;
  pthread_t threads[4];
  user users[4];
  _Atomic bool stop = false;
  rig_open(&r, &(rig_options){.size = 256 << 12, .timeout_ms = TIMEOUT_MS, .fillers = 2, .faults = true});
  rig_fail(&r, 1 << UM_OP_WRITE, 0, UINT64_MAX, TIMEOUT_MS / 4);
  for (int i = 0; i < 4; i++) {
    users[i] = (user){.rig = &r, .random = 9 + (uint64_t)i, .stop = &stop};
    threads[i] = rig_thread(touch, &users[i]);
  }
  sleep_ms(4 * TIMEOUT_MS);
  atomic_store(&stop, true);
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
    CHECK_EQUAL(users[i].lost, 0);
  }
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_heal(&r);
  rig_close(&r);
  rig_end(&r);
}

static void test_reservation_that_cannot_be_had_ends_in_time(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 256 << 12, .timeout_ms = TIMEOUT_MS, .spare = 32, .faults = true});
  rig_fail(&r, 1 << UM_OP_WRITE, ENOSPC, UINT64_MAX, 0);
  for (uint64_t page = 0; page < 24; page++)
    rig_write(&r, page << 12, 1000 + page);
  um_stats before = rig_stats(&r);
  uint64_t bytes = before.memory - before.used - 4096, began = now_ns();
  int code = um_pager_reserve(r.pager, um_min(bytes, 32 << 12), 200);
  CHECK(code == 0 || code == -ETIMEDOUT || code == -ENOBUFS);
  CHECK(now_ns() - began < 2000000000ull * SLOWER);
  if (code == 0)
    um_pager_release(r.pager, um_min(bytes, 32 << 12));
  rig_heal(&r);
  CHECK_EQUAL(um_pager_reserve(r.pager, 32 << 12, 5000), 0); /* by eviction */
  CHECK_EQUAL(rig_read(&r, 100 << 12), rig_word(100 << 12));
  um_pager_release(r.pager, 32 << 12);
  rig_close(&r);
  for (uint64_t page = 0; page < 24; page++)
    CHECK_EQUAL(rig_file_word(&r, page << 12), 1000 + page);
  rig_end(&r);
}

int main(void) {
  watchdog_start(30);
  RUN(test_fault_with_a_full_store_is_given_up_and_no_dirty_byte_is_lost);
  RUN(test_store_that_fails_on_and_off_stops_nobody_for_ever);
  RUN(test_slow_store_is_waited_for_as_long_as_it_goes_on);
  RUN(test_reservation_that_cannot_be_had_ends_in_time);
  watchdog_pet("the end");
  return 0;
}
