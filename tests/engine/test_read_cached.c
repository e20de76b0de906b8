/* Reading what the page cache has already: never stale, never waiting, and next to nothing where there is nothing. */
#define _GNU_SOURCE
#include "calls.h"
#include "check.h"
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK 4096u
#define PAGES 256u
#define SIZE (PAGES * BLOCK + 1000u)
#define CALL_CACHESTAT 451

static char folder[] = "/var/tmp/umappy-test-XXXXXX";
static char path[64];

static _Atomic uint64_t asked;     /* calls of cachestat */
static _Atomic uint64_t attempted; /* calls of preadv2 */
static atomic_bool old_kernel;     /* it has no cachestat */

static long see(long number, const long a[6]) {
  if (number == CALL_CACHESTAT) {
    atomic_fetch_add(&asked, 1);
    if (atomic_load(&old_kernel)) {
      errno = ENOSYS;
      return -1;
    }
  }
  return calls_real(number, a);
}

ssize_t preadv2(int descriptor, const struct iovec *vectors, int count, off_t offset, int flags) {
  atomic_fetch_add(&attempted, 1);
  return syscall(SYS_preadv2, descriptor, vectors, count, offset, 0, flags);
}

static um_store *open_file(bool writable, int direct) {
  um_file_part part = {path, UINT64_MAX};
  um_file_options options = {
      .parts = &part, .part_count = 1, .writable = writable, .lock = writable, .direct = direct, .size = UINT64_MAX};
  um_store *store = NULL;
  um_error error;
  if (um_file_store_open(&options, &store, &error) < 0)
    fprintf(stderr, "%s\n", error.text);
  CHECK(store);
  return store;
}

static char expected_byte(uint64_t offset) {
  return (char)((offset >> 12) * 31 + offset % 241);
}

static void make_file(void) {
  char *bytes = malloc(SIZE);
  for (uint64_t i = 0; i < SIZE; i++)
    bytes[i] = expected_byte(i);
  int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  CHECK_EQUAL(write(descriptor, bytes, SIZE), SIZE);
  CHECK_EQUAL(fsync(descriptor), 0);
  close(descriptor);
  free(bytes);
}

static void warm(uint64_t offset, uint64_t length) {
  char *bytes = malloc(length);
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  CHECK_EQUAL(pread(descriptor, bytes, length, (off_t)offset), length);
  close(descriptor);
  free(bytes);
}

static void cool(void) {
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  CHECK_EQUAL(posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED), 0);
  close(descriptor);
}

static uint64_t count_cached(void) {
  uint64_t range[2] = {0, SIZE}, counts[5];
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  CHECK_EQUAL(syscall(CALL_CACHESTAT, descriptor, range, counts, 0), 0);
  close(descriptor);
  return counts[0];
}

static int read_cached(um_store *store, uint64_t offset, void *buffer, uint64_t length) {
  return store->ops->read_cached(store, offset, buffer, length);
}

/* Of a warm file, which the kernel may still let go of when it likes: it is warmed again then. */
static void check_read(um_store *store, uint64_t offset, uint64_t length) {
  char *buffer = malloc(length);
  int code = read_cached(store, offset, buffer, length);
  for (int attempt = 0; code == -EAGAIN && count_cached() < PAGES && attempt < 3; attempt++) {
    warm(0, SIZE);
    code = read_cached(store, offset, buffer, length);
  }
  CHECK_EQUAL(code, 0);
  for (uint64_t i = 0; i < length; i++)
    CHECK_EQUAL(buffer[i], expected_byte(offset + i));
  free(buffer);
}

static void test_warm_file_gives_its_bytes_from_memory(void) {
  make_file();
  warm(0, SIZE);
  for (int direct = -1; direct <= 0; direct++) {
    um_store *store = open_file(false, direct);
    check_read(store, 0, SIZE);
    check_read(store, 7 * BLOCK, BLOCK);
    check_read(store, 7 * BLOCK + 5, 2 * BLOCK);
    check_read(store, PAGES * BLOCK, 1000);
    um_store_close(store, NULL);
  }
}

static void test_cold_file_is_hardly_asked_and_not_read_in(void) {
  char buffer[BLOCK];
  make_file();
  cool();
  CHECK_EQUAL(count_cached(), 0);
  um_store *store = open_file(false, -1);
  uint64_t before = atomic_load(&asked), attempts = atomic_load(&attempted);
  for (uint32_t i = 0; i < 20000; i++)
    CHECK_EQUAL(read_cached(store, i % PAGES * BLOCK, buffer, BLOCK), -EAGAIN);
  CHECK(atomic_load(&asked) - before > 10 && atomic_load(&asked) - before < 40);
  CHECK_EQUAL(atomic_load(&attempted), attempts);
  CHECK_EQUAL(count_cached(), 0);
  um_store_close(store, NULL);
}

