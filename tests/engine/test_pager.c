/* Pagers: their smallest budgets, several regions in one, several in a process, reservations. */
#include "page.h"
#include "rig.h"
#include "uffd.h"

static int create(uint64_t memory, uint32_t fillers, uint32_t evictors, um_pager **pager) {
  um_pager_options options = {.memory = memory, .fillers = fillers, .evictors = evictors, .timeout_ms = 1000};
  return um_pager_create(&options, pager);
}

static void test_options_that_make_no_pager_are_refused(void) {
  um_pager *pager;
  uint64_t least = um_pager_memory_min(4096, 2, 1);
  CHECK_EQUAL(create(least, 0, 1, &pager), -EINVAL);
  CHECK_EQUAL(create(least, 1, 0, &pager), -EINVAL);
  CHECK_EQUAL(create(least - 1, 2, 1, &pager), -ENOBUFS);
  CHECK_EQUAL(create(least, 2, 1, &pager), 0);
  CHECK_EQUAL(um_pager_destroy(pager), 0);
}

static void test_region_that_does_not_fit_is_refused(void) {
  um_pager *pager = rig_pager(um_pager_memory_min(64 << 10, 1, 1) - 1, 1, 1, 1000);
  char path[64];
  int fd = rig_file(1 << 20, true, path);
  um_file_part part = {path, UINT64_MAX};
  um_file_options options = {.parts = &part, .part_count = 1, .writable = 1, .direct = -1, .size = UINT64_MAX};
  um_store *store;
  um_region *region;
  um_error error;
  CHECK_EQUAL(um_file_store_open(&options, &store, &error), 0);
  CHECK_EQUAL(remove(path), 0);
  uint8_t *bytes = rig_map(1 << 20);
  static const struct {
    uint64_t size, page_size, shift;
    int code;
  } bad[] = {
      {1 << 20, 64 << 10, 0, -ENOBUFS}, {(1 << 20) + 1, 4096, 0, -EFBIG}, {0, 4096, 0, -EINVAL},
      {1 << 20, 2048, 0, -EINVAL},      {1 << 20, 12288, 0, -EINVAL},     {1 << 20, 128 << 20, 0, -EINVAL},
      {1 << 20, 4096, 8, -EINVAL},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    um_region_options o = {.page_size = bad[i].page_size, .writable = 1};
    CHECK_EQUAL(um_region_create(pager, store, bytes + bad[i].shift, bad[i].size, &o, &region), bad[i].code);
  }
  CHECK_EQUAL(um_store_close(store, &error), 0);
  CHECK_EQUAL(um_pager_destroy(pager), 0);
  CHECK_EQUAL(fclose(fdopen(fd, "r")), 0);
}

static void test_pager_with_regions_is_not_destroyed(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12});
  CHECK_EQUAL(um_pager_destroy(r.pager), -EBUSY);
  CHECK_EQUAL(rig_read(&r, 0), rig_word(0));
  rig_close(&r);
  rig_end(&r);
}

typedef struct user {
  rig *rigs;
  uint64_t count, random, turns;
  _Atomic bool *stop;
} user;

static void *use(void *argument) {
  user *u = argument;
  for (; !atomic_load(u->stop); u->turns++) {
    rig *r = &u->rigs[rig_random(&u->random) % u->count];
    uint64_t offset = rig_random(&u->random) % (r->size / 8) * 8, word = rig_read(r, offset);
    CHECK(word == rig_word(offset) || word == offset + 1);
    if (u->turns % 3 == 0)
      rig_write(r, offset, offset + 1);
  }
  return NULL;
}

static void use_from_threads(rig *rigs, uint64_t count) {
  _Atomic bool stop = false;
  user users[3];
  pthread_t threads[3];
  for (int i = 0; i < 3; i++) {
    users[i] = (user){rigs, count, 31 + (uint64_t)i, 0, &stop};
    threads[i] = rig_thread(use, &users[i]);
  }
  sleep_ms(400);
  atomic_store(&stop, true);
  for (int i = 0; i < 3; i++) {
    pthread_join(threads[i], NULL);
    CHECK(users[i].turns > 100);
  }
  for (uint64_t i = 0; i < count; i++)
    CHECK_EQUAL(rig_errors(&rigs[i]), 0);
}

