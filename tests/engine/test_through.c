/* um_region_read_through and um_region_write_through: absent pages stay absent, everything else is as if memory had
 * been read and written; against faults, eviction, closing, and a store that fails. */
#include "bytes.h"

#define MEMORY (4u << 20)

static int read_through(const rig *r, uint64_t offset, void *bytes, uint64_t length) {
  uint64_t done = 0;
  int code = um_region_read_through(r->region, offset, bytes, length, &done);
  CHECK(code || done == length);
  return code;
}

static int write_through(const rig *r, uint64_t offset, const void *bytes, uint64_t length) {
  uint64_t done = 0;
  int code = um_region_write_through(r->region, offset, bytes, length, 20000 * SLOWER, &done);
  CHECK(code || done == length);
  return code;
}

static void check_pattern(const uint8_t *bytes, uint64_t offset, uint64_t length) {
  for (uint64_t at = 0; at + 8 <= length; at += 8)
    CHECK(*(const uint64_t *)(bytes + at) == rig_word(offset + at));
}

static void test_absent_pages_stay_absent(void) {
  rig r;
  uint64_t size = (6 << 20) + 5000;
  uint8_t *bytes = bytes_make(size, 1);
  rig_open(&r, &(rig_options){.size = size, .memory = MEMORY});
  CHECK_EQUAL(read_through(&r, 0, bytes, size), 0);
  check_pattern(bytes, 0, size);
  CHECK_EQUAL(rig_stats(&r).bytes_read, size);
  free(bytes);
  bytes = bytes_make(size, 2);
  CHECK_EQUAL(write_through(&r, 0, bytes, size), 0);
  bytes_check_file(&r, 0, bytes, size);
  CHECK_EQUAL(rig_stats(&r).bytes_written, size);
  CHECK_EQUAL(rig_stats(&r).resident, 0);
  CHECK_EQUAL(rig_stats(&r).bytes_read, size);
  CHECK_EQUAL(rig_read(&r, 4096), *(uint64_t *)(bytes + 4096));
  rig_close(&r);
  rig_end(&r);
  free(bytes);
}

static void test_resident_pages_are_read_and_written_where_they_are(void) {
  rig r;
  uint64_t size = 64 << 12, dirty = (5 << 12) + 8, clean = 9 << 12;
  uint8_t *bytes = bytes_make(size, 3), *got = bytes_make(size, 4);
  rig_open(&r, &(rig_options){.size = size, .memory = MEMORY});
  rig_write(&r, dirty, 77);
  CHECK_EQUAL(rig_read(&r, clean), rig_word(clean));
  CHECK_EQUAL(read_through(&r, 0, got, size), 0);
  CHECK_EQUAL(*(uint64_t *)(got + dirty), 77);
  *(uint64_t *)(got + dirty) = rig_word(dirty);
  check_pattern(got, 0, size);
  CHECK_EQUAL(write_through(&r, 0, bytes, size), 0);
  CHECK_EQUAL(rig_state(&r, 5), UM_PAGE_DIRTY);
  CHECK_EQUAL(rig_state(&r, 9), UM_PAGE_DIRTY);
  CHECK_EQUAL(rig_state(&r, 10), UM_PAGE_ABSENT);
  CHECK_EQUAL(memcmp(r.bytes, bytes, size), 0);
  rig_close(&r);
  bytes_check_file(&r, 0, bytes, size);
  rig_end(&r);
  free(bytes);
  free(got);
}

static void test_ranges_and_buffers_of_any_place_keep_the_rest(void) {
  rig r;
  uint64_t size = (20 << 16) + 1000;
  for (uint64_t page_size = 4096; page_size <= 1 << 18; page_size <<= 3) {
    uint64_t random = page_size;
    uint8_t *bytes = bytes_make(size, 5), *expected = bytes_make(size, 6), *buffer = bytes_make(size + 8192, 7);
    rig_open(&r, &(rig_options){.size = size, .page_size = page_size, .memory = MEMORY + (8 << 18)});
    CHECK_EQUAL(read_through(&r, 0, expected, size), 0);
    for (int i = 0; i < 200; i++) {
      uint64_t offset = rig_random(&random) % size, length = rig_random(&random) % (size - offset + 1);
      uint8_t *at = buffer + (i % 2 ? offset % 4096 : rig_random(&random) % 4096);
      if (i % 3) {
        memcpy(at, bytes + offset, length);
        memcpy(expected + offset, bytes + offset, length);
        CHECK_EQUAL(write_through(&r, offset, at, length), 0);
      } else {
        CHECK_EQUAL(read_through(&r, offset, at, length), 0);
        CHECK_EQUAL(memcmp(at, expected + offset, length), 0);
        CHECK_EQUAL(rig_evict(&r, 0, size), 0);
      }
      for (uint64_t k = 0; k < size; k += 4096)
        bytes[k]++;
    }
    rig_close(&r);
    bytes_check_file(&r, 0, expected, size);
    rig_end(&r);
    free(bytes);
    free(expected);
    free(buffer);
  }
}

static void test_bad_calls_are_refused(void) {
  rig r;
  uint64_t done = 0;
  uint8_t *bytes = bytes_make(4096, 3);
  rig_open(&r, &(rig_options){.size = 8 << 12, .read_only = true});
  CHECK_EQUAL(um_region_read_through(r.region, r.size - 4095, bytes, 4096, &done), -EINVAL);
  CHECK_EQUAL(um_region_write_through(r.region, 0, bytes, 4096, 1000, &done), -EACCES);
  CHECK_EQUAL(read_through(&r, r.size, bytes, 0), 0);
  rig_close(&r);
  rig_end(&r);
  free(bytes);
}

