/* Eviction against reads and writes of the pages that leave, and within the budget. */
#include "rig.h"

#include <sys/mman.h>

typedef struct user {
  rig *rig;
  _Atomic bool stop;
  uint64_t turns, random;
} user;

/* One writer, one word a page: what it read back must be what it wrote before. */
static void *count_up(void *argument) {
  user *r = argument;
  for (uint64_t i = 1; !atomic_load(&r->stop); i++, r->turns++)
    for (uint64_t page = 0; page < 4; page++) {
      uint64_t before = rig_read(r->rig, page * 4096);
      CHECK_EQUAL(before, i == 1 ? rig_word(page * 4096) : i - 1);
      rig_write(r->rig, page * 4096, i);
    }
  return NULL;
}

static void test_writes_to_a_page_that_is_evicted_are_kept(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 64 << 12});
  user writer = {.rig = &r};
  pthread_t thread = rig_thread(count_up, &writer);
  uint64_t end = now_ns() + 500000000;
  while (now_ns() < end)
    CHECK_EQUAL(rig_evict(&r, 0, 4 * 4096), 0);
  atomic_store(&writer.stop, true);
  pthread_join(thread, NULL);
  CHECK(writer.turns > 10);
  CHECK(rig_stats(&r).evictions > 100);
  rig_close(&r);
  for (uint64_t page = 0; page < 4; page++)
    CHECK_EQUAL(rig_file_word(&r, page * 4096), writer.turns);
  rig_end(&r);
}

static void *read_all(void *argument) {
  user *r = argument;
  while (!atomic_load(&r->stop))
    for (uint64_t offset = 0; offset < r->rig->size; offset += 520, r->turns++)
      CHECK_EQUAL(rig_read(r->rig, offset), rig_word(offset));
  return NULL;
}

static void test_reads_of_a_page_that_is_evicted_see_its_bytes(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 16 << 12, .read_only = true, .fillers = 2});
  user readers[3] = {{.rig = &r}, {.rig = &r}, {.rig = &r}};
  pthread_t threads[3];
  for (int i = 0; i < 3; i++)
    threads[i] = rig_thread(read_all, &readers[i]);
  uint64_t end = now_ns() + 500000000;
  while (now_ns() < end)
    CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  for (int i = 0; i < 3; i++) {
    atomic_store(&readers[i].stop, true);
    pthread_join(threads[i], NULL);
    CHECK(readers[i].turns > 100);
  }
  rig_close(&r);
  rig_end(&r);
}

static void test_evicted_dirty_page_is_in_the_store_and_comes_back(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12});
  rig_write(&r, 4096, 77);
  CHECK_EQUAL(rig_state(&r, 1), UM_PAGE_DIRTY);
  CHECK_EQUAL(rig_file_word(&r, 4096), rig_word(4096));
  CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  CHECK_EQUAL(rig_state(&r, 1), UM_PAGE_ABSENT);
  CHECK_EQUAL(rig_file_word(&r, 4096), 77);
  CHECK_EQUAL(rig_read(&r, 4096), 77);
  CHECK_EQUAL(rig_state(&r, 1), UM_PAGE_CLEAN);
  rig_close(&r);
  rig_end(&r);
}

static void *flush_all(void *argument) {
  CHECK_EQUAL(rig_flush(argument), 0);
  return NULL;
}

static void test_writer_does_not_wait_for_a_write_back_and_keeps_the_page(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 16, .page_size = 1 << 16, .latch = true});
  rig_write(&r, 0, 1);
  latch_arm(r.latch, UM_OP_WRITE);
  pthread_t thread = rig_thread(flush_all, &r);
  latch_wait(r.latch);
  rig_write(&r, 0, 2); /* returns, though the store is still at it */
  rig_write(&r, 8, 3);
  CHECK_EQUAL(rig_read(&r, 0), 2);
  latch_release(r.latch);
  pthread_join(thread, NULL);
  CHECK_EQUAL(latch_changed(r.latch), 0); /* what was being written was a copy */
  CHECK_EQUAL(rig_file_word(&r, 0), 1);
  CHECK_EQUAL(rig_state(&r, 0), UM_PAGE_DIRTY);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 0), 2);
  CHECK_EQUAL(rig_file_word(&r, 8), 3);
  rig_end(&r);
}

