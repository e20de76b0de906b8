/* Memory dropped under the engine by the user's own madvise: what the store has comes back, what it does not have is
 * 0xFF and a record, never zeros, never a hang, and never 0xFF in the store. */
#define _GNU_SOURCE
#include "rig.h"

#include <unistd.h>

#define LOST UINT64_MAX

static void check_dropped(const rig *r, uint64_t offset, uint64_t length) {
  um_error error;
  CHECK_EQUAL(um_region_error_next(r->region, &error), 1);
  CHECK_EQUAL(error.code, UM_EDROPPED);
  CHECK_EQUAL(error.op, UM_OP_MEMORY);
  CHECK(error.offset <= offset && offset < error.offset + error.length && error.length >= length);
  CHECK(um_region_tainted(r->region));
}

static void test_clean_page_comes_back_from_the_store(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 16, .page_size = 1 << 16});
  rig_read(&r, 0);
  rig_drop(&r, 0, 1 << 16);
  CHECK_EQUAL(rig_read(&r, 8), rig_word(8));
  rig_drop(&r, 4096, 4096); /* a part of a page */
  CHECK_EQUAL(rig_read(&r, 4096), rig_word(4096));
  rig_drop(&r, 8192, 4096);
  rig_write(&r, 8192, 5); /* the first to touch it writes */
  CHECK_EQUAL(rig_read(&r, 8200), rig_word(8200));
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 8192), 5);
  rig_end(&r);
}

static void test_dirty_page_is_lost_with_a_record(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 16, .page_size = 1 << 16});
  rig_write(&r, (1 << 16) + 8, 5);
  rig_drop(&r, (1 << 16) + 4096, 4096); /* not the part that was written: nobody knows which was */
  CHECK_EQUAL(rig_read(&r, (1 << 16) + 4096), LOST);
  um_error error;
  CHECK_EQUAL(um_region_error_at(r.region, 0, &error), 1);
  CHECK_EQUAL(error.thread_id, gettid());
  check_dropped(&r, (1 << 16) + 4096, 1 << 16);
  CHECK_EQUAL(rig_state(&r, 1), UM_PAGE_FAILED);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, (1 << 16) + 4096), rig_word((1 << 16) + 4096));
  rig_end(&r);
}

static void test_write_to_a_lost_page_fetches_it_anew(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12});
  rig_write(&r, 8, 5);
  rig_drop(&r, 0, 4096);
  rig_write(&r, 16, 6);
  check_dropped(&r, 0, 4096);
  CHECK_EQUAL(rig_read(&r, 8), rig_word(8));
  CHECK_EQUAL(rig_read(&r, 16), 6);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 16), 6);
  rig_end(&r);
}

static void check_lost_in_a_run(uint32_t fillers, bool evict) {
  rig r;
  rig_open(&r, &(rig_options){.size = 16 << 12, .fillers = fillers, .memory = 4 << 20});
  for (uint64_t page = 0; page < 8; page++)
    rig_write(&r, page * 4096, 100 + page);
  rig_drop(&r, 3 * 4096, 4096);
  /* The evictor itself runs into the hole while it copies. */
  CHECK_EQUAL(evict ? rig_evict(&r, 0, r.size) : rig_flush(&r), -UM_EDROPPED);
  CHECK(um_region_tainted(r.region));
  CHECK_EQUAL(evict ? rig_evict(&r, 0, r.size) : rig_flush(&r), 0);
  for (uint64_t page = 0; page < 8; page++)
    CHECK_EQUAL(rig_file_word(&r, page * 4096), page == 3 ? rig_word(page * 4096) : 100 + page);
  CHECK_EQUAL(rig_read(&r, 3 * 4096), evict ? rig_word(3 * 4096) : LOST);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 3 * 4096), rig_word(3 * 4096));
  rig_end(&r);
}

static void test_hole_found_by_flush_loses_that_page_alone(void) {
  check_lost_in_a_run(1, false);
  check_lost_in_a_run(3, false);
}

static void test_hole_found_by_eviction_loses_that_page_alone(void) {
  check_lost_in_a_run(1, true);
}

