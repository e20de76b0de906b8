/* The file store from many threads, across forks that no Python sees, and with more bytes than one system call moves.
 */
#define _GNU_SOURCE
#include "check.h"
#include "io.h"
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK 4096u
#define THREADS 6
#define BLOCKS_EACH 8
#define TURNS 40

static char folder[] = "/var/tmp/umappy-test-XXXXXX";

/* Mode w+ or r+; NULL when that fails. */
static um_store *open_parts(uint64_t first, uint64_t second, int mode_create) {
  static char paths[2][64];
  snprintf(paths[0], sizeof(paths[0]), "%s/a", folder);
  snprintf(paths[1], sizeof(paths[1]), "%s/b", folder);
  um_file_part parts[2] = {{paths[0], first}, {paths[1], second}};
  um_file_options options = {.parts = parts,
                             .part_count = second ? 2 : 1,
                             .writable = 1,
                             .create = mode_create,
                             .truncate = mode_create,
                             .direct = -1,
                             .lock = 1,
                             .size = UINT64_MAX};
  um_store *store = NULL;
  um_error error;
  int result = um_file_store_open(&options, &store, &error);
  if (result < 0 && result != -UM_ELOCKED)
    fprintf(stderr, "%s\n", error.text);
  return result < 0 ? NULL : store;
}

/* Called once, just before the next lock is asked for: what another process may do in that moment. */
static void (*before_lock)(void);

int fcntl(int descriptor, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  void *argument = va_arg(arguments, void *);
  va_end(arguments);
  void (*hook)(void) = command == F_OFD_SETLK ? before_lock : NULL;
  if (hook) {
    before_lock = NULL;
    hook();
  }
  return (int)syscall(SYS_fcntl, descriptor, command, argument);
}

static atomic_bool refuse_direct; /* as a file system that takes O_DIRECT when opening, and no other call */

static bool is_refused(int descriptor) {
  return atomic_load(&refuse_direct) && syscall(SYS_fcntl, descriptor, F_GETFL, 0) & O_DIRECT;
}

ssize_t pread(int descriptor, void *buffer, size_t length, off_t offset) {
  if (!is_refused(descriptor))
    return syscall(SYS_pread64, descriptor, buffer, length, offset);
  errno = EINVAL;
  return -1;
}

ssize_t pwrite(int descriptor, const void *buffer, size_t length, off_t offset) {
  if (!is_refused(descriptor))
    return syscall(SYS_pwrite64, descriptor, buffer, length, offset);
  errno = EINVAL;
  return -1;
}

typedef struct worker {
  pthread_t thread;
  um_store *store;
  unsigned index;
  atomic_bool *stop; /* of those who flush and fork beside the others */
} worker;

/* Every third block of the store is this thread's: direct, in unaligned pieces, and the tail. */
static void *write_and_check(void *argument) {
  worker *self = argument;
  char *memory = aligned_alloc(BLOCK, 2 * BLOCK);
  for (unsigned turn = 1; turn <= TURNS; turn++) {
    for (unsigned i = 0; i < BLOCKS_EACH; i++) {
      uint64_t offset = (uint64_t)(i * THREADS + self->index) * BLOCK;
      uint64_t length = um_store_size(self->store) - offset < BLOCK ? um_store_size(self->store) - offset : BLOCK;
      memset(memory, (int)(turn + i + self->index), BLOCK);
      uint64_t cut = turn % 2 ? length : 1000;
      CHECK_EQUAL(um_store_write(self->store, offset, memory, cut, NULL), 0);
      CHECK_EQUAL(um_store_write(self->store, offset + cut, memory + cut, length - cut, NULL), 0);
      CHECK_EQUAL(um_store_read(self->store, offset, memory + BLOCK, length, NULL), 0);
      CHECK(memcmp(memory, memory + BLOCK, length) == 0);
    }
  }
  free(memory);
  return NULL;
}

static void *flush_all_the_time(void *argument) {
  worker *self = argument;
  while (!atomic_load(self->stop))
    CHECK_EQUAL(um_store_flush(self->store, NULL), 0);
  return NULL;
}

static void check_child(um_store *store) {
  um_error error;
  char byte;
  if (um_store_read(store, 0, &byte, 1, &error) != -UM_EFORKED || um_store_flush(store, &error) != -UM_EFORKED)
    _exit(1);
  for (int descriptor = 3; descriptor < 100; descriptor++) {
    char link[64], target[128];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, target, sizeof(target) - 1);
    if (length > 0 && (size_t)length > strlen(folder) && memcmp(target, folder, strlen(folder)) == 0)
      _exit(2);
  }
  um_store_close(store, NULL);
  _exit(0);
}

