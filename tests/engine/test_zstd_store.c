/* The zstd store on one thread and on many: what was written is read, flushed and found again, and the zstd tool takes
 * the file for its own at every step. */
#define _GNU_SOURCE
#include "zrig.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 65536u
#define PAGES 300u
#define THREADS 6u

static void test_image_written_flushed_and_reopened_is_the_same(void) {
  zrig z;
  zrig_new(&z, PAGES * (uint64_t)PAGE + 1000, PAGE);
  zrig_check_tool(&z);
  for (uint64_t turn = 1; turn <= 3; turn++) {
    for (uint64_t page = 0; page < PAGES; page += turn)
      zrig_write_page(&z, page, turn);
    zrig_write(&z, 12345, 3 * PAGE + 77, turn);
    zrig_write(&z, z.size - 1500, 1500, turn);
    zrig_check_image(&z);
    zrig_flush(&z);
    zrig_check_tool(&z);
    zrig_reopen(&z, true);
    zrig_check_image(&z);
    zrig_check_tool(&z);
  }
  zrig_end(&z);
}

static void test_zeros_take_no_space(void) {
  zrig z;
  um_zstd_info info;
  zrig_new_sparse(&z, UINT64_C(1) << 40, PAGE);
  uint8_t *zeros = calloc(64, PAGE);
  for (uint64_t at = 0; at < UINT64_C(1) << 40; at += UINT64_C(1) << 34)
    CHECK_EQUAL(um_store_write(z.store, at, zeros, 64 * PAGE, NULL), 0);
  zrig_flush(&z);
  um_zstd_store_info(z.store, &info);
  CHECK_EQUAL(info.length, 8192);
  CHECK(info.index_memory < 65536);
  free(zeros);
  zrig_end(&z);
}

static void test_pages_far_apart_are_found_again(void) {
  zrig z;
  um_zstd_info info;
  zrig_new_sparse(&z, UINT64_C(1) << 40, PAGE);
  uint8_t *wanted = malloc(PAGE), *got = malloc(PAGE);
  for (int round = 0; round < 2; round++) {
    for (uint64_t i = 0; i < 500; i++) {
      uint64_t at = i * 2147483647 % ((UINT64_C(1) << 40) / PAGE) * PAGE;
      zrig_fill(wanted, PAGE, i + 1);
      if (round == 0)
        CHECK_EQUAL(um_store_write(z.store, at, wanted, PAGE, NULL), 0);
      CHECK_EQUAL(um_store_read(z.store, at, got, PAGE, NULL), 0);
      CHECK(memcmp(wanted, got, PAGE) == 0);
    }
    zrig_flush(&z);
    zrig_reopen(&z, false);
    um_zstd_store_info(z.store, &info);
    CHECK(info.index_memory < 8192); /* nothing but the root was read */
  }
  free(wanted);
  free(got);
  zrig_end(&z);
}

static void test_index_memory_stays_within_16_bytes_a_page(void) {
  zrig z;
  um_zstd_info info;
  zrig_new_sparse(&z, UINT64_C(256) << 20, 4096);
  uint8_t *page = malloc(4096);
  for (uint64_t at = 0; at < z.size; at += 4096) {
    zrig_fill(page, 4096, at);
    CHECK_EQUAL(um_store_write(z.store, at, page, 4096, NULL), 0);
  }
  um_zstd_store_info(z.store, &info);
  CHECK(info.index_memory <= 16 * (z.size / 4096));
  free(page);
  zrig_end(&z);
}

static void test_larger_size_extends_with_zeros(void) {
  zrig z;
  zrig_new(&z, 100 * (uint64_t)PAGE + 5, PAGE);
  zrig_write(&z, 99 * PAGE, PAGE + 5, 7);
  zrig_flush(&z);
  zrig_grow(&z, 300 * (uint64_t)PAGE + 9); /* a level more */
  zrig_check_image(&z);
  zrig_write(&z, 299 * PAGE, PAGE + 9, 8);
  zrig_reopen(&z, true); /* without a flush: what was written since is gone, the size is not */
  memset(z.image + 299 * PAGE, 0, PAGE + 9);
  zrig_check_image(&z);
  zrig_check_tool(&z);
  zrig_end(&z);
}

