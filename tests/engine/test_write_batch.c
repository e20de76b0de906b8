/* Batches of writes of the file store: every byte in its place and durable with the next flush, errors kept apart, no
 * file made longer, the ordinary way where io_uring is refused, and a device that says nothing for long. */
#define _GNU_SOURCE
#include "check.h"
#include "io_uring.h"
#include "store.h"
#include "two_files.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WRITES 300u

static um_store *open_files(int direct) {
  return two_files_open(direct, true);
}

typedef struct plan {
  um_write writes[WRITES];
  um_error errors[WRITES];
  um_batch batch;
  uint32_t told[WRITES];
  char *memory;
  char *expected; /* what the files are to hold */
} plan;

static void note_end(um_batch *batch, um_write *write) {
  plan *p = batch->context;
  CHECK(!atomic_load(&ring_hangs)); /* the buffer is the device's, and it may still write it */
  p->told[write - batch->reads]++;
}

/* Pages far apart, for the most; among them runs, pieces of a page, one over the parts' border, and the tail. */
static plan *make_plan(unsigned value) {
  plan *p = calloc(1, sizeof(*p));
  p->expected = malloc(SIZE);
  for (uint64_t offset = 0; offset < SIZE; offset++)
    p->expected[offset] = (char)two_files_byte(offset);
  CHECK_EQUAL(posix_memalign((void **)&p->memory, BLOCK, (uint64_t)WRITES * 2 * BLOCK), 0);
  for (uint32_t i = 0; i < WRITES; i++) {
    um_write *write = &p->writes[i];
    uint64_t place = (uint64_t)(i * 7 % WRITES) * 4 * BLOCK;
    *write = (um_write){
        .offset = place, .length = BLOCK, .buffer = p->memory + (uint64_t)i * 2 * BLOCK, .error = &p->errors[i]};
    if (place == FIRST_SIZE - 4 * BLOCK) { /* over the border */
      write->offset += 3 * BLOCK;
      write->length = 2 * BLOCK;
    } else if (place == FIRST_SIZE) {
      write->offset += BLOCK;
    } else if (i % 50 == 10) {
      write->offset += 100;
      write->length = 900;
    } else if (i % 50 == 20) {
      write->length = 2 * BLOCK;
    } else if (i == 30) {
      write->offset = SIZE / BLOCK * BLOCK;
      write->length = SIZE % BLOCK;
    }
    memset(write->buffer, (int)(value + i) | 1, write->length);
    memcpy(p->expected + write->offset, write->buffer, write->length);
  }
  p->batch = (um_batch){.reads = p->writes, .count = WRITES, .timeout_ns = 20000000u, .ended = note_end, .context = p};
  return p;
}

static void free_plan(plan *p) {
  free(p->memory);
  free(p->expected);
  free(p);
}

static void check_files(const plan *p) {
  char *bytes = malloc(SIZE);
  uint64_t at = 0;
  for (int i = 0; i < 2; i++) {
    uint64_t size = i == 0 ? FIRST_SIZE : SECOND_SIZE;
    int descriptor = open(two_files_paths[i], O_RDONLY | O_CLOEXEC);
    CHECK_EQUAL(read(descriptor, bytes + at, size), size);
    CHECK_EQUAL(read(descriptor, bytes, 0), 0);
    struct stat status;
    CHECK_EQUAL(fstat(descriptor, &status), 0);
    CHECK_EQUAL(status.st_size, size);
    close(descriptor);
    at += size;
  }
  CHECK(memcmp(bytes, p->expected, SIZE) == 0);
  free(bytes);
}

static void check_all_ended(const plan *p) {
  for (uint32_t i = 0; i < WRITES; i++) {
    CHECK_EQUAL(p->told[i], 1);
    CHECK_EQUAL(p->writes[i].code, 0);
  }
}

static int run_batch(um_store *store, um_batch *batch) {
  return store->ops->write_batch(store, batch);
}

static void close_store(um_store *store) {
  um_error error;
  CHECK_EQUAL(um_store_close(store, &error), 0);
}

static void test_batch_of_many_writes_puts_each_in_its_place(void) {
  two_files_make();
  um_store *store = open_files(-1);
  plan *p = make_plan(3);
  uint64_t before = atomic_load(&ring_entered);
  um_error error;
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  CHECK(atomic_load(&ring_entered) > before);
  CHECK_EQUAL(um_store_flush(store, &error), 0);
  check_all_ended(p);
  check_files(p);
  free_plan(p);
  close_store(store);
}

