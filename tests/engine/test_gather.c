/* um_region_gather: items of absent pages go past memory, all else is as if memory had been read; against writers,
 * write-back, eviction, closing, reads that fail, and other users of the budget. The file store's own read_batch is
 * replaced by one that the test sees into, and that does what a test wants done while reads are under way. */
#include "rig.h"
#include "shelf.h"

#include <unistd.h>

#define PAGE 4096u
#define MEMORY (64u << 20)
#define ITEMS_MOST 20000u

static um_store_ops ops;
static _Atomic uint64_t reads;      /* that batches asked for */
static _Atomic uint64_t bad_offset; /* a read of it fails; UINT64_MAX: none */
static int refusal;
static void (*meanwhile)(rig *r);
static rig *meanwhile_rig;

static int read_batch(um_store *store, um_batch *batch) {
  if (refusal)
    return refusal;
  atomic_fetch_add(&reads, batch->count);
  uint64_t bad = atomic_load(&bad_offset);
  for (uint32_t i = 0; i < batch->count; i++) {
    um_read *read = &batch->reads[i];
    um_error error;
    CHECK_EQUAL((uintptr_t)read->buffer % 4096, 0);
    read->code = read->offset <= bad && bad < read->offset + read->length
                     ? -EIO
                     : um_store_read(store, read->offset, read->buffer, read->length, &error);
    batch->ended(batch, read);
    if (i == batch->count / 2 && meanwhile)
      meanwhile(meanwhile_rig);
  }
  return 0;
}

static void open_region(rig *r, rig_options *o) {
  o->memory = o->memory ? o->memory : MEMORY;
  rig_open(r, o);
  ops = *r->store->ops;
  ops.read_batch = read_batch;
  pthread_mutex_lock(&r->pager->regions_lock); /* who looks for a region sees it */
  r->store->ops = &ops;
  pthread_mutex_unlock(&r->pager->regions_lock);
  reads = 0;
  bad_offset = UINT64_MAX;
  refusal = 0;
  meanwhile = NULL;
  meanwhile_rig = r;
}

static int gather(const rig *r, const uint64_t *offsets, uint64_t count, uint64_t size, void *out) {
  uint64_t done = 0;
  int code = 0;
  while (done < count && code == 0)
    code = um_region_gather(r->region, offsets, count, size, out, NULL, count, 1000, &done);
  return code;
}

static void every(uint64_t *offsets, uint64_t count, uint64_t step) {
  for (uint64_t i = 0; i < count; i++)
    offsets[i] = i * step + i % 5 * 8;
}

static void check_words(const uint64_t *words, const uint64_t *offsets, uint64_t count) {
  for (uint64_t i = 0; i < count; i++)
    CHECK(words[i] == rig_word(offsets[i]));
}

/* As if reading had taken for ever: shelves are made wherever the budget has memory. */
static void earn(const rig *r) {
  CHECK_EQUAL(um_shelves_open(r->pager), 0);
  um_shelf_earn(r->region, NULL, 0, UINT64_C(1) << 50);
}

static void test_absent_pages_stay_absent_and_each_block_is_read_once(void) {
  rig r;
  uint64_t offsets[1000], words[1000];
  every(offsets, 1000, 2 * PAGE + 1024);
  open_region(&r, &(rig_options){.size = 12 << 20});
  CHECK_EQUAL(gather(&r, offsets, 1000, 8, words), 0);
  check_words(words, offsets, 1000);
  um_stats s = rig_stats(&r);
  CHECK_EQUAL(s.resident, 0);
  CHECK_EQUAL(s.read_faults + s.prefetches, 0);
  CHECK(s.bytes_read <= 12 << 20 && s.store_reads <= 1000);
  rig_close(&r);
  rig_end(&r);
}

static void test_blocks_on_shelves_are_not_read_again(void) {
  rig r;
  uint64_t offsets[1500], words[1500];
  every(offsets, 1500, 4 * PAGE);
  open_region(&r, &(rig_options){.size = 24 << 20, .read_only = true});
  earn(&r);
  for (uint64_t at = 0; at < 1500; at += 100) /* each call goes on where the shelf before ended */
    CHECK_EQUAL(gather(&r, offsets + at, 100, 8, words + at), 0);
  CHECK_EQUAL(rig_stats(&r).idle, 3 * UM_CHUNK);
  uint64_t before = rig_stats(&r).store_reads;
  memset(words, 0, sizeof words);
  CHECK_EQUAL(gather(&r, offsets, 1500, 8, words), 0);
  check_words(words, offsets, 1500);
  CHECK(rig_stats(&r).store_reads - before < 15); /* places in a bucket that were lost to others */
  rig_close(&r);
  rig_end(&r);
}