static void test_into_memory_of_the_region_itself(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 64 << 12});
  CHECK_EQUAL(read_through(&r, 32 << 12, r.bytes, 32 << 12), 0);
  for (uint64_t offset = 0; offset < 32 << 12; offset += 8)
    CHECK_EQUAL(rig_read(&r, offset), rig_word(offset + (32 << 12)));
  rig_close(&r);
  rig_end(&r);
}

typedef struct user {
  rig *rig;
  const uint8_t *bytes;
  uint64_t random;
  _Atomic bool stop;
} user;

static void *write_all(void *argument) {
  user *u = argument;
  CHECK_EQUAL(write_through(u->rig, 0, u->bytes, u->rig->size), 0);
  return NULL;
}

static void *read_first(void *argument) {
  user *u = argument;
  return (void *)rig_read(u->rig, 0);
}

static void test_who_faults_during_a_write_waits_and_sees_it(void) {
  rig r;
  uint64_t size = 16 << 12;
  void *seen;
  user u = {.rig = &r, .bytes = bytes_make(size, 8)};
  rig_open(&r, &(rig_options){.size = size, .memory = MEMORY, .latch = true});
  latch_arm(r.latch, UM_OP_WRITE);
  pthread_t writer = rig_thread(write_all, &u);
  latch_wait(r.latch);
  pthread_t reader = rig_thread(read_first, &u);
  CHECK_EQUAL(um_region_gate_close(r.region, true, 50), -EAGAIN);
  CHECK_EQUAL(rig_flush(&r), 0); /* what is not written yet is not waited for */
  latch_release(r.latch);
  pthread_join(writer, NULL);
  pthread_join(reader, &seen);
  CHECK_EQUAL((uint64_t)seen, *(const uint64_t *)u.bytes);
  rig_close(&r);
  bytes_check_file(&r, 0, u.bytes, size);
  rig_end(&r);
  free((void *)u.bytes);
}

static void *read_on(void *argument) {
  user *u = argument;
  while (!atomic_load(&u->stop)) {
    uint64_t offset = rig_random(&u->random) % u->rig->size / 8 * 8, word = rig_peek(u->rig, offset);
    CHECK(word == rig_word(offset) || word == *(const uint64_t *)(u->bytes + offset));
  }
  return NULL;
}

static void *evict_on(void *argument) {
  user *u = argument;
  while (!atomic_load(&u->stop))
    CHECK_EQUAL(rig_evict(u->rig, rig_random(&u->random) % u->rig->size, 16 << 12), 0);
  return NULL;
}

static void test_against_faults_and_eviction_every_byte_arrives(void) {
  rig r;
  uint64_t size = 512 << 12;
  uint8_t *bytes = bytes_make(size, 9), *got = bytes_make(size, 10);
  pthread_t threads[3];
  user users[3];
  rig_open(&r, &(rig_options){.size = size, .fillers = 2, .spare = 64});
  for (int i = 0; i < 3; i++) {
    users[i] = (user){.rig = &r, .bytes = bytes, .random = 10 + (uint64_t)i};
    threads[i] = rig_thread(i < 2 ? read_on : evict_on, &users[i]);
  }
  for (int i = 0; i < 4; i++) {
    CHECK_EQUAL(write_through(&r, 0, bytes, size), 0);
    CHECK_EQUAL(read_through(&r, 0, got, size), 0);
    CHECK_EQUAL(memcmp(got, bytes, size), 0);
  }
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
  free(got);
}

static void test_a_write_that_fails_is_kept_until_the_store_takes_it(void) {
  rig r;
  uint64_t size = 64 << 12;
  uint8_t *bytes = bytes_make(size, 11);
  rig_open(&r, &(rig_options){.size = size, .memory = MEMORY, .faults = true});
  rig_fail(&r, 1 << UM_OP_WRITE, ENOSPC, UINT64_MAX, 0);
  CHECK_EQUAL(write_through(&r, 0, bytes, size), 0);
  CHECK_EQUAL(rig_errors(&r), 1);
  CHECK_EQUAL(memcmp(r.bytes, bytes, size), 0);
  CHECK_EQUAL(rig_state(&r, 63), UM_PAGE_DIRTY);
  rig_heal(&r);
  rig_close(&r);
  bytes_check_file(&r, 0, bytes, size);
  rig_end(&r);
  free(bytes);
}

static void test_a_read_that_fails_is_the_failure_of_a_fault(void) {
  rig r;
  uint64_t size = 4 << 12;
  uint8_t *bytes = bytes_make(size, 12);
  rig_open(&r, &(rig_options){.size = size, .memory = MEMORY, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, ENODATA, UINT64_MAX, 0);
  CHECK_EQUAL(read_through(&r, 0, bytes, size), 0);
  CHECK(rig_errors(&r) > 0);
  CHECK_EQUAL(*(uint64_t *)bytes, UINT64_MAX);
  rig_heal(&r);
  CHECK(um_region_retry(r.region) > 0);
  CHECK_EQUAL(read_through(&r, 0, bytes, size), 0);
  check_pattern(bytes, 0, size);
  rig_close(&r);
  rig_end(&r);
  free(bytes);
}

int main(void) {
  watchdog_start(20);
  RUN(test_absent_pages_stay_absent);
  RUN(test_resident_pages_are_read_and_written_where_they_are);
  RUN(test_ranges_and_buffers_of_any_place_keep_the_rest);
  RUN(test_bad_calls_are_refused);
  RUN(test_into_memory_of_the_region_itself);
  RUN(test_who_faults_during_a_write_waits_and_sees_it);
  RUN(test_against_faults_and_eviction_every_byte_arrives);
  RUN(test_a_write_that_fails_is_kept_until_the_store_takes_it);
  RUN(test_a_read_that_fails_is_the_failure_of_a_fault);
  watchdog_pet("the end");
  return 0;
}