static void test_hole_found_by_the_evictor_at_work_is_recorded(void) {
  rig r;
  rig_policy = UM_POLICY_FIFO; /* others may hold on to page 0 */
  rig_open(&r, &(rig_options){.size = 256 << 12});
  rig_write(&r, 0, 5);
  rig_drop(&r, 0, 4096);
  for (uint64_t page = 1; page < 256; page++)
    rig_read(&r, page * 4096); /* drives page 0 out */
  uint64_t patience = now_ns() + 5000000000;
  while (rig_errors(&r) == 0) {
    CHECK(now_ns() < patience);
    for (uint64_t page = 1; page < 256; page++)
      rig_read(&r, page * 4096);
  }
  check_dropped(&r, 0, 4096);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 0), rig_word(0));
  rig_end(&r);
  rig_policy = UM_POLICY_AUTO;
}

typedef struct call {
  rig *rig;
  bool evict;
  int code;
  uint64_t word;
} call;

static void *write_back(void *argument) {
  call *c = argument;
  c->code = c->evict ? rig_evict(c->rig, 0, c->rig->size) : rig_flush(c->rig);
  return NULL;
}

static void *read_page(void *argument) {
  call *c = argument;
  c->word = rig_read(c->rig, 0);
  return NULL;
}

static void drop_while_written(bool evict) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .latch = true});
  rig_write(&r, 0, 5);
  latch_arm(r.latch, UM_OP_WRITE);
  call writing = {.rig = &r, .evict = evict}, reading = {.rig = &r};
  pthread_t writer = rig_thread(write_back, &writing);
  latch_wait(r.latch);
  rig_drop(&r, 0, 4096); /* the copy is whole */
  pthread_t reader = rig_thread(read_page, &reading);
  sleep_ms(20);
  latch_release(r.latch);
  pthread_join(writer, NULL);
  pthread_join(reader, NULL);
  CHECK_EQUAL(writing.code, 0);
  CHECK_EQUAL(reading.word, 5);
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 0), 5);
  rig_end(&r);
}

static void test_page_dropped_while_it_is_being_written_comes_back(void) {
  drop_while_written(false);
  drop_while_written(true); /* the reader waits for a page that then becomes absent */
}

static void test_page_dropped_while_it_is_written_and_dirty_again_is_lost(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .latch = true});
  rig_write(&r, 0, 5);
  latch_arm(r.latch, UM_OP_WRITE);
  call flushing = {.rig = &r}, reading = {.rig = &r};
  pthread_t flusher = rig_thread(write_back, &flushing);
  latch_wait(r.latch);
  rig_write(&r, 0, 6);
  rig_drop(&r, 0, 4096);
  pthread_t reader = rig_thread(read_page, &reading);
  sleep_ms(20);
  latch_release(r.latch);
  pthread_join(flusher, NULL);
  pthread_join(reader, NULL);
  CHECK_EQUAL(flushing.code, 0);
  CHECK_EQUAL(reading.word, LOST);
  check_dropped(&r, 0, 4096);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 0), 5);
  rig_end(&r);
}

/* A large page is copied and written in pieces; a hole in a later piece is met after earlier ones were written. */
static void test_hole_in_a_page_written_in_pieces_is_lost(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 20, .page_size = 2 << 20, .latch = true});
  rig_write(&r, 0, 5);
  rig_write(&r, 3 << 19, 6);
  latch_arm(r.latch, UM_OP_WRITE);
  call flushing = {.rig = &r};
  pthread_t flusher = rig_thread(write_back, &flushing);
  latch_wait(r.latch);
  rig_drop(&r, 3 << 19, 4096);
  latch_release(r.latch);
  pthread_join(flusher, NULL);
  CHECK_EQUAL(flushing.code, -UM_EDROPPED);
  CHECK_EQUAL(rig_state(&r, 0), UM_PAGE_FAILED);
  CHECK_EQUAL(rig_read(&r, 3 << 19), LOST);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 3 << 19), rig_word(3 << 19));
  rig_end(&r);
}

typedef struct user {
  rig *rig;
  uint64_t random, turns;
  _Atomic bool *stop;
} user;