static void test_items_of_any_size_and_place_are_gathered(void) {
  for (uint64_t page_size = 4096; page_size <= 1 << 20; page_size <<= 4)
    for (int shelves = 0; shelves < 2; shelves++) {
      rig r;
      uint64_t size = (8 << 20) + 5000, random = page_size, *offsets = malloc(600 * sizeof *offsets);
      uint8_t *bytes = malloc(size), *out = malloc(600 * 65536);
      open_region(&r, &(rig_options){.size = size, .page_size = page_size});
      CHECK_EQUAL(pread(r.fd, bytes, size, 0), size);
      if (shelves)
        earn(&r);
      static const uint64_t sizes[] = {1, 8, 24, 1000, 4096, 9000, 65536};
      for (const uint64_t *next = sizes; next < sizes + 7; next++) {
        uint64_t item = *next, count = 600, at = 0;
        for (uint64_t i = 0; i < count; i++)
          offsets[i] = at = um_min(at + rig_random(&random) % (2 * size / count), size - item);
        CHECK_EQUAL(gather(&r, offsets, count, item, out), 0);
        for (uint64_t i = 0; i < count; i++)
          CHECK_EQUAL(memcmp(out + i * item, bytes + offsets[i], item), 0);
      }
      CHECK_EQUAL(rig_stats(&r).resident, 0);
      rig_close(&r);
      rig_end(&r);
      free(bytes);
      free(out);
      free(offsets);
    }
}

static void test_whole_items_are_read_once_each_straight_to_their_places(void) {
  enum { COUNT = 100, ITEM = 16 * PAGE };
  rig r;
  uint64_t offsets[COUNT], places[COUNT], size = COUNT * 2 * ITEM, done = 0;
  uint8_t *bytes = malloc(size), *out = aligned_alloc(PAGE, COUNT * ITEM);
  open_region(&r, &(rig_options){.size = size});
  CHECK_EQUAL(pread(r.fd, bytes, size, 0), size);
  for (uint64_t i = 0; i < COUNT; i++) {
    offsets[i] = 2 * i * ITEM + (i % 10 == 3 ? 8 : 0); /* a few are no whole blocks */
    places[i] = (i * 37 + 11) % COUNT;
  }
  bad_offset = offsets[50];
  CHECK_EQUAL(um_region_gather(r.region, offsets, COUNT, ITEM, out, places, COUNT, 1000, &done), 0);
  CHECK_EQUAL(done, COUNT);
  for (uint64_t i = 0; i < COUNT; i++)
    CHECK_EQUAL(memcmp(out + places[i] * ITEM, bytes + offsets[i], ITEM), 0);
  CHECK_EQUAL(rig_stats(&r).resident, ITEM); /* of the one that failed */
  CHECK(reads < COUNT + 10 * 6);             /* one for each whole item, five for each of the others */
  rig_close(&r);
  rig_end(&r);
  free(bytes);
  free(out);
}

static void test_resident_pages_are_read_where_they_are(void) {
  rig r;
  uint64_t offsets[100], words[100];
  every(offsets, 100, PAGE);
  open_region(&r, &(rig_options){.size = 101 * PAGE});
  rig_write(&r, offsets[7], 77);
  CHECK_EQUAL(rig_read(&r, offsets[9]), rig_word(offsets[9]));
  CHECK_EQUAL(gather(&r, offsets, 100, 8, words), 0);
  CHECK_EQUAL(words[7], 77);
  words[7] = rig_word(offsets[7]);
  check_words(words, offsets, 100);
  CHECK_EQUAL(rig_state(&r, 7), UM_PAGE_DIRTY);
  CHECK_EQUAL(rig_state(&r, 8), UM_PAGE_ABSENT);
  rig_close(&r);
  rig_end(&r);
}

static void test_what_was_written_since_is_not_taken_from_a_shelf(void) {
  rig r;
  uint64_t offsets[200], words[200];
  every(offsets, 200, 4 * PAGE);
  open_region(&r, &(rig_options){.size = 4 << 20});
  earn(&r);
  for (uint64_t value = 1; value < 5; value++) {
    CHECK_EQUAL(gather(&r, offsets, 200, 8, words), 0);
    rig_write(&r, offsets[50], value);
    CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
    CHECK_EQUAL(rig_state(&r, offsets[50] / PAGE), UM_PAGE_ABSENT);
    CHECK_EQUAL(gather(&r, offsets, 200, 8, words), 0);
    CHECK_EQUAL(words[50], value);
  }
  rig_close(&r);
  rig_end(&r);
}

static uint64_t word_of_meanwhile;

static void write_and_evict(rig *r) {
  rig_write(r, 400 * PAGE, ++word_of_meanwhile);
  CHECK_EQUAL(rig_evict(r, 0, r->size), 0);
}