/* As little index as there may be: leaves come and go under everything else. */
static void test_leaves_that_nobody_uses_leave_memory(void) {
  zrig z;
  um_zstd_info info;
  zrig_new(&z, 64u << 20, 4096);
  um_zstd_index *index = &((um_zstd_store *)z.store)->index;
  index->limit = 40000; /* ten leaves of 64 */
  atomic_store(&index->patience, index->limit);
  uint64_t seed = 1, most = 0;
  for (uint64_t turn = 1; turn <= 40; turn++) {
    for (int i = 0; i < 20; i++)
      zrig_write_page(&z, zrig_random(&seed) % (z.size / 4096), turn);
    zrig_flush(&z);
    for (int i = 0; i < 100; i++) {
      uint8_t got[4096];
      uint64_t at = zrig_random(&seed) % (z.size / 4096) * 4096;
      CHECK_EQUAL(um_store_read(z.store, at, got, 4096, NULL), 0);
      CHECK(memcmp(got, z.image + at, 4096) == 0);
    }
    um_zstd_store_info(z.store, &info);
    most = info.index_memory > most ? info.index_memory : most;
  }
  CHECK(most < 150000); /* all of them take 240,000 */
  zrig_check_image(&z);
  zrig_reopen(&z, true);
  zrig_check_image(&z);
  zrig_end(&z);
}

typedef struct worker {
  zrig *z;
  uint64_t index;
  atomic_bool *stop;
} worker;

/* Every sixth page is this thread's. Its parts are written apart, and neighbours share nothing. */
static void *write_and_read(void *argument) {
  worker *w = argument;
  zrig *z = w->z;
  uint8_t *got = malloc(PAGE);
  uint64_t seed = w->index + 1;
  for (int turn = 0; turn < 200; turn++) {
    uint64_t page = zrig_random(&seed) % (PAGES / THREADS) * THREADS + w->index, at = page * PAGE;
    uint64_t skip = turn % 3 ? 0 : zrig_random(&seed) % (PAGE / 2), length = turn % 3 ? PAGE : PAGE / 3;
    zrig_fill(z->image + at + skip, length, zrig_random(&seed));
    CHECK_EQUAL(um_store_write(z->store, at + skip, z->image + at + skip, length, NULL), 0);
    CHECK_EQUAL(um_store_read(z->store, at, got, PAGE, NULL), 0);
    CHECK(memcmp(got, z->image + at, PAGE) == 0);
  }
  free(got);
  return NULL;
}

static void *flush_all_the_time(void *argument) {
  worker *w = argument;
  while (!atomic_load(w->stop))
    CHECK_EQUAL(um_store_flush(w->z->store, NULL), 0);
  return NULL;
}

static void test_threads_write_read_and_flush_at_once(void) {
  zrig z;
  zrig_new(&z, PAGES * (uint64_t)PAGE, PAGE);
  um_zstd_index *index = &((um_zstd_store *)z.store)->index;
  index->limit = 4096; /* one leaf of two may stay */
  atomic_store(&index->patience, index->limit);
  pthread_t threads[THREADS + 2];
  worker workers[THREADS + 2];
  atomic_bool stop = false;
  for (uint64_t i = 0; i < THREADS + 2; i++) {
    workers[i] = (worker){&z, i, &stop};
    CHECK_EQUAL(pthread_create(&threads[i], NULL, i < THREADS ? write_and_read : flush_all_the_time, &workers[i]), 0);
  }
  for (uint64_t i = 0; i < THREADS + 2; i++) {
    if (i == THREADS)
      atomic_store(&stop, true);
    pthread_join(threads[i], NULL);
  }
  zrig_check_image(&z);
  zrig_flush(&z);
  zrig_reopen(&z, false);
  zrig_check_image(&z);
  zrig_check_tool(&z);
  zrig_end(&z);
}

/* All threads write into the same pages, each its own part. */
static void *write_part(void *argument) {
  worker *w = argument;
  uint64_t part = PAGE / THREADS, seed = w->index + 77;
  for (int turn = 0; turn < 60; turn++) {
    uint64_t at = (uint64_t)(turn % 4) * PAGE + w->index * part;
    zrig_fill(w->z->image + at, part, zrig_random(&seed));
    CHECK_EQUAL(um_store_write(w->z->store, at, w->z->image + at, part, NULL), 0);
  }
  return NULL;
}