static void *read_clean(void *argument) {
  user *u = argument;
  for (; !atomic_load(u->stop); u->turns++) {
    uint64_t offset = rig_random(&u->random) % u->rig->size / 8 * 8;
    CHECK_EQUAL(rig_read(u->rig, offset), rig_word(offset));
  }
  return NULL;
}

static void *drop_all(void *argument) {
  user *u = argument;
  for (; !atomic_load(u->stop); u->turns++) {
    uint64_t pages = u->rig->size / 4096, random = rig_random(&u->random), page = random % pages;
    rig_drop(u->rig, page * 4096, um_min(1 + (random >> 40) % 16, pages - page) * 4096);
  }
  return NULL;
}

static void test_drops_against_reads_show_the_stores_bytes(void) {
  rig r;
  _Atomic bool stop = false;
  user users[4];
  pthread_t threads[4];
  rig_open(&r, &(rig_options){.size = 64 << 14, .page_size = 1 << 14, .fillers = 2, .evictors = 2, .read_only = true});
  for (int i = 0; i < 4; i++) {
    users[i] = (user){&r, 77 + (uint64_t)i, 0, &stop};
    threads[i] = rig_thread(i < 3 ? read_clean : drop_all, &users[i]);
  }
  sleep_ms(500);
  atomic_store(&stop, true);
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
    CHECK(users[i].turns > 100);
  }
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  rig_end(&r);
}

/* One word a page counts up. A word may be lost, or be one the store had, after a record; never zero, never a count
 * that was not reached. */
static void *write_dirty(void *argument) {
  user *u = argument;
  uint64_t pages = u->rig->size / 4096;
  for (uint64_t i = 1; !atomic_load(u->stop); i++, u->turns++) {
    uint64_t offset = rig_random(&u->random) % pages * 4096, was = rig_read(u->rig, offset);
    CHECK(was == rig_word(offset) || was == LOST || (was >= 1 && was < i));
    rig_write(u->rig, offset, i);
  }
  return NULL;
}

static void test_drops_against_writes_and_flushes_lose_no_more_than_they_record(void) {
  rig r;
  _Atomic bool stop = false;
  rig_open(&r, &(rig_options){.size = 64 << 12, .fillers = 2, .evictors = 2});
  user writer = {&r, 5, 0, &stop}, dropper = {&r, 6, 0, &stop};
  pthread_t writing = rig_thread(write_dirty, &writer), dropping = rig_thread(drop_all, &dropper);
  uint64_t end = now_ns() + 500000000;
  while (now_ns() < end) {
    int code = rig_flush(&r);
    CHECK(code == 0 || code == -UM_EDROPPED);
    code = rig_evict(&r, 0, r.size / 2);
    CHECK(code == 0 || code == -UM_EDROPPED);
  }
  atomic_store(&stop, true);
  pthread_join(writing, NULL);
  pthread_join(dropping, NULL);
  CHECK(writer.turns > 100 && dropper.turns > 100);
  CHECK(um_region_tainted(r.region));
  while (rig_flush(&r) == -UM_EDROPPED)
    ;
  rig_close(&r);
  for (uint64_t offset = 0; offset < r.size; offset += 4096) {
    uint64_t word = rig_file_word(&r, offset);
    CHECK(word == rig_word(offset) || (word >= 1 && word <= writer.turns));
  }
  rig_end(&r);
}

int main(void) {
  watchdog_start(20);
  RUN(test_clean_page_comes_back_from_the_store);
  RUN(test_dirty_page_is_lost_with_a_record);
  RUN(test_write_to_a_lost_page_fetches_it_anew);
  RUN(test_hole_found_by_flush_loses_that_page_alone);
  RUN(test_hole_found_by_eviction_loses_that_page_alone);
  RUN(test_hole_found_by_the_evictor_at_work_is_recorded);
  RUN(test_page_dropped_while_it_is_being_written_comes_back);
  RUN(test_page_dropped_while_it_is_written_and_dirty_again_is_lost);
  RUN(test_hole_in_a_page_written_in_pieces_is_lost);
  RUN(test_drops_against_reads_show_the_stores_bytes);
  RUN(test_drops_against_writes_and_flushes_lose_no_more_than_they_record);
  watchdog_pet("the end");
  return 0;
}