static void test_round_beside_a_write_of_the_store_does_not_count(void) {
  rig r;
  uint64_t offsets[200], words[200], done = 0;
  for (uint64_t i = 0; i < 200; i++)
    offsets[i] = 4 * i * PAGE;
  open_region(&r, &(rig_options){.size = 4 << 20});
  earn(&r);
  meanwhile = write_and_evict;
  CHECK_EQUAL(um_region_gather(r.region, offsets, 200, 8, words, NULL, 200, 1000, &done), -EAGAIN);
  CHECK_EQUAL(done, 0);
  meanwhile = NULL;
  CHECK_EQUAL(gather(&r, offsets, 200, 8, words), 0);
  CHECK_EQUAL(words[100], word_of_meanwhile);
  CHECK_EQUAL(words[99], rig_word(offsets[99]));
  rig_close(&r);
  rig_end(&r);
}

static void try_to_close(rig *r) {
  CHECK_EQUAL(um_region_gate_close(r->region, true, 20), -EAGAIN);
}

static void test_region_does_not_close_under_it(void) {
  rig r;
  uint64_t offsets[20], words[20];
  every(offsets, 20, 4 * PAGE);
  open_region(&r, &(rig_options){.size = 1 << 20});
  meanwhile = try_to_close;
  CHECK_EQUAL(gather(&r, offsets, 20, 8, words), 0);
  check_words(words, offsets, 20);
  rig_close(&r);
  rig_end(&r);
}

static void test_item_that_cannot_be_read_is_left_to_a_fault(void) {
  rig r;
  uint64_t offsets[300], words[300];
  every(offsets, 300, 4 * PAGE);
  open_region(&r, &(rig_options){.size = 5 << 20});
  earn(&r);
  bad_offset = offsets[40];
  for (int again = 0; again < 2; again++) {
    CHECK_EQUAL(gather(&r, offsets, 300, 8, words), 0);
    check_words(words, offsets, 300);
    CHECK_EQUAL(rig_state(&r, offsets[40] / PAGE), UM_PAGE_CLEAN);
    CHECK_EQUAL(rig_stats(&r).read_faults, 1);
  }
  rig_close(&r);
  rig_end(&r);
}

static void test_store_or_budget_that_does_not_suit_is_said(void) {
  rig r;
  uint64_t offsets[100], words[100];
  every(offsets, 100, 4 * PAGE);
  open_region(&r, &(rig_options){.size = 2 << 20});
  refusal = -EOPNOTSUPP;
  CHECK_EQUAL(gather(&r, offsets, 1, 8, words), 0); /* too few to tell */
  CHECK_EQUAL(gather(&r, offsets, 100, 8, words), -EOPNOTSUPP);
  refusal = 0;
  CHECK_EQUAL(gather(&r, offsets, 100, 8, words), -EOPNOTSUPP); /* it is not asked again */
  rig_close(&r);
  rig_end(&r);
  open_region(&r, &(rig_options){.size = 2 << 20, .memory = 4 << 20});
  CHECK_EQUAL(gather(&r, offsets, 100, 8, words), -EOPNOTSUPP);
  rig_close(&r);
  rig_end(&r);
}

static void test_bad_calls_are_refused(void) {
  rig r;
  uint64_t words[4], size = 64 * PAGE + 100;
  open_region(&r, &(rig_options){.size = size});
  CHECK_EQUAL(gather(&r, (uint64_t[]){8, 0}, 2, 8, words), -EINVAL);
  CHECK_EQUAL(gather(&r, (uint64_t[]){0, size - 7}, 2, 8, words), -EINVAL);
  CHECK_EQUAL(gather(&r, (uint64_t[]){UINT64_MAX}, 1, 8, words), -EINVAL);
  CHECK_EQUAL(gather(&r, (uint64_t[]){0}, 1, 65537, words), -EINVAL);
  CHECK_EQUAL(gather(&r, (uint64_t[]){0}, 1, 0, words), -EINVAL);
  CHECK_EQUAL(gather(&r, (uint64_t[]){0}, 1, 8, r.bytes), -EINVAL);
  uint64_t done = 0;
  CHECK_EQUAL(um_region_gather(r.region, (uint64_t[]){0, 8}, 2, 8, words, (uint64_t[]){1, 4}, 4, 1000, &done), -EINVAL);
  CHECK_EQUAL(um_region_gather(r.region, (uint64_t[]){0, 8}, 2, 8, words, NULL, 1, 1000, &done), -EINVAL);
  CHECK_EQUAL(gather(&r, (uint64_t[]){size - 8, size - 8}, 2, 8, words), 0);
  CHECK_EQUAL(words[0], words[1]);
  rig_close(&r);
  rig_end(&r);
}