static void fork_and_check(um_store *store) {
  pid_t child = fork();
  if (child == 0)
    check_child(store);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK_EQUAL(status, 0);
}

static void test_threads_flushes_and_forks_disturb_no_byte(void) {
  uint64_t size = (uint64_t)THREADS * BLOCKS_EACH * BLOCK - 700;
  um_store *store = open_parts(5 * BLOCK, size - 5 * BLOCK, 1);
  CHECK(store);
  atomic_bool stop = false;
  worker workers[THREADS], flusher = {.store = store, .stop = &stop};
  for (unsigned i = 0; i < THREADS; i++) {
    workers[i] = (worker){.store = store, .index = i};
    CHECK_EQUAL(pthread_create(&workers[i].thread, NULL, write_and_check, &workers[i]), 0);
  }
  CHECK_EQUAL(pthread_create(&flusher.thread, NULL, flush_all_the_time, &flusher), 0);
  for (int i = 0; i < 5; i++)
    fork_and_check(store);
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join(workers[i].thread, NULL);
  atomic_store(&stop, true);
  pthread_join(flusher.thread, NULL);
  CHECK_EQUAL(um_store_close(store, NULL), 0);
}

static void test_child_that_closes_leaves_the_parents_lock(void) {
  um_store *store = open_parts(BLOCK, 0, 1);
  CHECK(store);
  fork_and_check(store);
  CHECK(!open_parts(BLOCK, 0, 0));
  CHECK_EQUAL(um_store_close(store, NULL), 0);
  store = open_parts(BLOCK, 0, 0);
  CHECK(store);
  um_store_close(store, NULL);
}

