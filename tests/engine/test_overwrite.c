/* um_region_overwrite: whole pages placed without being read, against faults, eviction, a small budget and a store that
 * is full. */
#include "bytes.h"

static int overwrite(const rig *r, uint64_t offset, const void *bytes, uint64_t length) {
  uint64_t done = 0;
  int code = um_region_overwrite(r->region, offset, bytes, length, 20000 * SLOWER, &done);
  CHECK(code || done == length);
  return code;
}

static void test_whole_pages_are_not_read(void) {
  rig r;
  uint64_t length = 16 << 12;
  uint8_t *bytes = bytes_make(length, 1);
  rig_open(&r, &(rig_options){.size = 64 << 12, .memory = 4 << 20});
  CHECK_EQUAL(overwrite(&r, 8 << 12, bytes, length), 0);
  CHECK_EQUAL(rig_stats(&r).store_reads, 0);
  CHECK_EQUAL(memcmp(r.bytes + (8 << 12), bytes, length), 0);
  CHECK_EQUAL(rig_state(&r, 8), UM_PAGE_DIRTY);
  CHECK_EQUAL(rig_state(&r, 24), UM_PAGE_ABSENT);
  rig_close(&r);
  bytes_check_file(&r, 8 << 12, bytes, length);
  CHECK_EQUAL(rig_file_word(&r, 24 << 12), rig_word(24 << 12));
  rig_end(&r);
  free(bytes);
}

static void test_ends_that_are_parts_of_pages_keep_the_rest(void) {
  rig r;
  uint64_t size = (5 << 16) + 1000, offset = 70000, length = size - offset;
  uint8_t *bytes = bytes_make(size, 2);
  rig_open(&r, &(rig_options){.size = size, .page_size = 1 << 16});
  CHECK_EQUAL(overwrite(&r, offset, bytes, length), 0);
  CHECK_EQUAL(rig_read(&r, offset - 8), rig_word(offset - 8));
  CHECK_EQUAL(memcmp(r.bytes + offset, bytes, length), 0);
  CHECK_EQUAL(r.bytes[size], 0); /* of the last host page, past the data */
  rig_close(&r);
  bytes_check_file(&r, offset, bytes, length);
  CHECK_EQUAL(rig_file_word(&r, offset - 8), rig_word(offset - 8));
  rig_end(&r);
  free(bytes);
}

static void test_bad_calls_are_refused(void) {
  rig r, other;
  uint64_t done = 0;
  rig_open(&r, &(rig_options){.size = 64 << 12});
  rig_open(&other, &(rig_options){.size = 8 << 12, .read_only = true});
  uint8_t *bytes = bytes_make(4096, 3);
  CHECK_EQUAL(um_region_overwrite(r.region, r.size - 4095, bytes, 4096, 1000, &done), -EINVAL);
  CHECK_EQUAL(um_region_overwrite(other.region, 0, bytes, 4096, 1000, &done), -EACCES);
  rig_close(&r);
  rig_close(&other);
  rig_end(&r);
  rig_end(&other);
  free(bytes);
}

static void test_from_memory_of_the_region_itself(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 64 << 12});
  CHECK_EQUAL(overwrite(&r, 0, r.bytes + 4096, 32 << 12), 0); /* the two overlap */
  for (uint64_t offset = 0; offset < 32 << 12; offset += 8)
    CHECK_EQUAL(rig_read(&r, offset), rig_word(offset + 4096));
  rig_close(&r);
  rig_end(&r);
}

typedef struct user {
  rig *rig;
  const uint8_t *bytes;
  uint64_t random, turns;
  _Atomic bool stop;
} user;

static void *read_on(void *argument) {
  user *u = argument;
  for (; !atomic_load(&u->stop); u->turns++) {
    uint64_t offset = rig_random(&u->random) % u->rig->size / 8 * 8, word = rig_peek(u->rig, offset);
    CHECK(word == rig_word(offset) || word == *(const uint64_t *)(u->bytes + offset));
  }
  return NULL;
}

static void *evict_on(void *argument) {
  user *u = argument;
  for (; !atomic_load(&u->stop); u->turns++)
    CHECK_EQUAL(rig_evict(u->rig, rig_random(&u->random) % u->rig->size, 16 << 12), 0);
  return NULL;
}