static void test_regions_of_different_pages_share_a_budget(void) {
  static const uint64_t page_sizes[] = {4 << 10, 64 << 10, 16 << 10, 1 << 20};
  rig rigs[4];
  um_pager *pager = rig_pager(um_pager_memory_min(1 << 20, 3, 2), 3, 2, 10000);
  for (int i = 0; i < 4; i++)
    rig_open(&rigs[i], &(rig_options){.size = 24 << 20, .page_size = page_sizes[i], .pager = pager});
  use_from_threads(rigs, 4);
  um_stats all, sum = {0};
  um_pager_stats(pager, &all);
  for (int i = 0; i < 4; i++) {
    um_stats s = rig_stats(&rigs[i]);
    CHECK(s.evictions > 0);
    sum.resident += s.resident;
    sum.fills += s.fills;
    sum.bytes_read += s.bytes_read;
  }
  CHECK_EQUAL(all.regions, 4);
  CHECK_EQUAL(all.fills, sum.fills);
  CHECK_EQUAL(all.bytes_read, sum.bytes_read);
  CHECK(all.resident + all.overhead <= all.memory && all.peak_used <= all.memory);
  for (int i = 0; i < 4; i++) {
    rig_close(&rigs[i]);
    uint64_t seen = 0;
    for (uint64_t offset = 0; offset < 1 << 20; offset += 8)
      seen += rig_file_word(&rigs[i], offset) == offset + 1;
    CHECK(seen > 0);
    rig_end(&rigs[i]);
  }
  um_pager_stats(pager, &sum);
  CHECK_EQUAL(sum.used, sum.overhead + sum.idle);
  CHECK(sum.fills >= all.fills); /* regions that are gone still count */
  CHECK_EQUAL(um_pager_destroy(pager), 0);
}

static void test_pagers_do_not_mix(void) {
  rig rigs[4];
  for (int i = 0; i < 4; i++)
    rig_open(&rigs[i], &(rig_options){.size = 200 << 12, .fillers = 1 + (uint32_t)i % 2});
  use_from_threads(rigs, 4);
  for (int i = 0; i < 4; i++) {
    um_stats s = rig_stats(&rigs[i]);
    CHECK(s.peak_used <= s.memory && s.evictions > 0);
    rig_close(&rigs[i]);
    rig_end(&rigs[i]);
  }
}

static void test_reservation_takes_from_the_budget_and_gives_back(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 256 << 12, .spare = 64});
  for (uint64_t offset = 0; offset < r.size; offset += 4096)
    rig_write(&r, offset, 5);
  CHECK_EQUAL(um_pager_reserve(r.pager, 60 << 12, 5000), 0); /* by writing back and evicting */
  um_stats s = rig_stats(&r);
  CHECK(s.overhead >= 60 << 12);
  CHECK(s.used <= s.memory);
  CHECK_EQUAL(um_pager_reserve(r.pager, 60 << 12, 100), -ENOBUFS); /* what the region needs stays */
  for (uint64_t offset = 0; offset < r.size; offset += 4096)
    CHECK_EQUAL(rig_read(&r, offset), 5);
  CHECK(rig_stats(&r).peak_used <= s.memory);
  um_pager_release(r.pager, 60 << 12);
  CHECK_EQUAL(rig_stats(&r).overhead + (60 << 12) <= s.overhead + (8 << 12), 1);
  rig_close(&r);
  rig_end(&r);
}

