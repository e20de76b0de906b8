/* Batches of writes of the file store: every byte in its place and durable with the next flush, errors kept apart, no
 * file made longer, the ordinary way where io_uring is refused, and a device that says nothing for long. */
#define _GNU_SOURCE
#include "calls.h"
#include "check.h"
#include "io_uring.h"
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define CALL_ENTER 426
#define GETEVENTS 1u
#define FIRST_SIZE (256u * BLOCK)
#define SECOND_SIZE (512u * BLOCK + 1000u)
#define SIZE (FIRST_SIZE + SECOND_SIZE)
#define WRITES 300u

static char folder[] = "/var/tmp/umappy-test-XXXXXX";
static char paths[2][64];

static _Atomic uint64_t entered;  /* calls of io_uring_enter */
static atomic_bool device_hangs;  /* requests go to it, and none comes back */
static atomic_bool enter_refused; /* by a filter that came later */

static long see(long number, const long a[6]) {
  if (number != CALL_ENTER)
    return calls_real(number, a);
  atomic_fetch_add(&entered, 1);
  if (atomic_load(&enter_refused)) {
    errno = EPERM;
    return -1;
  }
  if (!atomic_load(&device_hangs))
    return calls_real(number, a);
  const long submit_only[6] = {a[0], a[1], 0, a[3] & ~(long)GETEVENTS};
  calls_real(number, submit_only);
  struct timespec pause = {0, 1000000};
  nanosleep(&pause, NULL);
  errno = ETIME;
  return -1;
}

static void make_files(void) {
  for (int i = 0; i < 2; i++) {
    snprintf(paths[i], sizeof(paths[i]), "%s/%c", folder, 'a' + i);
    uint64_t size = i == 0 ? FIRST_SIZE : SECOND_SIZE;
    char *zeros = calloc(1, size);
    int descriptor = open(paths[i], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK_EQUAL(write(descriptor, zeros, size), size);
    CHECK_EQUAL(fsync(descriptor), 0);
    close(descriptor);
    free(zeros);
  }
}

static um_store *open_files(int direct) {
  um_file_part parts[2] = {{paths[0], UINT64_MAX}, {paths[1], UINT64_MAX}};
  um_file_options options = {
      .parts = parts, .part_count = 2, .writable = 1, .lock = 1, .direct = direct, .size = UINT64_MAX};
  um_store *store = NULL;
  um_error error;
  if (um_file_store_open(&options, &store, &error) < 0)
    fprintf(stderr, "%s\n", error.text);
  CHECK(store);
  return store;
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
  CHECK(!atomic_load(&device_hangs)); /* the buffer is the device's, and it may still write it */
  p->told[write - batch->reads]++;
}

/* Pages far apart, for the most; among them runs, pieces of a page, one over the parts' border, and the tail. */
static plan *make_plan(unsigned value) {
  plan *p = calloc(1, sizeof(*p));
  p->expected = calloc(1, SIZE);
  CHECK_EQUAL(posix_memalign((void **)&p->memory, BLOCK, (uint64_t)WRITES * 2 * BLOCK), 0);
  for (uint32_t i = 0; i < WRITES; i++) {
    um_write *write = &p->writes[i];
    uint64_t place = (uint64_t)(i * 7 % WRITES) * 2 * BLOCK;
    *write = (um_write){
        .offset = place, .length = BLOCK, .buffer = p->memory + (uint64_t)i * 2 * BLOCK, .error = &p->errors[i]};
    if (place == FIRST_SIZE - 2 * BLOCK) { /* over the border */
      write->offset += BLOCK;
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
    int descriptor = open(paths[i], O_RDONLY | O_CLOEXEC);
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
  make_files();
  um_store *store = open_files(-1);
  plan *p = make_plan(3);
  uint64_t before = atomic_load(&entered);
  um_error error;
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  CHECK(atomic_load(&entered) > before);
  CHECK_EQUAL(um_store_flush(store, &error), 0);
  check_all_ended(p);
  check_files(p);
  free_plan(p);
  close_store(store);
}

static void test_writes_that_fail_leave_the_others_alone_and_make_no_file_longer(void) {
  make_files();
  um_store *store = open_files(-1);
  plan *p = make_plan(5);
  uint64_t end = FIRST_SIZE + 100 * BLOCK + 500;
  uint32_t failed = 0;
  p->writes[100].offset = SIZE; /* past the store */
  CHECK_EQUAL(truncate(paths[1], (off_t)(end - FIRST_SIZE)), 0);
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
  CHECK_EQUAL(stat(paths[1], &status), 0);
  CHECK_EQUAL(status.st_size, end - FIRST_SIZE);
  free_plan(p);
  close_store(store);
}

static void test_store_that_writes_through_the_page_cache_takes_no_batch(void) {
  make_files();
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
  make_files();
  um_store *store = open_files(-1);
  plan *p = make_plan(9);
  CHECK_EQUAL(um_io_uring_set(1), 0);
  atomic_store(&enter_refused, true);
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  check_all_ended(p);
  check_files(p);
  CHECK_EQUAL(run_batch(store, &p->batch), -EOPNOTSUPP);
  atomic_store(&enter_refused, false);
  CHECK_EQUAL(um_io_uring_set(-1), 0);
  free_plan(p);
  close_store(store);
}

static void *let_go_later(void *argument) {
  (void)argument;
  struct timespec pause = {0, 200000000};
  nanosleep(&pause, NULL);
  atomic_store(&device_hangs, false);
  return NULL;
}

/* Ten times as long as the batch's time-out, which is for reads. */
static void test_device_that_hangs_is_waited_for(void) {
  make_files();
  um_store *store = open_files(-1);
  plan *p = make_plan(11);
  for (uint32_t i = 0; i < WRITES; i++) { /* what goes the ordinary way does not hang here */
    p->writes[i].offset = (uint64_t)i * 2 * BLOCK;
    p->writes[i].length = BLOCK;
  }
  atomic_store(&device_hangs, true);
  pthread_t helper;
  CHECK_EQUAL(pthread_create(&helper, NULL, let_go_later, NULL), 0);
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  pthread_join(helper, NULL);
  check_all_ended(p);
  free_plan(p);
  close_store(store);
}

int main(void) {
  calls_instead = see;
  CHECK(mkdtemp(folder));
  make_files();
  um_store *store = open_files(-1);
  bool direct = um_file_store_is_direct(store);
  close_store(store);
  int refused = um_io_uring_probe();
  test_store_that_writes_through_the_page_cache_takes_no_batch();
  if (refused < 0 || !direct) {
    fprintf(stderr, "NOT TESTED: batches: %s\n", direct ? strerror(-refused) : "no direct I/O here");
  } else {
    test_batch_of_many_writes_puts_each_in_its_place();
    test_writes_that_fail_leave_the_others_alone_and_make_no_file_longer();
    test_ring_switched_off_takes_no_batch();
    test_filter_that_comes_later_sends_writes_the_ordinary_way();
    test_device_that_hangs_is_waited_for();
  }
  unlink(paths[0]);
  unlink(paths[1]);
  return rmdir(folder);
}