static void test_file_that_becomes_warm_is_noticed_and_asked_each_time_from_then_on(void) {
  char buffer[BLOCK];
  make_file();
  cool();
  um_store *store = open_file(false, -1);
  for (uint32_t i = 0; i < 20000; i++)
    read_cached(store, 0, buffer, BLOCK);
  warm(0, SIZE);
  uint32_t missed = 0;
  while (read_cached(store, 0, buffer, BLOCK) != 0)
    missed++;
  CHECK(missed <= 1024);
  for (uint32_t i = 0; i < PAGES; i++)
    check_read(store, i * BLOCK, BLOCK);
  cool();
  CHECK_EQUAL(read_cached(store, 0, buffer, BLOCK), -EAGAIN);
  warm(0, SIZE);
  for (missed = 0; read_cached(store, 0, buffer, BLOCK) != 0;)
    missed++;
  CHECK_EQUAL(missed, 2); /* the misses before the hits count no more */
  um_store_close(store, NULL);
}

static void test_run_that_is_cached_in_part_is_left_to_read(void) {
  make_file();
  cool();
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  char buffer[2 * BLOCK];
  CHECK_EQUAL(posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM), 0); /* no page more than this one */
  CHECK_EQUAL(pread(descriptor, buffer, BLOCK, 9 * BLOCK), BLOCK);
  close(descriptor);
  um_store *store = open_file(false, -1);
  check_read(store, 9 * BLOCK, BLOCK);
  uint64_t attempts = atomic_load(&attempted);
  CHECK_EQUAL(read_cached(store, 9 * BLOCK, buffer, 2 * BLOCK), -EAGAIN);
  CHECK_EQUAL(atomic_load(&attempted), attempts);
  um_store_close(store, NULL);
}

static void test_file_that_shrank_is_left_to_read(void) {
  char buffer[BLOCK];
  make_file();
  um_store *store = open_file(false, -1);
  CHECK_EQUAL(truncate(path, 3 * BLOCK + 100), 0);
  warm(0, 3 * BLOCK + 100);
  CHECK_EQUAL(read_cached(store, 3 * BLOCK, buffer, BLOCK), -EAGAIN);
  um_error error;
  CHECK_EQUAL(um_store_read(store, 3 * BLOCK, buffer, BLOCK, &error), -UM_ETRUNCATED);
  um_store_close(store, NULL);
}

static void test_direct_only_store_never_uses_the_cache(void) {
  char buffer[BLOCK];
  make_file();
  warm(0, SIZE);
  um_store *store = open_file(false, 1);
  CHECK_EQUAL(read_cached(store, 0, buffer, BLOCK), -EOPNOTSUPP);
  um_store_close(store, NULL);
}

static void test_kernel_without_cachestat_leaves_direct_files_alone(void) {
  char buffer[BLOCK];
  make_file();
  warm(0, SIZE);
  atomic_store(&old_kernel, true);
  um_store *direct = open_file(false, -1), *buffered = open_file(false, 0);
  uint64_t before = atomic_load(&asked), attempts = atomic_load(&attempted);
  for (int i = 0; i < 10; i++)
    CHECK_EQUAL(read_cached(direct, 0, buffer, BLOCK), -EOPNOTSUPP);
  CHECK_EQUAL(atomic_load(&asked), before + 1);
  CHECK_EQUAL(atomic_load(&attempted), attempts);
  check_read(buffered, 0, SIZE);
  atomic_store(&old_kernel, false);
  um_store_close(direct, NULL);
  um_store_close(buffered, NULL);
}

