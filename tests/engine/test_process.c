/* What becomes of regions when the process does something to itself: it ends, closes the uffd, locks its memory, or
 * handles signals. */
#define _GNU_SOURCE
#include "rig.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

typedef struct exiting {
  int fd; /* the file, seen by parent and child */
  char path[64];
} exiting;

static void write_and_exit(void *argument) {
  exiting *e = argument;
  rig r = {0};
  um_file_part part = {e->path, UINT64_MAX};
  um_file_options options = {.parts = &part, .part_count = 1, .writable = 1, .direct = -1, .size = UINT64_MAX};
  um_error error;
  CHECK_EQUAL(um_file_store_open(&options, &r.store, &error), 0);
  r.pager = rig_pager(um_pager_memory_min(4096, 1, 1), 1, 1, 1000);
  r.bytes = rig_map(8 << 12);
  um_region_options o = {.page_size = 4096, .writable = 1};
  CHECK_EQUAL(um_region_create(r.pager, r.store, r.bytes, 8 << 12, &o, &r.region), 0);
  um_exit_arm(5000);
  rig_write(&r, 4096, 5);
  exit(0);
}

static void test_dirty_pages_reach_the_store_when_the_process_exits(void) {
  exiting e;
  uint64_t word;
  e.fd = rig_file(8 << 12, false, e.path);
  rig_child(write_and_exit, &e, 0);
  CHECK_EQUAL(pread(e.fd, &word, 8, 4096), 8);
  CHECK_EQUAL(word, 5);
  CHECK_EQUAL(unlink(e.path) | close(e.fd), 0);
}

static void close_the_uffd_and_read(void *unused) {
  (void)unused;
  rig r;
  CHECK(freopen("/dev/null", "w", stderr)); /* it says why it ends */
  rig_open(&r, &(rig_options){.size = 64 << 12});
  CHECK_EQUAL(rig_read(&r, 0), rig_word(0));
  close(r.pager->uffd);
  for (uint64_t page = 1; page < 64; page++)
    if (rig_read(&r, page << 12) != rig_word(page << 12))
      _exit(1); /* zeros */
  sleep_ms(10000);
}

static void test_process_that_closed_the_uffd_is_ended_rather_than_read_zeros(void) {
  for (int i = 0; i < 5; i++)
    rig_child(close_the_uffd_and_read, NULL, SIGABRT);
}

static void lock_and_use(void *unused) {
  (void)unused;
  if (mlockall(MCL_CURRENT | MCL_FUTURE))
    _exit(0); /* RLIMIT_MEMLOCK is small: nothing to see here */
  CHECK(um_memory_locked());
  CHECK_EQUAL(um_memory_lock_on_fault(1), 0);
  rig r;
  rig_open(&r, &(rig_options){.size = 512 << 12});
  CHECK_EQUAL(um_memory_lock_on_fault(0), 0);
  for (uint64_t offset = 0; offset < r.size; offset += 4096) {
    CHECK_EQUAL(rig_read(&r, offset), rig_word(offset));
    rig_write(&r, offset, offset + 1);
  }
  CHECK_EQUAL(mlock(r.bytes, 4 << 12), 0); /* the budget is the stronger promise */
  for (uint64_t offset = 0; offset < r.size; offset += 4096)
    CHECK_EQUAL(rig_read(&r, offset), offset + 1);
  CHECK(rig_stats(&r).peak_used <= rig_stats(&r).memory);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 4096), 4097);
}

static void test_locked_memory_is_evicted_all_the_same(void) {
  rig_child(lock_and_use, NULL, 0);
}

static _Atomic uint64_t signals;

static void on_signal(int number) {
  (void)number;
  atomic_fetch_add(&signals, 1);
}

static void test_signals_in_faulting_threads_change_nothing(void) {
  rig r;
  uint64_t random = 3, turns = 0;
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
  rig_open(&r, &(rig_options){.size = 256 << 12, .fillers = 2, .faults = true});
  rig_fail(&r, 1 << UM_OP_READ, 0, UINT64_MAX, 1);
  CHECK_EQUAL(sigaction(SIGALRM, &action, NULL), 0);
  CHECK_EQUAL(setitimer(ITIMER_REAL, &often, NULL), 0);
  for (; atomic_load(&signals) < 300; turns++) {
    uint64_t offset = rig_random(&random) % 256 * 4096, word = rig_read(&r, offset);
    CHECK(word == rig_word(offset) || word == offset + 1);
    rig_write(&r, offset, offset + 1);
  }
  CHECK_EQUAL(setitimer(ITIMER_REAL, &never, NULL), 0);
  CHECK(turns > 20);
  rig_heal(&r);
  rig_close(&r);
  rig_end(&r);
}

int main(void) {
  watchdog_start(20);
  RUN(test_dirty_pages_reach_the_store_when_the_process_exits);
  RUN(test_process_that_closed_the_uffd_is_ended_rather_than_read_zeros);
  if (SLOWER == 1) /* a sanitizer's shadow cannot be locked */
    RUN(test_locked_memory_is_evicted_all_the_same);
  RUN(test_signals_in_faulting_threads_change_nothing);
  watchdog_pet("the end");
  return 0;
}