static void test_writes_that_fail_leave_the_others_alone_and_make_no_file_longer(void) {
  two_files_make();
  um_store *store = open_files(-1);
  plan *p = make_plan(5);
  uint64_t end = FIRST_SIZE + 300 * BLOCK + 500;
  uint32_t failed = 0;
  p->writes[100].offset = SIZE; /* past the store */
  CHECK_EQUAL(truncate(two_files_paths[1], (off_t)(end - FIRST_SIZE)), 0);
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  for (uint32_t i = 0; i < WRITES; i++) {
    um_write *write = &p->writes[i];
    um_error error = {0};
    CHECK_EQUAL(p->told[i], 1);
    CHECK_EQUAL(write->code, i == 100 ? -EINVAL : write->offset + write->length > end ? -UM_ETRUNCATED : 0);
    CHECK_EQUAL(write->code, um_store_write(store, write->offset, write->buffer, write->length, &error));
    CHECK(write->code == 0 || strcmp(p->errors[i].text, error.text) == 0);
    failed += write->code != 0;
  }
  CHECK(failed > 50 && failed < WRITES - 50);
  struct stat status;
  CHECK_EQUAL(stat(two_files_paths[1], &status), 0);
  CHECK_EQUAL(status.st_size, end - FIRST_SIZE);
  free_plan(p);
  close_store(store);
}

static void test_store_that_writes_through_the_page_cache_takes_no_batch(void) {
  two_files_make();
  um_store *store = open_files(0);
  plan *p = make_plan(1);
  CHECK_EQUAL(run_batch(store, &p->batch), -EOPNOTSUPP);
  CHECK_EQUAL(p->told[0], 0);
  free_plan(p);
  close_store(store);
}

static void test_ring_switched_off_takes_no_batch(void) {
  um_store *store = open_files(-1);
  plan *p = make_plan(1);
  CHECK_EQUAL(um_io_uring_set(0), 0);
  CHECK_EQUAL(run_batch(store, &p->batch), -EOPNOTSUPP);
  CHECK_EQUAL(p->told[0], 0);
  CHECK_EQUAL(um_io_uring_set(-1), 0);
  free_plan(p);
  close_store(store);
}

static void test_filter_that_comes_later_sends_writes_the_ordinary_way(void) {
  two_files_make();
  um_store *store = open_files(-1);
  plan *p = make_plan(9);
  CHECK_EQUAL(um_io_uring_set(1), 0);
  atomic_store(&ring_refused, true);
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  check_all_ended(p);
  check_files(p);
  CHECK_EQUAL(run_batch(store, &p->batch), -EOPNOTSUPP);
  atomic_store(&ring_refused, false);
  CHECK_EQUAL(um_io_uring_set(-1), 0);
  free_plan(p);
  close_store(store);
}

static void *let_go_later(void *argument) {
  (void)argument;
  struct timespec pause = {0, 200000000};
  nanosleep(&pause, NULL);
  atomic_store(&ring_hangs, false);
  return NULL;
}

/* Ten times as long as the batch's time-out, which is for reads. */
static void test_device_that_hangs_is_waited_for(void) {
  two_files_make();
  um_store *store = open_files(-1);
  plan *p = make_plan(11);
  for (uint32_t i = 0; i < WRITES; i++) { /* what goes the ordinary way does not hang here */
    p->writes[i].offset = (uint64_t)i * 2 * BLOCK;
    p->writes[i].length = BLOCK;
  }
  atomic_store(&ring_hangs, true);
  pthread_t helper;
  CHECK_EQUAL(pthread_create(&helper, NULL, let_go_later, NULL), 0);
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  pthread_join(helper, NULL);
  check_all_ended(p);
  free_plan(p);
  close_store(store);
}

int main(void) {
  bool deep = two_files_begin();
  test_store_that_writes_through_the_page_cache_takes_no_batch();
  if (deep) {
    test_batch_of_many_writes_puts_each_in_its_place();
    test_writes_that_fail_leave_the_others_alone_and_make_no_file_longer();
    test_ring_switched_off_takes_no_batch();
    test_filter_that_comes_later_sends_writes_the_ordinary_way();
    test_device_that_hangs_is_waited_for();
  }
  return two_files_end();
}