static void test_shelves_give_way_to_pages(void) {
  rig r;
  static uint64_t offsets[ITEMS_MOST], words[ITEMS_MOST];
  uint64_t count = 12000;
  every(offsets, count, 4 * PAGE);
  open_region(&r, &(rig_options){.size = count * 4 * PAGE, .sparse = true, .fillers = 2});
  earn(&r);
  CHECK_EQUAL(gather(&r, offsets, count, 8, words), 0);
  CHECK(rig_stats(&r).idle >= 20 * UM_CHUNK);
  for (uint64_t page = 0; page < 12000; page++)
    CHECK_EQUAL(rig_read(&r, page * PAGE), 0);
  um_stats s = rig_stats(&r);
  CHECK(s.resident > 40 << 20);
  CHECK(s.peak_used <= s.memory);
  CHECK_EQUAL(gather(&r, offsets, count, 8, words), 0); /* with pages everywhere */
  CHECK(rig_stats(&r).peak_used <= s.memory);
  rig_close(&r);
  rig_end(&r);
}

#define USED 512u /* words, far apart */

typedef struct user {
  rig *rig;
  uint64_t random;
  _Atomic bool *stop;
  _Atomic uint64_t *written; /* a word: the last value that is surely there */
  uint64_t turns;
} user;

static uint64_t offset_of(uint64_t i) {
  return i * 5 * PAGE + 16;
}

static void *write_on(void *argument) { /* each word has one writer */
  user *u = argument;
  while (!atomic_load(u->stop)) {
    uint64_t i = rig_random(&u->random) % USED, value = atomic_load(&u->written[i]) + 1;
    rig_write(u->rig, offset_of(i), value);
    atomic_store(&u->written[i], value);
    if (++u->turns % 64 == 0)
      sleep_ms(1);
  }
  return NULL;
}

static void *evict_on(void *argument) {
  user *u = argument;
  for (; !atomic_load(u->stop); u->turns++) {
    CHECK_EQUAL(rig_evict(u->rig, rig_random(&u->random) % u->rig->size, 64 * PAGE), 0);
    sleep_ms(10); /* without writes under way for a while */
  }
  return NULL;
}

static void *gather_on(void *argument) {
  user *u = argument;
  uint64_t offsets[USED], words[USED], least[USED];
  while (!atomic_load(u->stop)) {
    for (uint64_t i = 0; i < USED; i++) {
      offsets[i] = offset_of(i);
      least[i] = atomic_load(&u->written[i]);
    }
    uint64_t done = 0;
    int code = um_region_gather(u->rig->region, offsets, USED, 8, words, NULL, USED, 1000, &done);
    CHECK(code == 0 || code == -EAGAIN);
    for (uint64_t i = 0; i < done; i++)
      CHECK(words[i] >= least[i] && words[i] <= atomic_load(&u->written[i]) + 1);
    u->turns += done == USED;
  }
  return NULL;
}

static void test_against_writers_and_eviction_nothing_old_is_seen(void) {
  rig r;
  static _Atomic uint64_t written[USED];
  _Atomic bool stop = false;
  pthread_t threads[5];
  user users[5];
  memset((void *)written, 0, sizeof written);
  open_region(&r, &(rig_options){.size = (USED * 5 + 1) * PAGE, .sparse = true, .fillers = 3, .evictors = 2});
  earn(&r);
  void *(*runs[])(void *) = {write_on, evict_on, evict_on, gather_on, gather_on};
  for (int i = 0; i < 5; i++) {
    users[i] = (user){.rig = &r, .random = 1 + (uint64_t)i, .stop = &stop, .written = written};
    threads[i] = rig_thread(runs[i], &users[i]);
  }
  sleep_ms(2000);
  atomic_store(&stop, true);
  for (int i = 0; i < 5; i++)
    pthread_join(threads[i], NULL);
  CHECK(users[3].turns + users[4].turns > 1);
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  for (uint64_t i = 0; i < USED; i++)
    CHECK_EQUAL(rig_file_word(&r, offset_of(i)), written[i]);
  rig_end(&r);
}

int main(void) {
  watchdog_start(30);
  RUN(test_absent_pages_stay_absent_and_each_block_is_read_once);
  RUN(test_blocks_on_shelves_are_not_read_again);
  RUN(test_items_of_any_size_and_place_are_gathered);
  RUN(test_whole_items_are_read_once_each_straight_to_their_places);
  RUN(test_resident_pages_are_read_where_they_are);
  RUN(test_what_was_written_since_is_not_taken_from_a_shelf);
  RUN(test_round_beside_a_write_of_the_store_does_not_count);
  RUN(test_region_does_not_close_under_it);
  RUN(test_item_that_cannot_be_read_is_left_to_a_fault);
  RUN(test_store_or_budget_that_does_not_suit_is_said);
  RUN(test_bad_calls_are_refused);
  RUN(test_shelves_give_way_to_pages);
  RUN(test_against_writers_and_eviction_nothing_old_is_seen);
  watchdog_pet("the end");
  return 0;
}