static void test_child_finds_nothing_cached_in_a_store_of_its_parent(void) {
  make_file();
  warm(0, SIZE);
  um_store *store = open_file(false, -1);
  pid_t child = fork();
  if (child == 0) {
    char buffer[BLOCK];
    _exit(read_cached(store, 0, buffer, BLOCK) == -EAGAIN ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK_EQUAL(status, 0);
  check_read(store, 0, BLOCK);
  um_store_close(store, NULL);
}

static atomic_bool stop;

/* Somebody else's read-ahead, at any moment of our writes. */
static void *read_in_all_the_time(void *argument) {
  (void)argument;
  while (!atomic_load(&stop))
    warm(0, SIZE);
  return NULL;
}

/* Each page is written direct and then read cached, while its neighbours are written by others. */
static void *write_and_read_cached(void *argument) {
  um_store *store = argument;
  static _Atomic uint32_t threads;
  uint32_t self = atomic_fetch_add(&threads, 1), hits = 0;
  char *memory = aligned_alloc(BLOCK, 2 * BLOCK);
  for (uint32_t turn = 1; turn <= 1500; turn++) {
    uint64_t offset = (uint64_t)(turn % (PAGES / 2) * 2 + self) * BLOCK;
    memset(memory, (int)(turn * 2 + self), BLOCK);
    CHECK_EQUAL(um_store_write(store, offset, memory, BLOCK, NULL), 0);
    if (turn % 4 == 0)
      warm(offset, BLOCK);
    for (int i = 0; i < 2000; i++) /* most are not even asked */
      if (read_cached(store, offset, memory + BLOCK, BLOCK) == 0) {
        hits++;
        CHECK(memcmp(memory, memory + BLOCK, BLOCK) == 0);
      }
  }
  CHECK(hits > 0);
  free(memory);
  return NULL;
}

static void test_cached_read_after_a_direct_write_is_never_stale(void) {
  make_file();
  um_store *store = open_file(true, -1);
  char *memory = aligned_alloc(BLOCK, 2 * BLOCK);
  for (int turn = 0; turn < 50; turn++) {
    uint64_t offset = (uint64_t)turn * BLOCK;
    warm(0, SIZE);
    memset(memory, turn + 1, BLOCK);
    CHECK_EQUAL(um_store_write(store, offset, memory, BLOCK, NULL), 0);
    int result = read_cached(store, offset, memory + BLOCK, BLOCK);
    CHECK(result == -EAGAIN || memcmp(memory, memory + BLOCK, BLOCK) == 0);
    warm(0, SIZE);
    while (read_cached(store, offset, memory + BLOCK, BLOCK) != 0) {
    }
    CHECK(memcmp(memory, memory + BLOCK, BLOCK) == 0);
  }
  pthread_t reader, writers[2];
  CHECK_EQUAL(pthread_create(&reader, NULL, read_in_all_the_time, NULL), 0);
  for (int i = 0; i < 2; i++)
    CHECK_EQUAL(pthread_create(&writers[i], NULL, write_and_read_cached, store), 0);
  for (int i = 0; i < 2; i++)
    pthread_join(writers[i], NULL);
  atomic_store(&stop, true);
  pthread_join(reader, NULL);
  free(memory);
  um_store_close(store, NULL);
}

static void test_tail_written_through_the_cache_is_read_from_it(void) {
  char buffer[1000], tail[1000];
  make_file();
  warm(0, SIZE);
  um_store *store = open_file(true, -1);
  memset(tail, 't', sizeof(tail));
  CHECK_EQUAL(um_store_write(store, PAGES * BLOCK, tail, sizeof(tail), NULL), 0);
  CHECK_EQUAL(read_cached(store, PAGES * BLOCK, buffer, sizeof(buffer)), 0);
  CHECK(memcmp(tail, buffer, sizeof(tail)) == 0);
  um_store_close(store, NULL);
}

int main(void) {
  calls_instead = see;
  CHECK(mkdtemp(folder));
  snprintf(path, sizeof(path), "%s/a", folder);
  make_file();
  uint64_t range[2] = {0, SIZE}, counts[5];
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  bool tells = syscall(CALL_CACHESTAT, descriptor, range, counts, 0) == 0;
  close(descriptor);
  um_store *store = open_file(false, -1);
  bool direct = um_file_store_is_direct(store);
  um_store_close(store, NULL);
  if (!tells || !direct) {
    fprintf(stderr, "NOT TESTED: cached reads: %s\n", tells ? "no direct I/O here" : "no cachestat here");
  } else {
    test_warm_file_gives_its_bytes_from_memory();
    test_cold_file_is_hardly_asked_and_not_read_in();
    test_file_that_becomes_warm_is_noticed_and_asked_each_time_from_then_on();
    test_run_that_is_cached_in_part_is_left_to_read();
    test_file_that_shrank_is_left_to_read();
    test_direct_only_store_never_uses_the_cache();
    test_kernel_without_cachestat_leaves_direct_files_alone();
    test_child_finds_nothing_cached_in_a_store_of_its_parent();
    test_cached_read_after_a_direct_write_is_never_stale();
    test_tail_written_through_the_cache_is_read_from_it();
  }
  unlink(path);
  return rmdir(folder);
}
