/* Fault traces: nothing is lost uncounted, a child writes nothing, a failing disk is told. With a path it writes the
 * trace that tests/test_trace.py reads. */
#define _GNU_SOURCE
#include "check.h"
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 4u
#define FAULTS 200000u /* a thread */

static const char *path;

static uint64_t size_of(void) {
  struct stat st;
  CHECK(stat(path, &st) == 0);
  return (uint64_t)st.st_size;
}

static uint64_t parse_number(const uint8_t *bytes, uint64_t *at, uint64_t size) {
  uint64_t number = 0;
  for (int shift = 0;; shift += 7) {
    CHECK(*at < size && shift < 64);
    number |= (uint64_t)(bytes[*at] & 0x7f) << shift;
    if (!(bytes[(*at)++] & 0x80))
      return number;
  }
}

/* How many numbers follow a tag; docs/trace.md. */
static int count_numbers(uint8_t tag) {
  return tag == 0x80 ? 3 : tag == 0x81 ? 1 : tag == 0x82 ? 2 : 1 + !!(tag & 4) + !!(tag & 8) + !(tag & 16);
}

/* The end record's: faults written, faults lost. */
static void read_end(uint64_t numbers[2]) {
  uint64_t size = size_of(), at = 24;
  uint8_t *bytes = malloc(size), tag = 0;
  int fd = open(path, O_RDONLY);
  CHECK(bytes && fd >= 0 && read(fd, bytes, size) == (ssize_t)size);
  close(fd);
  while (at < size) {
    tag = bytes[at++];
    for (int i = 0; i < count_numbers(tag); i++) {
      uint64_t number = parse_number(bytes, &at, size);
      if (i < 2)
        numbers[i] = number;
    }
  }
  CHECK_EQUAL(tag, 0x82);
  free(bytes);
}

static void *append(void *trace) {
  for (uint64_t i = 0; i < FAULTS; i++)
    um_trace_fault(trace, 0, i, (uint32_t)getpid(), UM_TRACE_READ);
  return NULL;
}

static void test_threads_that_outrun_the_writer_lose_nothing_uncounted(void) {
  um_trace *trace;
  pthread_t threads[THREADS];
  uint64_t numbers[2];
  CHECK_EQUAL(um_trace_open(path, &trace), 0);
  CHECK_EQUAL(um_trace_region(trace, 0, 4096, 1u << 30), 0);
  for (uint32_t i = 0; i < THREADS; i++)
    CHECK_EQUAL(pthread_create(&threads[i], NULL, append, trace), 0);
  for (uint32_t i = 0; i < THREADS; i++)
    pthread_join(threads[i], NULL);
  CHECK_EQUAL(um_trace_close(trace), 0);
  read_end(numbers);
  CHECK_EQUAL(numbers[0] + numbers[1], THREADS * FAULTS);
  CHECK(numbers[0] > 0);
}

static void test_forked_child_writes_nothing(void) {
  um_trace *trace;
  uint64_t numbers[2];
  CHECK_EQUAL(um_trace_open(path, &trace), 0);
  CHECK_EQUAL(um_trace_region(trace, 0, 4096, 1u << 20), 0);
  um_trace_fault(trace, 0, 1, 7, UM_TRACE_READ);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    um_trace_fault(trace, 0, 2, 7, UM_TRACE_READ);
    int refused = um_trace_region(trace, 1, 4096, 1u << 20);
    int closed = um_trace_close(trace);
    exit(refused == 0 || closed != 0);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK_EQUAL(status, 0);
  um_trace_fault(trace, 0, 3, 7, UM_TRACE_WRITE);
  CHECK_EQUAL(um_trace_close(trace), 0);
  read_end(numbers);
  CHECK_EQUAL(numbers[0], 2);
  CHECK_EQUAL(numbers[1], 0);
}

static void test_process_that_ends_without_close_ends_its_trace(void) {
  uint64_t numbers[2];
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    um_trace *trace;
    if (um_trace_open(path, &trace) || um_trace_region(trace, 0, 4096, 1u << 20))
      _exit(1);
    um_trace_fault(trace, 0, 5, 7, UM_TRACE_READ);
    exit(0);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK_EQUAL(status, 0);
  read_end(numbers);
  CHECK_EQUAL(numbers[0], 1);
}

static void test_failures_are_told(void) {
  um_trace *trace;
  CHECK_EQUAL(um_trace_open("/nonexistent/folder/trace", &trace), -ENOENT);
  CHECK_EQUAL(um_trace_open("/dev/full", &trace), -ENOSPC);
  CHECK_EQUAL(um_trace_open(path, &trace), 0);
  CHECK_EQUAL(um_trace_region(trace, UM_TRACE_REGIONS_MAX, 4096, 4096), -EINVAL);
  CHECK_EQUAL(um_trace_close(trace), 0);
}

/* Every kind, steps forward and back, two regions and threads, numbers of several bytes. */
static int write_sample(void) {
  um_trace *trace;
  if (um_trace_open(path, &trace))
    return 1;
  um_trace_region(trace, 0, 4096, 1ull << 40);
  um_trace_fault(trace, 0, 0, 100, UM_TRACE_READ);
  um_trace_fault(trace, 0, 1, 100, UM_TRACE_READ);
  um_trace_fault(trace, 0, 2, 100, UM_TRACE_WRITE);
  um_trace_region(trace, 300, 65536, 1u << 20);
  um_trace_fault(trace, 300, 15, 4000000, UM_TRACE_REFAULT);
  um_trace_fault(trace, 0, 268435455, 4000000, UM_TRACE_PROTECT);
  usleep(2000);
  um_trace_fault(trace, 0, 7, 100, UM_TRACE_READ);
  um_trace_fault(trace, 300, 0, 100, UM_TRACE_READ);
  return um_trace_close(trace) != 0;
}

int main(int argc, char **argv) {
  if (argc > 1) {
    path = argv[1];
    return write_sample();
  }
  char name[] = "/tmp/umappy-trace-XXXXXX";
  int fd = mkstemp(name);
  CHECK(fd >= 0);
  close(fd);
  path = name;
  test_forked_child_writes_nothing();
  test_process_that_ends_without_close_ends_its_trace();
  test_threads_that_outrun_the_writer_lose_nothing_uncounted();
  test_failures_are_told();
  unlink(name);
  return 0;
}