static void test_child_may_open_a_store_of_its_own(void) {
  um_store *inherited = open_parts(BLOCK, 0, 1);
  CHECK(inherited);
  pid_t child = fork();
  if (child == 0) {
    char path[64], byte;
    snprintf(path, sizeof(path), "%s/a", folder);
    um_file_part part = {path, UINT64_MAX};
    um_file_options options = {.parts = &part, .part_count = 1, .direct = -1, .size = UINT64_MAX};
    um_store *own = NULL;
    if (um_file_store_open(&options, &own, NULL) != 0 || um_store_read(own, 0, &byte, 1, NULL) != 0)
      _exit(1);
    um_store_close(inherited, NULL);
    _exit(um_store_read(own, 0, &byte, 1, NULL) == 0 && um_store_close(own, NULL) == 0 ? 0 : 2);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK_EQUAL(status, 0);
  um_store_close(inherited, NULL);
}

static void replace_file(void) {
  char path[64], other[64];
  snprintf(path, sizeof(path), "%s/a", folder);
  snprintf(other, sizeof(other), "%s/other", folder);
  int descriptor = open(other, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  CHECK_EQUAL(ftruncate(descriptor, BLOCK), 0);
  close(descriptor);
  CHECK_EQUAL(rename(other, path), 0);
}

static void remove_file(void) {
  char path[64];
  snprintf(path, sizeof(path), "%s/a", folder);
  CHECK_EQUAL(unlink(path), 0);
}

static char read_first_byte(void) {
  char path[64], byte = 0;
  snprintf(path, sizeof(path), "%s/a", folder);
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  CHECK_EQUAL(pread(descriptor, &byte, 1, 0), 1);
  close(descriptor);
  return byte;
}

/* Else the writer would write into a file without a name: whoever had the lock before may have removed it. */
static void test_file_replaced_or_removed_before_the_lock_is_opened_again(void) {
  void (*const hooks[])(void) = {replace_file, remove_file};
  for (size_t i = 0; i < 2; i++) {
    um_store_close(open_parts(BLOCK, 0, 1), NULL);
    before_lock = hooks[i];
    um_store *store = open_parts(BLOCK, 0, 1);
    CHECK(store && !before_lock);
    CHECK_EQUAL(um_store_write(store, 0, "z", 1, NULL), 0);
    CHECK_EQUAL(read_first_byte(), 'z');
    um_store_close(store, NULL);
  }
}

static int faster;

static void lock_first(void) {
  char path[64];
  snprintf(path, sizeof(path), "%s/a", folder);
  faster = open(path, O_RDWR | O_CLOEXEC);
  struct flock lock = {.l_type = F_WRLCK};
  CHECK_EQUAL(fcntl(faster, F_OFD_SETLK, &lock), 0);
}

static void test_new_file_that_another_locked_first_is_not_removed(void) {
  remove_file();
  before_lock = lock_first;
  CHECK(!open_parts(BLOCK, 0, 1));
  struct stat status;
  CHECK_EQUAL(fstat(faster, &status), 0);
  CHECK_EQUAL(status.st_nlink, 1);
  close(faster);
}

static void test_direct_calls_that_are_refused_go_buffered(void) {
  um_store *store = open_parts(4 * BLOCK, 0, 1);
  CHECK(store);
  if (!um_file_store_is_direct(store))
    fprintf(stderr, "%s has no direct I/O: nothing to refuse\n", folder);
  char *memory = aligned_alloc(BLOCK, 4 * BLOCK), *again = aligned_alloc(BLOCK, 4 * BLOCK);
  memset(memory, 'r', 4 * BLOCK);
  atomic_store(&refuse_direct, true);
  CHECK_EQUAL(um_store_write(store, 0, memory, 4 * BLOCK, NULL), 0);
  CHECK_EQUAL(um_store_read(store, 0, again, 4 * BLOCK, NULL), 0);
  atomic_store(&refuse_direct, false);
  CHECK(memcmp(memory, again, 4 * BLOCK) == 0);
  CHECK(!um_file_store_is_direct(store));
  CHECK_EQUAL(um_store_flush(store, NULL), 0);
  um_store_close(store, NULL);
  free(memory);
  free(again);
}

/* Such a child runs no handler: only the unlock by name frees the file while it lives. */
static void test_close_beside_a_child_of_a_bare_clone_frees_the_lock(void) {
  um_store *store = open_parts(BLOCK, 0, 1);
  CHECK(store);
  pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (child == 0)
    for (;;)
      pause();
  um_store_close(store, NULL);
  store = open_parts(BLOCK, 0, 0);
  CHECK(store);
  um_store_close(store, NULL);
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
}

#ifndef __SANITIZE_THREAD__ /* it would note down every one of the bytes: four times their size */
static void test_write_of_more_than_a_system_call_moves_is_split(void) {
  uint64_t length = (UINT64_C(5) << 30) + 12345, done = 0;
  char *memory = mmap(NULL, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED);
  int descriptor = open("/dev/null", O_WRONLY | O_CLOEXEC); /* takes everything without looking at it */
  CHECK_EQUAL(um_io_write(descriptor, 0, memory, length, 1, &done), 0);
  CHECK_EQUAL(done, length);
  close(descriptor);
  munmap(memory, length);
}
#endif

static void test_read_at_the_end_says_so_and_how_much_came(void) {
  char path[64], buffer[BLOCK];
  snprintf(path, sizeof(path), "%s/short", folder);
  int descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK_EQUAL(ftruncate(descriptor, 1000), 0);
  uint64_t done = 0;
  CHECK_EQUAL(um_io_read(descriptor, 0, buffer, BLOCK, 1, &done), UM_IO_END);
  CHECK_EQUAL(done, 1000);
  CHECK_EQUAL(um_io_read(descriptor, 0, buffer, BLOCK, 512, &done), UM_IO_SHORT);
  CHECK_EQUAL(done, 1000);
  CHECK_EQUAL(um_io_read(descriptor, 0, buffer, 1000, 512, &done), 0);
  CHECK_EQUAL(um_io_read(-1, 0, buffer, 1, 1, &done), -EBADF);
  CHECK_EQUAL(done, 0);
  close(descriptor);
  unlink(path);
}

int main(void) {
  CHECK(mkdtemp(folder));
  test_threads_flushes_and_forks_disturb_no_byte();
  test_child_that_closes_leaves_the_parents_lock();
  test_child_may_open_a_store_of_its_own();
  test_file_replaced_or_removed_before_the_lock_is_opened_again();
  test_new_file_that_another_locked_first_is_not_removed();
  test_direct_calls_that_are_refused_go_buffered();
  test_close_beside_a_child_of_a_bare_clone_frees_the_lock();
#ifndef __SANITIZE_THREAD__
  test_write_of_more_than_a_system_call_moves_is_split();
#endif
  test_read_at_the_end_says_so_and_how_much_came();
  for (const char *name = "ab"; *name; name++) {
    char path[64];
    snprintf(path, sizeof(path), "%s/%c", folder, *name);
    unlink(path);
  }
  return rmdir(folder);
}
