/* two_files.c: see two_files.h. */
#define _GNU_SOURCE
#include "two_files.h"

#include "calls.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#define CALL_ENTER 426
#define GETEVENTS 1u

char two_files_paths[2][64];
_Atomic uint64_t ring_entered;
atomic_bool ring_hangs, ring_refused;

static char folder[] = "/var/tmp/umappy-test-XXXXXX";

static long see(long number, const long a[6]) {
  if (number != CALL_ENTER)
    return calls_real(number, a);
  atomic_fetch_add(&ring_entered, 1);
  if (atomic_load(&ring_refused)) {
    errno = EPERM;
    return -1;
  }
  if (!atomic_load(&ring_hangs))
    return calls_real(number, a);
  const long submit_only[6] = {a[0], a[1], 0, a[3] & ~(long)GETEVENTS};
  calls_real(number, submit_only);
  struct timespec pause = {0, 1000000};
  nanosleep(&pause, NULL);
  errno = ETIME;
  return -1;
}

unsigned char two_files_byte(uint64_t offset) {
  return (unsigned char)((offset >> 12) * 37 + offset % 251);
}

void two_files_make(void) {
  uint64_t offset = 0;
  for (int i = 0; i < 2; i++) {
    snprintf(two_files_paths[i], sizeof(two_files_paths[i]), "%s/%c", folder, 'a' + i);
    uint64_t size = i == 0 ? FIRST_SIZE : SECOND_SIZE;
    char *bytes = malloc(size);
    for (uint64_t j = 0; j < size; j++)
      bytes[j] = (char)two_files_byte(offset++);
    int descriptor = open(two_files_paths[i], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK_EQUAL(write(descriptor, bytes, size), size);
    CHECK_EQUAL(fsync(descriptor), 0);
    close(descriptor);
    free(bytes);
  }
}

um_store *two_files_open(int direct, bool writable) {
  um_file_part parts[2] = {{two_files_paths[0], UINT64_MAX}, {two_files_paths[1], UINT64_MAX}};
  um_file_options options = {
      .parts = parts, .part_count = 2, .writable = writable, .lock = writable, .direct = direct, .size = UINT64_MAX};
  um_store *store = NULL;
  um_error error;
  if (um_file_store_open(&options, &store, &error) < 0)
    fprintf(stderr, "%s\n", error.text);
  CHECK(store);
  return store;
}

bool two_files_begin(void) {
  calls_instead = see;
  CHECK(mkdtemp(folder));
  two_files_make();
  um_store *store = two_files_open(-1, false);
  bool direct = um_file_store_is_direct(store);
  um_store_close(store, NULL);
  int refused = um_io_uring_probe();
  if (direct && refused == 0)
    return true;
  fprintf(stderr, "NOT TESTED: batches: %s\n", direct ? strerror(-refused) : "no direct I/O here");
  return false;
}

int two_files_end(void) {
  unlink(two_files_paths[0]);
  unlink(two_files_paths[1]);
  return rmdir(folder);
}