static void test_against_faults_and_eviction_every_byte_arrives(void) {
  rig r;
  uint64_t size = 512 << 12;
  uint8_t *bytes = bytes_make(size, 4);
  pthread_t threads[3];
  user users[3];
  rig_open(&r, &(rig_options){.size = size, .fillers = 2});
  for (int i = 0; i < 3; i++) {
    users[i] = (user){.rig = &r, .bytes = bytes, .random = 10 + (uint64_t)i};
    threads[i] = rig_thread(i < 2 ? read_on : evict_on, &users[i]);
  }
  for (int i = 0; i < 4; i++)
    CHECK_EQUAL(overwrite(&r, 0, bytes, size), 0);
  for (int i = 0; i < 3; i++) {
    atomic_store(&users[i].stop, true);
    pthread_join(threads[i], NULL);
  }
  CHECK_EQUAL(rig_errors(&r), 0);
  CHECK(rig_stats(&r).peak_used <= rig_stats(&r).memory);
  rig_close(&r);
  bytes_check_file(&r, 0, bytes, size);
  rig_end(&r);
  free(bytes);
}

/* The pages of the source need memory too, which pages being overwritten must not hold for ever. */
static void test_from_another_region_of_the_same_small_pager(void) {
  rig to, from;
  uint64_t size = 256 << 12;
  rig_open(&to, &(rig_options){.size = size, .timeout_ms = 2000});
  rig_open(&from, &(rig_options){.size = size, .pager = to.pager});
  CHECK_EQUAL(overwrite(&to, 0, from.bytes, size), 0);
  CHECK_EQUAL(rig_errors(&to) + rig_errors(&from), 0);
  rig_close(&from);
  rig_close(&to);
  for (uint64_t offset = 0; offset < size; offset += 8)
    CHECK(rig_file_word(&to, offset) == rig_word(offset));
  rig_end(&to);
  rig_end(&from);
}

static void *copy_across(void *argument) {
  user *u = argument;
  CHECK_EQUAL(overwrite(u->rig, 0, u->bytes, u->rig->size), 0);
  return NULL;
}

static void test_two_regions_copied_into_two_others_at_once(void) {
  rig rigs[4];
  uint64_t size = 128 << 12;
  for (int i = 0; i < 4; i++)
    rig_open(&rigs[i], &(rig_options){.size = size, .timeout_ms = 2000, .pager = i ? rigs[0].pager : NULL});
  user users[2] = {{.rig = &rigs[0], .bytes = rigs[1].bytes}, {.rig = &rigs[2], .bytes = rigs[3].bytes}};
  pthread_t threads[2] = {rig_thread(copy_across, &users[0]), rig_thread(copy_across, &users[1])};
  for (int i = 0; i < 2; i++)
    pthread_join(threads[i], NULL);
  for (int i = 3; i >= 0; i--) {
    CHECK_EQUAL(rig_errors(&rigs[i]), 0);
    rig_close(&rigs[i]);
    for (uint64_t offset = 0; offset < size; offset += 8)
      CHECK(rig_file_word(&rigs[i], offset) == rig_word(offset));
    rig_end(&rigs[i]);
  }
}

static void test_full_store_stops_it_in_time_and_it_goes_on_later(void) {
  rig r;
  uint64_t size = 256 << 12, done = 0;
  uint8_t *bytes = bytes_make(size, 5);
  rig_open(&r, &(rig_options){.size = size, .faults = true});
  rig_fail(&r, 1 << UM_OP_WRITE, ENOSPC, UINT64_MAX, 0);
  uint64_t began = now_ns();
  CHECK_EQUAL(um_region_overwrite(r.region, 0, bytes, size, 200, &done), -ETIMEDOUT);
  CHECK(now_ns() - began < 2000000000ull * SLOWER);
  CHECK(done > 0 && done < size && done % 4096 == 0);
  rig_heal(&r);
  CHECK_EQUAL(um_region_overwrite(r.region, 0, bytes, size, 20000, &done), 0);
  CHECK_EQUAL(done, size);
  rig_close(&r);
  bytes_check_file(&r, 0, bytes, size);
  rig_end(&r);
  free(bytes);
}

int main(void) {
  watchdog_start(20);
  RUN(test_whole_pages_are_not_read);
  RUN(test_ends_that_are_parts_of_pages_keep_the_rest);
  RUN(test_bad_calls_are_refused);
  RUN(test_from_memory_of_the_region_itself);
  RUN(test_against_faults_and_eviction_every_byte_arrives);
  RUN(test_from_another_region_of_the_same_small_pager);
  RUN(test_two_regions_copied_into_two_others_at_once);
  RUN(test_full_store_stops_it_in_time_and_it_goes_on_later);
  watchdog_pet("the end");
  return 0;
}