static void test_parts_of_one_page_written_at_once_all_stay(void) {
  zrig z;
  zrig_new(&z, 4 * PAGE, PAGE);
  pthread_t threads[THREADS];
  worker workers[THREADS];
  for (uint64_t i = 0; i < THREADS; i++) {
    workers[i] = (worker){&z, i, NULL};
    CHECK_EQUAL(pthread_create(&threads[i], NULL, write_part, &workers[i]), 0);
  }
  for (uint64_t i = 0; i < THREADS; i++)
    pthread_join(threads[i], NULL);
  zrig_check_image(&z);
  zrig_end(&z);
}

static void test_second_writer_is_refused_and_readers_are_not(void) {
  zrig z;
  um_store *other;
  um_error error;
  zrig_new(&z, 10 * PAGE, PAGE);
  um_zstd_options options = {.path = z.path, .writable = 1, .lock = 1, .level = 3, .size = UINT64_MAX};
  CHECK_EQUAL(um_zstd_store_open(&options, &other, &error), -UM_ELOCKED);
  options.writable = 0;
  CHECK_EQUAL(um_zstd_store_open(&options, &other, &error), 0);
  CHECK_EQUAL(um_store_close(other, NULL), 0);
  zrig_end(&z);
}

/* Its index is of an older flush than what the writer has used its space for since. */
static void test_reader_finds_what_a_writer_flushed_meanwhile(void) {
  zrig z;
  um_store *reader;
  um_error error;
  zrig_new(&z, 40 * PAGE, PAGE);
  zrig_write(&z, 0, z.size, 1);
  zrig_flush(&z);
  um_zstd_options options = {.path = z.path, .level = 3, .size = UINT64_MAX};
  CHECK_EQUAL(um_zstd_store_open(&options, &reader, &error), 0);
  for (uint64_t turn = 2; turn < 12; turn++) {
    zrig_write(&z, 0, z.size, turn);
    zrig_flush(&z);
  }
  uint8_t *got = malloc(z.size);
  CHECK_EQUAL(um_store_read(reader, 0, got, z.size, &error), 0);
  for (uint64_t page = 0; page < 40; page++) /* each of some flush */
    CHECK(memcmp(got + page * PAGE, z.image + page * PAGE, PAGE) == 0);
  free(got);
  CHECK_EQUAL(um_store_close(reader, NULL), 0);
  zrig_end(&z);
}

static void test_reader_of_what_became_longer_reads_what_it_knew_of(void) {
  zrig z;
  um_store *reader;
  um_error error;
  zrig_new(&z, 200 * (uint64_t)PAGE + 100, PAGE);
  zrig_write(&z, 0, z.size, 1);
  zrig_flush(&z);
  um_zstd_options options = {.path = z.path, .level = 3, .size = UINT64_MAX};
  CHECK_EQUAL(um_zstd_store_open(&options, &reader, &error), 0);
  uint64_t size = z.size;
  zrig_grow(&z, 400 * (uint64_t)PAGE); /* a level more */
  for (uint64_t turn = 2; turn < 8; turn++) {
    zrig_write(&z, 0, z.size, turn);
    zrig_flush(&z);
  }
  uint8_t *got = malloc(size);
  CHECK_EQUAL(um_store_size(reader), size);
  CHECK_EQUAL(um_store_read(reader, 0, got, size, &error), 0);
  CHECK(memcmp(got + 200 * PAGE, z.image + 200 * PAGE, 100) == 0);
  free(got);
  CHECK_EQUAL(um_store_close(reader, NULL), 0);
  zrig_end(&z);
}