static void *read_across(void *argument) {
  user *u = argument;
  for (; u->turns < 20; u->turns++) {
    uint64_t offset = rig_random(&u->random) % (u->rig->size / 4096 - 1) * 4096 + 4092, word;
    memcpy(&word, u->rig->bytes + offset, sizeof word); /* one instruction, two pages */
    CHECK_EQUAL(word, rig_word(offset - 4) >> 32 | rig_word(offset + 4) << 32);
  }
  return NULL;
}

static void test_threads_that_outnumber_the_pages_get_the_two_that_they_need(void) {
  rig r;
  user users[24];
  pthread_t threads[24];
  rig_open(&r, &(rig_options){.size = 4096 << 12, .read_only = true});
  for (int i = 0; i < 24; i++) {
    users[i] = (user){.rig = &r, .random = 1 + (uint64_t)i};
    threads[i] = rig_thread(read_across, &users[i]);
  }
  for (int i = 0; i < 24; i++)
    pthread_join(threads[i], NULL);
  rig_close(&r);
  rig_end(&r);
}

static uint64_t resident_bytes(const rig *r) {
  uint64_t pages = r->mapped / um_host_page, resident = 0;
  unsigned char *in = malloc(pages);
  CHECK(in && mincore(r->bytes, r->mapped, in) == 0);
  for (uint64_t i = 0; i < pages; i++)
    resident += in[i] & 1;
  free(in);
  return resident * um_host_page;
}

static void test_memory_stays_within_the_budget(void) {
  rig r;
  uint64_t random = 4711;
  rig_open(&r, &(rig_options){.size = 4096 << 12, .fillers = 4, .evictors = 2, .spare = 100});
  for (int i = 0; i < 20000; i++) {
    uint64_t at = rig_random(&random), offset = (at >> 8) % 4096 * 4096;
    if (at % 2)
      rig_write(&r, offset, at);
    else
      rig_read(&r, offset);
    if (i % 500 == 0) {
      um_stats s = rig_stats(&r);
      CHECK(resident_bytes(&r) + s.overhead <= s.memory);
    }
  }
  um_stats s = rig_stats(&r);
  CHECK(s.peak_used <= s.memory);
  CHECK(s.evictions > 5000);
  rig_close(&r);
  rig_end(&r);
}

/* Policies let pages prove themselves in a few hundredths of the memory; a large batch would empty that. */
static void test_evictor_of_scattered_pages_takes_hardly_more_than_is_wanted(void) {
  rig r;
  rig_policy = UM_POLICY_FIFO;
  rig_open(&r, &(rig_options){.size = 32 << 20, .memory = 16 << 20});
  for (uint64_t page = 0; page < r.size >> 12; page++) {
    rig_read(&r, page * 2731 % (r.size >> 12) << 12);
    if (page % 251)
      continue;
    for (uint64_t end = now_ns() + 10000000; um_budget_low(r.pager) || now_ns() < end;) /* the evictor is at rest */
      CHECK(now_ns() < end + 5000000000ull);
    uint64_t low = um_max(r.pager->low_water, 2 * atomic_load(&r.pager->emergency));
    uint64_t evictions = rig_stats(&r).evictions, free_ = um_budget_free(r.pager);
    CHECK(evictions == 0 || free_ <= low + r.pager->memory / 1024 + 2 * 4096);
  }
  CHECK(rig_stats(&r).evictions > 1000);
  rig_close(&r);
  rig_end(&r);
  rig_policy = UM_POLICY_AUTO;
}

int main(void) {
  watchdog_start(20);
  RUN(test_writes_to_a_page_that_is_evicted_are_kept);
  RUN(test_reads_of_a_page_that_is_evicted_see_its_bytes);
  RUN(test_evicted_dirty_page_is_in_the_store_and_comes_back);
  RUN(test_writer_does_not_wait_for_a_write_back_and_keeps_the_page);
  RUN(test_threads_that_outnumber_the_pages_get_the_two_that_they_need);
  RUN(test_memory_stays_within_the_budget);
  RUN(test_evictor_of_scattered_pages_takes_hardly_more_than_is_wanted);
  watchdog_pet("the end");
  return 0;
}