static void test_region_that_needs_what_is_reserved_is_refused(void) {
  uint64_t least = um_pager_memory_min(64 << 10, 1, 1);
  um_pager *pager = rig_pager(least + 4096, 1, 1, 1000);
  CHECK_EQUAL(um_pager_reserve(pager, 8192, 1000), 0);
  uint8_t *bytes = rig_map(4096);
  um_region_options options = {.page_size = 64 << 10};
  um_region *region;
  um_store store = {.size = 4096};
  CHECK_EQUAL(um_region_create(pager, &store, bytes, 4096, &options, &region), -ENOBUFS);
  um_pager_release(pager, 8192);
  um_stats s;
  um_pager_stats(pager, &s);
  CHECK_EQUAL(s.used, s.overhead + s.idle);
  CHECK_EQUAL(um_pager_destroy(pager), 0);
}

typedef struct toucher {
  rig *rig;
  uint64_t lane, turns;
  _Atomic bool *stop;
} toucher;

/* Touches its own page of every span and evicts it at once. */
static void *touch_spans(void *argument) {
  toucher *t = argument;
  for (uint64_t span = t->lane; !atomic_load(t->stop); span++, t->turns++) {
    uint64_t offset = span % (t->rig->size >> 21) << 21 | t->lane << 12, was = rig_read(t->rig, offset);
    CHECK(was == rig_word(offset) || was == offset + 1);
    rig_write(t->rig, offset, offset + 1);
    if (t->turns % 2)
      CHECK_EQUAL(rig_evict(t->rig, offset, 4096), 0);
  }
  return NULL;
}

/* Few pages a span: its count of pages goes through zero all the time, so it is dropped while others enter it. */
static void test_spans_that_empty_and_fill_at_once_keep_their_pages(void) {
  rig r;
  _Atomic bool stop = false;
  toucher touchers[4];
  pthread_t threads[4];
  rig_open(&r, &(rig_options){.size = 4 << 21, .fillers = 3, .evictors = 2});
  for (int i = 0; i < 4; i++) {
    touchers[i] = (toucher){&r, (uint64_t)i, 0, &stop};
    threads[i] = rig_thread(touch_spans, &touchers[i]);
  }
  sleep_ms(400);
  atomic_store(&stop, true);
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
    CHECK(touchers[i].turns > 10);
  }
  CHECK_EQUAL(rig_errors(&r), 0);
  CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  CHECK_EQUAL(atomic_load(&r.region->charged), 0); /* tables and words are given back */
  CHECK_EQUAL(rig_stats(&r).resident, 0);
  rig_close(&r);
  rig_end(&r);
}

/* Host pages of the region's page words that are there. */
static uint64_t words_present(const rig *r) {
  uint64_t present = 0;
  for (uint64_t at = 0; at < r->region->words_mapped; at += um_host_page)
    present += um_uffd_present(r->pager->pagemap, (uintptr_t)r->region->words + at);
  return present;
}

static void test_words_of_absent_pages_are_looked_at_without_memory(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 32 << 21, .readahead = true});
  for (uint64_t page = 0; page < r.region->page_count; page++)
    CHECK_EQUAL(um_page_look(r.region, page), 0);
  CHECK_EQUAL(words_present(&r), 0);
  CHECK_EQUAL(rig_read(&r, 8 << 21), rig_word(8 << 21));
  CHECK_EQUAL(um_word_state(um_page_look(r.region, 8 << 9)), UM_CLEAN);
  CHECK_EQUAL(words_present(&r), 1);
  CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  CHECK_EQUAL(um_page_look(r.region, 8 << 9), 0);
  CHECK_EQUAL(words_present(&r), 0);
  rig_close(&r);
  rig_end(&r);
}

int main(void) {
  watchdog_start(20);
  RUN(test_options_that_make_no_pager_are_refused);
  RUN(test_region_that_does_not_fit_is_refused);
  RUN(test_pager_with_regions_is_not_destroyed);
  RUN(test_regions_of_different_pages_share_a_budget);
  RUN(test_pagers_do_not_mix);
  RUN(test_reservation_takes_from_the_budget_and_gives_back);
  RUN(test_region_that_needs_what_is_reserved_is_refused);
  RUN(test_words_of_absent_pages_are_looked_at_without_memory);
  RUN(test_spans_that_empty_and_fill_at_once_keep_their_pages);
  watchdog_pet("the end");
  return 0;
}