static void test_forked_child_lets_go_of_the_lock(void) {
  zrig z;
  zrig_new(&z, 10 * PAGE, PAGE);
  zrig_write(&z, 0, z.size, 1);
  pid_t child = fork();
  if (child == 0) {
    char byte;
    um_error error;
    bool ok =
        um_store_read(z.store, 0, &byte, 1, &error) == -UM_EFORKED && um_store_flush(z.store, &error) == -UM_EFORKED;
    _exit(ok ? 0 : 1);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  zrig_flush(&z);
  zrig_reopen(&z, true);
  zrig_check_image(&z);
  zrig_end(&z);
}

/* The buffer of the only context there is, after a read of so many bytes with so much to spare. */
static bool read_by_huge_buffer(zrig *z, uint64_t budget, uint64_t length) {
  um_zstd_store *store = (um_zstd_store *)z->store;
  uint8_t *bytes = malloc(length);
  z->store->ops->limit(z->store, budget);
  CHECK_EQUAL(um_store_read(z->store, 0, bytes, length, NULL), 0);
  CHECK_EQUAL(memcmp(bytes, z->image, length), 0);
  free(bytes);
  CHECK_EQUAL(store->codec.idle_count, 1);
  return store->codec.idle->huge;
}

static void test_buffers_of_long_reads_are_huge_pages_where_the_budget_is_worth_it(void) {
  zrig z;
  zrig_new(&z, 32 * PAGE, PAGE);
  zrig_write(&z, 0, z.size, 1);
  zrig_flush(&z);
  zrig_reopen(&z, false);
  CHECK(!read_by_huge_buffer(&z, 256u << 20, PAGE));
  CHECK(read_by_huge_buffer(&z, 256u << 20, 32 * PAGE));
  zrig_check_image(&z);
  zrig_reopen(&z, false);
  CHECK(!read_by_huge_buffer(&z, 4u << 20, 32 * PAGE));
  zrig_end(&z);
}

/* Who writes a part of a page reads the rest of it, with the same buffer. */
static void test_parts_of_long_pages_fit_the_buffer_that_reading_them_makes_huge(void) {
  const uint32_t page = 2 << 20;
  zrig z;
  zrig_new(&z, 4ull * page, page);
  z.store->ops->limit(z.store, 512u << 20);
  uint64_t state = 7;
  uint64_t *words = (uint64_t *)z.image; /* noise */
  for (uint64_t i = 0; i < z.size / sizeof *words; i++)
    words[i] = zrig_random(&state);
  for (uint64_t at = 0; at < z.size; at += 128 << 10)
    CHECK_EQUAL(um_store_write(z.store, at, z.image + at, 128 << 10, NULL), 0);
  zrig_check_image(&z);
  zrig_flush(&z);
  zrig_reopen(&z, true);
  zrig_check_image(&z);
  zrig_end(&z);
}

static void test_wrong_options_name_the_value(void) {
  zrig z;
  um_store *store;
  um_error error;
  zrig_new(&z, 10 * PAGE, PAGE);
  zrig_close(&z);
  um_zstd_options options = {.path = z.path, .writable = 1, .lock = 1, .level = 3, .size = UINT64_MAX};
  options.page_size = 4096;
  CHECK_EQUAL(um_zstd_store_open(&options, &store, &error), -EINVAL);
  CHECK(strstr(error.text, "4096") && strstr(error.text, "65536"));
  options.page_size = 0;
  options.level = 99;
  CHECK_EQUAL(um_zstd_store_open(&options, &store, &error), -EINVAL);
  CHECK(strstr(error.text, "99"));
  options.level = 3;
  options.writable = 0;
  options.size = 11 * PAGE;
  CHECK_EQUAL(um_zstd_store_open(&options, &store, &error), -EINVAL);
  CHECK(strstr(error.text, "'r+'"));
  zrig_end(&z);
}

int main(void) {
  test_image_written_flushed_and_reopened_is_the_same();
  test_zeros_take_no_space();
  test_pages_far_apart_are_found_again();
  test_index_memory_stays_within_16_bytes_a_page();
  test_larger_size_extends_with_zeros();
  test_leaves_that_nobody_uses_leave_memory();
  test_threads_write_read_and_flush_at_once();
  test_parts_of_one_page_written_at_once_all_stay();
  test_second_writer_is_refused_and_readers_are_not();
  test_reader_finds_what_a_writer_flushed_meanwhile();
  test_reader_of_what_became_longer_reads_what_it_knew_of();
  test_forked_child_lets_go_of_the_lock();
  test_buffers_of_long_reads_are_huge_pages_where_the_budget_is_worth_it();
  test_parts_of_long_pages_fit_the_buffer_that_reading_them_makes_huge();
  test_wrong_options_name_the_value();
  return 0;
}
